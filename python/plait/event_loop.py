"""`EventLoop`: all of asyncio's event loop, with its hot paths in Rust."""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import sys
import threading
from asyncio import base_events, constants, events, format_helpers
from asyncio.log import logger
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar, TypeVarTuple, Unpack

from plait import _rust, _stall_watch, _stream_transport
from plait._awaiting import wait_in_loop
from plait._subprocess import Subprocesses

if TYPE_CHECKING:
    import ssl
    from concurrent.futures import Executor
    from contextvars import Context

__all__ = ["EventLoop", "LoopStatistics", "run"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Seconds that a callback may take before it is told of.
_STALL_AFTER = 0.5


class Handle(asyncio.Handle):
    """A callback that was asked for. As the standard one; made, run and cancelled in Rust."""

    __slots__ = ()


class TimerHandle(asyncio.TimerHandle):
    """The same for a certain time."""

    __slots__ = ()


ThreadSafeHandle: type[asyncio.Handle] | None = None
if sys.version_info >= (3, 14) and hasattr(events, "_ThreadSafeHandle"):

    class _ThreadSafeHandle(events._ThreadSafeHandle):  # type: ignore[misc]
        """The same for `call_soon_threadsafe`: `cancel` and `cancelled` wait for a call that has begun."""

        __slots__ = ()

        def _run(self) -> None:
            asyncio.Handle._run(self)  # The standard one takes a lock that these do not have.

    ThreadSafeHandle = _ThreadSafeHandle


_rust.prepare_handles(Handle, TimerHandle, ThreadSafeHandle)
_rust.prepare_stream_transport(_stream_transport.StreamTransport)
os.register_at_fork(after_in_child=_rust.leave_event_loops)
Coroutine.register(_rust.LoopCoroutine)


class LoopStatistics(NamedTuple):
    """What an event loop has done since it was made, and what it has before it."""

    turns: int
    """How often it looked for what is ready, and ran it."""
    callbacks: int
    """Callbacks, steps of tasks and events of transports that it ran."""
    callback_seconds: float
    """Time for which it ran and did not sleep: in callbacks, but for a very small part."""
    poll_seconds: float
    """Time for which it slept until something was ready."""
    ready: int
    """Callbacks for the next turn."""
    timers: int
    """Timers that are not due yet, and were not cancelled."""
    stalls: int
    """Callbacks that took longer than `EventLoop.stall_after`, were they told of or not."""


class EventLoop(_rust.EventLoop, Subprocesses, asyncio.SelectorEventLoop):
    """An `asyncio.SelectorEventLoop` whose scheduling and polling are in Rust.

    Used like every event loop: ``asyncio.Runner(loop_factory=plait.EventLoop)``, ``plait.run(main())``. Only
    `call_soon_threadsafe`, `statistics` and `stall_after` are for other threads, too; after a fork the child
    must make its own.

    While a callback or task holds it up for longer than `stall_after` seconds (half a second, unless it is
    set to another number, or to None), a watch logs where that is, once for each place, by the logger
    ``plait``.
    """

    def __init__(self) -> None:
        super().__init__(_Selector())
        self.stall_after = _STALL_AFTER
        _stall_watch.loops[self._pulse_number()] = self

    def statistics(self) -> LoopStatistics:
        """What the loop has done so far. Thread-safe; may be asked while it runs."""
        turns, callbacks, ran, slept, stalls, ready, timers = self._tally()
        return LoopStatistics(turns, callbacks, max(ran - slept, 0.0), slept, ready, timers, stalls)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Call a function in a thread of `executor`: of the loop's own, plait's thread pool, if it is None.

        Gives a future of the loop. Raises RuntimeError if the loop is closed or its executor was shut down.
        """
        from plait.futures import ThreadPoolExecutor

        this: Any = self
        this._check_closed()
        if executor is None and this._default_executor is None:
            this._check_default_executor()
            # As many as asyncio's own; the budget would be read from files, which is not for a loop's thread.
            workers = min(32, len(os.sched_getaffinity(0)) + 4)
            this._default_executor = ThreadPoolExecutor(workers, thread_name_prefix="asyncio")
        if executor is not None or not isinstance(this._default_executor, ThreadPoolExecutor):
            return super().run_in_executor(executor, func, *args)
        if this._debug:
            this._check_callback(func, "run_in_executor")
        this._check_default_executor()
        return wait_in_loop(this._default_executor.submit(func, *args), this)

    def _note_stall(self, item: object, seconds: float) -> None:
        """A callback that the watch has seen holding the loop up is over."""
        _stall_watch.ended(self, item, seconds)

    def run_forever(self: Any) -> None:
        """Run until `stop` is called."""
        if sys.version_info >= (3, 12) and hasattr(self, "_run_forever_setup"):
            self._run_forever_setup()  # If it refuses, there is nothing to clean up.
            try:
                self._run_until_stopped()
            finally:
                self._run_forever_cleanup()
            return
        self._check_closed()
        self._check_running()
        self._set_coroutine_origin_tracking(self._debug)
        hooks = sys.get_asyncgen_hooks()
        try:
            self._thread_id = threading.get_ident()
            sys.set_asyncgen_hooks(
                firstiter=self._asyncgen_firstiter_hook, finalizer=self._asyncgen_finalizer_hook
            )
            events._set_running_loop(self)
            self._run_until_stopped()
        finally:
            self._stopping = False
            self._thread_id = None
            events._set_running_loop(None)
            self._set_coroutine_origin_tracking(False)
            sys.set_asyncgen_hooks(*hooks)

    def close(self) -> None:
        """Close the loop; it must not be running."""
        super().close()
        self._drop_all()

    @property
    def _ready(self) -> list[asyncio.Handle]:
        """What runs in the next turn, for whoever looks; changing it changes nothing."""
        return self._snapshot()

    @_ready.setter
    def _ready(self, value: object) -> None:
        """The base class makes a queue that is not needed here."""

    def _debug_handle(
        self: Any,
        method: str,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context | None,
        when: float | None,
    ) -> Any:
        """A handle that remembers where it was asked for."""
        if method:
            if method != "call_soon_threadsafe":
                self._check_thread()
            self._check_callback(callback, method)
        handle: Any
        threadsafe = ThreadSafeHandle and method == "call_soon_threadsafe"
        if when is None:
            kind = events._ThreadSafeHandle if threadsafe else asyncio.Handle  # type: ignore[attr-defined]
            handle = kind(callback, args, self, context)
        else:
            handle = asyncio.TimerHandle(when, callback, args, self, context)
            handle._scheduled = True
        for _ in range(2 if threadsafe else 1):  # Such a handle is made by one frame more.
            if handle._source_traceback:
                del handle._source_traceback[-1]
        return handle

    def _make_ssl_transport(
        self: Any,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        **timeouts: float | None,
    ) -> asyncio.Transport:
        """A TLS connection over a new transport."""
        from plait._tls import TlsProtocol

        self._ensure_fd_no_transport(rawsock)
        tls = TlsProtocol(self, protocol, sslcontext, waiter, server_side, server_hostname, **timeouts)
        self._make_socket_transport(rawsock, tls, extra=extra, server=server)
        return tls._get_app_transport()

    async def start_tls(
        self: Any,
        transport: Any,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport:
        """Encrypt a connection that is in use: as `asyncio.loop.start_tls`."""
        from plait._tls import start_tls

        return await start_tls(
            self,
            transport,
            protocol,
            sslcontext,
            server_side=server_side,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )

    def _debug_run(self: Any, handle: Any) -> None:
        """Run a handle, and tell of one that takes long."""
        try:
            self._current_handle = handle
            began = self.time()
            handle._run()
            took = self.time() - began
            if took >= self.slow_callback_duration:
                described = base_events._format_handle(handle)  # type: ignore[attr-defined]
                # By the name that asyncio has for it, which may have been replaced.
                log = base_events.logger  # type: ignore[attr-defined]
                log.warning("Executing %s took %.3f seconds", described, took)
        finally:
            self._current_handle = None
            del handle  # The frame may live on in a traceback that the handle leads to.

    def _report(self, handle: Any, error: BaseException) -> None:
        """A callback has raised."""
        source = format_helpers._format_callback_source(handle._callback, handle._args)
        context = {"message": f"Exception in callback {source}", "exception": error, "handle": handle}
        self.call_exception_handler(context)

    def _report_native(self, source: object, error: BaseException) -> None:
        """What Rust code called has raised."""
        self.call_exception_handler({"message": f"Exception in callback of {source!r}", "exception": error})

    def _note_slow(self, source: object, took: float) -> None:
        """In debug mode: tell of something in Rust that took long."""
        if took >= self.slow_callback_duration:
            logger.warning("Executing %r took %.3f seconds", source, took)

    def _note_broken(self, transport: object, message: str, error: BaseException) -> None:
        """In debug mode: tell of a connection that broke."""
        logger.debug("%r: %s", transport, message, exc_info=error)

    def _serve_again_later(self: Any, protocol_factory: object, sock: socket.socket, *how: object) -> None:
        """Accept nothing for a second: there are no descriptors left."""

        def serve() -> None:
            if sock.fileno() != -1:  # The server may have been closed meanwhile.
                self._start_serving(protocol_factory, sock, *how)

        self.call_later(constants.ACCEPT_RETRY_DELAY, serve)

    async def _sendfile_native(self: Any, transp: Any, file: Any, offset: int, count: int | None) -> int:
        """While the file is sent the descriptor is `sock_sendfile`'s, not the transport's."""
        resume_reading = transp.is_reading()
        transp.pause_reading()
        await transp._make_empty_waiter()
        transp._sync()
        try:
            return await self.sock_sendfile(transp._sock, file, offset, count, fallback=False)  # type: ignore[no-any-return]
        finally:
            transp._reset_empty_waiter()
            if resume_reading:
                transp.resume_reading()


class _Selector(selectors.BaseSelector):
    """What asyncio's own code finds in the place of a selector: the loop watches descriptors itself."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> NoReturn:
        """Refuse."""
        raise NotImplementedError("use add_reader and add_writer of the event loop")

    def unregister(self, fileobj: Any) -> NoReturn:
        """Refuse."""
        raise NotImplementedError("use remove_reader and remove_writer of the event loop")

    def select(self, timeout: float | None = None) -> list[Any]:
        """Nothing is ever found here."""
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Nothing is registered here."""
        return {}


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run a coroutine on an `EventLoop` of its own, and give its result: `asyncio.run` on plait's loop.

    Called where an event loop is running already (in a notebook, say), it runs the coroutine on a second
    loop, in a thread, with the caller's context variables, and the caller waits: the loop that is running
    stands still meanwhile. Where that must not be, ``await`` the coroutine instead.

    Args:
        main: the coroutine.
        debug: asyncio's debug mode; by default as the environment says.

    Raises what the coroutine raises, and TypeError if it is no coroutine.
    """
    if asyncio._get_running_loop() is None:
        return _run(main, debug)
    context = copy_context()
    outcome: Future[T] = Future()

    def run_in_thread() -> None:
        try:
            outcome.set_result(context.run(_run, main, debug))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run_in_thread, name="plait-run")
    thread.start()
    try:
        return outcome.result()
    finally:
        thread.join()


def _run(main: Coroutine[Any, Any, T], debug: bool | None) -> T:
    with asyncio.Runner(debug=debug, loop_factory=EventLoop) as runner:
        return runner.run(main)
