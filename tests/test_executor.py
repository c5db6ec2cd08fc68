"""`plait.Executor` as a `concurrent.futures.Executor`, the same body under every model."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

import plait

MODELS = ["auto", "tasks", "threads", "processes", "hybrid"]
if sys.version_info >= (3, 14):
    MODELS.append("interpreters")
SHARED_MEMORY = ["tasks", "threads"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ex(model: str) -> Iterator[plait.Executor]:
    with plait.Executor(model, 2) as executor:
        yield executor


def double(x: int) -> int:
    return 2 * x


async def double_later(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


def describe(*args: Any, **kwargs: Any) -> str:
    return f"{args} {sorted(kwargs.items())}"


def fail(message: str) -> None:
    raise LookupError(message)


async def fail_later(message: str) -> None:
    await asyncio.sleep(0)
    raise LookupError(message)


def test_it_is_a_standard_executor_with_standard_futures(ex: plait.Executor) -> None:
    assert isinstance(ex, concurrent.futures.Executor)
    future = ex.submit(double, 21)
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(future, plait.Future)
    assert future.result() == 42
    assert future.exception() is None
    assert future.done()
    assert not future.running()


def test_arguments_arrive_as_they_were_given(ex: plait.Executor) -> None:
    keywords: Any = {"fn": 3, "self": 4, "timeout": 5}
    assert ex.submit(describe, 1, 2, **keywords).result() == describe(1, 2, **keywords)


def test_coroutine_functions_run_to_completion_under_every_model(ex: plait.Executor) -> None:
    assert ex.submit(double_later, 21).result() == 42
    assert ex.submit(functools.partial(double_later, 21)).result() == 42
    assert list(ex.map(double_later, range(20))) == [2 * x for x in range(20)]


def test_what_returns_a_coroutine_is_run_too(ex: plait.Executor) -> None:
    work = lambda x: double_later(x)  # noqa: E731
    assert [ex.submit(work, x).result() for x in range(5)] == [0, 2, 4, 6, 8]
    assert list(ex.map(work, range(20))) == [2 * x for x in range(20)]


@pytest.mark.parametrize("function", [fail, fail_later])
def test_exceptions_keep_their_type_and_say_where_they_happened(ex: plait.Executor, function: Any) -> None:
    future = ex.submit(function, "nothing here")
    with pytest.raises(LookupError, match="nothing here") as caught:
        future.result()
    assert "raise LookupError(message)" in "".join(traceback.format_exception(caught.value))


def test_wait_and_as_completed(ex: plait.Executor) -> None:
    futures = [ex.submit(double, x) for x in range(50)]
    assert {future.result() for future in concurrent.futures.as_completed(futures, timeout=30)} == {
        2 * x for x in range(50)
    }
    assert concurrent.futures.wait(futures, timeout=30).not_done == set()


def test_callbacks_are_called_also_when_it_is_too_late_to_wait(ex: plait.Executor) -> None:
    called = threading.Event()
    future = ex.submit(double, 1)
    future.add_done_callback(lambda future: called.set())
    assert called.wait(30)
    seen: list[object] = []
    future.add_done_callback(seen.append)
    assert seen == [future]


def test_a_future_can_be_awaited_from_two_event_loops(ex: plait.Executor) -> None:
    future = ex.submit(double, 21)

    async def wait_for_it() -> int:
        return await future

    assert [asyncio.run(wait_for_it()) for _ in range(2)] == [42, 42]


def test_event_loops_take_it_as_their_executor(ex: plait.Executor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*[loop.run_in_executor(ex, double, x) for x in range(10)])

    assert asyncio.run(main()) == [2 * x for x in range(10)]


@pytest.mark.parametrize("model", SHARED_MEMORY)
def test_context_variables_are_carried_into_tasks_and_threads(model: str) -> None:
    user: ContextVar[str] = ContextVar("user")

    async def name_later() -> str:
        await asyncio.sleep(0)
        return user.get()

    with plait.Executor(model, 2) as ex:
        for name in ("ada", "grace"):
            user.set(name)
            assert ex.submit(user.get).result() == name
            assert ex.submit(name_later).result() == name
            assert list(ex.map(lambda _: user.get(), range(5))) == [name] * 5


def test_after_shutdown_nothing_is_taken(ex: plait.Executor) -> None:
    before = ex.submit(double, 21)
    ex.shutdown()
    ex.shutdown()
    assert before.result(0) == 42
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.submit(double, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.map(double, [1])


def test_shutdown_without_waiting_finishes_what_was_submitted(model: str) -> None:
    ex = plait.Executor(model, 1)
    futures = [ex.submit(double, x) for x in range(20)]
    ex.shutdown(wait=False)
    assert [future.result(30) for future in futures] == [2 * x for x in range(20)]


def test_shutdown_can_cancel_what_has_not_begun(model: str) -> None:
    ex = plait.Executor(model, 1)
    futures = [ex.submit(time.sleep, 0.05) for _ in range(50)]
    ex.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert futures[-1].cancelled()


def test_bad_numbers_of_workers_and_bad_models_are_refused(model: str) -> None:
    for workers in (0, -1):
        with pytest.raises(ValueError, match="workers must be at least 1"):
            plait.Executor(model, workers)
    for wrong in ("2", 2.0, True):
        with pytest.raises(TypeError, match="workers must be an integer"):
            plait.Executor(model, wrong)  # type: ignore[arg-type]


def test_an_unknown_model_is_refused_by_a_list_of_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'fibers'.*'auto', 'tasks', 'threads', 'processes', 'interp"):
        plait.Executor("fibers")
    with pytest.raises(TypeError, match="model must be a string"):
        plait.Executor(4)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python has them")
def test_interpreters_need_a_python_that_has_them() -> None:
    with pytest.raises(RuntimeError, match=r"needs Python 3\.14 or later and this is 3\."):
        plait.Executor("interpreters")


def test_views_share_the_workers_and_differ_in_their_options(ex: plait.Executor, model: str) -> None:
    assert ex.submit(double, 4).result() == 8
    view = ex.options(name="nap", timeout=0.05)
    assert isinstance(view, plait.Executor)
    if model != "interpreters":
        with pytest.raises(plait.TaskTimeout, match=r"nap ran for longer than its timeout of 0\.05 s"):
            view.submit(time.sleep, 0.5).result()
    assert ex.submit(double, 4).result() == 8
    view.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.submit(double, 1)


def test_options_are_checked(ex: plait.Executor) -> None:
    for wrong in ({"timeout": 0}, {"timeout": -1.0}, {"timeout": float("nan")}, {"retries": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ex.options(**wrong)  # type: ignore[arg-type]
    for mistyped in ({"timeout": "1"}, {"retries": 1.5}, {"retries": True}, {"name": 3}):
        with pytest.raises(TypeError, match=next(iter(mistyped))):
            ex.options(**mistyped)  # type: ignore[arg-type]


def succeed_at_last(path: str, attempts: int) -> int:
    """Fails until it has been called that many times, wherever that was."""
    with open(path, "a") as file:  # noqa: PTH123
        file.write(".")
    made = os.path.getsize(path)  # noqa: PTH202
    if made < attempts:
        raise ConnectionError(made)
    return made


def test_retries_run_a_failed_job_again(ex: plait.Executor, tmp_path: Any) -> None:
    assert ex.options(retries=2).submit(succeed_at_last, str(tmp_path / "a"), 3).result() == 3
    with pytest.raises(ConnectionError):
        ex.options(retries=1).submit(succeed_at_last, str(tmp_path / "b"), 3).result()
    assert list(ex.map(succeed_at_last, [str(tmp_path / "c")], [3], retries=2)) == [3]
