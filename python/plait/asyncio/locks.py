"""`asyncio.locks`: the standard module."""

from __future__ import annotations

import sys
from asyncio import locks
from asyncio.locks import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = locks
