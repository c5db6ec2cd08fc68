"""The class of the transports of connected sockets: Rust's, with what only a Python class can have."""

from __future__ import annotations

import warnings
from asyncio import constants, transports
from typing import Any

from plait import _rust


class Face(transports._FlowControlMixin):
    """What a `StreamTransport` says it is: a class in Rust cannot derive from one that has slots."""


class StreamTransport(_rust.StreamTransport):
    """The transport of a connected TCP or Unix socket. For its loop's thread; not to be used after a fork."""

    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.TRY_NATIVE

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        """`isinstance(transport, asyncio.Transport)` asks this."""
        return Face

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._sock is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._abandon()


Face.__name__ = Face.__qualname__ = "StreamTransport"
