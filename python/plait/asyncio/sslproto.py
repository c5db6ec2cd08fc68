"""`asyncio.sslproto`: the standard module."""

from __future__ import annotations

import sys
from asyncio import sslproto
from asyncio.sslproto import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = sslproto
