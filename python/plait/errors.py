"""The exceptions that plait adds to those of the standard library."""

from __future__ import annotations

import concurrent.futures
import pickle

from plait._interrupt import TaskCancelled

__all__ = [
    "ArgumentNotPicklable",
    "OwnerDied",
    "ResultNotPicklable",
    "TaskCancelled",
    "TaskTimeout",
    "WorkerDied",
]


class WorkerDied(concurrent.futures.BrokenExecutor):
    """The worker process that ran a job ended before the job did.

    Only that job fails; the worker is replaced and every other job goes on.

    Attributes:
        job: the name of the job, as given by ``options(name=)`` or taken from its function.
        pid: the process id the worker had.
        exitcode: its exit status, or ``None`` if a signal ended it.
        signal: the number of the signal that ended it, or ``None`` if it exited.
        traceback: where it was when it crashed, in Python (from `faulthandler`); empty if it did not crash.
        out_of_memory: whether the system's out-of-memory killer ended it.
    """

    def __init__(
        self,
        job: str,
        pid: int,
        exitcode: int | None,
        signal: int | None,
        traceback: str = "",
        out_of_memory: bool = False,
    ) -> None:
        super().__init__(job, pid, exitcode, signal, traceback, out_of_memory)
        self.job = job
        self.pid = pid
        self.exitcode = exitcode
        self.signal = signal
        self.traceback = traceback
        self.out_of_memory = out_of_memory

    def __str__(self) -> str:
        if self.out_of_memory:
            cause = "was killed by the system because memory ran out (out-of-memory killer, SIGKILL)"
        elif self.signal is not None:
            cause = f"was killed by {_signal_name(self.signal)}"
        elif self.exitcode is not None:
            cause = f"exited with status {self.exitcode}"
        else:
            cause = "ended without telling why"
        text = f"the worker (pid {self.pid}) that ran {self.job} {cause}; only this job is affected"
        return f"{text}\n{self.traceback.rstrip()}" if self.traceback else text


class OwnerDied(RuntimeError):
    """The process that held a lock of :mod:`plait.multiprocessing` ended without releasing it.

    Raised by ``acquire`` in one of those that wait. The lock is free afterwards; what it guards may be half
    done, which is why the next owner is not let in without being told.

    Attributes:
        pid: the process id of the owner.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid

    def __str__(self) -> str:
        return (
            f"process {self.pid} ended while it held this lock; the lock is free now, "
            "but what it guards may be half done"
        )


class TaskTimeout(TimeoutError):
    """A job ran for longer than the ``timeout`` it was given.

    Attributes:
        job: the name of the job.
        timeout: the limit in seconds.
    """

    def __init__(self, job: str, timeout: float) -> None:
        super().__init__(job, timeout)
        self.job = job
        self.timeout = timeout

    def __str__(self) -> str:
        return f"{self.job} ran for longer than its timeout of {self.timeout:g} s"


class ArgumentNotPicklable(TypeError, pickle.PicklingError):
    """A job's function or one of its arguments cannot be sent to a worker process."""


class ResultNotPicklable(TypeError, pickle.PicklingError):
    """A job returned (or raised) a value that cannot be sent back from its worker process."""


def _signal_name(number: int) -> str:
    import signal

    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"
