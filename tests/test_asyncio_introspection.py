"""What tells of tasks tells of them on plait's loop: names, eager tasks, debug mode, `asyncio ps`."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import subprocess
import sys
import threading
from typing import Any

import pytest

import plait
import plait.asyncio


def test_tasks_are_asyncios_own() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert type(asyncio.current_task()) is asyncio.Task
        assert type(loop.create_future()) is asyncio.Future
        over = asyncio.Event()
        waiting = asyncio.create_task(over.wait(), name="waiting")
        assert type(waiting) is asyncio.Task
        assert waiting.get_name() == "waiting"
        await asyncio.sleep(0)
        assert waiting in asyncio.all_tasks()
        assert {task.get_name() for task in asyncio.all_tasks(loop)} >= {"waiting"}
        assert asyncio.current_task(loop) is not waiting
        [frame] = waiting.get_stack(limit=1)
        assert frame.f_code.co_name == "wait"
        over.set()
        assert await waiting
        context = contextvars.copy_context()
        variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
        context.run(variable.set, 3)

        async def look() -> int:
            return variable.get()

        assert await loop.create_task(look(), context=context) == 3

    plait.asyncio.run(main())


def test_names_and_wrong_arguments_are_as_with_asyncio() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def nothing() -> None:
            pass

        make: Any = loop.create_task
        assert (await named(loop.create_task(nothing(), name=None))).startswith("Task-")
        assert await named(loop.create_task(nothing(), name=12)) == "12"  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="coroutine was expected"):
            make(1)
        coroutine = nothing()
        with pytest.raises(TypeError):
            make(coroutine, colour="red")
        coroutine.close()

    async def named(task: asyncio.Task[None]) -> str:
        await task
        return task.get_name()

    plait.asyncio.run(main())
    loop = plait.EventLoop()
    loop.close()
    coroutine = main()
    with pytest.raises(RuntimeError, match="closed"):
        loop.create_task(coroutine).cancel()
    coroutine.close()


def test_a_task_factory_is_asked() -> None:
    made: list[Any] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def one() -> int:
        return 1

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        assert await asyncio.create_task(one(), name="one") == 1
        assert len(made) == 1

    plait.asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
def test_eager_tasks() -> None:
    order = []

    async def one() -> int:
        order.append("begun")
        return 1

    async def main() -> None:
        loop = asyncio.get_running_loop()
        if sys.version_info >= (3, 14):
            task = asyncio.create_task(one(), eager_start=True)
            order.append("made")
            assert await task == 1
            assert order == ["begun", "made"]
            order.clear()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        task = asyncio.create_task(one())
        assert task.done()
        order.append("made")
        assert await task == 1
        assert order == ["begun", "made"]

    plait.asyncio.run(main())


def test_debug_mode_tells_of_slow_callbacks(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = 0
        await asyncio.create_task(asyncio.sleep(0), name="slow-one")

    with caplog.at_level(logging.WARNING, "asyncio"):
        plait.asyncio.run(main(), debug=True)
    assert any("Executing <Task" in message and "slow-one" in message for message in caplog.messages)


def test_run_in_executor_is_on_plaits_threads_and_ends_with_the_loop() -> None:
    async def main() -> set[str]:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, sum, [1, 2]) == 3
        assert await asyncio.to_thread(int, "7") == 7
        future = loop.run_in_executor(None, int, "no number")
        assert type(future) is asyncio.Future
        with pytest.raises(ValueError, match="no number"):
            await future
        names = {thread.name for thread in threading.enumerate() if thread.name.startswith("asyncio_")}
        assert names
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError, match="shutdown"):
            loop.run_in_executor(None, int)
        return names

    names = plait.asyncio.run(main())
    assert not names & {thread.name for thread in threading.enumerate()}


def test_run_in_executor_before_the_loop_runs() -> None:
    loop = plait.EventLoop()
    try:
        assert loop.run_until_complete(loop.run_in_executor(None, int, "3")) == 3
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_in_executor(None, int)


PROGRAM = """
import plait.asyncio as asyncio, sys
async def leaf(over):
    await over.wait()
async def branch(over):
    await asyncio.create_task(leaf(over), name="the-leaf")
async def main():
    over = asyncio.Event()
    task = asyncio.create_task(branch(over), name="the-branch")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    over.set()
    await task
asyncio.run(main())
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="`asyncio ps` is of Python 3.14")
@pytest.mark.parametrize("command", ["ps", "pstree"])
def test_asyncio_ps_sees_the_tasks_of_a_running_program(command: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            asked = subprocess.run(
                [sys.executable, "-m", "asyncio", command, str(program.pid)],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            program.communicate("\n", timeout=60)
        finally:
            program.kill()
    if "ermission" in asked.stderr:
        pytest.skip("this system does not let one process look into another")
    assert "the-leaf" in asked.stdout, asked.stdout + asked.stderr
    assert "the-branch" in asked.stdout
    assert "branch" in asked.stdout
    assert program.returncode == 0
