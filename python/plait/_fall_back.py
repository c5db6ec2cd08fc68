"""How a drop-in module has every name of the standard one that it does not define itself."""

from __future__ import annotations

from typing import Any


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
