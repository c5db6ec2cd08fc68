"""`asyncio.trsock`: the standard module."""

from __future__ import annotations

import sys
from asyncio import trsock
from asyncio.trsock import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = trsock
