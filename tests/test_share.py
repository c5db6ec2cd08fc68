"""`plait.share`: one copy in memory, read everywhere, gone when nobody needs it."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import plait
from plait import _share


@pytest.fixture
def ex() -> Iterator[plait.Executor]:
    with plait.Executor("processes", 2) as executor:
        yield executor


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true; the limit is far beyond what it takes."""
    limit = time.monotonic() + 20
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


def inode_of(shared: plait.Shared[Any]) -> int:
    """What tells its memory from that of others in /proc."""
    ticket = bytes(memoryview(shared._held.segment.ticket()))  # type: ignore[union-attr]
    return int.from_bytes(ticket[32:40], "little")


def segments(inode: int | None = None, pid: int | str = "self") -> int:
    """How many shared segments, or mappings of a certain one, a process has."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    mine = [line for line in lines if "memfd:plait-shared" in line]
    return sum(inode is None or line.split()[4] == str(inode) for line in mine)


def total(shared: plait.Shared[Any], start: int = 0) -> int:
    return int(shared.value[start:].sum())


def test_jobs_read_it_in_place(ex: plait.Executor) -> None:
    array = numpy.arange(100_000)
    with plait.share(array) as shared:
        assert shared.nbytes >= array.nbytes
        assert "read-only" in repr(shared)
        array[:] = 0  # it was copied
        wanted = sum(range(100_000))
        assert ex.submit(total, shared).result() == wanted
        assert list(ex.map(total, [shared] * 50, range(50))) == [wanted - sum(range(at)) for at in range(50)]
        assert shared.value is shared.get()
        assert shared.value.sum() == wanted
    assert repr(shared) == "<plait.Shared, closed>"
    with pytest.raises(ValueError, match="closed"):
        shared.get()
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(shared)


def identity(shared: plait.Shared[Any]) -> tuple[int, int, int, int]:
    return os.getpid(), id(shared.value), segments(), shared.value["array"].ctypes.data


def test_a_worker_maps_and_unpickles_it_once(ex: plait.Executor) -> None:
    shared = plait.share({"array": numpy.ones(1000), "name": "x"})
    seen = set(ex.map(identity, [shared] * 100))
    assert len({pid for pid, *_ in seen}) == len(seen)
    assert {count for _, _, count, _ in seen} == {1}


def scribble(shared: plait.Shared[Any]) -> None:
    shared.value[0] = 1


def test_it_is_read_only(ex: plait.Executor) -> None:
    shared = plait.share(numpy.zeros(1000))
    with pytest.raises(ValueError, match="read-only"):
        ex.submit(scribble, shared).result()
    with pytest.raises(ValueError, match="read-only"):
        scribble(shared)
    assert shared.value[0] == 0
    assert not shared.writable


def test_unless_it_is_writable(ex: plait.Executor) -> None:
    shared = plait.share(numpy.zeros(1000), writable=True)
    assert shared.writable
    ex.submit(scribble, shared).result()
    assert shared.value[0] == 1


def describe(shared: plait.Shared[Any]) -> Any:
    value = shared.value
    return type(value).__name__, len(value)


@pytest.mark.parametrize(
    "value",
    [
        b"x" * 100_000,
        bytearray(100_000),
        {"a": [numpy.ones(10), b"y" * 70_000], "b": (1, 2)},
        list(range(1000)),
        "text",
        [],
        numpy.empty((0, 3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_value_can_be_shared(ex: plait.Executor, value: Any) -> None:
    shared = plait.share(value)
    assert ex.submit(describe, shared).result() == (type(value).__name__, len(value))
    assert str(shared.value) == str(value)


def test_what_cannot_be_pickled_cannot_be_shared() -> None:
    with pytest.raises(TypeError, match=r"cannot be shared: .* at \['gen'\]"):
        plait.share({"gen": (x for x in ())})
    with pytest.raises(TypeError, match=r"made by plait.share"):
        plait.Shared()


@pytest.mark.parametrize("model", ["threads", "tasks", "auto"])
def test_every_model_takes_a_handle(model: str) -> None:
    with plait.Executor(model, 2) as ex:
        shared = plait.share(numpy.ones(10))
        assert ex.submit(total, shared).result() == 10
        assert list(ex.map(total, [shared] * 3)) == [10] * 3


@pytest.mark.skipif(sys.version_info < (3, 14), reason="the model is there from 3.14 on")
def test_interpreters_do_not_take_a_handle() -> None:
    with plait.Executor("interpreters", 1) as ex, pytest.raises(ImportError, match="subinterpreters"):
        ex.submit(plait.Shared.get, plait.share(b"abc")).result()


def test_the_handle_may_be_dropped_right_after_submit(ex: plait.Executor) -> None:
    futures = [ex.submit(total, plait.share(numpy.full(1000, at))) for at in range(30)]
    assert [future.result() for future in futures] == [1000 * at for at in range(30)]


def test_everybody_lets_go(ex: plait.Executor) -> None:
    shared = plait.share(numpy.ones(100_000))
    ticket = bytes(pickle.dumps(shared))
    assert set(ex.map(total, [shared] * 20)) == {100_000}
    pids = {ex.submit(os.getpid).result() for _ in range(20)}
    inode = inode_of(shared)
    assert segments(inode) == 1
    assert any(segments(inode, pid) for pid in pids)
    del shared
    gc.collect()
    assert eventually(lambda: segments(inode) == 0)
    assert eventually(lambda: not any(segments(inode, pid) for pid in pids))
    with pytest.raises(LookupError, match=f"shared by process {os.getpid()} is gone"):
        pickle.loads(ticket)


KEPT: list[Any] = []


def keep(shared: plait.Shared[Any]) -> int:
    KEPT.append(shared.value)
    return os.getpid()


def kept() -> tuple[int, int]:
    return os.getpid(), int(sum(array.sum() for array in KEPT))


def test_a_view_that_a_job_keeps_stays_valid() -> None:
    with plait.Executor("processes", 1) as ex:
        shared = plait.share(numpy.ones(1000))
        pid = ex.submit(keep, shared).result()
        shared.close()
        time.sleep(1.5)  # longer than it takes a worker to look
        assert ex.submit(kept).result() == (pid, 1000)
        assert segments(pid=pid) == 1


def same(shared: plait.Shared[Any]) -> plait.Shared[Any]:
    return shared


def share_here(size: int) -> plait.Shared[Any]:
    return plait.share(numpy.ones(size))


def nested(size: int) -> int:
    shared = plait.share(numpy.ones(size))
    with plait.Executor("processes", 1) as ex:
        return ex.submit(total, shared).result()


def pass_on(shared: plait.Shared[Any]) -> int:
    with plait.Executor("processes", 1) as ex:
        return ex.submit(total, shared).result()


def test_handles_travel(ex: plait.Executor) -> None:
    shared = plait.share(numpy.ones(1000))
    back = ex.submit(same, shared).result()
    assert back.value is shared.value
    assert copy.copy(shared).value is shared.value
    assert pickle.loads(pickle.dumps(shared, 2)).value is shared.value
    assert ex.submit(nested, 100).result() == 100
    assert ex.submit(pass_on, shared).result() == 1000
    with pytest.raises(TypeError, match="cannot return a value that it has shared itself"):
        ex.submit(share_here, 10).result()
    inside = plait.share([shared])
    del shared, back
    assert ex.submit(first_total, inside).result() == 1000


def first_total(shared: plait.Shared[Any]) -> int:
    return total(shared.value[0])


def test_children_of_multiprocessing_take_it() -> None:
    shared = plait.share(numpy.ones(1000))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(total, (shared,)) == 1000


def test_closures_take_it(ex: plait.Executor) -> None:
    shared = plait.share(numpy.ones(10))
    assert ex.submit(lambda: total(shared)).result() == 10


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_fork_of_the_origin_changes_nothing(ex: plait.Executor) -> None:
    shared = plait.share(numpy.ones(10))
    child = os.fork()
    if child == 0:
        right = total(shared) == 10
        del shared
        gc.collect()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ex.submit(total, shared).result() == 10


def test_a_ticket_that_fits_something_else_is_refused() -> None:
    shared = plait.share(numpy.ones(10))
    ticket = bytearray(memoryview(shared._held.segment.ticket()))  # type: ignore[union-attr]
    for at in (8 * 4, 8 * 5):  # inode, nonce
        wrong = bytearray(ticket)
        wrong[at] ^= 1
        with pytest.raises(LookupError, match="is gone"):
            _share._attach(wrong)
    with pytest.raises(ValueError, match="no ticket"):
        _share._attach(b"rubbish")


def die(shared: plait.Shared[Any]) -> None:
    shared.get()
    os._exit(1)


def test_a_worker_that_dies_holds_nothing(ex: plait.Executor) -> None:
    shared = plait.share(numpy.ones(100_000))
    with pytest.raises(plait.WorkerDied):
        ex.submit(die, shared).result()
    assert ex.submit(total, shared).result() == 100_000
    inode = inode_of(shared)
    shared.close()
    assert eventually(lambda: segments(inode) == 0)
