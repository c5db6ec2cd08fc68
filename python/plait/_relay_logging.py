"""A worker's log records on their way to the parent. Loaded when something there imports `logging`."""

from __future__ import annotations

import logging
import marshal
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait._relay import Relay

_PLAIN = (str, int, float, bool, bytes, complex, type(None))
_DEEPEST = 10
_formatter = logging.Formatter()


class RelayHandler(logging.Handler):
    """Sends records to the parent, where they meet its filters and handlers."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self._relay = relay

    def emit(self, record: logging.LogRecord) -> None:
        relay = self._relay
        if os.getpid() != relay.pid:
            # A process that a job has forked: it has no lane. As without any handler.
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.handle(record)
            return
        try:
            relay.say(0, marshal.dumps(self._parts(record)))
        except Exception:
            self.handleError(record)

    def _parts(self, record: logging.LogRecord) -> dict[str, Any]:
        """What the record is made of, with text in the place of what cannot be sent."""
        parts = dict(record.__dict__)
        if record.process == self._relay.pid:  # else it comes from a pool of ours, and says so
            parts["processName"] = self._relay.name
            job = self._relay.job()
            parts.setdefault("job", job)
            if parts.get("taskName") is None:
                parts["taskName"] = job
        if record.exc_info:
            if not record.exc_text:
                parts["exc_text"] = _formatter.formatException(record.exc_info)
            parts["exc_info"] = None
        if not (type(record.msg) is str and _is_plain(record.args)):
            try:
                parts["msg"] = record.getMessage()
            except Exception as error:
                parts["msg"] = f"{record.msg!s} (with arguments that do not fit: {error})"
            parts["args"] = None
        for name, value in parts.items():
            if not _is_plain(value):
                parts[name] = _text(value)
        return parts


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is of the types that can be sent as they are, without running anybody's code."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if depth >= _DEEPEST:
        return False
    if kind is dict:
        return all(_is_plain(key, depth + 1) and _is_plain(item, depth + 1) for key, item in value.items())
    return kind in (tuple, list) and all(_is_plain(item, depth + 1) for item in value)


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__qualname__}, whose text fails: {type(error).__name__}>"


def install(relay: Relay) -> None:
    """Give the root logger a handler, and every logger the parent's level."""
    levels = relay.settings["levels"]
    if levels is not None:
        disabled, root, loggers = levels
        logging.disable(disabled)
        logging.root.setLevel(root)
        for name, level in loggers.items():
            logging.getLogger(name).setLevel(level)
    logging.root.addHandler(RelayHandler(relay))
