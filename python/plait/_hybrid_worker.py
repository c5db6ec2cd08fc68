"""What a worker of the ``hybrid`` model does: many jobs at once, on an event loop and in threads.

```text
taking thread:  take a call ──► loop: unpickle ─┬─► coroutine function: a task of the loop ──► answer
                                                └─► plain function: a thread ────────────────► answer
```

The pool bounds how many jobs are here at once (the width), so nothing queues in this process. Answers come in
any order. The main thread runs the loop, so that signals, and with them interrupts, are handled there.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from _pickle import loads
from contextvars import ContextVar
from types import CoroutineType, FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from plait import _rust
from plait._coroutines import is_coroutine_function
from plait._interrupt import TaskCancelled
from plait._job import DEFAULT_OPTIONS, job_name
from plait._worker import Server, load_function
from plait.thread_pool import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable


_called: ContextVar[tuple[Callable[..., Any], str | None] | None] = ContextVar("_called", default=None)
"""The function of the job that runs, and what the job was called."""


class HybridServer(Server):
    """Runs many calls at once: coroutine functions on one event loop, the others in threads."""

    def __init__(self, worker: _rust.Worker) -> None:
        super().__init__(worker)
        self.add_steps = worker.add_steps
        self.tasks: dict[int, asyncio.Task[None]] = {}
        # The pool bounds how many jobs are here; a thread is started when none is free.
        self.threads = ThreadPool(_rust.MOST_WIDTH, name="plait-hybrid")
        self.loop: asyncio.AbstractEventLoop | None = None

    def job(self) -> str | None:
        """The name of the job that runs."""
        called = _called.get()
        return None if called is None else called[1] or job_name(called[0], DEFAULT_OPTIONS)

    def serve(self) -> None:
        """Take and answer calls until told to leave, and all that were taken are answered."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        left = self.loop.create_future()
        # A daemon: when this worker fails, nobody wakes the thread from its wait for a call.
        taker = threading.Thread(target=self._take, args=(self.loop, left), name="plait-taker", daemon=True)
        taker.start()
        await left
        # Plain functions may still give coroutines for the loop to run.
        await asyncio.to_thread(self.threads.shutdown)
        while self.tasks:
            await asyncio.wait(self.tasks.values())

    def _take(self, loop: asyncio.AbstractEventLoop, left: asyncio.Future[None]) -> None:
        """The taking thread: hands calls to the loop."""
        take, call = self.take, self.call
        try:
            while (job := take()) is not None:
                try:
                    parts = call()
                except TaskCancelled as error:
                    self.fail(job, error)
                else:
                    loop.call_soon_threadsafe(self._begin, job, *parts)
                    del parts
        except BaseException as error:  # The lane is unusable, and so is this worker.
            loop.call_soon_threadsafe(left.set_exception, error)
        else:
            loop.call_soon_threadsafe(left.set_result, None)

    def _begin(self, job: int, number: int, definition: Any, payload: Any, buffers: list[Any]) -> None:
        """On the loop: start one call."""
        try:
            if definition is not None:
                self.functions[number] = load_function(definition)
            function = self.functions[number]
            arguments = loads(payload, buffers=buffers)
            args, kwargs, *name = (arguments, {}) if type(arguments) is tuple else arguments
            # Each call of this has a context of its own, which tasks and threads take along.
            _called.set((function, name[0] if name else None))
            if is_coroutine_function(function):
                self._start_task(job, self.invoke(job, function, args, kwargs))
            else:
                self.threads.submit(self._run_in_thread, (job, function, args, kwargs), {}, DEFAULT_OPTIONS)
        except BaseException as error:
            self.fail(job, error)

    def _start_task(self, job: int, coroutine: CoroutineType[Any, Any, Any]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self.tasks.pop(job, None)
            if task.cancelled():  # before it had begun
                coroutine.close()
                self.fail(job, TaskCancelled())

        steps = _rust.Steps(coroutine)
        task = asyncio.get_running_loop().create_task(self._run_to_answer(job, steps))
        self.tasks[job] = task
        task.add_done_callback(ended)
        # A signal that came before there was a task was about this.
        if job in self.interrupted():
            task.cancel()

    def interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle the pool's signal: cancel the coroutines that were meant. A thread cannot be stopped."""
        for job in self.interrupted():
            task = self.tasks.get(job)
            if task is not None:
                task.cancel()
        if self.loop is not None:
            # It may be asleep in its selector.
            self.loop.call_soon_threadsafe(lambda: None)

    def answer(self, job: int, value: Any) -> None:
        """Send back a value."""
        try:
            super().answer(job, value)
        except BaseException:
            _leave()

    def fail(self, job: int, error: BaseException) -> None:
        """Send back an exception with the text of its traceback."""
        try:
            super().fail(job, error)
        except BaseException:
            _leave()

    async def _run_to_answer(self, job: int, steps: _rust.Steps) -> None:
        try:
            value = await steps
        except BaseException as error:  # Even SystemExit is the job's end and not the loop's.
            self.add_steps(job, steps.cost())
            self.fail(job, error)
        else:
            self.add_steps(job, steps.cost())
            self.answer(job, value)

    def _run_in_thread(
        self, job: int, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        try:
            value = self.invoke(job, function, args, kwargs)
        except BaseException as error:
            self.fail(job, error)
            return
        if type(value) is CoroutineType:
            assert self.loop is not None
            self.loop.call_soon_threadsafe(self._start_task, job, value)
        else:
            self.answer(job, value)


def _leave() -> NoReturn:
    """End this process: its lane is unusable, so that nobody would hear of any of its jobs."""
    sys.excepthook(*sys.exc_info())
    os._exit(1)
