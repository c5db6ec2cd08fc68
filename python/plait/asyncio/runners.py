"""`asyncio.runners`: `run` and `Runner`, on plait's loop where nobody asks for another."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from asyncio import runners as _standard
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from plait._fall_back import fall_back
from plait.asyncio import events

T = TypeVar("T")


class Runner(_standard.Runner):  # type: ignore[misc] # final only in the stubs
    """Runs coroutines on one loop, one after the other, as `asyncio.Runner`. For one thread.

    Args:
        debug: asyncio's debug mode; by default as the environment says.
        loop_factory: makes the loop; by default it is plait's.
    """

    def __init__(
        self, *, debug: bool | None = None, loop_factory: Callable[[], AbstractEventLoop] | None = None
    ) -> None:
        super().__init__(debug=debug, loop_factory=loop_factory or events.new_event_loop)
        self._chosen = loop_factory is not None

    def _lazy_init(self: Any) -> None:
        was = self._loop
        super()._lazy_init()  # type: ignore[misc]
        if self._loop is not was and not self._chosen and not self._set_event_loop:
            # As the standard runner does for the loop that it makes itself; its `close` undoes it.
            events.set_event_loop(self._loop)
            self._set_event_loop = True


def run(
    main: Coroutine[Any, Any, T],
    *,
    debug: bool | None = None,
    loop_factory: Callable[[], AbstractEventLoop] | None = None,
) -> T:
    """Run a coroutine on a loop of its own and give its result: `asyncio.run` on plait's loop.

    Raises what the coroutine raises, and RuntimeError where a loop is running already:
    `plait.run` works there, too.
    """
    if events._get_running_loop() is not None:
        raise RuntimeError(
            "asyncio.run() cannot be called from a running event loop: await the coroutine instead,"
            " or use plait.run(), which runs it on a second loop in a thread"
        )
    with Runner(debug=debug, loop_factory=loop_factory) as runner:
        return runner.run(main)


fall_back(globals(), _standard)
