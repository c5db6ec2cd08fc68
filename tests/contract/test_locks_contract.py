"""What locks must do: the same bodies on `threading` and on `plait.threading`."""

from __future__ import annotations

import copy
import gc
import math
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

import plait.threading

LONG = 30.0
"""Seconds after which a test that waits has failed."""

CLASSES = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Event", "Condition", "Barrier"]


@pytest.fixture(params=[threading, plait.threading], ids=["standard", "plait"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    found: ModuleType = request.param
    return found


def make(module: ModuleType, name: str) -> Any:
    return getattr(module, name)(2) if name == "Barrier" else getattr(module, name)()


@contextmanager
def running(*bodies: Callable[[], object]) -> Iterator[list[threading.Thread]]:
    """Threads that have ended when the block is left."""
    threads = [threading.Thread(target=body, daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread is about to bring about."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# All of them


@pytest.mark.parametrize("name", CLASSES)
def test_can_be_referred_to_weakly_and_cannot_be_pickled_or_copied(module: ModuleType, name: str) -> None:
    lock = make(module, name)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        if attempt is copy.copy and name not in ("Lock", "RLock") and module is threading:
            continue  # It makes a second object with the same insides: not worth having.
        with pytest.raises(TypeError, match="pickle"):
            attempt(lock)
    reference = weakref.ref(lock)
    del lock
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ("Lock", "RLock")])
def test_takes_attributes_and_subclasses_with_constructors_of_their_own(
    module: ModuleType, name: str
) -> None:
    base = getattr(module, name)

    class Named(base):  # type: ignore[misc]
        def __init__(self, label: str, *args: int) -> None:
            super().__init__(*args)
            self.label = label

    lock = Named("mine", *([2] if name == "Barrier" else []))
    lock.itself = lock
    assert (lock.label, isinstance(lock, base)) == ("mine", True)
    assert isinstance(lock, getattr(threading, name))
    reference = weakref.ref(lock)
    del lock
    gc.collect()
    assert reference() is None


def test_a_lock_cannot_be_a_base(module: ModuleType) -> None:
    with pytest.raises(TypeError):
        type("Mine", (module.Lock,), {})


# Lock and RLock


@pytest.mark.parametrize("name", ["Lock", "RLock"])
def test_acquire_takes_what_the_standard_one_takes(module: ModuleType, name: str) -> None:
    lock = make(module, name)
    for arguments, error in [
        ((False, 1), ValueError),
        ((True, -2), ValueError),
        ((True, math.nan), ValueError),
        ((True, 1e100), OverflowError),
        ((True, threading.TIMEOUT_MAX + 1), OverflowError),
        ((True, "x"), TypeError),
    ]:
        with pytest.raises(error):
            lock.acquire(*arguments)
    assert lock.acquire() is True
    lock.release()
    assert lock.acquire(blocking=0) is True
    lock.release()
    assert lock.acquire(True, timeout=threading.TIMEOUT_MAX) is True
    lock.release()
    assert lock.acquire(timeout=0) is True
    lock.release()
    with pytest.raises(RuntimeError):
        lock.release()


@pytest.mark.parametrize("name", ["Lock", "RLock"])
def test_one_at_a_time(module: ModuleType, name: str) -> None:
    lock, inside, most = make(module, name), [0], [0]

    def body() -> None:
        for _ in range(500):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                inside[0] -= 1

    with running(*[body] * 4):
        pass
    assert (inside, most) == ([0], [1])


def test_a_lock_times_out_and_can_be_released_by_another_thread(module: ModuleType) -> None:
    lock = module.Lock()
    lock.acquire()
    assert lock.locked()
    assert lock.acquire(False) is False
    assert lock.acquire(timeout=0.01) is False
    with running(lock.release):
        assert lock.acquire(timeout=LONG) is True
    lock.release()
    assert not lock.locked()


def test_an_rlock_is_its_owners_to_any_depth(module: ModuleType) -> None:
    lock, seen = module.RLock(), []
    for _ in range(3):
        lock.acquire()
    with running(lambda: seen.append(lock.acquire(False))):
        pass

    def release() -> None:
        with pytest.raises(RuntimeError):
            lock.release()
        seen.append("refused")

    with running(release):
        pass
    assert seen == [False, "refused"]
    assert f"owner={threading.get_ident()} count=3" in repr(lock)
    for _ in range(3):
        lock.release()
    with pytest.raises(RuntimeError):
        lock.release()
    assert "unlocked" in repr(lock)


@pytest.mark.thread_unsafe
def test_ctrl_c_interrupts_a_wait(module: ModuleType) -> None:
    class Interrupted(Exception):
        pass

    def handler(*_: object) -> None:
        raise Interrupted

    def interrupt() -> None:
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    lock, semaphore, event = module.Lock(), module.Semaphore(0), module.Event()
    condition, barrier = module.Condition(), module.Barrier(2)
    lock.acquire()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        for wait in (lock.acquire, semaphore.acquire, event.wait, barrier.wait):
            with running(interrupt), pytest.raises(Interrupted):
                wait(timeout=LONG)
        with running(interrupt), condition:
            with pytest.raises(Interrupted):
                condition.wait(LONG)
            assert condition.acquire(False)
            condition.release()
    finally:
        signal.signal(signal.SIGUSR1, before)
    lock.release()
    semaphore.release()
    assert (lock.acquire(False), semaphore.acquire(False), barrier.n_waiting) == (True, True, 0)


# Semaphores


def test_a_semaphore_counts(module: ModuleType) -> None:
    semaphore = module.Semaphore(2)
    with semaphore as entered:
        assert entered is True
        assert semaphore.acquire() is True
        assert semaphore.acquire(blocking=False) is False
        assert semaphore.acquire(timeout=0.01) is False
        assert semaphore.acquire(timeout=-1) is False
        semaphore.release()
    assert semaphore._value == 2
    semaphore.release(3)
    assert semaphore._value == 5
    assert repr(semaphore).endswith(": value=5>")


def test_a_semaphore_refuses(module: ModuleType) -> None:
    for value in (-1, -(2**70)):
        with pytest.raises(ValueError, match="semaphore initial value must be >= 0"):
            module.Semaphore(value)
    semaphore = module.Semaphore(0)
    for count in (0, -1):
        with pytest.raises(ValueError, match="n must be one or more"):
            semaphore.release(count)
    with pytest.raises(ValueError, match="timeout"):
        semaphore.acquire(False, 1)
    with pytest.raises(OverflowError):
        semaphore.acquire(timeout=1e100)
    with pytest.raises(TypeError):
        semaphore.acquire(timeout="x")
    bounded = module.BoundedSemaphore(1)
    with pytest.raises(ValueError, match="Semaphore released too many times"):
        bounded.release()
    bounded.acquire()
    with pytest.raises(ValueError, match="Semaphore released too many times"):
        bounded.release(2)
    bounded.release()
    assert repr(bounded).endswith(": value=1/1>")


def test_each_unit_that_is_released_lets_one_through(module: ModuleType) -> None:
    semaphore, through = module.Semaphore(0), []

    def body() -> None:
        semaphore.acquire()
        through.append(1)

    with running(*[body] * 6):
        semaphore.release(2)
        until(lambda: len(through) == 2)
        semaphore.release()
        until(lambda: len(through) == 3)
        time.sleep(0.02)
        assert len(through) == 3
        semaphore.release(3)
    assert (len(through), semaphore._value) == (6, 0)


# Event


def test_an_event_wakes_all_even_if_it_is_cleared_at_once(module: ModuleType) -> None:
    event, seen = module.Event(), []
    assert event.wait(0) is event.wait(0.01) is event.wait(-1) is False
    if sys.version_info >= (3, 14):
        with pytest.raises(ValueError, match="NaN"):
            event.wait(math.nan)
    else:
        assert event.wait(math.nan) is False

    def body() -> None:
        ready.release()
        seen.append(event.wait(LONG))

    ready = threading.Semaphore(0)
    with running(*[body] * 4):
        for _ in range(4):
            ready.acquire()
        time.sleep(0.05)
        event.set()
        event.clear()
    assert seen == [True] * 4
    assert (event.is_set(), event.wait(0)) == (False, False)
    event.set()
    assert (event.is_set(), event.wait(0), event.wait("never looked at")) == (True, True, True)


def test_event_timeouts_that_make_no_sense(module: ModuleType) -> None:
    event = module.Event()
    with pytest.raises(OverflowError):
        event.wait(1e100)
    with pytest.raises(TypeError):
        event.wait("x")


# Condition


@pytest.mark.parametrize("over", [None, "Lock", "RLock", "a lock of the standard library"])
def test_a_condition_wakes_in_order(module: ModuleType, over: str | None) -> None:
    lock = (getattr(module, over) if over in ("Lock", "RLock") else over and threading.Lock) or None
    condition = module.Condition(lock() if lock else None)
    order: list[int] = []

    def waits(number: int) -> None:
        with condition:
            ready.release()
            assert condition.wait(LONG) is True
            order.append(number)

    ready = threading.Semaphore(0)
    bodies = [lambda number=number: waits(number) for number in range(5)]
    with running():
        threads = []
        for body in bodies:  # one after the other, so that their order in line is known
            threads.append(threading.Thread(target=body, daemon=True))
            threads[-1].start()
            ready.acquire()
        with condition:
            condition.notify(2)
        until(lambda: len(order) == 2)
        assert sorted(order) == [0, 1]
        with condition:
            condition.notify(0)
            condition.notify_all()
            condition.notify_all()
        for thread in threads:
            thread.join(LONG)
    assert sorted(order) == [0, 1, 2, 3, 4]


def test_a_condition_is_used_with_its_lock(module: ModuleType) -> None:
    for condition in (module.Condition(), module.Condition(module.Lock())):
        for call in (condition.wait, condition.notify, condition.notify_all):
            with pytest.raises(RuntimeError, match="un-acquired lock"):
                call()
        with pytest.raises(RuntimeError):
            condition.release()
        with condition as entered:
            assert entered is True
            assert condition.wait(0) is condition.wait(-1) is condition.wait(0.01) is False
            assert condition.wait_for(lambda: False, timeout=0.01) is False
            assert condition.wait_for(lambda: 7) == 7
        assert condition.acquire()
        condition.release()


def test_a_condition_gives_back_an_rlock_as_deep_as_it_was(module: ModuleType) -> None:
    condition = module.Condition()
    condition.acquire()
    with condition:

        def notify() -> None:
            with condition:
                condition.notify()

        with running(notify):
            assert condition.wait(LONG)
        condition.release()
        condition.acquire()
    condition.release()
    with pytest.raises(RuntimeError):
        condition.release()


# Barrier


def test_a_barrier_lets_all_go_on_together_again_and_again(module: ModuleType) -> None:
    acted: list[int] = []
    barrier = module.Barrier(3, action=lambda: acted.append(1), timeout=LONG)
    numbers: list[int] = []

    def body() -> None:
        for _ in range(20):
            numbers.append(barrier.wait())

    with running(*[body] * 3):
        pass
    assert sorted(numbers) == [0] * 20 + [1] * 20 + [2] * 20
    assert (len(acted), barrier.parties, barrier.n_waiting, barrier.broken) == (20, 3, 0, False)


@pytest.mark.parametrize("how", ["a timeout", "abort", "reset", "its action"])
def test_a_barrier_breaks(module: ModuleType, how: str) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    barrier = module.Barrier(3, action=fail)
    broken: list[int] = []

    def body() -> None:
        with pytest.raises(threading.BrokenBarrierError):
            barrier.wait()
        broken.append(1)

    with running(body, body):
        until(lambda: barrier.n_waiting == 2)
        if how == "a timeout":
            with pytest.raises(threading.BrokenBarrierError):
                module.Barrier(2).wait(0.01)
            barrier.abort()
        elif how == "its action":
            with pytest.raises(ZeroDivisionError):
                barrier.wait()
        else:
            getattr(barrier, how)()
    assert len(broken) == 2
    assert barrier.broken is (how != "reset")
    barrier.reset()
    assert barrier.broken is False
    if module is threading and sys.version_info < (3, 13):
        return  # it takes any number there
    for parties in (0, -1):
        with pytest.raises(ValueError, match="parties"):
            module.Barrier(parties)


# Fork


@pytest.mark.thread_unsafe
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_can_use_what_another_thread_held_or_waited_for(module: ModuleType) -> None:
    lock, rlock, semaphore, event = module.Lock(), module.RLock(), module.Semaphore(0), module.Event()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock, rlock:
            held.set()
            done.wait(LONG)

    with running(hold, lambda: semaphore.acquire(timeout=LONG), lambda: event.wait(LONG)):
        held.wait(LONG)
        time.sleep(0.02)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for one in (lock, rlock, event):
                    one._at_fork_reinit()
                event.set()
                semaphore.release()
                usable = [
                    lock.acquire(False),
                    rlock.acquire(False),
                    semaphore.acquire(timeout=1),
                    event.wait(1),
                ]
                status = 0 if all(usable) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        done.set()
        semaphore.release()
        event.set()


@pytest.mark.thread_unsafe
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_child_nobody_waits_for_the_threads_of_the_parent(module: ModuleType) -> None:
    semaphore = module.Semaphore(0)
    condition = module.Condition(module.Lock())

    def wait() -> None:
        with condition:
            condition.wait(LONG)

    with running(lambda: semaphore.acquire(timeout=LONG), wait):
        time.sleep(0.05)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                semaphore.release()
                usable = [semaphore.acquire(timeout=5)]
                mine = [
                    threading.Thread(target=lambda: usable.append(semaphore.acquire(timeout=5))),
                    threading.Thread(target=wait),
                ]
                for thread in mine:
                    thread.start()
                time.sleep(0.1)
                semaphore.release()
                with condition:
                    condition.notify_all()
                for thread in mine:
                    thread.join(LONG)
                status = 0 if usable == [True, True] and not any(one.is_alive() for one in mine) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        semaphore.release()
        with condition:
            condition.notify_all()
