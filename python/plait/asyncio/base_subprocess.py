"""`asyncio.base_subprocess`: the standard module."""

from __future__ import annotations

import sys
from asyncio import base_subprocess
from asyncio.base_subprocess import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = base_subprocess
