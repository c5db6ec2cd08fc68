"""`asyncio.constants`: the standard module."""

from __future__ import annotations

import sys
from asyncio import constants
from asyncio.constants import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = constants
