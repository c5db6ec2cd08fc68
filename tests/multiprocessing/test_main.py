"""Scripts: what stands in `__main__` works in processes and pools as it does with the standard package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import {package} as multiprocessing, sys
state = "nothing"
def remember(value):
    global state
    state = value
def remembered(_=None):
    return state
def work(x):
    return x + offset
offset = 10
if __name__ == "__main__":
    context = multiprocessing.get_context("{method}")
    with context.Pool(2, remember, ("set by the initializer",)) as pool:
        print(pool.apply(remembered), pool.map(work, [1, 2]), set(pool.map(remembered, range(4))))
    process = context.Process(target=print, args=(work(5),))
    process.start()
    process.join()
    print(process.exitcode)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("package", ["multiprocessing", "plait.multiprocessing"])
def test_a_script(tmp_path: Path, package: str, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(package=package, method=method))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert ran.stderr == ""
    assert ran.stdout.split("\n") == [
        "set by the initializer [11, 12] {'set by the initializer'}",
        "15",
        "0",
        "",
    ]
