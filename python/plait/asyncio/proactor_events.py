"""`asyncio.proactor_events`: the standard module."""

from __future__ import annotations

import sys
from asyncio import proactor_events
from asyncio.proactor_events import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = proactor_events
