"""How functions, arguments and results are pickled: by pickle where it can, by cloudpickle where it cannot.

pickle is some ten times faster and sends importable things by reference. cloudpickle sends what the other
process cannot import (lambdas, closures, everything defined in ``__main__``) by value. Large buffers (numpy
arrays and whatever else supports protocol 5) are handed out beside the pickle, so that they are copied once,
into shared memory. So are large ``bytes`` and ``bytearray``, which pickle itself would put inside, and
memoryviews, which it does not take.
"""

from __future__ import annotations

import marshal
import sys
from _operator import is_
from _pickle import PickleBuffer
from _pickle import dumps as _pickle  # `pickle` itself takes a worker's start some milliseconds
from _pickle import loads as _unpickle
from _thread import _local
from types import BuiltinFunctionType, FunctionType, ModuleType

# As `typing.TYPE_CHECKING`, without importing it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROTOCOL = 5

_PLAIN = frozenset({int, float, complex, bool, str, type(None)})
"""Types that pickle as they are: nothing in them can refuse, or refer to another module."""

_LARGE = 64 << 10
"""From this length on bytes are handed out beside the pickle."""

_MOST_LOOKED_AT = 256
"""How many parts of a value are looked at in search of large bytes."""

_MOST_BUFFERS = 1024
"""How many buffers a pickle may leave outside: each takes a place in a frame, and a page of shared memory."""


def dumps(value: Any) -> tuple[bytes, list[PickleBuffer]]:
    """Pickle `value`; raises what pickle raises if it cannot be.

    Returns the pickle and its out-of-band buffers.
    """
    kind = type(value)
    if kind in _PLAIN or (kind is tuple and _PLAIN.issuperset(map(type, value))):
        return _pickle(value, PROTOCOL), []
    value = _outside(value)
    if not _knows_connections and "multiprocessing.connection" in sys.modules:
        _know_connections()
    buffers: list[PickleBuffer] = []
    try:
        payload = _pickle(value, PROTOCOL, buffer_callback=buffers.append)
    except Exception:
        # Lambdas and the like raise PicklingError, AttributeError or TypeError; cloudpickle may know better.
        return _dumps_by_value(value)
    if _names_main(payload):
        return _dumps_by_value(value)
    return (payload, buffers) if len(buffers) <= _MOST_BUFFERS else (_pickle(value, PROTOCOL), [])


class _Outside:
    """Stands for large bytes, a bytearray or a memoryview, and comes back as that; its bytes go beside."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        if type(self.value) is memoryview:
            return reduce_view(self.value)
        return type(self.value), (PickleBuffer(self.value),)


def reduce_view(view: memoryview) -> tuple[Any, ...]:
    """How a memoryview is pickled; raises TypeError for one whose items only its owner understands."""
    kind = view.format.lstrip("@")
    if len(kind) != 1:
        raise TypeError(f"cannot pickle a memoryview with the format {view.format!r}")
    content = view if view.c_contiguous else bytearray(view.tobytes())
    return _view, (PickleBuffer(content), kind, view.shape, view.readonly)


def _view(content: Any, kind: str, shape: tuple[int, ...], readonly: bool) -> memoryview:
    view = memoryview(content).cast("B")
    # An empty view cannot be given a shape; it has no items that could tell.
    if 0 not in shape:
        view = view.cast(kind, shape)  # type: ignore[call-overload] # any length of shape will do
    elif len(shape) == 1:
        view = view.cast(kind)  # type: ignore[call-overload]
    return view.toreadonly() if readonly else view


def _outside(value: Any) -> Any:
    """`value`, or a copy of its containers with something that pickles beside in the place of large bytes.

    Looks into tuples, lists and dicts. A list or dict is copied only if all that is looked at consists of
    these and of plain values: another object could refer to it, too, and would then bring along a second one.
    """
    looked_at, large, opaque = [value], False, False
    for part in looked_at:
        kind = type(part)
        if kind in _PLAIN:
            continue
        if len(looked_at) > _MOST_LOOKED_AT:
            return value
        if kind is memoryview or ((kind is bytes or kind is bytearray) and len(part) >= _LARGE):
            large = True
        elif kind is tuple or kind is list:
            looked_at += part[: _MOST_LOOKED_AT + 1]
        elif kind is dict:
            looked_at += part.values()
            opaque = opaque or not _PLAIN.issuperset(map(type, part))
        elif kind is not bytes and kind is not bytearray:
            opaque = True
    return _replace(value, opaque, {}) if large else value


def _replace(value: Any, opaque: bool, known: dict[int, Any]) -> Any:
    """`value` with `_Outside` in the place of large bytes; what occurs twice does so in the copy."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    found = known.get(id(value))
    if found is not None:
        return found
    if kind is memoryview or ((kind is bytes or kind is bytearray) and len(value) >= _LARGE):
        known[id(value)] = found = _Outside(value)
        return found
    if kind is tuple:
        return tuple([_replace(part, opaque, known) for part in value])
    if opaque:
        return value
    if kind is list:
        known[id(value)] = found = []
        found += [_replace(part, opaque, known) for part in value]
        return found
    if kind is dict:
        known[id(value)] = found = {}
        found.update({key: _replace(part, opaque, known) for key, part in value.items()})
        return found
    return value


_knows_connections = False


def _know_connections() -> None:
    global _knows_connections
    from plait import _by_value

    _by_value.know_connections()
    _knows_connections = True


def _names_main(payload: bytes) -> bool:
    """Whether a pickle refers to something in ``__main__``, which is another module in another process.

    That the name merely occurs in a string costs time, not correctness. (`find`, because `in` first tries to
    take its left side for a number, and the exception that makes costs more than the search.)
    """
    return (payload.find(b"__main__") >= 0 or payload.find(b"__mp_main__") >= 0) and not _main_by_name()


_here = _local()
_everywhere = False


def _main_by_name() -> bool:
    return _everywhere or getattr(_here, "main_by_name", False)


def is_main_everywhere() -> bool:
    """Whether this process was forked from one that has the same ``__main__``."""
    return _everywhere


def main_is_everywhere() -> None:
    """From now on, what this process pickles is for forks of it, or for what it was forked from."""
    global _everywhere
    _everywhere = True


class main_by_name:
    """While this is entered, what this thread pickles is for forks of this process."""

    def __enter__(self) -> None:
        self.before = _main_by_name()
        _here.main_by_name = True

    def __exit__(self, *_: object) -> None:
        _here.main_by_name = self.before


def _dumps_by_value(value: Any) -> tuple[bytes, list[PickleBuffer]]:
    from plait import _by_value

    buffers: list[PickleBuffer] = []
    payload = _by_value.dumps(value, PROTOCOL, buffers.append)
    return (payload, buffers) if len(buffers) <= _MOST_BUFFERS else (_by_value.dumps(value, PROTOCOL), [])


def dumps_function(function: Callable[..., Any]) -> bytes:
    """Pickle a function, by reference if it can be imported elsewhere; raises what pickle raises."""
    try:
        payload = _pickle(function, PROTOCOL)
    except Exception:
        payload = b""
    if not payload or _names_main(payload):
        from plait import _by_value

        payload = _by_value.dumps(function, PROTOCOL)
    return payload


def is_constant(function: Callable[..., Any]) -> bool:
    """Whether pickling `function` again would give the same, so that it need be sent only once.

    True for what is sent by reference, and for functions sent by value that close over constants and
    importable things only. What a function reads from a list, an object or a global that may change is read
    anew for each job.
    """
    if isinstance(function, type | BuiltinFunctionType):
        return _is_importable(function)
    if not isinstance(function, FunctionType):
        return False
    return _is_importable(function) or all(map(_is_fixed, _captured(function)))


def captured(function: Callable[..., Any]) -> tuple[Any, ...]:
    """What a constant function takes along when it is pickled by value; nothing if sent by reference."""
    if isinstance(function, FunctionType) and not _is_importable(function):
        return (function.__code__, *_captured(function))
    return ()


def are_identical(some: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    """Whether both hold the same objects."""
    return len(some) == len(others) and all(map(is_, some, others))


def _captured(function: FunctionType) -> list[Any]:
    """Everything besides its code that pickling `function` by value takes along."""
    found: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    found += vars(function).values()
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # empty yet
            found.append([])
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names = function.__globals__
        found += [names[name] for name in code.co_names if name in names]
        codes += [constant for constant in code.co_consts if isinstance(constant, type(code))]
    return found


_FIXED = (int, float, complex, str, bytes, bool, type(None), range, type(...))


def _is_fixed(value: Any) -> bool:
    if type(value) in _FIXED:
        return True
    if isinstance(value, ModuleType):
        return sys.modules.get(value.__name__) is value
    if type(value) is tuple or type(value) is frozenset:
        return all(_is_fixed(item) for item in value)
    return isinstance(value, FunctionType | BuiltinFunctionType | type) and _is_importable(value)


def _is_importable(value: Any) -> bool:
    """Whether another process finds the same under the same name."""
    name = getattr(value, "__qualname__", "")
    module_name = getattr(value, "__module__", None)
    if module_name in (None, "__main__", "__mp_main__"):
        # Methods of builtins, `len` and the like: pickle knows where they live.
        return module_name is None and isinstance(value, BuiltinFunctionType) and _pickles(value)
    found: Any = sys.modules.get(module_name)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def _pickles(value: Any) -> bool:
    try:
        _pickle(value, PROTOCOL)
    except Exception:
        return False
    return True


def describe(value: Any, error: BaseException) -> str:
    """Say which object inside `value` refused to be pickled, where it sits, and what it said."""
    try:
        path, inner = _find_culprit(value, "", 6)
        said = f"{type(error).__name__}: {error}"
    except (Exception, SystemExit) as another:  # the objects' own code, which may do anything
        return f"{_show(value)} ({type(error).__name__}, and {type(another).__name__} when looked at)"
    if inner is value:
        return f"{_show(value)} ({said})"
    return f"{_show(value)}, because of what is at {path}: {_show(inner)} ({said})"


def describe_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> str:
    """Say which part of a call cannot be pickled: the function, or an argument by its position or keyword."""
    advice = (
        "pass something that can be pickled (a path instead of an open file, say), or use the threads model"
    )
    try:
        dumps_function(function)
    except Exception as error:
        what = f"the function {describe(function, error)} cannot be pickled"
        return f"{name} cannot be sent to a worker process: {what}; {advice}"
    named: list[tuple[str, Any]] = [(f"argument {at}", value) for at, value in enumerate(args, 1)]
    named += [(f"argument {keyword}=", value) for keyword, value in kwargs.items()]
    for where, value in named:
        try:
            dumps(value)
        except Exception as error:
            what = f"{where} cannot be pickled: {describe(value, error)}"
            return f"{name} cannot be sent to a worker process: {what}; {advice}"
    return f"{name} cannot be sent to a worker process: its arguments cannot be pickled together; {advice}"


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except (Exception, SystemExit) as error:
        text = f"<its repr raised {type(error).__name__}>"
    if len(text) > 120:
        text = text[:117] + "..."
    return f"{type(value).__qualname__} {text}"


def _find_culprit(value: Any, path: str, depth: int) -> tuple[str, Any]:
    """The innermost object that does not pickle, and the way to it."""
    for step, part in _parts(value) if depth else ():
        try:
            dumps(part)
        except Exception:
            return _find_culprit(part, path + step, depth - 1)
    return path, value


def _parts(value: Any) -> list[tuple[str, Any]]:
    """What `value` consists of, each with how one would write the way to it."""
    if isinstance(value, dict):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [(f"[{at}]", part) for at, part in enumerate(value)]
    if isinstance(value, set | frozenset):
        return [("{...}", part) for part in value]
    if isinstance(value, FunctionType):
        return list(zip(map("<closure {}>".format, value.__code__.co_freevars), _cells(value), strict=False))
    return [(f".{name}", part) for name, part in getattr(value, "__dict__", {}).items()]


def _cells(function: FunctionType) -> list[Any]:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # empty yet
            cells.append(None)
    return cells


def dumps_exception(error: BaseException, text: str) -> tuple[bytes, list[PickleBuffer]]:
    """Pickle an exception and the text of its traceback; raises what pickle raises if it cannot be."""
    payload, buffers = dumps(error)
    return marshal.dumps((payload, text)), buffers


def loads_exception(payload: Any, buffers: list[Any], job: Any) -> BaseException:
    """The exception that `job` (its name, or its function) raised, with the remote traceback as its cause.

    If it does not come back from its pickle, or as something else: a `ResultNotPicklable` with the text.
    """
    from concurrent.futures.process import _RemoteTraceback

    from plait._job import DEFAULT_OPTIONS, job_name
    from plait.errors import ResultNotPicklable

    pickled, text = marshal.loads(payload)
    try:
        error = _unpickle(pickled, buffers=buffers)
        if not isinstance(error, BaseException):
            raise TypeError(f"its pickle gives a {type(error).__qualname__}")
    except BaseException as refusal:
        name = job if isinstance(job, str) else job_name(job, DEFAULT_OPTIONS)
        why = f"{type(refusal).__name__}: {refusal}"
        error = ResultNotPicklable(f"{name} raised an exception that cannot be unpickled ({why})\n\n{text}")
        error.__cause__ = refusal
        return error
    error.__cause__ = _RemoteTraceback(text)
    return error
