"""The bar of ``map(progress=True)``: counts inputs that are finished, wherever standard error goes."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from importlib import import_module
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

__all__ = ["Bar"]

# A log keeps every line, a notebook cell redraws one.
_LOG_SECONDS = 5.0
_NOTEBOOK_SECONDS = 0.2


class Bar:
    """Shows how much of a map is done: a bar on a terminal, lines now and then in a log, text in a notebook.

    Counting is thread-safe and cheap; drawing happens ten times a second at most.
    """

    def __init__(self, name: str, total: int | None) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self.began = monotonic()
        self._lock = threading.Lock()
        self._closed = False
        self._completed: Callable[[], int] | None = None
        self._view: _View = _make_view(self)
        self._count_one: Callable[[Future[Any]], None] = self.counter(1)

    def counter(self, inputs: int) -> Callable[[Future[Any]], None]:
        """A done-callback for a job of that many inputs; a cancelled job does not count."""
        if inputs == 1 and hasattr(self, "_count_one"):
            return self._count_one

        def count(future: Future[Any]) -> None:
            if not future.cancelled():
                with self._lock:
                    self.done += inputs
                    if not self._closed:
                        self._view.advanced()

        return count

    def follow(self, completed: Callable[[], int]) -> None:
        """Take the count from somebody who counts anyway, instead of from callbacks."""
        self._completed = completed

    def look(self) -> None:
        """There may be more done."""
        with self._lock:
            if not self._closed:
                self._view.advanced()

    def count(self) -> int:
        """How many inputs are finished."""
        if self._completed is not None and not self._closed:
            self.done = self._completed()
        return self.done

    def close(self, completed: int | None = None) -> None:
        """Draw for the last time. ``completed`` says that all is done, and how many inputs that were.

        (The last jobs may be awaited before they are counted.)
        """
        with self._lock:
            if self._closed:
                return
            self.count()
            self._closed = True
            if completed is not None:
                self.done = completed
        self._view.close(completed is not None)

    def describe(self, *, ended: bool | None = None) -> str:
        """The state in words; ``ended``: None while it runs, else whether it was completed."""
        elapsed = max(monotonic() - self.began, 1e-9)
        done, total = self.count(), self.total
        pace = done / elapsed
        count = f"{done}" if total is None else f"{done} of {total}"
        if ended is not None:
            verb = "done in" if ended else "done when it was stopped after"
            return f"{self.name}: {count} {verb} {_duration(elapsed)} ({_pace(pace)})"
        if not total:
            return f"{self.name}: {count} done, {_pace(pace)}"
        left = f", about {_duration((total - done) / pace)} left" if done else ""
        return f"{self.name}: {count} done ({100 * done // total} %), {_pace(pace)}{left}"


class _View(Protocol):
    """Where a bar is drawn."""

    def advanced(self) -> None:
        """More is done; the bar's lock is held."""

    def close(self, completed: bool) -> None:
        """Draw for the last time."""


def _make_view(bar: Bar) -> _View:
    if _in_notebook():
        return _NotebookView(bar)
    if sys.stderr is not None and sys.stderr.isatty():
        return _TerminalView(bar)
    return _LogView(bar)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class _LogView:
    """Whole lines, now and then."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._next = bar.began + _LOG_SECONDS

    def advanced(self) -> None:
        now = monotonic()
        if now >= self._next:
            self._next = now + _LOG_SECONDS
            self._print(self._bar.describe())

    def close(self, completed: bool) -> None:
        self._print(self._bar.describe(ended=completed))

    def _print(self, line: str) -> None:
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


class _NotebookView:
    """One line of output that is redrawn in place; needs no widget extension."""

    def __init__(self, bar: Bar) -> None:
        # By name: IPython is there in a notebook, and need not be where this is type-checked.
        display: Callable[..., Any] = import_module("IPython.display").display
        self._bar = bar
        self._next = bar.began
        self._handle = display({"text/plain": bar.describe()}, raw=True, display_id=True)

    def advanced(self) -> None:
        now = monotonic()
        if now >= self._next:
            self._next = now + _NOTEBOOK_SECONDS
            self._draw(self._bar.describe())

    def close(self, completed: bool) -> None:
        self._draw(self._bar.describe(ended=completed))

    def _draw(self, text: str) -> None:
        if self._handle is not None:
            self._handle.update({"text/plain": text}, raw=True)


class _TerminalView:
    """A row of the terminal's one live display, which looks at the count whenever it redraws."""

    def __init__(self, bar: Bar) -> None:
        _terminal.add(bar)
        self._bar = bar

    def advanced(self) -> None:
        """Nothing to do: the display looks by itself."""

    def close(self, completed: bool) -> None:
        _terminal.remove(self._bar)


class _Terminal:
    """The live display that all open bars share: a terminal has room for one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[Bar, TaskID] = {}
        self._open: set[Bar] = set()
        self._display: Progress | None = None
        self._excepthook: Callable[..., object] | None = None

    def add(self, bar: Bar) -> None:
        with self._lock:
            if self._display is None:
                self._display = _make_display(self)
                # A traceback is printed while the loop that raised still holds its map, and so its bar.
                self._excepthook, sys.excepthook = sys.excepthook, self._stop_and_report
                atexit.register(self.stop)
                self._display.start()
            self._rows[bar] = self._display.add_task(bar.name, total=bar.total)
            self._open.add(bar)

    def remove(self, bar: Bar) -> None:
        with self._lock:
            self._open.discard(bar)
            if self._display is not None and not self._open:
                self._stop()

    def stop(self) -> None:
        """Leave the terminal as it should be left."""
        with self._lock:
            if self._display is not None:
                self._stop()

    def look(self, display: Progress) -> None:
        """Bring the rows up to date; called by the display before it draws."""
        for bar, row in list(self._rows.items()):
            display.update(row, completed=bar.count())

    def _stop(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            display.stop()
        self._rows.clear()
        self._open.clear()
        atexit.unregister(self.stop)
        if self._excepthook is not None and sys.excepthook == self._stop_and_report:
            sys.excepthook = self._excepthook
        self._excepthook = None

    def _stop_and_report(
        self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        report = self._excepthook or sys.__excepthook__
        self.stop()
        report(kind, error, traceback)


_terminal = _Terminal()


def _make_display(terminal: _Terminal) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    class Display(Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            terminal.look(self)
            return super().get_renderables()

    return Display(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        # What is printed meanwhile goes above the bar, but only if it would have gone to the terminal anyway.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )


def _pace(per_second: float) -> str:
    return f"{per_second:.0f}/s" if per_second >= 10 else f"{per_second:.2g}/s"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
