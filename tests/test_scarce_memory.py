"""More data than memory, and systems without nameless memory."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import plait

MAP_NORESERVE = 0x4000


def too_much() -> memoryview:
    """A view of more bytes than the machine has, none of which exists yet."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + 2**30
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return memoryview(mmap.mmap(-1, total, flags=flags))


def make_too_much() -> memoryview:
    return too_much()


def double(x: int) -> int:
    return 2 * x


def test_arguments_larger_than_memory_fail_alone() -> None:
    with plait.Executor("processes", 1) as ex:
        future = ex.submit(len, too_much())
        with pytest.raises(MemoryError, match="arguments of len do not fit"):
            future.result()
        results = ex.map(len, [b"abc", too_much(), b"ab"])
        assert next(results) == 3
        with pytest.raises(MemoryError, match="arguments of len do not fit"):
            next(results)
        assert ex.submit(double, 4).result() == 8
        assert ex._pool.statistics()["blocks"] == 0  # type: ignore[attr-defined]


def test_results_larger_than_memory_fail_alone() -> None:
    with plait.Executor("processes", 1) as ex:
        pid = ex.submit(os.getpid).result()
        with pytest.raises(MemoryError):
            ex.submit(make_too_much).result()
        assert ex.submit(os.getpid).result() == pid


def test_a_value_larger_than_memory_cannot_be_shared() -> None:
    with pytest.raises(MemoryError, match="no memory to share a value of"):
        plait.share(too_much())


WITHOUT_MEMFD = """
import ctypes, os, sys, warnings
import numpy
import plait

class Filter(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)
    ]

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]

def forbid(call, errno):
    steps = [
        Filter(0x20, 0, 0, 0),                    # the number of the system call
        Filter(0x15, 0, 1, call),                 # is it this one?
        Filter(0x06, 0, 0, 0x0005_0000 | errno),  # then it fails
        Filter(0x06, 0, 0, 0x7FFF_0000),          # else it is allowed
    ]
    program = Program(len(steps), (Filter * len(steps))(*steps))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, os.strerror(ctypes.get_errno())

def last(array):
    return int(array[-1])

def first_of(shared):
    return int(shared.value[0])

def main():
    forbid(int(sys.argv[1]), int(sys.argv[2]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with plait.Executor("processes", 2) as ex:
                assert ex.submit(last, numpy.full(2**22, 7, numpy.uint8)).result() == 7
                assert ex.submit(numpy.ones, 2**20).result()[-1] == 1
                assert sum(ex.map(last, [numpy.arange(100_000)] * 5)) == 5 * 99_999
                assert ex.submit(first_of, plait.share(numpy.ones(10_000))).result() == 1
    told = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
    assert len(told) == 1, told
    print(told[0])

if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of the system call is that of x86-64")
@pytest.mark.parametrize("errno", [1, 38], ids=["EPERM", "ENOSYS"])
def test_without_memfd_there_are_files_without_names(errno: int, tmp_path: Path) -> None:
    script = tmp_path / "without_memfd.py"
    script.write_text(WITHOUT_MEMFD)
    shm = Path("/dev/shm")
    before = set(shm.iterdir()) if shm.is_dir() else set()
    done = subprocess.run(
        [sys.executable, str(script), "319", str(errno)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "does not allow memfd_create" in done.stdout
    assert {path for path in shm.iterdir() if path.name.startswith("plait")} <= before
