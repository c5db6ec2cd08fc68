"""`asyncio.futures`: the standard module."""

from __future__ import annotations

import sys
from asyncio import futures
from asyncio.futures import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = futures
