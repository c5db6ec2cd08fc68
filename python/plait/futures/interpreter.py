"""`concurrent.futures.interpreter` (Python 3.14 and later), which is the standard one."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from concurrent.futures.interpreter import *  # noqa: F403
else:
    raise ModuleNotFoundError(f"{__name__!r} needs Python 3.14 or later", name=__name__)
