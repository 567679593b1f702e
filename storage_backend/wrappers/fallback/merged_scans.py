"""Merges two sorted scans into one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from storage_backend.identifiers import encode
from storage_backend.info import ObjectInfo

T = TypeVar("T", bound=ObjectInfo | str)


def paired(one: Iterator[T], other: Iterator[T]) -> Iterator[tuple[str, T | None, T | None]]:
    """Each name of two scans, in order, with the item of each scan, or None."""
    left, right = _named(one), _named(other)
    here, there = next(left, None), next(right, None)
    while here is not None or there is not None:
        if there is None or (here is not None and here[0] < there[0]):
            assert here is not None
            yield here[1], here[2], None
            here = next(left, None)
        elif here is None or there[0] < here[0]:
            yield there[1], None, there[2]
            there = next(right, None)
        else:
            yield here[1], here[2], there[2]
            here, there = next(left, None), next(right, None)


def union(one: Iterator[T], other: Iterator[T], other_wins: Callable[[str], bool]) -> Iterator[T]:
    """The union of two scans: each name once.

    Args:
        one: ascending.
        other: ascending.
        other_wins: for a name in both scans, whether the other scan's item is given.
    """
    for name, here, there in paired(one, other):
        found = there if here is None or (there is not None and other_wins(name)) else here
        assert found is not None
        yield found


def _named(scan: Iterator[T]) -> Iterator[tuple[bytes, str, T]]:
    for found in scan:
        name = found if isinstance(found, str) else found.identifier
        yield encode(name), name, found
