"""Progress of batches: what `read_many`, `write_many`, `delete_many` and `prefetch` report while they run.

It is counted at the outermost call, for every backend and wrapper alike. `progress` is never passed on to a backend within,
whose class may not take it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from storage_backend.errors import BatchError, Failures
from storage_backend.info import ObjectInfo

if TYPE_CHECKING:
    from storage_backend.base import StorageBackend

Progress: TypeAlias = Callable[[int, int], object]
"""`progress(objects, size)`: how many objects of this call are done so far, and their bytes (0 of what is deleted).

It is called after each object that is read and after each group of objects that is stored or deleted, never twice at a
time, by the thread that iterates or calls. Both numbers only grow; what failed is not in them. What it raises ends the
call and reaches the caller: what is stored or deleted by then stays so.
"""

GROUP_SECONDS = 1.0  # after which no more is taken into a group of objects to be stored
GROUP_OBJECTS = 1000  # the most in a group; what the largest services delete in one request
GROUP_BYTES = 64 << 20

_Item: TypeAlias = tuple[str | ObjectInfo, bytes]


class ProgressCount:
    """Sums up what is done and calls *progress* with the sums."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._objects = 0
        self._size = 0

    def add(self, objects: int, size: int) -> None:
        """Count so many more objects of so many bytes together."""
        self._objects += objects
        self._size += size
        if self._progress is not None and objects:
            self._progress(self._objects, self._size)


def read_counted(
    found: Iterator[tuple[str, bytes]], progress: Progress | None
) -> Iterator[tuple[str, bytes]]:
    """What a `read_many` gives; *progress* is called for each object before it is given. Without it, *found* itself."""
    return found if progress is None else _told(found, ProgressCount(progress))


def _told(found: Iterator[tuple[str, bytes]], count: ProgressCount) -> Iterator[tuple[str, bytes]]:
    try:
        for identifier, content in found:
            count.add(1, len(content))
            yield identifier, content
    finally:
        # A generator's: what is under way ends when the caller stops iterating.
        close = getattr(found, "close", None)
        if close is not None:
            close()


def write_counted(
    backend: StorageBackend, items: Iterable[_Item], progress: Progress, *, verify: bool
) -> int:
    """`backend.write_many`, called for group after group; *progress* is called after each."""
    count, failures = ProgressCount(progress), Failures()
    stored = 0
    source = iter(items)
    for first in source:
        group = _ItemGroup(first, source)
        failed: dict[str, Exception] = {}
        try:
            stored += backend.write_many(group, verify=verify)
        except BatchError as error:
            if error is group.raised:
                raise
            failed = error.failures
            stored += sum(name not in failed for name, _ in group.taken)
        for name, _ in group.taken:
            failures.errors.pop(name, None)
        failures.errors.update(failed)
        sizes = [size for name, size in group.taken if name not in failed]
        count.add(len(sizes), sum(sizes))
    failures.raise_any("write", backend.location)
    return stored


def delete_counted(backend: StorageBackend, identifiers: Iterable[str], progress: Progress) -> int:
    """`backend.delete_many`, called for group after group; *progress* is called after each."""
    count, failures = ProgressCount(progress), Failures()
    rest = iter(dict.fromkeys(identifiers))
    absent = 0
    while group := list(islice(rest, GROUP_OBJECTS)):
        try:
            gone = backend.delete_many(group)
        except BatchError as error:
            failures.errors.update(error.failures)
            gone = len(group) - len(error.failures)
        absent += gone
        count.add(gone, 0)
    failures.raise_any("delete", backend.location)
    return absent


class _ItemGroup:
    """The next items of a batch, taken lazily, until they are enough or some time has passed.

    Attributes:
        taken: identifier and size of each.
        raised: what the caller's iterable raised.
    """

    def __init__(self, first: _Item, source: Iterator[_Item]) -> None:
        self.taken: list[tuple[str, int]] = []
        self.raised: BaseException | None = None
        self._first = first
        self._source = source

    def __iter__(self) -> Iterator[_Item]:
        ends = time.monotonic() + GROUP_SECONDS
        size = 0
        item: _Item | None = self._first
        del self._first
        while item is not None:
            key, content = item
            count = len(content) if hasattr(content, "__len__") else 0  # what is no content fails by itself
            self.taken.append((key.identifier if isinstance(key, ObjectInfo) else key, count))
            size += count
            del key, content
            yield item
            item = None  # not held while the next one is made
            if len(self.taken) < GROUP_OBJECTS and size < GROUP_BYTES and time.monotonic() < ends:
                try:
                    item = next(self._source, None)
                except BaseException as error:
                    self.raised = error
                    raise
