"""`plait.install`: the standard executors by their standard names, and back."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import concurrent.futures.thread
import multiprocessing.pool
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import plait
import plait.queue
import plait.threading
from plait import futures

STANDARD = (concurrent.futures.ThreadPoolExecutor, concurrent.futures.ProcessPoolExecutor)
HOMES = (concurrent.futures.thread, concurrent.futures.process)
OURS = (futures.ThreadPoolExecutor, futures.ProcessPoolExecutor)


@pytest.fixture(autouse=True)
def standard_afterwards() -> Iterator[None]:
    yield
    plait.uninstall()


def names() -> list[type[concurrent.futures.Executor]]:
    """What the four names stand for."""
    return [
        concurrent.futures.ThreadPoolExecutor,
        concurrent.futures.ProcessPoolExecutor,
        concurrent.futures.thread.ThreadPoolExecutor,
        concurrent.futures.process.ProcessPoolExecutor,
    ]


def test_it_replaces_both_executors_under_all_their_names() -> None:
    plait.install()
    assert names() == [*OURS, *OURS]
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert isinstance(threads.submit(len, "four"), plait.Future)
    with concurrent.futures.ProcessPoolExecutor(1) as processes:
        assert processes.submit(len, "four").result() == 4


def test_twice_is_once_and_it_can_be_undone() -> None:
    plait.install()
    plait.install()
    plait.uninstall()
    assert names() == [*STANDARD, *STANDARD]
    plait.uninstall()
    assert names() == [*STANDARD, *STANDARD]


def test_it_replaces_the_locks_by_classes_that_derive_from_them() -> None:
    before = {name: getattr(threading, name) for name in ("Semaphore", "Event", "Condition", "Barrier")}
    lock, old = threading.Lock, threading.Event()
    plait.install()
    for name, standard in before.items():
        assert getattr(threading, name) is getattr(plait.threading, name)
        assert issubclass(getattr(threading, name), standard)
    assert threading.Lock is lock
    assert isinstance(old, before["Event"])
    items: queue.Queue[int] = queue.Queue()
    thread = threading.Thread(target=items.put, args=(7,))
    thread.start()
    assert items.get(timeout=30) == 7
    thread.join()
    plait.uninstall()
    assert {name: getattr(threading, name) for name in before} == before


def test_it_replaces_the_queues_by_classes_that_derive_from_them() -> None:
    before = {name: getattr(queue, name) for name in ("Queue", "LifoQueue", "PriorityQueue", "SimpleQueue")}
    old = queue.Queue()
    plait.install()
    assert queue.SimpleQueue is before.pop("SimpleQueue")
    for name, standard in before.items():
        assert getattr(queue, name) is getattr(plait.queue, name)
        new = getattr(queue, name)()
        assert isinstance(new, standard)
        new.put(4)
        assert new.get() == 4
    assert isinstance(old, before["Queue"])
    pool = multiprocessing.pool.ThreadPool(2)  # of those that use queues
    with pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    plait.uninstall()
    assert all(getattr(queue, name) is standard for name, standard in before.items())


def test_asyncio_gets_plaits_loop_locks_queues_and_streams() -> None:
    import asyncio

    import plait.asyncio

    async def kinds() -> tuple[type, ...]:
        lock, items = asyncio.Lock(), asyncio.Queue[int]()
        async with lock:
            await items.put(await asyncio.to_thread(int, "7"))
        assert await items.get() == 7
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return type(asyncio.get_running_loop()), type(lock), type(items), type(reader), type(writer)

    standard = asyncio.run(kinds())
    plait.install()
    ours = asyncio.run(kinds())
    assert ours == (
        plait.EventLoop,
        plait.asyncio.Lock,
        plait.asyncio.Queue,
        plait.asyncio.StreamReader,
        plait.asyncio.StreamWriter,
    )
    for mine, theirs in zip(ours, standard, strict=True):
        assert mine is not theirs
        assert issubclass(mine, theirs)
    assert asyncio.locks.Condition is asyncio.Condition is plait.asyncio.Condition
    chosen = asyncio.SelectorEventLoop()
    assert not isinstance(chosen, plait.EventLoop)
    chosen.close()
    plait.uninstall()
    assert asyncio.run(kinds()) == standard


def test_executors_made_before_go_on() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as before:
        plait.install()
        assert before.submit(len, "four").result() == 4
        with concurrent.futures.ThreadPoolExecutor(1) as during:
            plait.uninstall()
            assert during.submit(len, "four").result() == 4


def test_asyncio_uses_the_threads_too() -> None:
    program = """
import asyncio, plait
plait.install()
async def main():
    await asyncio.to_thread(print, "in a thread")
    print(type(asyncio.get_running_loop()._default_executor).__module__)
asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.split("\n") == ["in a thread", "plait.futures", ""]
    assert ran.stderr == ""


def test_the_package_costs_next_to_nothing_to_import() -> None:
    program = """
import sys
import tempfile
before = set(sys.modules)
import plait
print(*sorted(set(sys.modules) - before))
assert plait.Executor.__module__ == "plait.executor"
assert "asyncio" not in sys.modules and "rich" not in sys.modules and "multiprocessing" not in sys.modules
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.split() == ["__future__", "plait"]


def test_modules_need_not_be_imported_before_they_are_used() -> None:
    code = (
        "import sys, plait; names = ['asyncio', 'futures', 'gil', 'multiprocessing', 'queue', 'threading'];"
        "assert not [name for name in names if 'plait.' + name in sys.modules];"
        "assert [getattr(plait, name).__name__ for name in names] == ['plait.' + name for name in names];"
        "assert not hasattr(plait, 'nothing_of_ours')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    assert sorted(plait.__all__) == plait.__all__
    for name in plait.__all__:
        assert getattr(plait, name) is not None
    assert set(plait.__all__) <= set(dir(plait))
    with pytest.raises(AttributeError, match="module 'plait' has no attribute 'nonsense'"):
        plait.nonsense  # noqa: B018


def test_it_replaces_multiprocessing() -> None:
    program = """
import multiprocessing, multiprocessing.pool, sys
import plait, plait.multiprocessing
multiprocessing.set_start_method("spawn", force=True)
before = multiprocessing.get_context("forkserver")
plait.install()
plait.install()
assert multiprocessing.get_start_method() == "spawn"
assert multiprocessing.get_context() is plait.multiprocessing.get_context()
assert multiprocessing.Process is plait.multiprocessing.Process
assert multiprocessing.pool.Pool is plait.multiprocessing.pool.Pool
from multiprocessing import Lock, Queue
assert type(Lock()) is type(plait.multiprocessing.Lock())
assert isinstance(multiprocessing.get_context("fork"), multiprocessing.context.BaseContext)
if __name__ == "__main__":
    queue = Queue()
    for context in (multiprocessing, before):
        with context.Pool(1) as pool:
            assert isinstance(pool, plait.multiprocessing.pool.Pool)
            print(pool.apply(len, ("four",)))
        child = context.Process(target=queue.put, args=("put",))
        child.start()
        print(queue.get(timeout=60))
        child.join()
    plait.uninstall()
    assert not isinstance(multiprocessing.get_context(), type(plait.multiprocessing.get_context("spawn")))
    assert multiprocessing.get_start_method() == "spawn"
    assert multiprocessing.pool.Pool is not plait.multiprocessing.pool.Pool
"""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(
            program.replace('set_start_method("spawn")', 'set_start_method("spawn", force=True)')
        )
        ran = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
        )
    assert ran.stderr == ""
    assert ran.stdout.split() == ["4", "put"] * 2
