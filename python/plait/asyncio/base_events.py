"""`asyncio.base_events`: the standard module."""

from __future__ import annotations

import sys
from asyncio import base_events
from asyncio.base_events import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = base_events
