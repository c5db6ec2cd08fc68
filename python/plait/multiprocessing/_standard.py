"""How the modules of this package stand on the standard ones of the same name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import FunctionType
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def standard_module(name: str) -> Any:
    """The standard `multiprocessing.<name>`. Of type Any, as its stubs know only what is public."""
    return import_module(f"multiprocessing.{name}")


def fall_back(ours: dict[str, Any], standard: Any) -> None:
    """Let a module (its globals) have every name of the standard one that it does not define itself."""

    def __getattr__(name: str) -> Any:
        try:
            return getattr(standard, name)
        except AttributeError:
            raise AttributeError(f"module {ours['__name__']!r} has no attribute {name!r}") from None

    def __dir__() -> list[str]:
        return sorted({*ours, *vars(standard)})

    ours["__getattr__"], ours["__dir__"] = __getattr__, __dir__
    public = [name for name in vars(standard) if not name.startswith("_")]
    ours.setdefault("__all__", getattr(standard, "__all__", public))


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
