"""The parent's end of what workers say: log records to its handlers, warnings and lines to its streams.

The collector hands notes over in order with the answers, and waits until they have been dealt with before it
delivers the answers that come after them: what a job has logged is there when its result is. It does not wait
for a handler that blocks, or that waits for the pool itself: it goes on after a moment, and waits again when
all has been dealt with. What nobody deals with is kept up to a bound, then dropped and counted.
"""

from __future__ import annotations

import builtins
import marshal
import sys
import threading
import time
from collections import deque
from typing import Any

from plait._relay import ERR, LOG, OUT, WARNING, Lines

_PATIENCE = 1.0
"""Seconds without progress after which a handler counts as blocked, unless that has happened lately."""
_LEAST_PATIENCE = 0.01
_LONGEST_WAIT = 2.0
"""Seconds that answers are held up at most by the notes that come before them."""
_RETIRED = 255
"""What the engine itself says; `Note::RETIRED` in `crates/engine/src/process_pool/outcome.rs`."""
_MOST_NOTES = 100_000
_MOST_BYTES = 64 << 20
_MOST_FILES = 1000
_MOST_WARNINGS = 1000


class Notes:
    """The notes of one pool. Its thread exists from the first note on, until the pool is closed."""

    def __init__(self, max_memory: int | None = None) -> None:
        self._max_memory = max_memory
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, Any]] = deque()
        self._bytes = 0
        self._taken = 0
        """How many notes have been dealt with, or dropped."""
        self._told = 0
        self._lost = 0
        self._in_step = True
        """Whether the thread is waited for: until it stalls, and again when it has dealt with everything."""
        self._patience = _PATIENCE
        self._ended = False
        self._thread: threading.Thread | None = None
        self._once: dict[str, dict[Any, Any]] = {}
        """Of each file the warnings that were shown once."""
        self._categories: dict[Any, type[Warning]] = {}

    def tell(self, notes: list[tuple[int, Any]]) -> None:
        """Take over notes; returns when they are dealt with, or cannot be right now. The collector's."""
        with self._changed:
            for kind, payload in notes:
                if len(self._waiting) >= _MOST_NOTES or self._bytes >= _MOST_BYTES:
                    self._lost += 1
                    continue
                self._waiting.append((kind, payload))
                self._bytes += len(payload)
                self._told += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="plait-notes", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the interpreter is leaving: whoever would read them is gone
                    self._in_step = False
            self._changed.notify_all()
            if self._in_step:
                self._in_step = self._catch_up(self._told, self._patience, _LONGEST_WAIT)
                # Who stalls again and again, as a handler that waits for this pool does, is waited for less.
                patience = self._patience * 2 if self._in_step else self._patience / 2
                self._patience = min(max(patience, _LEAST_PATIENCE), _PATIENCE)

    def end(self) -> None:
        """There are no more notes. The collector's last word."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def join(self) -> None:
        """After `end`: wait until all is dealt with, unless a handler is blocked."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        with self._changed:
            if not self._catch_up(self._told, _PATIENCE, None):
                return
        thread.join(_PATIENCE)

    def _catch_up(self, target: int, patience: float, limit: float | None) -> bool:
        """Wait until so many are dealt with, or the time is over; false if there is no progress."""
        until = None if limit is None else time.monotonic() + limit
        while self._taken < target and (until is None or time.monotonic() < until):
            before = self._taken
            if not self._changed.wait_for(lambda: self._taken > before, patience):  # noqa: B023
                return False
        return True

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                if not self._waiting:
                    return
                kind, payload = self._waiting.popleft()
                self._bytes -= len(payload)
                lost, self._lost = self._lost, 0
            try:
                self._deal_with(kind, bytes(payload))
                if lost:
                    import warnings

                    warnings.warn(
                        f"{lost} log records or lines of worker processes were dropped: "
                        "handlers do not keep up with them",
                        RuntimeWarning,
                        stacklevel=1,
                    )
            except Exception:
                # The parent's handlers and streams are the user's: what they raise ends nothing here.
                if sys.stderr is not None:
                    sys.excepthook(*sys.exc_info())
            del payload
            with self._changed:
                self._taken += 1
                self._in_step = self._in_step or not self._waiting
                self._changed.notify_all()

    def _deal_with(self, kind: int, payload: bytes) -> None:
        if kind == LOG:
            import logging

            record = logging.makeLogRecord(marshal.loads(payload))
            logging.getLogger(record.name).handle(record)
        elif kind == WARNING:
            self._warn(*marshal.loads(payload))
        elif kind == _RETIRED:
            import logging

            logging.getLogger("plait").warning(
                "a worker process held %d bytes of memory of its own, more than max_memory_per_worker=%s: "
                "it is replaced, and so will others be without a word",
                int(payload),
                self._max_memory,
            )
        elif kind in (OUT, ERR):
            stream = sys.stdout if kind == OUT else sys.stderr
            if stream is not None:
                stream.write(payload.decode("utf-8", "surrogatepass"))
                stream.flush()

    def _warn(
        self,
        text: str,
        names: list[tuple[str, str]],
        filename: str,
        lineno: int,
        module: str | None,
        line: str | None,
    ) -> None:
        import warnings

        key = tuple(names[0])
        category = self._categories.get(key)
        if category is None:
            category = self._categories[key] = _category(names)
        if len(self._once) > _MOST_FILES:
            self._once.clear()
        # The registry is common to all workers: what is shown once is shown once for all of them.
        registry = self._once.setdefault(filename, {})
        if len(registry) > _MOST_WARNINGS:
            registry.clear()
        try:
            warnings.warn_explicit(text, category, filename, lineno, module, registry)
        except Warning:  # the parent's filters turn it into an error, and there is nobody here to raise it to
            warnings.showwarning(text, category, filename, lineno, None, line)


def _category(names: list[tuple[str, str]]) -> type[Warning]:
    """The class of a warning: the worker's if this process has it, else one that looks like it."""
    for at, (module, name) in enumerate(names):
        home = builtins if module == "builtins" else sys.modules.get(module)
        found = getattr(home, name, None)
        if isinstance(found, type) and issubclass(found, Warning):
            return found if at == 0 else type(names[0][1], (found,), {"__module__": names[0][0]})
    return UserWarning


def flush_streams() -> None:
    """Write out what was printed before workers print, who do not know of it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue  # there is none, or nobody reads it any more


def settings() -> dict[str, Any]:
    """What workers have to know about this process, as it is now, to do as it would."""
    return {
        "direct": [name for name, fd in (("stdout", 1), ("stderr", 2)) if _goes_to(getattr(sys, name), fd)],
        "levels": _levels(),
        "filters": _filters(),
    }


def _goes_to(stream: Any, fd: int) -> bool:
    """Whether a stream is this process's standard one: then workers write to it themselves."""
    if isinstance(stream, Lines):
        return stream.direct
    try:
        return bool(stream.fileno() == fd)
    except Exception:  # in a notebook, or redirected
        return False


def _levels() -> tuple[int, int, dict[str, int]] | None:
    """What is disabled, the root's level and those of the loggers that have one; `None` if nobody logs."""
    logging = sys.modules.get("logging")
    if logging is None:
        return None
    loggers = {
        name: logger.level
        for name, logger in list(logging.root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and logger.level
    }
    return logging.root.manager.disable, logging.root.level, loggers


def _filters() -> list[tuple[Any, ...]] | None:
    """The filters of `warnings`, as far as another process can have them; `None` if they are Python's own."""
    warnings = sys.modules.get("warnings")
    if warnings is None:
        return None
    parts = []
    for action, message, category, module, lineno in list(warnings.filters):
        # Python's own ones have plain names in the place of patterns.
        message, module = (
            part if part is None or isinstance(part, str) else (part.pattern,) for part in (message, module)
        )
        parts.append((action, message, (category.__module__, category.__qualname__), module, lineno))
    return parts
