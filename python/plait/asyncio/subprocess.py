"""`asyncio.subprocess`: the standard module."""

from __future__ import annotations

import sys
from asyncio import subprocess
from asyncio.subprocess import *  # noqa: F403 (what type checkers see)
from asyncio.subprocess import DEVNULL as DEVNULL
from asyncio.subprocess import PIPE as PIPE
from asyncio.subprocess import STDOUT as STDOUT

sys.modules[__name__] = subprocess
