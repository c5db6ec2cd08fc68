"""What a Future must do: the same bodies on the standard class and on ours."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import pickle
import random
import threading
import types
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, InvalidStateError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import Any

import pytest

import plait.future

LONG = 30.0
"""Seconds after which a test that waits has failed."""


@pytest.fixture(params=[concurrent.futures.Future, plait.future.Future], ids=["standard", "plait"])
def new(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return request.param


def finished(new: Callable[[], Any], result: object) -> Any:
    future = new()
    future.set_result(result)
    return future


def failed(new: Callable[[], Any], error: BaseException) -> Any:
    future = new()
    future.set_exception(error)
    return future


def cancelled(new: Callable[[], Any], notified: bool = False) -> Any:
    future = new()
    assert future.cancel()
    if notified:
        assert not future.set_running_or_notify_cancel()
    return future


def running(new: Callable[[], Any]) -> Any:
    future = new()
    assert future.set_running_or_notify_cancel()
    return future


def in_thread(body: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def wait_until_blocked(future: Any, thread: threading.Thread) -> None:
    """Give `thread` a chance to be inside ``future.result()``; what follows must be right in any case."""
    thread.join(0.05)
    assert thread.is_alive()
    assert not future.done()


def test_it_is_a_standard_future(new: Callable[[], Any]) -> None:
    assert isinstance(new(), concurrent.futures.Future)
    assert isinstance(type(new())[int], types.GenericAlias)
    with pytest.raises(TypeError):
        new(1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("make", "state", "shown"),
    [
        (lambda new: new(), "PENDING", "pending"),
        (running, "RUNNING", "running"),
        (cancelled, "CANCELLED", "cancelled"),
        (lambda new: cancelled(new, True), "CANCELLED_AND_NOTIFIED", "cancelled"),
        (lambda new: finished(new, 5), "FINISHED", "finished returned int"),
        (lambda new: finished(new, None), "FINISHED", "finished returned NoneType"),
        (lambda new: failed(new, OSError()), "FINISHED", "finished raised OSError"),
    ],
)
def test_states(new: Callable[[], Any], make: Callable[[Any], Any], state: str, shown: str) -> None:
    future = make(new)
    assert future._state == state
    assert repr(future) == f"<Future at {id(future):#x} state={shown}>"
    assert future.running() is (state == "RUNNING")
    assert future.done() is (state not in ("PENDING", "RUNNING"))
    assert future.cancelled() is state.startswith("CANCELLED")
    could = future.cancel()
    assert could is (state not in ("RUNNING", "FINISHED"))
    assert future._state == ("CANCELLED" if state == "PENDING" else state)


def test_result_and_exception(new: Callable[[], Any]) -> None:
    value, error = object(), OSError("no")
    assert finished(new, value).result() is value
    assert finished(new, value).result(timeout=0) is value
    assert finished(new, value).exception() is None
    assert failed(new, error).exception() is error
    with pytest.raises(OSError, match="no") as caught:
        failed(new, error).result()
    assert caught.value is error
    for future in cancelled(new), cancelled(new, True):
        with pytest.raises(CancelledError):
            future.result()
        with pytest.raises(CancelledError):
            future.exception()
    for future in new(), running(new):
        for timeout in 0, -1, 0.01:
            with pytest.raises(TimeoutError):
                future.result(timeout)
            with pytest.raises(TimeoutError):
                future.exception(timeout=timeout)


def test_an_exception_is_raised_like_any_other(new: Callable[[], Any]) -> None:
    def origin() -> None:
        raise KeyError("deep")

    try:
        origin()
    except KeyError as error:
        future = failed(new, error)
    with pytest.raises(KeyError) as caught:
        future.result()
    assert "origin" in [entry.name for entry in caught.traceback]

    def while_handling() -> None:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            future.result()

    with pytest.raises(KeyError) as caught:
        while_handling()
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_a_class_or_nothing_as_the_exception(new: Callable[[], Any]) -> None:
    future = new()
    future.set_exception(ValueError)
    assert future.exception() is ValueError
    with pytest.raises(ValueError):  # noqa: PT011 (it has no message)
        future.result()
    future = new()
    future.set_exception(None)
    assert future.exception() is None
    assert future.result() is None
    future = new()
    future.set_exception("text")
    with pytest.raises(TypeError, match="exceptions must derive from BaseException"):
        future.result()


def test_a_second_outcome_is_refused(new: Callable[[], Any]) -> None:
    for future, state in (
        (finished(new, 1), "FINISHED"),
        (cancelled(new), "CANCELLED"),
        (cancelled(new, True), "CANCELLED_AND_NOTIFIED"),
    ):
        with pytest.raises(InvalidStateError) as caught:
            future.set_result(2)
        assert str(caught.value) == f"{state}: {future!r}"
        with pytest.raises(InvalidStateError):
            future.set_exception(ValueError())
    assert finished(new, 1).result() == 1


def test_set_running_or_notify_cancel(new: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    assert new().set_running_or_notify_cancel() is True
    assert cancelled(new).set_running_or_notify_cancel() is False
    for future in running(new), finished(new, 1), cancelled(new, True):
        caplog.clear()
        with pytest.raises(RuntimeError, match="Future in unexpected state"):
            future.set_running_or_notify_cancel()
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("concurrent.futures", "CRITICAL")
        assert record.getMessage() == f"Future {id(future)} in unexpected state: {future._state}"


def test_callbacks_run_in_order_with_the_future(new: Callable[[], Any]) -> None:
    def check(finish: Callable[[Any], object]) -> None:
        future, seen = new(), []
        for number in range(3):
            future.add_done_callback(lambda done, number=number: seen.append((number, done, done.done())))
        assert seen == []
        finish(future)
        assert seen == [(number, future, True) for number in range(3)]
        future.add_done_callback(lambda done: seen.append("at once"))
        assert seen[3:] == ["at once"]
        future.cancel()
        assert len(seen) == 4

    check(lambda future: future.set_result(1))
    check(lambda future: future.set_exception(ValueError()))
    check(lambda future: future.cancel())


def test_a_callback_that_raises_is_logged(new: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    def bad(future: Any) -> None:
        raise KeyError("callback")

    future, seen = new(), []
    future.add_done_callback(bad)
    future.add_done_callback(seen.append)
    future.set_result(5)
    assert seen == [future]
    future.add_done_callback(bad)
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert (record.name, record.levelno) == ("concurrent.futures", logging.ERROR)
        assert record.getMessage() == f"exception calling callback for {future!r}"
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], KeyError)


def test_a_callback_that_ends_the_program_does_so(new: Callable[[], Any]) -> None:
    def leave(future: Any) -> None:
        raise SystemExit(3)

    future = new()
    future.add_done_callback(leave)
    with pytest.raises(SystemExit):
        future.set_result(1)
    assert future.result() == 1


def test_callbacks_may_use_the_future(new: Callable[[], Any]) -> None:
    future, seen = new(), []

    def again(done: Any) -> None:
        seen.append(done.result())
        done.add_done_callback(lambda done: seen.append("nested"))

    future.add_done_callback(again)
    future.set_result(1)
    assert seen == [1, "nested"]


@pytest.mark.parametrize("asked_for", [False, True], ids=["untouched", "condition asked for"])
@pytest.mark.parametrize("outcome", ["result", "exception", "cancel"])
def test_threads_that_wait_are_released(new: Callable[[], Any], outcome: str, asked_for: bool) -> None:
    future, seen = new(), []
    if asked_for:
        assert future._condition is future._condition

    def wait() -> None:
        try:
            seen.append(future.result(timeout=LONG))
        except (CancelledError, OSError) as error:
            seen.append(type(error))

    threads = [in_thread(wait) for _ in range(3)]
    wait_until_blocked(future, threads[0])
    expected: object
    if outcome == "result":
        expected = 7
        future.set_result(7)
    elif outcome == "exception":
        expected = OSError
        future.set_exception(OSError())
    else:
        expected = CancelledError
        future.cancel()
    for thread in threads:
        thread.join(LONG)
    assert seen == [expected] * 3


def test_wait(new: Callable[[], Any]) -> None:
    done, pending = finished(new, 1), new()
    both = [done, pending, done]
    assert concurrent.futures.wait(both, timeout=0) == ({done}, {pending})
    assert concurrent.futures.wait(both, return_when="FIRST_COMPLETED") == ({done}, {pending})
    bad = failed(new, OSError())
    assert concurrent.futures.wait([bad, pending], return_when="FIRST_EXCEPTION") == ({bad}, {pending})
    told, untold = cancelled(new, True), cancelled(new)
    assert concurrent.futures.wait([told, untold], timeout=0) == ({told}, {untold})


@pytest.mark.parametrize("mode", ["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"])
def test_wait_ends_when_another_thread_finishes_them(new: Callable[[], Any], mode: str) -> None:
    futures = [new() for _ in range(3)]
    waiting = threading.Event()

    def finish() -> None:
        waiting.wait(LONG)
        if mode == "ALL_COMPLETED":
            futures[1].cancel()
            futures[1].set_running_or_notify_cancel()
            futures[2].set_result(1)
        if mode == "FIRST_EXCEPTION":
            futures[0].set_exception(OSError())
        else:
            futures[0].set_result(0)

    thread = in_thread(finish)
    waiting.set()
    done, pending = concurrent.futures.wait(futures, timeout=LONG, return_when=mode)
    assert done == (set(futures) if mode == "ALL_COMPLETED" else {futures[0]})
    assert done | pending == set(futures)
    thread.join(LONG)
    assert [future._waiters for future in futures] == [[], [], []]


def test_as_completed(new: Callable[[], Any]) -> None:
    early = [finished(new, 0), cancelled(new, True)]
    late = [new() for _ in range(5)]
    order = random.Random(1).sample(late, len(late))
    seen = []
    for future in concurrent.futures.as_completed([*early, *late, *late], timeout=LONG):
        seen.append(future)
        if len(seen) >= len(early) and order:
            order.pop().set_result(None)
    assert set(seen[:2]) == set(early)
    assert set(seen[2:]) == set(late)
    assert len(seen) == 7
    with pytest.raises(TimeoutError, match=r"1 \(of 2\) futures unfinished"):
        list(concurrent.futures.as_completed([early[0], new()], timeout=0))


def test_wait_never_misses_a_result(new: Callable[[], Any]) -> None:
    """The condition is asked for while another thread finishes the future."""
    for _ in range(300):
        future = new()
        start = threading.Barrier(2)

        def finish(future: Any = future, start: threading.Barrier = start) -> None:
            start.wait()
            future.set_result(1)

        thread = in_thread(finish)
        start.wait()
        assert concurrent.futures.wait([future], timeout=LONG).done == {future}
        thread.join(LONG)


def test_only_one_outcome_wins(new: Callable[[], Any]) -> None:
    for _ in range(50):
        future, won, start = new(), [], threading.Barrier(4)

        def finish(
            number: int, future: Any = future, won: list[int] = won, start: threading.Barrier = start
        ) -> None:
            start.wait()
            if number == 0:
                if future.cancel():
                    won.append(0)
                return
            try:
                future.set_result(number)
            except InvalidStateError:
                return
            won.append(number)

        threads = [in_thread(lambda number=number: finish(number)) for number in range(4)]
        for thread in threads:
            thread.join(LONG)
        assert len(won) == 1
        assert future.cancelled() if won == [0] else future.result() == won[0]


def test_code_that_holds_the_condition_can_trust_the_state(new: Callable[[], Any]) -> None:
    future = new()
    with future._condition:
        thread = in_thread(lambda: future.set_result(1))
        wait_until_blocked(future, thread)
        future._waiters.append(waiter := concurrent.futures._base._FirstCompletedWaiter())
        seen: list[object] = []
        future._done_callbacks.append(seen.append)
    thread.join(LONG)
    assert waiter.finished_futures == [future]
    assert seen == [future]


def test_the_state_may_be_assigned_under_the_condition(new: Callable[[], Any]) -> None:
    future, seen = new(), []
    thread = in_thread(lambda: seen.append(future.exception(timeout=LONG)))
    wait_until_blocked(future, thread)
    error = OSError()
    with future._condition:
        future._state = FINISHED
        threading.Event().wait(0.02)
        future._exception = error
        future._condition.notify_all()
    thread.join(LONG)
    assert seen == [error]


@pytest.mark.parametrize("state", [PENDING, RUNNING, CANCELLED_AND_NOTIFIED, FINISHED])
def test_private_attributes_may_be_assigned(new: Callable[[], Any], state: str) -> None:
    future = new()
    future._state, future._result, future._exception = state, 42, None
    assert (future._state, future._result, future._exception) == (state, 42, None)
    assert future.done() is (state in (CANCELLED_AND_NOTIFIED, FINISHED))
    if state == FINISHED:
        assert future.result() == 42


def test_a_subclass_may_have_its_own_constructor(new: Callable[[], Any]) -> None:
    class Named(new):  # type: ignore[misc, valid-type]
        def __init__(self, name: str, *, loud: bool = False) -> None:
            super().__init__()
            self.name, self.loud = name, loud

    future = Named("x", loud=True)
    future.set_result(1)
    assert (future.name, future.loud, future.result()) == ("x", True, 1)
    assert repr(future).startswith("<Named at ")


def test_what_it_holds_is_let_go(new: Callable[[], Any]) -> None:
    class Value:
        pass

    value = Value()
    gone = weakref.ref(value)
    future = finished(new, value)
    del value
    assert gone() is not None
    del future
    assert gone() is None


def test_a_raised_exception_leaves_no_cycle_behind(new: Callable[[], Any]) -> None:
    """Its traceback holds the frames it went through: `result` may not leave the future in one."""

    def take(future: Any) -> None:
        try:
            future.result()
        except OSError:
            return
        finally:
            del future

    gc.collect()
    gc.disable()
    try:
        future = failed(new, OSError())
        gone = weakref.ref(future)
        take(future)
        del future
        assert gone() is None
    finally:
        gc.enable()


def test_cycles_are_collected(new: Callable[[], Any]) -> None:
    for make in (
        lambda future: future.set_result([future]),
        lambda future: future.add_done_callback(lambda done, future=future: None),
        lambda future: future._waiters.append(future),
    ):
        future = new()
        make(future)
        gone = weakref.ref(future)
        del future
        gc.collect()
        assert gone() is None


def test_it_cannot_be_pickled(new: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(new())


def test_asyncio_wraps_it(new: Callable[[], Any]) -> None:
    async def main() -> None:
        future = new()
        wrapped = asyncio.wrap_future(future)
        in_thread(lambda: future.set_result(3))
        assert await asyncio.wait_for(wrapped, LONG) == 3
        with pytest.raises(OSError, match="no"):
            await asyncio.wrap_future(failed(new, OSError("no")))
        future = new()
        wrapped = asyncio.wrap_future(future)
        wrapped.cancel()
        await asyncio.sleep(0)
        assert future.cancelled()
        future = new()
        wrapped = asyncio.wrap_future(future)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    asyncio.run(main())
