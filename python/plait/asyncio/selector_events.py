"""`asyncio.selector_events`: the standard module."""

from __future__ import annotations

import sys
from asyncio import selector_events
from asyncio.selector_events import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = selector_events
