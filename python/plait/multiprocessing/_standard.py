"""How the modules of this package stand on the standard ones of the same name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import FunctionType
from typing import Any, TypeVar, cast

from plait._fall_back import fall_back as fall_back

F = TypeVar("F", bound=Callable[..., Any])


def standard_module(name: str) -> Any:
    """The standard `multiprocessing.<name>`. Of type Any, as its stubs know only what is public."""
    return import_module(f"multiprocessing.{name}")


def with_globals(function: F, **names: Any) -> F:
    """The same code with other meanings for some of its global names."""
    plain = cast(FunctionType, function)
    made = FunctionType(
        plain.__code__,
        {**plain.__globals__, **names},
        plain.__name__,
        plain.__defaults__,
        plain.__closure__,
    )
    made.__kwdefaults__ = plain.__kwdefaults__
    return cast(F, made)
