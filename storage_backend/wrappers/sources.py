"""Content that may have to be written more than once: sources that can be rewound, and items in groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO, TypeVar, cast

from typing_extensions import override

from storage_backend.base import Item
from storage_backend.info import ObjectInfo
from storage_backend.streams import HashingReader

T = TypeVar("T")

GROUP_ITEMS = 1000  # as many as S3 lists in a page or deletes in a request
GROUP_BYTES = 16 << 20  # held in memory until they are stored


class RewindableSource:
    """A reader that may have to be read again from where it stands now.

    Attributes:
        reader: what to give to a backend in its place.
    """

    def __init__(self, reader: BinaryIO) -> None:
        self.reader = reader
        self._start = _position(reader)
        self._watched: _Watched | _WatchedDigest | None = None
        if self._start is None:
            # Backends ask a reader that digests for what it has digested.
            kind = _WatchedDigest if isinstance(reader, HashingReader) else _Watched
            self._watched = kind(reader)
            self.reader = cast(BinaryIO, self._watched)

    def rewind(self) -> bool:
        """Have the reader stand where it stood at first; False if it cannot, since what was read of it is gone."""
        if self._watched is not None:
            return not self._watched.touched
        try:
            self.reader.seek(cast(int, self._start))
        except (OSError, ValueError):
            return False
        return True

    @property
    def seekable(self) -> bool:
        """Whether it can be rewound after something was read."""
        return self._watched is None


class _Watched:
    """Passes a reader through and remembers whether it was asked for anything."""

    def __init__(self, reader: BinaryIO) -> None:
        self._reader = reader
        self.touched = False

    def read(self, size: int = -1, /) -> bytes:
        # Before, not after: a read that fails may have taken something.
        self.touched = True
        return self._reader.read(size)


class _WatchedDigest(HashingReader):
    """The same for a reader that digests: backends that look for a HashingReader find one."""

    def __init__(self, reader: BinaryIO) -> None:
        digesting = cast(HashingReader, reader)
        self._digesting = digesting
        self.algorithm = digesting.algorithm
        self.size = digesting.size
        self.touched = False

    @override
    def read(self, size: int = -1, /) -> bytes:
        self.touched = True
        chunk = self._digesting.read(size)
        self.size = self._digesting.size
        return chunk

    @override
    def hexdigest(self) -> str:
        return self._digesting.hexdigest()


def _position(reader: BinaryIO) -> int | None:
    """Where a reader stands that can be sent back there; None for one that cannot."""
    try:
        return reader.tell() if reader.seekable() is True else None
    except (AttributeError, OSError, ValueError):
        return None


def grouped(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in lists of at most GROUP_ITEMS, and GROUP_BYTES or one item's bytes; taken lazily."""
    group: list[Item] = []
    size = 0
    for key, content in items:
        length = len(content) if isinstance(content, bytes | bytearray | memoryview) else 0
        if group and (len(group) >= GROUP_ITEMS or size + length > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append((key, content))
        size += length
        del content  # the caller's next item is made before this one is let go of
    if group:
        yield group


def sliced(items: Iterable[T], most: int) -> Iterator[list[T]]:
    """The items in lists of *most*; the last may be shorter."""
    group: list[T] = []
    for item in items:
        group.append(item)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


def name_of(key: object) -> str:
    """The identifier of an item's key, which may be an ObjectInfo."""
    return cast(str, getattr(key, "identifier", key))


def info_for_copy(info: ObjectInfo | None, identifier: str, size: int | None) -> ObjectInfo:
    """What the backend is told that stores *size* bytes under *identifier*: of *info*, what holds for any copy of the object."""
    if info is None:
        return ObjectInfo(identifier, size)
    return ObjectInfo(identifier, size, info.modified, content_type=info.content_type)
