"""`asyncio.exceptions`: the standard module."""

from __future__ import annotations

import sys
from asyncio import exceptions
from asyncio.exceptions import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = exceptions
