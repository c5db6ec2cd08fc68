"""`asyncio.unix_events`: the standard module."""

from __future__ import annotations

import sys
from asyncio import unix_events
from asyncio.unix_events import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = unix_events
