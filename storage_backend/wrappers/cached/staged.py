"""Blob: content on its way into the cache."""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from typing import Protocol

from typing_extensions import Buffer

from storage_backend.wrappers.cached.entry import Entry, Found, packed

STEPS = 256  # what is coming in is counted in steps of this part of the limit


class Room(Protocol):
    """A cache that content is on its way into."""

    limit: int | None

    def staging_path(self) -> str:
        """A path for content that is coming in."""

    def reserve(self, size: int) -> None:
        """Make room for *size* bytes."""

    def release(self, size: int) -> None:
        """Give back what was reserved."""


class Blob:
    """Content on its way into the cache (see `engine.Staged`): a file of its own until it is named.

    Attributes:
        size: bytes so far.
        reserved: bytes that count as the cache's already.

    Raises:
        TooLargeError: from `write` too: it is more than the cache may hold.
    """

    def __init__(self, cache: Room, size: int | None) -> None:
        self.size = 0
        self._crc = 0
        self.reserved = 0
        self._cache = cache
        # So much is not counted before it is published.
        self._step = None if cache.limit is None else cache.limit // STEPS
        self._path: str | None = cache.staging_path()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o666)
        if size is not None:
            try:
                self._count(size)
            except BaseException:
                self.discard()
                raise

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*.

        Raises:
            TooLargeError: it is more than the cache may hold.
        """
        view = memoryview(data).cast("B")
        self._count(self.size + len(view))
        self._crc = zlib.crc32(view, self._crc)
        self.size += len(view)
        self._append(view)

    def finish(self, entry: Entry) -> None:
        """Append what makes it an entry."""
        self._append(memoryview(packed(entry._replace(crc=self._crc))))

    def rename(self, path: str) -> None:
        """Give it its name."""
        assert self._path is not None
        os.rename(self._path, path)
        self._path = None

    def found(self, entry: Entry) -> Found:
        """What was written, to be read although it is not published."""
        return Found(os.dup(self._fd), entry)

    def discard(self) -> None:
        """Drop it, unless it was published."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        path, self._path = self._path, None
        if path is not None:
            with suppress(FileNotFoundError):
                os.unlink(path)
        reserved, self.reserved = self.reserved, 0
        if reserved:
            self._cache.release(reserved)

    def _append(self, view: memoryview) -> None:
        while view:
            view = view[os.write(self._fd, view) :]

    def _count(self, size: int) -> None:
        """See to it that *size* bytes in all are within the limit."""
        if self._step is None or size <= self.reserved + self._step:
            return
        more = max(size - self.reserved, self._step)
        self._cache.reserve(more)
        self.reserved += more
