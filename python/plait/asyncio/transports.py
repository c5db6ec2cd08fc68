"""`asyncio.transports`: the standard module."""

from __future__ import annotations

import sys
from asyncio import transports
from asyncio.transports import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = transports
