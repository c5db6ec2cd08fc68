"""`asyncio.base_futures`: the standard module."""

from __future__ import annotations

import sys
from asyncio import base_futures
from asyncio.base_futures import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = base_futures
