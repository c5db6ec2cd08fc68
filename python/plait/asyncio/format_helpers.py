"""`asyncio.format_helpers`: the standard module."""

from __future__ import annotations

import sys
from asyncio import format_helpers
from asyncio.format_helpers import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = format_helpers
