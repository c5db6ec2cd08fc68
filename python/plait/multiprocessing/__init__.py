"""The whole of `multiprocessing`: processes from a zygote, pools that lose one task when a worker dies, and
primitives in nameless shared memory.

Every public name of the standard package and of its modules is here; README.md beside this file says which
are plait's own. Functions and classes keep their standard signatures, and are as thread- and fork-safe.
"""

from __future__ import annotations

import typing as _typing

from plait.errors import OwnerDied  # noqa: F401 (ours alone, so not for star imports)
from plait.multiprocessing import context, process, reduction  # noqa: F401 (part of the package)

if _typing.TYPE_CHECKING:
    from multiprocessing import *  # noqa: F403

__all__ = [name for name in dir(context._default_context) if not name.startswith("_")]
globals().update((name, getattr(context._default_context, name)) for name in __all__)

SUBDEBUG = 5
SUBWARNING = 25
