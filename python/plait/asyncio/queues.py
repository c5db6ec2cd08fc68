"""`asyncio.queues`: the standard module."""

from __future__ import annotations

import sys
from asyncio import queues
from asyncio.queues import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = queues
