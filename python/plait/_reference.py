"""A function named as ``MODULE:FUNCTION`` on a command line, and the function itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def load_function(reference: str) -> Callable[..., Any]:
    """Import the function that ``package.module:function`` (or ``module:Class.method``) names.

    Raises ValueError if the text has another form, ImportError if the module or the name in it cannot be had
    (with what the module raised as its cause), TypeError if what is there cannot be called.
    """
    module_name, colon, path = reference.partition(":")
    if not (colon and module_name and path):
        raise ValueError(f"{reference!r} is not of the form MODULE:FUNCTION, such as math:sqrt")
    if module_name.endswith(".py") or "/" in module_name:
        hint = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ValueError(f"{module_name!r} is a file; name the module instead: {hint}:{path}")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise ImportError(f"cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise ImportError(f"cannot import {path!r} from {module_name!r}: it has no {name!r}") from error
    if not callable(found):
        raise TypeError(f"{reference!r} is not a function but {type(found).__name__} {found!r}")
    function: Callable[..., Any] = found
    return function
