"""`asyncio.staggered`: the standard module."""

from __future__ import annotations

import sys
from asyncio import staggered
from asyncio.staggered import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = staggered
