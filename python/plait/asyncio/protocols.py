"""`asyncio.protocols`: the standard module."""

from __future__ import annotations

import sys
from asyncio import protocols
from asyncio.protocols import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = protocols
