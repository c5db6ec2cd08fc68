"""Calls so plain that a worker runs them without its own Python, and those that only look like it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

import plait


@pytest.fixture
def ex() -> Iterator[plait.Executor]:
    with plait.Executor("processes", 2) as executor:
        yield executor


def test_plain_calls_and_others_in_turn(ex: plait.Executor) -> None:
    values: list[Any] = [1, "a", (1, 2), [1], None, 2.5, {"k": 1}, 7, b"x" * 300, True]
    assert [ex.submit(give, value).result() for value in values * 3] == values * 3
    assert list(ex.map(give, values * 30)) == values * 30


def give(value: Any) -> Any:
    return value


def divide(a: int, b: int) -> float:
    return a / b


def test_a_plain_call_fails_like_any_other(ex: plait.Executor) -> None:
    assert ex.submit(divide, 1, 1).result() == 1
    for _ in range(3):
        with pytest.raises(ZeroDivisionError) as caught:
            ex.submit(divide, 1, 0).result()
        text = str(caught.value.__cause__)
        assert "return a / b" in text
    with pytest.raises(TypeError, match="divide"):
        ex.submit(divide, 1).result()  # type: ignore[call-arg]


def give_coroutine(value: int) -> Any:
    return later(value)


async def later(value: int) -> int:
    return 1 // value


def test_a_function_that_gives_a_coroutine_now_and_then(ex: plait.Executor) -> None:
    assert list(ex.map(give_coroutine, [1] * 20)) == [1] * 20
    assert list(ex.map(later, [1] * 20)) == [1] * 20
    with pytest.raises(ZeroDivisionError):
        list(ex.map(give_coroutine, [1, 1, 0]))


def fork_and_return(value: int) -> int:
    child = os.fork()
    if child == 0:
        return value  # in the child, too
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_fork_in_a_plain_call_does_not_answer(ex: plait.Executor) -> None:
    assert list(ex.map(fork_and_return, range(20))) == [0] * 20
