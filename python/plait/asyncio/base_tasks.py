"""`asyncio.base_tasks`: the standard module."""

from __future__ import annotations

import sys
from asyncio import base_tasks
from asyncio.base_tasks import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = base_tasks
