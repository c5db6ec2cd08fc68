"""`asyncio.tasks`: the standard module."""

from __future__ import annotations

import sys
from asyncio import tasks
from asyncio.tasks import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = tasks
