"""A function in a module that imports nothing: a worker needs no more than its pool brings along."""

from __future__ import annotations


def nothing() -> None:
    """The job that costs nothing."""
