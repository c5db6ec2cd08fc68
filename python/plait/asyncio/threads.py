"""`asyncio.threads`: the standard module."""

from __future__ import annotations

import sys
from asyncio import threads
from asyncio.threads import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = threads
