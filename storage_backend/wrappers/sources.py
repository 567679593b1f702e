"""Content that may have to be written more than once: rewindable sources, and items in groups."""

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
    """A reader that may have to be read again from its present position.

    Attributes:
        reader: the reader to pass to a backend instead.
    """

    def __init__(self, reader: BinaryIO) -> None:
        self.reader = reader
        self._start = _position(reader)
        self._watched: _Watched | _WatchedDigest | None = None
        if self._start is None:
            # Backends take the digest from a reader that computes one.
            kind = _WatchedDigest if isinstance(reader, HashingReader) else _Watched
            self._watched = kind(reader)
            self.reader = cast(BinaryIO, self._watched)

    def rewind(self) -> bool:
        """Return to the first position; False if that is impossible."""
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
    """Forwards to a reader and remembers whether anything was read."""

    def __init__(self, reader: BinaryIO) -> None:
        self._reader = reader
        self.touched = False

    def read(self, size: int = -1, /) -> bytes:
        # Before, not after: a failed read may have consumed something.
        self.touched = True
        return self._reader.read(size)


class _WatchedDigest(HashingReader):
    """The same for a HashingReader, which backends look for by its class."""

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
    """The position of a seekable reader; None for any other."""
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
        del content  # else it would live until the caller has made the next item
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
    """The info for a copy of *size* bytes: of *info*, the fields that hold for any copy of the object."""
    if info is None:
        return ObjectInfo(identifier, size)
    return ObjectInfo(identifier, size, info.modified, content_type=info.content_type)
