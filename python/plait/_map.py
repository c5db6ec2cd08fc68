"""The lazy ``map`` of every model: reads inputs as results are consumed, keeps no result it gave out."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from plait._exit import LOOK_SECONDS
from plait._job import JobOptions, Pool, job_name

if TYPE_CHECKING:
    from plait._rust import MapItems
    from plait.progress import Bar

T = TypeVar("T")

Submit = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], JobOptions], "Future[Any]"]

# A window that only just covers the workers starves them while the consumer is busy; one that holds this many
# seconds of work does not, and stays small when the jobs (and so, usually, their arguments) are large.
_SECONDS_AHEAD = 0.05
_LARGEST_WINDOW = 2048
# Seconds without results after which inputs are read on.
_SHORTEST_WAIT = 0.001


class Window:
    """How many jobs may be in flight: fixed by the caller, or grown while the jobs turn out to be short."""

    __slots__ = ("_counted", "_fixed", "_pool", "_since", "size")

    def __init__(self, buffersize: int | None, pool: Pool) -> None:
        self._fixed = buffersize is not None
        self._pool = pool
        self.size = self._smallest() if buffersize is None else buffersize
        self._counted = 0
        self._since = monotonic()

    def more_results(self, count: int = 1) -> None:
        """Count results; once per windowful, look at the clock and fit the window to the pace."""
        self._counted += count
        if self._fixed or self._counted < self.size:
            return
        now = monotonic()
        pace = self._counted / max(now - self._since, 1e-9)
        # At most doubled at a time: one burst of finished jobs says little about the rest.
        wanted = min(int(pace * _SECONDS_AHEAD), 2 * self.size, _LARGEST_WINDOW)
        self.size = max(self.size, wanted, self._smallest())
        self._counted, self._since = 0, now

    def _smallest(self) -> int:
        """All workers busy, and slack for a slow one. (``auto`` has other workers once it has decided.)"""
        places: int = getattr(self._pool, "places", self._pool.workers)
        return places * (4 if places < 100 else 2)


class Feed:
    """Takes inputs, submits them, and knows which jobs are out. For one thread at a time."""

    def __init__(
        self,
        submit: Submit,
        fn: Callable[..., Any],
        inputs: Iterator[tuple[Any, ...]],
        options: JobOptions,
        window: Window,
        *,
        chunksize: int,
        ordered: bool,
        bar: Bar | None,
    ) -> None:
        self._submit = submit
        self._chunked = chunksize > 1
        self._fn = fn
        self._inputs = _chunks(inputs, chunksize) if self._chunked else inputs
        self._options = options
        self._window = window
        self._bar = bar
        # In order: the jobs out, oldest first. As they finish: the jobs out, and a queue of those that are
        # done.
        self._out: dict[Future[Any], None] = {}
        self._done: SimpleQueue[Future[Any]] | None = None if ordered else SimpleQueue()
        self._exhausted = False
        self._input_error: Exception | None = None
        self._started = False
        self.submitted = 0
        """How many jobs there were so far."""
        self._inputs_taken = 0

    def fill(self) -> None:
        """Submit until the window is full or the inputs end.

        An exception of the input iterator is kept until the results of the inputs before it have been given
        out.
        """
        out, submit, fn, options = self._out, self._submit, self._fn, self._options
        room = self._window.size - len(out)
        while room > 0 and not self._exhausted:
            try:
                args = next(self._inputs)
            except StopIteration:
                self._exhausted = True
                return
            except Exception as error:
                self._exhausted, self._input_error = True, error
                return
            future = submit(fn, args, {}, options)
            out[future] = None
            self.submitted += 1
            room -= 1
            if self._bar is not None:
                inputs = len(args[0]) if self._chunked else 1
                self._inputs_taken += inputs
                future.add_done_callback(self._bar.counter(inputs))
            if self._done is not None:
                future.add_done_callback(self._done.put)

    def results(self, deadline: float | None) -> Generator[Any, None, None]:
        """Give the results. Whatever ends this (the last one, an error, ``close``) cancels what is out."""
        self._started = True
        take = self._take_oldest if self._done is None else self._take_finished
        try:
            while True:
                self.fill()
                if not self._out:
                    break
                # No local name holds a result here: what was given out belongs to the consumer alone.
                if self._chunked:
                    values, error = _unpack(take, deadline)
                    values.reverse()
                    while values:
                        yield values.pop()
                    if error is not None:
                        _reraise(error)
                else:
                    yield take(deadline)
                self._window.more_results()
            if self._input_error is not None:
                _reraise(self._input_error)
            if self._bar is not None:
                self._bar.close(completed=self._inputs_taken)
        finally:
            self.close()

    def _take_oldest(self, deadline: float | None) -> Any:
        future = next(iter(self._out))
        del self._out[future]
        try:
            return future.result(None if deadline is None else deadline - monotonic())
        except BaseException:
            future.cancel()
            raise
        finally:
            del future  # An exception's traceback holds this frame: break the cycle.

    def _take_finished(self, deadline: float | None) -> Any:
        assert self._done is not None
        while True:
            left = LOOK_SECONDS if deadline is None else deadline - monotonic()
            try:
                future = self._done.get(timeout=max(min(left, LOOK_SECONDS), 0))
                break
            except Empty:
                if left <= LOOK_SECONDS and deadline is not None:
                    raise TimeoutError from None
        del self._out[future]
        try:
            return future.result()
        finally:
            del future

    def close(self) -> None:
        """Cancel what is still out; end the bar, which may say that it was stopped."""
        self._exhausted = True
        for future in self._out:
            future.cancel()
        self._out.clear()
        if self._bar is not None:
            self._bar.close()

    def __del__(self) -> None:
        if self.submitted and not self._started and not self._exhausted:
            _warn_dropped(job_name(self._fn, self._options), self.submitted)


class ItemFeed:
    """As `Feed`, for a pool that takes the items of a map many at a time. For one thread at a time."""

    def __init__(
        self,
        items: MapItems,
        name: str,
        inputs: Iterator[tuple[Any, ...]],
        window: Window,
        bar: Bar | None,
    ) -> None:
        self._items = items
        self._name = name
        self._inputs = inputs
        self._window = window
        self._bar = bar
        if bar is not None:
            bar.follow(items.completed)
        self._out = 0  # submitted and not given out
        self._reading = 0.0  # seconds that the last look at the inputs took
        self._end: Exception | bool | None = None  # why no more inputs come
        self._started = False
        self.submitted = 0
        """How many jobs there were so far."""

    def fill(self) -> None:
        """Submit until the window is full, the inputs end, or results that are there have waited long enough.

        An exception of the input iterator is kept until the results of the inputs before it have been given
        out.
        """
        room = self._window.size - self._out
        if room > 0 and self._end is None:
            began = monotonic()
            taken, self._end = self._items.fill(self._inputs, room)
            self._reading = monotonic() - began
            self._out += taken
            self.submitted += taken

    def _fill_while_nothing_is_ready(self, deadline: float | None) -> None:
        """If there is room, read on for as long as there are no results, each time after waiting for some.

        A wait is as long as it took to read: neither inputs nor jobs that take long hold up the other.
        """
        while self._end is None and self._out < self._window.size:
            left = max(self._reading, _SHORTEST_WAIT)
            if deadline is not None:
                left = min(left, deadline - monotonic())
            if left <= 0 or self._items.is_ready_within(left):
                return
            self.fill()

    def results(self, deadline: float | None) -> Generator[Any, None, None]:
        """Give the results. Whatever ends this (the last one, an error, ``close``) cancels what is out."""
        self._started = True
        take, window, bar = self._items.take, self._window, self._bar
        try:
            self.fill()
            while self._out:
                self._fill_while_nothing_is_ready(deadline)
                values = take(None if deadline is None else deadline - monotonic())
                if bar is not None:
                    bar.look()
                values.reverse()
                # Filling a window takes a moment: a large one is filled when there is some room in it.
                step = 1 + window.size // 8
                given = 0
                while values:
                    # No local name holds a result here: what was given out belongs to the consumer alone.
                    yield values.pop()
                    given += 1
                    if given == step or not values:
                        self._out -= given
                        window.more_results(given)
                        given = 0
                        self.fill()
            if isinstance(self._end, Exception):
                _reraise(self._end)
            if bar is not None:
                bar.close(completed=self.submitted)
        finally:
            self.close()

    def close(self) -> None:
        """Cancel what is still out; end the bar, which may say that it was stopped."""
        self._end, self._out = True, 0
        self._items.close()
        if self._bar is not None:
            self._bar.close()

    def __del__(self) -> None:
        if self.submitted and not self._started and self._end is None:
            _warn_dropped(self._name, self.submitted)


def _warn_dropped(name: str, submitted: int) -> None:
    """Say that a map was dropped.

    concurrent.futures would have run every input: a program that relied on that must be told.
    """
    warnings.warn(
        f"map({name}, ...) was dropped before anybody iterated over it, so only its first "
        f"{submitted} jobs run. It is lazy: iterate over it to run the rest.",
        RuntimeWarning,
        stacklevel=3,
    )


class Results(Iterator[T]):
    """What `Executor.map` gives: an iterator over results that can be closed. For one thread at a time."""

    __slots__ = ("_feed", "_results")

    def __init__(self, feed: Feed | ItemFeed, deadline: float | None) -> None:
        self._feed = feed
        self._results = feed.results(deadline)

    def __next__(self) -> T:
        result: T = next(self._results)
        return result

    def close(self) -> None:
        """Cancel what has not been consumed."""
        self._results.close()
        self._feed.close()


class Chunk:
    """A job that calls a function on several inputs in turn; what ``chunksize`` makes."""

    def __init__(self, fn: Callable[..., Any], options: JobOptions) -> None:
        self.fn = fn
        self.__qualname__ = job_name(fn, options)

    def __call__(self, inputs: list[tuple[Any, ...]]) -> Any:
        values: list[Any] = []
        rest = iter(inputs)
        try:
            for args in rest:
                value = self.fn(*args)
                if inspect.iscoroutine(value):
                    # The worker runs the coroutine that a job returns: let it run this one and the others.
                    return self._awaited(value, values, rest)
                values.append(value)
        except Exception as error:
            _attach(error, values)
            raise
        return values

    async def _awaited(
        self, first: Coroutine[Any, Any, Any], values: list[Any], rest: Iterator[tuple[Any, ...]]
    ) -> list[Any]:
        try:
            values.append(await first)
            for args in rest:
                values.append(await self.fn(*args))
        except Exception as error:
            _attach(error, values)
            raise
        return values


def _attach(error: Exception, values: list[Any]) -> None:
    """Keep the results of the inputs before the one that failed: the consumer is owed them."""
    with contextlib.suppress(AttributeError):
        error._plait_values = values  # type: ignore[attr-defined]


def _chunks(inputs: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[list[tuple[Any, ...]]]]:
    chunk: list[tuple[Any, ...]] = []
    try:
        for args in inputs:
            chunk.append(args)
            if len(chunk) == size:
                full, chunk = chunk, []
                yield (full,)
                del full
    except Exception:
        if chunk:
            yield (chunk,)
        raise
    if chunk:
        yield (chunk,)


def _unpack(
    take: Callable[[float | None], Any], deadline: float | None
) -> tuple[list[Any], Exception | None]:
    """The values of a chunk, and the error that ended it early."""
    try:
        return take(deadline), None
    except Exception as error:
        return error.__dict__.pop("_plait_values", []), error


def _reraise(error: Exception) -> NoReturn:
    try:
        raise error
    finally:
        del error  # The traceback holds this frame: break the cycle.
