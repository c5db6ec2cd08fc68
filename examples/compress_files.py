"""Compress files: CPU work that releases the GIL, so threads do it in parallel.

python examples/compress_files.py [--model threads] [--files 200]
"""

from __future__ import annotations

import argparse
import bz2
from typing import NamedTuple

import plait
from corpus import STDLIB, source_files


class Compressed(NamedTuple):
    """The size of one file before and after, in bytes."""

    path: str
    before: int
    after: int


def compress(path: str) -> Compressed:
    """Compress one file of the standard library."""
    content = (STDLIB / path).read_bytes()
    return Compressed(path, len(content), len(bz2.compress(content)))


def main() -> None:
    """Print how well the standard library compresses."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--files", type=int, help="how many files (default: all)")
    options = parser.parse_args()

    with plait.Executor(options.model) as executor:
        files = source_files(options.files)
        done = list(executor.map(compress, files, progress=True))
        if executor.decision is not None:
            print(f"auto chose {executor.decision.model}: {executor.decision.reason}")
    before, after = sum(each.before for each in done), sum(each.after for each in done)
    print(
        f"{len(done)} files: {before / 2**20:.1f} MiB became {after / 2**20:.1f} MiB ({after / before:.0%})"
    )


if __name__ == "__main__":
    main()
