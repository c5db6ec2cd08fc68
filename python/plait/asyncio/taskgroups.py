"""`asyncio.taskgroups`: the standard module."""

from __future__ import annotations

import sys
from asyncio import taskgroups
from asyncio.taskgroups import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = taskgroups
