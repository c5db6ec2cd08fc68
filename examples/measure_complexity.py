"""Parse source files and find the most complex functions: CPU-bound Python, the work of a linter.

python examples/measure_complexity.py [--model processes] [--files 200]
"""

from __future__ import annotations

import argparse
import ast
import warnings
from contextlib import suppress
from typing import NamedTuple

import plait
from corpus import STDLIB, source_files

# What the files' authors wrote in their strings is not our concern.
warnings.filterwarnings("ignore", category=SyntaxWarning)

BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.Assert,
    ast.comprehension,
    ast.match_case,
)


class Complexity(NamedTuple):
    """What was found in one file: cyclomatic complexity is one more than the number of branches."""

    path: str
    functions: int
    total: int
    worst: int
    worst_function: str


def complexity_of(path: str, source: bytes) -> Complexity:
    """Parse ``source`` and measure every function in it."""
    functions = total = worst = 0
    worst_function = ""
    for node in ast.walk(_parse(path, source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            complexity = 1 + sum(map(_branches, ast.walk(node)))
            functions += 1
            total += complexity
            if complexity > worst:
                worst, worst_function = complexity, node.name
    return Complexity(path, functions, total, worst, worst_function)


def _parse(path: str, source: bytes) -> ast.AST:
    # Before CPython 3.11.8 and 3.12.2 (python/cpython#106905), threads that build trees at the same time can
    # disturb each other.
    for _ in range(10):
        with suppress(SystemError):
            return ast.parse(source, path)
    return ast.parse(source, path)


def _branches(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    return isinstance(node, BRANCHES)


def measure(path: str) -> Complexity:
    """Measure one file of the standard library."""
    return complexity_of(path, (STDLIB / path).read_bytes())


def main() -> None:
    """Print the ten most complex functions of the standard library."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--files", type=int, help="how many files (default: all)")
    options = parser.parse_args()

    with plait.Executor(options.model) as executor:
        files = source_files(options.files)
        found = list(executor.map(measure, files, progress=True))
        if executor.decision is not None:
            print(f"auto chose {executor.decision.model}: {executor.decision.reason}")
    print(f"{len(found)} files, {sum(each.functions for each in found)} functions; the most complex:")
    for each in sorted(found, key=lambda each: each.worst, reverse=True)[:10]:
        print(f"{each.worst:5} {each.worst_function} in {each.path}")


if __name__ == "__main__":
    main()
