"""What a worker process does: takes calls from its lane, runs them, answers.

Forked from the zygote, so this module and what it imports are loaded once. It stays small: what only some
jobs need (asyncio, traceback, cloudpickle) is imported when the first of them comes.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # `signal` imports `enum` and more
import atexit
import faulthandler
import marshal
import os
import sys
from _pickle import loads  # `pickle` imports `re` and more, which a worker need not wait for
from types import CoroutineType

from plait import _relay, _rust
from plait._interrupt import TaskCancelled
from plait._relay import Relay
from plait._serialize import describe, dumps, dumps_exception

# As `typing.TYPE_CHECKING`, without importing it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType
    from typing import Any, NoReturn

    from plait._zygote import Outfit

_CO_COROUTINE = 0x80
"""As in `inspect`, which takes long to import."""
STACK_SIGNAL = 63
"""The signal, a real-time one, at which a worker prints on standard error where it is."""
VALUE, NOTHING, RAISED, UNPICKLABLE = range(4)
"""How a call ended; `Status` in `crates/engine/src/process_pool/protocol.rs`."""


def main(zygote: int, lane: int, arguments: int, doorbell: int, number: int, outfit: Outfit) -> NoReturn:
    """Serve the lane until told to leave. Never returns: what the zygote was doing is none of a worker's
    business.
    """
    status = 1
    try:
        if not _rust.die_with_parent(zygote):
            os._exit(0)
        # What was registered to run at the zygote's exit must not run at a worker's.
        atexit._clear()
        faulthandler.register(STACK_SIGNAL, file=2)
        if "multiprocessing.util" in sys.modules:  # which sees to what queues have not sent yet
            atexit.register(sys.modules["multiprocessing.util"]._exit_function)
        worker = _rust.Worker(lane, arguments, doorbell)
        if not outfit.accounts:
            worker.forgo_accounts()
        server = _server(worker, outfit.width)
        name = f"plait-worker-{number}"
        if "multiprocessing.process" in sys.modules:
            sys.modules["multiprocessing.process"].current_process().name = name
        relay = Relay(worker.note, name, outfit.relay)
        relay.job = server.job
        relay.install(arguments)
        os.register_at_fork(after_in_child=server.leave_lane)
        if _prepare(worker, outfit):
            _signal.signal(_rust.INTERRUPT, server.interrupt)
            if outfit.max_memory is not None:
                worker.limit_memory(outfit.max_memory)
            server.serve()
            status = 0
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        _relay.finish()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                continue  # closed, or nobody reads it any more
        os._exit(status)


def _server(worker: _rust.Worker, width: int | None) -> Server:
    if width == 1:
        return Server(worker)
    from plait._hybrid_worker import HybridServer

    return HybridServer(worker)


def _prepare(worker: _rust.Worker, outfit: Outfit) -> bool:
    failure = outfit.failure
    if failure is None:
        try:
            for module in outfit.late:
                __import__(module)
            if outfit.initializer is not None:
                function, arguments, buffers = marshal.loads(outfit.initializer)
                loads(function)(*loads(arguments, buffers=buffers))
        except BaseException:
            import traceback

            failure = traceback.format_exc()
    if failure is not None:
        worker.unusable(failure)
        return False
    worker.ready()
    return True


class _Elsewhere:
    """What a process that a job has forked has in the place of the lane: its parent answers, and it ends."""

    def answer(self, job: int, status: int, payload: bytes, buffers: list[Any]) -> NoReturn:
        """End this process, as the job has ended here, too."""
        sys.stdout.flush()
        os._exit(0 if status in (VALUE, NOTHING) else 1)


class Server:
    """Runs calls one at a time."""

    def __init__(self, worker: _rust.Worker) -> None:
        self.worker: _rust.Worker | _Elsewhere = worker
        self.take, self.call, self.learn = worker.take, worker.call, worker.learn
        self.take_plain, self.calling, self.invoke = worker.take_plain, worker.calling, worker.invoke
        self.functions: dict[int, Callable[..., Any]] = {}
        self.function: Callable[..., Any] | None = None
        """The one that runs."""
        self.name: str | None = None
        """What the job was called, if it was."""
        self.runner: Any = None
        self.interrupted: Callable[[], Sequence[int]] = worker.interrupted
        self.task: Any = None
        """The coroutine that runs, as a task of the runner's loop."""
        self.spoilt = False
        """An import was cut short: Python keeps what is left of a package, which later imports trip over."""

    def leave_lane(self) -> None:
        """In the child of a fork: the lane belongs to the parent."""
        if isinstance(self.worker, _rust.Worker):
            self.worker.leave()
        self.worker = _Elsewhere()
        self.interrupted = tuple
        _relay.after_fork()

    def job(self) -> str | None:
        """The name of the job that runs, as `_job.job_name` gives it (which takes long to import)."""
        function = self.function
        if function is None or self.name is not None:
            return self.name
        inner = getattr(function, "func", None)
        name = getattr(function, "__qualname__", None) or getattr(inner, "__qualname__", None)
        return str(name) if name else type(function).__qualname__

    def interrupt(self, _signal: int, frame: FrameType | None) -> None:
        """Handle the pool's signal: end the job that runs, if it is the one that was meant.

        Raises only while a plain call's function runs, or inside `run`. If the job has not come there yet,
        `take_plain` or `call` looks; if it has left, it is over.
        """
        if not self.interrupted():
            return
        if self.task is not None:
            self.task.cancel()
            # The loop may be asleep in its selector.
            self.task.get_loop().call_soon_threadsafe(lambda: None)
            return
        inside, importing = self.calling(), False
        while frame is not None:
            inside |= frame.f_code in _INTERRUPTIBLE
            importing |= frame.f_code.co_filename == "<frozen importlib._bootstrap>"
            frame = frame.f_back
        if inside:
            self.spoilt |= importing
            raise TaskCancelled

    def serve(self) -> None:
        """Take and answer calls until told to leave. Plain ones are run and answered by `take_plain`."""
        take, run = self.take_plain, self.run
        while (job := take(self)) is not None:
            try:
                value = run(job)
            except BaseException as error:
                self.fail(job, error)
            else:
                self.answer(job, value)
                value = None
            self.function = self.name = None
        self.close_runner()

    def run(self, job: int) -> Any:
        """Run the call that was taken to its value."""
        # The call's parts are held here alone, so that its views into shared memory die with this frame.
        number, definition, payload, buffers = self.call()
        if definition is not None:
            self.functions[number] = load_function(definition)
            self.learn_plain(number)
        function = self.function = self.functions[number]
        arguments = loads(payload, buffers=buffers)
        if type(arguments) is tuple:
            self.name = None
            value = self.invoke(job, function, arguments, None)
        else:  # the positional ones, the keywords, and what the job was called
            self.name = arguments[2] if len(arguments) > 2 else None
            value = self.invoke(job, function, *arguments[:2])
        return self.run_coroutine(job, value) if type(value) is CoroutineType else value

    def run_coroutine(self, job: int, coroutine: CoroutineType[Any, Any, Any]) -> Any:
        """Run a coroutine to its value, on a loop that this worker keeps."""
        try:
            if self.runner is None:
                import asyncio

                self.runner = asyncio.Runner()
            loop = self.runner.get_loop()
            self.task = loop.create_task(coroutine)
            return self.invoke(job, loop.run_until_complete, (self.task,), None)
        except TaskCancelled:
            # It came between two steps. What is left of the coroutine must not run with the next one.
            self.task = None
            coroutine.close()
            self.close_runner()
            raise
        finally:
            self.task = None

    def close_runner(self) -> None:
        """Close the loop for coroutines; the next one gets a new one."""
        runner, self.runner = self.runner, None
        if runner is not None:
            runner.close()

    def learn_plain(self, number: int) -> None:
        """Let `take_plain` run plain calls of a function, unless it is one that gives coroutines."""
        function = self.functions[number]
        flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
        self.learn(number, None if flags & _CO_COROUTINE else function)

    def fail_plain(self, job: int, error: BaseException) -> None:
        """Answer a plain call that has raised."""
        try:
            raise error  # The traceback begins here, as `fail` expects.
        except BaseException as raised:
            self.fail(job, raised)

    def settle(self, job: int, value: Any) -> None:
        """Answer a plain call that turned out not to be so plain."""
        if type(value) is CoroutineType:
            try:
                value = self.run_coroutine(job, value)
            except BaseException as error:
                self.fail(job, error)
                return
        self.answer(job, value)

    def answer(self, job: int, value: Any) -> None:
        """Send back a value."""
        if value is None:
            self.worker.answer(job, NOTHING, b"", [])
            return
        try:
            payload, buffers = dumps(value)
        except Exception as error:
            self.refuse(job, f"returned a value that cannot be pickled: {describe(value, error)}")
            return
        except BaseException as error:  # a `__reduce__` that wants to exit: no more than this job's failure
            self.fail(job, error)
            return
        del value
        try:
            self.worker.answer(job, VALUE, payload, buffers)
        except (MemoryError, TypeError) as error:  # no room, or a handle that nobody else holds
            self.fail(job, error)

    def fail(self, job: int, error: BaseException) -> None:
        """Send back an exception with the text of its traceback."""
        if job in self.interrupted():
            # Nobody waits for this run any more, only for its end.
            self.worker.answer(job, NOTHING, b"", [])
            if self.spoilt:
                raise SystemExit(0)  # another worker takes this one's place
            return
        # The first frame is `serve`'s and tells nobody anything.
        trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
        try:
            import traceback  # which a job may have made impossible

            text = "".join(traceback.format_exception(type(error), error, trace))
        except BaseException as inner:  # it is the user's class
            text = (
                f"{type(error).__qualname__} (no more can be said: {type(inner).__qualname__} when looked at)"
            )
        error.__traceback__ = None
        try:
            payload, buffers = dumps_exception(error, text)
        except BaseException as inner:
            self.refuse(
                job, f"raised an exception that cannot be pickled: {describe(error, inner)}\n\n{text}"
            )
            return
        try:
            self.worker.answer(job, RAISED, payload, buffers)
        except MemoryError:
            self.refuse(job, f"raised an exception too large to send back\n\n{text[-10_000:]}")

    def refuse(self, job: int, text: str) -> None:
        """Send back a text in the place of what cannot be pickled."""
        self.worker.answer(job, UNPICKLABLE, text.encode("utf-8", "backslashreplace"), [])


_INTERRUPTIBLE = (Server.run.__code__, Server.run_coroutine.__code__)


def load_function(definition: Any) -> Callable[..., Any]:
    """The function that a definition stands for; if it cannot be loaded, one that raises why."""
    try:
        function: Callable[..., Any] = loads(definition)
    except TaskCancelled:
        raise  # says nothing about the function
    except BaseException as error:
        reason = error

        def function(*_args: Any, **_kwargs: Any) -> Any:
            raise reason

    return function
