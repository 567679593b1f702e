"""StagedBlob: content on its way into the cache."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from typing_extensions import Buffer

from storage_backend.wrappers.cached.blob_files import fetched
from storage_backend.wrappers.cached.engine import HELD, OverCacheLimitError
from storage_backend.wrappers.cached.entry import CacheEntry, OpenEntry, packed

STEPS = 256  # what is coming in is counted in steps of this part of the limit


class StagingSpace(Protocol):
    """A cache that content is on its way into."""

    limit: int | None

    def staging_path(self) -> str:
        """A path for content that is coming in."""

    def reserve(self, size: int, replacing: str | None = None) -> None:
        """Make room for *size* bytes, at first that of the entry *replacing*."""

    def release(self, size: int) -> None:
        """Give back what was reserved."""


class StagedBlob:
    """Content on its way into the cache (see `engine.StagedContent`).

    A little is held in memory until room has been made for it; more goes into a file of its own, for which room is made on the way.

    Attributes:
        size: bytes so far.
        reserved: bytes that count as the cache's already.

    Raises:
        OverCacheLimitError: from `write` too: it is more than the cache may hold.
    """

    def __init__(self, cache: StagingSpace, size: int | None, replacing: str | None = None) -> None:
        self.size = 0
        self.reserved = 0
        self._crc = 0
        self._cache = cache
        self._replacing = replacing
        # So much is not counted before it is published.
        self._step = None if cache.limit is None else cache.limit // STEPS
        self._held: list[bytes] | None = []
        self._path: str | None = cache.staging_path()
        self._fd = -1
        if size is not None and size > HELD:
            self._spill(size)

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*.

        Raises:
            OverCacheLimitError: it is more than the cache may hold.
        """
        view = memoryview(data).cast("B")
        size = self.size + len(view)
        self._check(size)
        if self._held is not None and size > HELD:
            self._spill(size)
        if self._held is None:
            self._count(size)
        self._crc = zlib.crc32(view, self._crc)
        self.size = size
        self._append(data if isinstance(data, bytes) else view)

    def fetch(self, download: Callable[[str], object]) -> None:
        """Take in all of the content at once: *download* makes a file of it at the path that it is given.

        Raises:
            OverCacheLimitError: it is more than the cache may hold.
        """
        if self._held is not None:
            self._spill(0)
        assert self._path is not None
        fd, self.size, self._crc = fetched(self._path, download)
        os.close(self._fd)
        self._fd = fd
        self._check(self.size)
        self._count(self.size)

    def finish(self, entry: CacheEntry) -> None:
        """Append what makes it an entry."""
        self._append(packed(entry._replace(crc=self._crc)))

    def rename(self, path: str) -> None:
        """Give it its name."""
        assert self._path is not None
        if self._held is not None:
            self._store()
        os.rename(self._path, path)
        self._path = None

    def found(self, entry: CacheEntry) -> OpenEntry:
        """What was written, to be read although it is not published."""
        if self._held is not None:
            self._store()
        return OpenEntry(os.dup(self._fd), entry)

    def discard(self) -> None:
        """Drop it, unless it was published."""
        self._held = None
        if self._fd >= 0:
            self._remove()
        reserved, self.reserved = self.reserved, 0
        if reserved:
            self._cache.release(reserved)

    def _spill(self, size: int) -> None:
        """Go on in a file, with room for *size* bytes."""
        self._count(size)
        self._store()

    def _store(self) -> None:
        """Put what is held into a file, all of it or nothing."""
        held = self._held
        assert held is not None
        assert self._path is not None
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o666)
        self._held = None
        try:
            for piece in held:
                self._append(piece)
        except BaseException:
            self._held = held
            self._remove()
            raise

    def _remove(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)
        if self._path is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    def _append(self, data: bytes | memoryview) -> None:
        if self._held is not None:
            self._held.append(bytes(data))  # bytes are not copied
            return
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def _check(self, size: int) -> None:
        limit = self._cache.limit
        if limit is not None and size > limit:
            raise OverCacheLimitError(f"{size:,} bytes are more than {limit:,}")

    def _count(self, size: int) -> None:
        """See to it that *size* bytes in all are within the limit."""
        if self._step is None or size <= self.reserved + self._step:
            return
        more = max(size - self.reserved, self._step)
        self._cache.reserve(more, self._replacing)
        self.reserved += more
