"""`asyncio.timeouts`: the standard module."""

from __future__ import annotations

import sys
from asyncio import timeouts
from asyncio.timeouts import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = timeouts
