"""`asyncio.log`: the standard module."""

from __future__ import annotations

import sys
from asyncio import log
from asyncio.log import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = log
