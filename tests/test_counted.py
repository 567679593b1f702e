"""Groups of a batch whose progress is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from typing_extensions import override

from storage_backend import BatchError, MemoryStorage, NotFoundError
from storage_backend.base import Item
from storage_backend.counted import GROUP_BYTES, GROUP_OBJECTS
from storage_backend.testing import FaultyStorage


class Told(list[tuple[int, int]]):
    def __call__(self, objects: int, size: int) -> None:
        self.append((objects, size))


def test_a_large_batch_is_told_of_in_groups() -> None:
    count = 2 * GROUP_OBJECTS + 5
    told = Told()
    storage = FaultyStorage(MemoryStorage())
    items = ((f"{number}", b"x") for number in range(count))
    assert storage.write_many(items, progress=told) == count
    assert told[-1] == (count, count)
    assert len(told) >= 3
    assert storage.count("write_many") == len(told)
    told.clear()
    assert storage.delete_many((f"{number}" for number in range(count)), progress=told) == count
    assert told == [(GROUP_OBJECTS, 0), (2 * GROUP_OBJECTS, 0), (count, 0)]


def test_a_group_ends_when_it_is_large() -> None:
    class Sizes(MemoryStorage):
        @override
        def write_many(self, items: Iterable[Item], *, verify: bool = False, **keywords: Any) -> int:
            if keywords.get("progress") is not None:
                return super().write_many(items, verify=verify, **keywords)
            return sum(1 for _ in items)

    half = bytes(GROUP_BYTES // 2)
    told = Told()
    assert Sizes().write_many([("a", half), ("b", half), ("c", half)], progress=told) == 3
    assert told == [(2, GROUP_BYTES), (3, GROUP_BYTES // 2 * 3)]


def test_an_error_of_the_iterable_is_passed_on_as_it_is() -> None:
    theirs = BatchError("theirs", failures={"z": NotFoundError("no z")})

    def items() -> Iterator[tuple[str, bytes]]:
        yield "a", b"1"
        raise theirs

    storage = MemoryStorage()
    with pytest.raises(BatchError) as caught:
        storage.write_many(items(), progress=Told())
    assert caught.value is theirs


def test_a_later_item_of_a_later_group_makes_up_for_a_failure() -> None:
    told = Told()
    backend = MemoryStorage()
    many = [("a", "no bytes"), *((f"{number}", b"") for number in range(GROUP_OBJECTS)), ("a", b"1")]
    assert backend.write_many(many, progress=told) == GROUP_OBJECTS + 1  # type: ignore[arg-type]  # on purpose
    assert backend.read("a") == b"1"
    assert told[-1] == (GROUP_OBJECTS + 1, 1)


def test_without_progress_nothing_is_cut_into_groups() -> None:
    storage = FaultyStorage(MemoryStorage())
    assert storage.write_many((f"{number}", b"") for number in range(2 * GROUP_OBJECTS)) == 2 * GROUP_OBJECTS
    assert storage.count("write_many") == 1
