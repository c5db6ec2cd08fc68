"""Locks, semaphores, events and shared values between processes: as the standard ones, and robust."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
import time
from typing import Any

import pytest
import sync_calls
from faults.leftovers import excess, holdings

import plait.multiprocessing as ours
from plait.errors import OwnerDied

METHODS = ["spawn", "forkserver", "fork"]
PATIENCE = 30.0
"""Seconds: only a hang takes that long."""


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> Any:
    """A context of ours."""
    return ours.get_context(request.param)


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_a_waiter_is_told_that_the_owner_was_killed_and_the_lock_is_free(context: Any, kind: str) -> None:
    lock, held = getattr(context, kind)(), context.Event()
    owner = context.Process(target=sync_calls.hold, args=(lock, held))
    owner.start()
    assert held.wait(PATIENCE)
    assert lock.acquire(timeout=0.12) is False  # longer than it takes to look whether the owner lives
    assert "Other" in repr(lock)
    told: list[BaseException] = []
    acquired = []

    def acquire() -> None:
        try:
            acquired.append(lock.acquire())
        except OwnerDied as error:
            told.append(error)
            acquired.append(lock.acquire())
        lock.release()

    waiters = [threading.Thread(target=acquire) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    owner.kill()
    for waiter in waiters:
        waiter.join(PATIENCE)
    assert acquired == [True] * 3
    assert [error.pid for error in told] == [owner.pid]  # type: ignore[attr-defined]
    owner.join()
    assert lock.acquire(block=False)
    lock.release()


def test_an_attempt_that_does_not_wait_is_told_too(context: Any) -> None:
    lock = context.Lock()
    owner = context.Process(target=sync_calls.die_holding, args=(lock,))
    owner.start()
    owner.join()
    assert lock.locked()
    with pytest.raises(OwnerDied, match=f"process {owner.pid} ended"):
        lock.acquire(block=False)
    assert lock.acquire(block=False)


def test_a_lock_keeps_processes_apart(context: Any) -> None:
    lock, value = context.Lock(), context.Value("i", 0, lock=False)
    workers = [context.Process(target=sync_calls.count_up, args=(lock, value, 2000)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert value.value == 8000


def test_a_lock_may_be_released_by_another_thread(package: Any) -> None:
    lock = package.get_context("spawn").Lock()
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert lock.acquire(block=False)


def test_what_is_acquired_and_released_too_often(package: Any) -> None:
    context = package.get_context("spawn")
    with pytest.raises(ValueError, match="semaphore or lock released too many times"):
        context.Lock().release()
    with pytest.raises(ValueError, match="semaphore or lock released too many times"):
        context.BoundedSemaphore(2).release()
    with pytest.raises(AssertionError, match="attempt to release recursive lock not owned by thread"):
        context.RLock().release()
    semaphore = context.Semaphore(2)
    assert [semaphore.acquire(False) for _ in range(3)] == [True, True, False]
    semaphore.release()
    assert semaphore.get_value() == 1
    assert (repr(semaphore), repr(context.BoundedSemaphore(4))) == (
        "<Semaphore(value=1)>",
        "<BoundedSemaphore(value=4, maxvalue=4)>",
    )


@pytest.mark.parametrize("value", [-1, 2**31])
def test_a_semaphore_of_so_many_permits_cannot_be(value: int) -> None:
    with pytest.raises(ValueError, match=f"not {value}"):
        ours.Semaphore(value)


def test_a_recursive_lock_belongs_to_a_thread(package: Any) -> None:
    lock = package.get_context("spawn").RLock()
    assert lock.acquire()
    assert lock.acquire()
    assert repr(lock) == "<RLock(MainProcess, 2)>"
    elsewhere: list[Any] = []
    thread = threading.Thread(target=lambda: elsewhere.append(lock.acquire(timeout=0.01)))
    thread.start()
    thread.join()
    assert elsewhere == [False]
    lock.release()
    lock.release()
    assert repr(lock) == "<RLock(None, 0)>"


def test_a_fork_owns_nothing_of_its_parent() -> None:
    lock = ours.get_context("fork").RLock()
    lock.acquire()
    child = os.fork()
    if child == 0:
        os._exit(0 if not lock._semlock._is_mine() and not lock.acquire(timeout=0.01) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lock.release()


def test_ctrl_c_ends_a_wait(context: Any) -> None:
    lock, about_to, told = context.Lock(), context.Event(), context.Queue()
    with lock:
        waiter = context.Process(target=sync_calls.interrupted, args=(lock, about_to, told))
        waiter.start()
        assert about_to.wait(PATIENCE)
        time.sleep(0.05)  # it sleeps by now, or is about to: either way it must be interrupted
        os.kill(waiter.pid, signal.SIGINT)
        assert told.get(timeout=PATIENCE) == "interrupted"
        waiter.join()


def test_locks_go_where_the_standard_ones_do_not(context: Any) -> None:
    """As an item of a queue, and as an argument of a pool's job."""
    queue, lock = context.Queue(), context.Lock()
    queue.put(lock)
    same = queue.get()
    with lock:
        assert same.locked()
    value = context.Value("i", 1)
    with context.Pool(2) as pool:
        assert pool.apply(sync_calls.add_to, (value, 4)) != os.getpid()
    assert value.value == 5


def test_a_lock_whose_process_is_gone_says_so() -> None:
    context = ours.get_context("fork")
    queue = context.Queue()
    child = os.fork()
    if child == 0:
        queue.put(context.Lock())
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(FileNotFoundError, match=f"sent by process {child}, which has ended"):
        queue.get(timeout=PATIENCE)


def test_rubbish_is_not_taken_for_a_lock() -> None:
    fd, where = ours.Lock()._semlock._locate()
    kind = type(ours.Lock()._semlock)
    for wrong in [(where[0] ^ 1, *where[1:]), (where[0], 0, *where[2:]), (where[0], 2**32 - 1, *where[2:])]:
        with pytest.raises(OSError, match="does not lead to the shared memory"):
            kind._rebuild(fd, *wrong)
    with pytest.raises(ValueError, match="-1 is not a descriptor"):
        kind._rebuild(-1, where[0] ^ 1, *where[1:])


def test_an_event_wakes_all_and_forgets_nothing(context: Any) -> None:
    event = context.Event()
    seen: list[bool] = []
    waiters = [threading.Thread(target=lambda: seen.append(event.wait(PATIENCE))) for _ in range(4)]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.02)
    event.set()
    event.clear()
    for waiter in waiters:
        waiter.join()
    # One that began to wait only after the event was unset again is the only one that may have missed it.
    assert seen == [True] * 4
    assert event.wait(0.01) is False
    event.set()
    assert event.is_set()
    assert event.wait()


def test_values_and_arrays_are_shared(context: Any) -> None:
    value, array = context.Value("i", 0), context.Array("d", [0.0] * 4)
    workers = [
        context.Process(target=sync_calls.count_up, args=(value.get_lock(), value.get_obj(), 500))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert value.value == 1000
    copy = pickle.loads(pickle.dumps(array))
    copy[2] = 1.5
    assert array[:] == [0.0, 0.0, 1.5, 0.0]


def test_a_value_that_was_sent_keeps_its_memory() -> None:
    value = ours.RawValue("q", 7)
    sent = pickle.loads(pickle.dumps(value))
    del value
    gc.collect()
    others = [ours.RawValue("q", 0) for _ in range(100)]
    assert (sent.value, len(others)) == (7, 100)


def test_slots_are_used_again_only_if_nobody_else_can_have_them() -> None:
    lock = ours.Lock()
    slot = lock._semlock.handle
    del lock
    lock = ours.Lock()
    assert lock._semlock.handle == slot
    kept = pickle.loads(pickle.dumps(lock))
    del lock
    assert ours.Lock()._semlock.handle != kept._semlock.handle == slot


def test_locks_take_one_descriptor_together() -> None:
    ours.Lock()  # the board exists from now on
    before = holdings()
    locks = [(ours.Lock(), ours.RLock(), ours.Semaphore(3), ours.Event()) for _ in range(200)]
    sent = [pickle.loads(pickle.dumps(lock)) for lock in locks]
    assert excess(before, 0.0) == {}
    del locks, sent
    assert excess(before) == {}


def test_a_waiter_that_was_killed_holds_no_notify_up_and_takes_no_notification(context: Any) -> None:
    condition, ready, done = context.Condition(), context.Semaphore(0), context.Semaphore(0)
    processes = []
    for _ in range(3):
        processes.append(context.Process(target=sync_calls.wait_for, args=(condition, ready, done)))
        processes[-1].start()
        assert ready.acquire(timeout=PATIENCE)
    with condition:  # they have let go of the lock, so they wait
        pass
    processes[0].kill()
    processes[0].join()
    with condition:
        condition.notify(2)
    for process in processes[1:]:
        assert done.acquire(timeout=PATIENCE)
        process.join()
    assert "0)" in repr(condition)


def test_a_condition_wakes_in_order_and_knows_its_lock() -> None:
    condition = ours.Condition()
    with pytest.raises(AssertionError, match="must acquire"):
        condition.wait()
    with pytest.raises(AssertionError, match="lock is not owned"):
        condition.notify()
    woken: list[int] = []

    def wait(number: int) -> None:
        with condition, condition:  # the lock is recursive
            started.release()
            assert condition.wait(PATIENCE)
            woken.append(number)

    started = threading.Semaphore(0)
    threads = []
    for number in range(4):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        started.acquire()
        with condition:
            pass
    for count in range(1, 5):
        with condition:
            condition.notify()
        while len(woken) < count:
            time.sleep(0.001)
    assert woken == [0, 1, 2, 3]
    for thread in threads:
        thread.join()
    with condition:
        assert condition.wait(0.01) is False
        assert condition.wait_for(lambda: False, 0.01) is False


def test_a_condition_has_a_limit_and_says_so() -> None:
    waiters = ours.Condition()._waiters
    for _ in range(1020):
        waiters.enroll()
    with pytest.raises(RuntimeError, match="1020 threads wait for this condition already"):
        waiters.enroll()
    with pytest.raises(ValueError, match="no waiter has this number"):
        waiters.wait(1020)


def wait_for_ever(condition: Any) -> None:
    while True:
        condition.wait(0.05)


def test_a_wait_that_finds_the_locks_owner_dead_has_the_lock_when_it_says_so(context: Any) -> None:
    condition = context.Condition()
    with condition:
        owner = context.Process(target=sync_calls.die_holding, args=(condition,))
        owner.start()
        # It gets the lock while this waits, and dies with it.
        with pytest.raises(OwnerDied):
            wait_for_ever(condition)
    owner.join()
    with condition:
        pass
