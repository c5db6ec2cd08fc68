"""`asyncio.mixins`: the standard module."""

from __future__ import annotations

import sys
from asyncio import mixins
from asyncio.mixins import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = mixins
