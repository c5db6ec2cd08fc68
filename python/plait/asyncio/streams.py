"""`asyncio.streams`: the standard module."""

from __future__ import annotations

import sys
from asyncio import streams
from asyncio.streams import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = streams
