"""`asyncio.tools`: the standard module, which Python has since 3.14."""

from __future__ import annotations

import sys
from importlib import import_module

if sys.version_info >= (3, 14):
    from asyncio.tools import *  # noqa: F403 (what type checkers see)

sys.modules[__name__] = import_module("asyncio.tools")
