"""What goes beside a pickle, and comes back as it went."""

from __future__ import annotations

import array
import pickle
from _pickle import PickleBuffer
from typing import Any

import numpy
import pytest

import plait
from plait import _serialize

LARGE = b"x" * 100_000
SMALL = b"y" * 1000


def there_and_back(value: Any) -> Any:
    payload, buffers = _serialize.dumps(value)
    return pickle.loads(payload, buffers=[bytearray(buffer.raw()) for buffer in buffers])


@pytest.mark.parametrize(
    ("value", "beside"),
    [
        (LARGE, 1),
        ((LARGE,), 1),
        ((1, LARGE, (LARGE, 2)), 1),  # the same bytes twice
        ((LARGE, b"z" * 70_000, SMALL), 2),
        (bytearray(LARGE), 1),
        ([LARGE, {"a": LARGE + b"1", "b": [SMALL, None]}], 2),
        ([(1, LARGE), {"key": bytearray(LARGE)}, "name"], 2),
        ((LARGE, numpy.ones(3)), 2),
        (SMALL, 0),
        ([SMALL] * 1000, 0),
    ],
    ids=str,
)
def test_large_bytes_go_beside(value: Any, beside: int) -> None:
    payload, buffers = _serialize.dumps(value)
    assert len(buffers) == beside
    assert len(payload) < 10_000 or value == [SMALL] * 1000
    back = there_and_back(value)
    assert str(back) == str(value)
    assert type(back) is type(value)


def test_what_occurs_twice_stays_one() -> None:
    inner = [1, LARGE]
    content = bytearray(LARGE)
    cycle: list[Any] = [LARGE]
    cycle.append((cycle, 1))
    one, two, other, again = there_and_back((inner, inner, content, content))
    assert one is two
    assert other is again
    assert type(other) is bytearray
    back = there_and_back(cycle)
    assert back[1][0][0] == LARGE
    assert back[1][0][1][0] is back[1][0]


class Holder:
    def __init__(self, held: list[bytes]) -> None:
        self.held = held


def test_a_list_that_an_object_may_refer_to_stays_one() -> None:
    held = [LARGE]
    back, holder, large = there_and_back((held, Holder(held), LARGE))
    assert holder.held is back
    assert large == LARGE


def test_a_large_value_is_not_searched_for_ever() -> None:
    many = [[at] for at in range(100_000)]
    assert there_and_back((many, LARGE)) == (many, LARGE)


@pytest.mark.parametrize(
    "view",
    [
        memoryview(LARGE),
        memoryview(bytearray(b"abc")),
        memoryview(array.array("d", [1.0, 2.0])),
        memoryview(numpy.arange(12, dtype="i4").reshape(3, 4)),
        memoryview(numpy.arange(12.0).reshape(3, 4).T),
        memoryview(b"abcdef")[::2],
        memoryview(b""),
        memoryview(numpy.float64(1.5)),
        memoryview(array.array("i")),
    ],
    ids=lambda view: f"{view.format} {view.shape}",
)
def test_memoryviews_come_back_as_such(view: memoryview) -> None:
    for value in (view, Holder([view])):  # type: ignore[list-item]
        back = there_and_back(value)
        back = back.held[0] if isinstance(back, Holder) else back
        assert type(back) is memoryview
        assert (back.tolist(), back.shape, back.format) == (
            view.tolist(),
            view.shape,
            view.format.lstrip("@"),
        )
        assert back.readonly == view.readonly


def test_a_view_of_something_else_is_refused() -> None:
    view = memoryview(numpy.zeros(3, dtype=[("a", "i4"), ("b", "f8")]))
    with pytest.raises(TypeError, match="cannot pickle a memoryview with the format"):
        _serialize.dumps(view)


class Table:
    """Stands for an Arrow table, a PIL image or a torch tensor: its pickle has a buffer outside if it can."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol >= 5:
            return Table, (PickleBuffer(self.content),)
        return Table, (bytes(self.content),)


def sizes(*values: Any) -> list[tuple[str, int]]:
    return [(type(value).__name__, len(getattr(value, "content", value))) for value in values]


def views(size: int) -> list[Any]:
    return [b"r" * size, bytearray(size), memoryview(b"v" * size), Table(bytearray(size))]


def test_all_of_them_cross() -> None:
    with plait.Executor("processes", 1) as ex:
        arguments = [LARGE, bytearray(LARGE), memoryview(LARGE), Table(bytearray(LARGE))]
        kinds = ["bytes", "bytearray", "memoryview", "Table"]
        assert ex.submit(sizes, *arguments).result() == [(kind, len(LARGE)) for kind in kinds]
        results = ex.submit(views, 100_000).result()
        assert [type(value).__name__ for value in results] == kinds
        assert results[0] == b"r" * 100_000
        assert bytes(results[2]) == b"v" * 100_000
        shared = plait.share({"view": memoryview(LARGE), "table": Table(bytearray(LARGE))})
        assert shared.value["view"].readonly
        assert bytes(shared.value["view"]) == LARGE
        with pytest.raises(TypeError, match="read-only"):
            shared.value["table"].content[0] = 1
