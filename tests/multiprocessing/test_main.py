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


SEGMENTS = """
import {package} as multiprocessing
from multiprocessing import shared_memory

def make(size):
    segment = shared_memory.SharedMemory(create=True, size=size)
    segment.buf[0] = 7
    segment.close()
    return segment.name

if __name__ == "__main__":
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        names = pool.map(make, [10, 20])
    pool.join()
    for name in names:
        segment = shared_memory.SharedMemory(name)
        print(segment.buf[0])
        segment.close()
        segment.unlink()
"""


@pytest.mark.parametrize(
    ("package", "method"),
    [
        ("multiprocessing", "spawn"),
        ("multiprocessing", "forkserver"),  # under `fork` the standard pool loses them
        ("plait.multiprocessing", "spawn"),
        ("plait.multiprocessing", "forkserver"),
        ("plait.multiprocessing", "fork"),
    ],
)
def test_segments_made_by_workers_outlive_them(tmp_path: Path, package: str, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SEGMENTS.format(package=package, method=method))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert ran.stderr == ""
    assert ran.stdout == "7\n7\n"


POOL_IN_CHILD = """
import {package} as multiprocessing
import plait

class Doubled:
    def __init__(self, value):
        self.value = 2 * value

def double(value):
    return Doubled(value)

def child():
    with plait.Executor("processes", workers=1) as ex:
        print([found.value for found in ex.map(double, range(3))])

if __name__ == "__main__":
    process = multiprocessing.get_context("{method}").Process(target=child)
    process.start()
    process.join()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("package", ["multiprocessing", "plait.multiprocessing"])
def test_an_executor_in_a_child(tmp_path: Path, package: str, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(POOL_IN_CHILD.format(package=package, method=method))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert (ran.stderr, ran.stdout) == ("", "[0, 2, 4]\n")
