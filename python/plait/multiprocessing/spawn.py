"""`multiprocessing.spawn`: what a child that does not inherit this process's memory has to be told."""

from __future__ import annotations

from typing import Any

from plait.multiprocessing import context
from plait.multiprocessing._standard import fall_back, standard_module, with_globals

_standard = standard_module("spawn")
# The standard function asks for the start method of the standard package, which would thereby be chosen.
_describe = with_globals(
    _standard.get_preparation_data, get_start_method=context._default_context.get_start_method
)


def get_preparation_data(name: str) -> dict[str, Any]:
    """Return what a child named `name` must know before it can unpickle its `Process`."""
    data: dict[str, Any] = _describe(name)
    # A child's own start method is that of its `Process`, which says so itself.
    del data["start_method"]
    return data


fall_back(globals(), _standard)
