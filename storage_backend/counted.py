"""Progress reports of `read_many`, `write_many`, `delete_many` and `prefetch`.

Progress is counted at the outermost call, for every backend and wrapper alike. `progress` is never passed on to a backend within,
whose class may not accept it.
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
"""`progress(objects, size)`: the number of objects done so far in this call, and their bytes (0 for deletions).

It is called after each object read and after each group of objects stored or deleted, one call at a time, by the
thread that iterates or calls. Both numbers only grow, and exclude failures. An exception from it ends the call and reaches
the caller: objects stored or deleted by then stay so.
"""

GROUP_SECONDS = 1.0  # after which a group of objects to be stored takes no more
GROUP_OBJECTS = 1000  # at most in a group; as many as S3 deletes in one request
GROUP_BYTES = 64 << 20

_Item: TypeAlias = tuple[str | ObjectInfo, bytes]


class ProgressCount:
    """Adds up progress and calls *progress* with the sums."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._objects = 0
        self._size = 0

    def add(self, objects: int, size: int) -> None:
        """Count *objects* more objects of *size* bytes in total."""
        self._objects += objects
        self._size += size
        if self._progress is not None and objects:
            self._progress(self._objects, self._size)


def read_counted(
    found: Iterator[tuple[str, bytes]], progress: Progress | None
) -> Iterator[tuple[str, bytes]]:
    """The items of *found*, from `read_many`; *progress* is called before each is yielded. Without it, *found* itself."""
    return found if progress is None else _counted(found, ProgressCount(progress))


def _counted(found: Iterator[tuple[str, bytes]], count: ProgressCount) -> Iterator[tuple[str, bytes]]:
    try:
        for identifier, content in found:
            count.add(1, len(content))
            yield identifier, content
    finally:
        # Of a generator: its work ends when the caller stops iterating.
        close = getattr(found, "close", None)
        if close is not None:
            close()


def write_counted(
    backend: StorageBackend, items: Iterable[_Item], progress: Progress, *, verify: bool
) -> int:
    """`backend.write_many` in groups; *progress* is called after each."""
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
    """`backend.delete_many` in groups; *progress* is called after each."""
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
    """The next items of a batch, taken lazily, up to a number, a size or a time.

    Attributes:
        taken: identifier and size of each.
        raised: the error of the caller's iterable.
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
            count = len(content) if hasattr(content, "__len__") else 0  # invalid content fails later
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
