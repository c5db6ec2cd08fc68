"""`asyncio.coroutines`: the standard module."""

from __future__ import annotations

import sys
from asyncio import coroutines
from asyncio.coroutines import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = coroutines
