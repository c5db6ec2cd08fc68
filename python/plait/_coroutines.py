"""Which callables give coroutines."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def is_coroutine_function(fn: Callable[..., Any]) -> bool:
    """Whether ``fn`` is an ``async def``, a partial of one, or an object whose ``__call__`` is one."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    call = getattr(type(fn), "__call__", None)  # noqa: B004  (we ask what it is, not whether it is there)
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(call)
