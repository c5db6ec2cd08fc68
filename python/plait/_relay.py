"""What a worker says besides answers: log records, warnings and printed lines, on their way to the parent.

They travel through the lane in order with the answers; `_notes.py` is the other end. Loaded by the zygote, so
it stays small: what needs `logging` is in `_relay_logging.py`, and is loaded when a job imports that.
"""

from __future__ import annotations

import io
import marshal
import os
import stat
import sys
from _thread import allocate_lock, get_ident

# As `typing.TYPE_CHECKING`, without importing it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from typing_extensions import Buffer

LOG, WARNING, OUT, ERR = range(4)
"""Kinds of notes."""

_LONGEST_PARTIAL = 1 << 16
"""Characters without an end of line that are kept back at most."""


class Relay:
    """Sends notes. After a fork inside a job the child's instance does nothing: the lane is its parent's."""

    def __init__(self, note: Callable[[int, bytes], None], name: str, settings: dict[str, Any]) -> None:
        self._note = note
        self.pid = os.getpid()
        self.name = name
        """Of this process, as log records give it."""
        self.settings = settings
        """What `_notes.settings` has put together in the parent."""
        self.job: Callable[[], str | None] = lambda: None
        """The name of the job that runs."""

    def say(self, kind: int, payload: bytes) -> bool:
        """Send a note; false if that is not possible."""
        if os.getpid() != self.pid:
            return False
        try:
            self._note(kind, payload)
        except (RuntimeError, MemoryError):
            return (
                False  # The pool is gone, and so is whoever would read it; or there is no room for so much.
            )
        return True

    def install(self, locking: int) -> None:
        """Take over the streams, `warnings` and, as soon as somebody imports it, `logging`.

        `locking` is a descriptor of a file that every worker of the pool has.
        """
        turn = _Turn(locking)
        for kind, name in ((OUT, "stdout"), (ERR, "stderr")):
            stream = getattr(sys, name)
            if stream is not None:
                lines = Lines(stream, kind, None if name in self.settings["direct"] else self, turn)
                setattr(sys, name, lines)
                _streams.append(lines)
        wanted = {"warnings": self._take_warnings, "logging": self._take_logging}
        for name in [name for name in wanted if name in sys.modules]:
            wanted.pop(name)(sys.modules[name])
        if wanted:
            sys.meta_path.insert(0, _AfterImport(wanted))

    def _take_logging(self, logging: ModuleType) -> None:
        from plait import _relay_logging

        _relay_logging.install(self)

    def _take_warnings(self, warnings: Any) -> None:
        standard = warnings.showwarning
        if self.settings["filters"] is not None:
            warnings.resetwarnings()
            warnings.filters.extend(_filter(*parts) for parts in self.settings["filters"])

        def showwarning(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: Any = None,
            line: str | None = None,
        ) -> None:
            if file is None:
                names = [(kind.__module__, kind.__qualname__) for kind in category.__mro__]
                place = (filename, lineno, _module_of(filename), line)
                if self.say(WARNING, marshal.dumps((str(message), names, *place))):
                    return
            standard(message, category, filename, lineno, file, line)

        warnings.showwarning = showwarning


def _module_of(filename: str) -> str | None:
    """The name of the module that a warning is about: of whoever runs code of that file."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != filename:
        frame = frame.f_back  # type: ignore[assignment]
    name = frame.f_globals.get("__name__") if frame is not None else None
    return name if type(name) is str else None


def _filter(
    action: str,
    message: str | tuple[str] | None,
    category: tuple[str, str],
    module: str | tuple[str] | None,
    lineno: int,
) -> tuple[Any, ...]:
    """A filter of `warnings` from what `_notes.settings` has made of it."""
    import builtins

    kind = getattr(builtins if category[0] == "builtins" else sys.modules.get(category[0]), category[1], None)
    if type(message) is tuple or type(module) is tuple:
        import re

        message = re.compile(message[0], re.IGNORECASE) if type(message) is tuple else message  # type: ignore[assignment]
        module = re.compile(module[0]) if type(module) is tuple else module  # type: ignore[assignment]
    # A category that is not there yet cannot be warned of: a class that nobody uses stands for it.
    return action, message, kind or type(category[1], (Warning,), {}), module, lineno


class _AfterImport:
    """Finder that calls somebody as soon as a module has been imported."""

    def __init__(self, wanted: dict[str, Callable[[ModuleType], None]]) -> None:
        self._wanted = wanted

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """What the other finders find, with a call at the end."""
        call = self._wanted.pop(name, None)
        if call is None:
            return None
        if not self._wanted:
            sys.meta_path.remove(self)
        finders = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            call(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class _Turn:
    """Who writes to a pipe: a pipe takes a long line in several pieces, between which others could write.

    For the threads of this process a lock, for the workers of the pool one of a file that all of them have,
    which the kernel frees when its holder dies.
    """

    def __init__(self, fd: int) -> None:
        self._path = f"/proc/self/fd/{fd}"
        self.renew()

    def renew(self) -> None:
        """In the child of a fork: its parent's turn is not its own."""
        self._threads = allocate_lock()
        self._file: int | None = None

    def write(self, write: Callable[[bytes], None], data: bytes) -> None:
        """Write while nobody else does."""
        import fcntl

        with self._threads:
            if self._file is None:
                # Opened anew: a lock belongs to an open file, and workers share those they were forked with.
                self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX)
            except OSError:  # a job has closed it: no lock is better than no line
                write(data)
                return
            try:
                write(data)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)


_streams: list[Lines] = []


class Lines(io.TextIOBase):
    """A standard stream of a worker: each line goes out whole and at once, whoever else writes.

    To the descriptor if that is where the parent's stream goes, too; else as a note, to the parent's stream.
    What a thread has written of a line that has no end yet is kept until it has one, or `flush`.
    """

    def __init__(self, stream: Any, kind: int, relay: Relay | None, turn: _Turn) -> None:
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._errors = getattr(stream, "errors", None) or "backslashreplace"
        self._stream = stream
        self._kind = kind
        self._fd = 1 if kind == OUT else 2
        self._relay = relay
        self._turn = turn if _is_pipe(self._fd) else None
        self._partial: dict[int, str] = {}
        self.name = f"<{'stdout' if kind == OUT else 'stderr'}>"
        self.mode = "w"
        self.buffer = _Bytes(self)

    @property
    def direct(self) -> bool:
        """Whether this goes to the descriptor."""
        return self._relay is None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._encoding)

    @property
    def errors(self) -> str:  # type: ignore[override]
        return str(self._errors)

    line_buffering = True
    write_through = False

    def write(self, text: str, /) -> int:
        """Write text; what has an end of line goes out at once."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        thread = get_ident()
        end = text.rfind("\n") + 1
        if not end:
            partial = self._partial[thread] = self._partial.get(thread, "") + text
            if len(partial) > _LONGEST_PARTIAL:
                self.flush()
            return len(text)
        whole = self._partial.pop(thread, "") + text[:end]
        if end < len(text):
            self._partial[thread] = text[end:]
        self._send(whole)
        return len(text)

    def flush(self) -> None:
        """Send what this thread has written of a line that has no end yet."""
        partial = self._partial.pop(get_ident(), "")
        if partial:
            self._send(partial)

    def finish(self) -> None:
        """Send what all threads have written."""
        for thread in list(self._partial):
            self._send(self._partial.pop(thread, ""))

    def forget(self) -> None:
        """In the child of a fork: the parent sends what it has written."""
        self._partial.clear()
        if self._turn is not None:
            self._turn.renew()

    def _send(self, text: str) -> None:
        if self._relay is not None and self._relay.say(self._kind, text.encode("utf-8", "surrogatepass")):
            return
        self.send_bytes(text.encode(self._encoding, self._errors))

    def send_bytes(self, data: bytes) -> None:
        """Write to the descriptor, with nothing in between."""
        if self._turn is None:
            self._write_out(data)
        else:
            self._turn.write(self._write_out, data)

    def _write_out(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                import select

                select.select([], [self._fd], [])

    def isatty(self) -> bool:
        return self._relay is None and os.isatty(self._fd)

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def reconfigure(self, *, encoding: str | None = None, errors: str | None = None, **_: Any) -> None:
        """As that of `io.TextIOWrapper`; lines always go out at once."""
        self.flush()
        self._encoding = encoding or self._encoding
        self._errors = errors or ("strict" if encoding else self._errors)


def _is_pipe(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class _Bytes(io.RawIOBase):
    """The binary side of a standard stream."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def write(self, data: Buffer, /) -> int:
        raw = bytes(data)
        if self._lines.direct:
            self._lines.flush()
            self._lines.send_bytes(raw)
        else:
            self._lines.write(raw.decode(self._lines.encoding, "replace"))
        return len(raw)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._lines.fileno()

    def isatty(self) -> bool:
        return self._lines.isatty()


def finish() -> None:
    """Send what was written and has no end of line, before this process ends."""
    for stream in _streams:
        stream.finish()


def after_fork() -> None:
    """In the child of a fork: what its parent has not sent yet is the parent's to send."""
    for stream in _streams:
        stream.forget()
