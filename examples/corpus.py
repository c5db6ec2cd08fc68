"""The input of the examples: the source files of Python's own standard library, which every machine has."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

STDLIB = Path(sysconfig.get_path("stdlib"))

# Input of tests of the tokenizer and of lib2to3: not meant to be Python 3, or to be decoded at all.
TEST_DATA = ("bad", "lib2to3/tests/data", "test/tokenizedata", "test/test_lib2to3/data")


def source_files(limit: int | None = None) -> list[str]:
    """Paths of the library's modules, relative to `STDLIB`; at most ``limit``, taken evenly from all."""
    files = _all_source_files()
    if limit is None or limit >= len(files):
        return list(files)
    return [files[index * len(files) // limit] for index in range(limit)]


@cache
def _all_source_files() -> tuple[str, ...]:
    found = []
    for path in STDLIB.rglob("*.py"):
        name = path.relative_to(STDLIB).as_posix()
        if "site-packages" in path.parts or "dist-packages" in path.parts:
            continue
        if any(part in name for part in TEST_DATA):
            continue
        try:
            path.read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            continue
        found.append(name)
    return tuple(sorted(found))
