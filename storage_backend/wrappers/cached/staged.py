"""Staged content: held in memory or in its own file until it is published in the cache."""

from __future__ import annotations

import io
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from typing_extensions import Buffer

from storage_backend.streams import CHUNK
from storage_backend.wrappers.cached.entry import CacheEntry, CacheKey, OpenEntry
from storage_backend.wrappers.cached.layout import remove

if TYPE_CHECKING:
    from storage_backend.wrappers.cached.engine import CacheEngine

HELD = 256 << 10  # bytes of one content that may be in memory until it is published
STEPS = 256  # room is reserved in steps of this fraction of the limit


class OverCacheLimitError(Exception):
    """The content exceeds the limit of the cache."""


class StagingSpace(Protocol):
    """Reserves room for staged content."""

    limit: int | None

    def reserve(self, size: int, replacing: str | None = None) -> None:
        """Make room for *size* bytes, first by evicting the entry *replacing*."""

    def release(self, size: int) -> None:
        """Release a reservation."""


class StagedContent:
    """Content to be published in the cache.

    Small content is held in memory, and gets its room when it is published; larger content goes to a file, and room is reserved
    as it grows.

    Args:
        space: of the cache.
        path: of the file.
        size: of the content, in bytes, if that is known.
        replacing: name of the entry to be replaced, which is evicted first.

    Attributes:
        size: bytes so far.
        crc: CRC-32 of them.
        reserved: bytes reserved in the cache.
        pending: whether it is neither published nor discarded.

    Raises:
        OverCacheLimitError: it exceeds the limit of the cache; from `write` and `fetch`, too.
    """

    def __init__(
        self, space: StagingSpace, path: str, size: int | None, replacing: str | None = None
    ) -> None:
        self.size = 0
        self.crc = 0
        self.reserved = 0
        self.pending = True
        self._space = space
        self._path: str | None = path
        self._replacing = replacing
        # Up to here, room is reserved only when it is published.
        self._step = None if space.limit is None else space.limit // STEPS
        self._held: list[bytes] | None = []
        self._fd = -1
        if size is not None and size > HELD:
            self._reserve(size)
            self._store()

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*."""
        view = memoryview(data).cast("B")
        size = self.size + len(view)
        self._check(size)
        if self._held is None:
            self._reserve(size)
        elif size > HELD:
            self._reserve(size)
            self._store()
        self.crc = zlib.crc32(view, self.crc)
        self.size = size
        self._append(data if isinstance(data, bytes) else view)

    def fetch(self, download: Callable[[str], object]) -> None:
        """Stage the whole content at once: *download* writes it to the path that it is given."""
        if self._held is not None:
            self._store()
        path = self._path
        assert path is not None
        # In its own directory: the download may create temporary files beside its target.
        folder = f"{path}.d"
        os.mkdir(folder, 0o700)
        try:
            download(f"{folder}/content")
            os.rename(f"{folder}/content", path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        os.close(self._fd)
        self._fd = fd
        self.size = self.crc = 0
        while piece := os.read(self._fd, CHUNK):
            self.crc = zlib.crc32(piece, self.crc)
            self.size += len(piece)
        self._check(self.size)
        self._reserve(self.size)

    def publish(self, path: str, metadata: bytes) -> None:
        """Append the packed metadata, and move the file to its place in the cache. It can no longer be read here."""
        assert self._path is not None
        self._append(metadata)
        if self._held is not None:
            self._store()
        try:
            os.rename(self._path, path)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.rename(self._path, path)
        except IsADirectoryError:
            remove(path)
            os.rename(self._path, path)
        self._path = None
        fd, self._fd = self._fd, -1
        os.close(fd)

    def found(self, entry: CacheEntry) -> OpenEntry:
        """The content as an open entry, whether or not it will be published."""
        if self._held is not None:
            self._store()
        return OpenEntry(os.dup(self._fd), entry)

    def reader(self) -> BinaryIO:
        """The content from its first byte."""
        if self._held is not None:
            return io.BytesIO(b"".join(self._held))
        assert self._path is not None
        return open(self._path, "rb")

    def discard(self) -> None:
        """Drop it, unless it was published."""
        self.pending = False
        self._held = None
        if self._fd >= 0:
            self._remove()
        reserved, self.reserved = self.reserved, 0
        if reserved:
            self._space.release(reserved)

    def _store(self) -> None:
        """Write the held content to a file, all of it or nothing."""
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
        limit = self._space.limit
        if limit is not None and size > limit:
            raise OverCacheLimitError(f"{size:,} bytes are more than {limit:,}")

    def _reserve(self, size: int) -> None:
        """Reserve room for *size* bytes in all."""
        if self._step is None or size <= self.reserved + self._step:
            return
        more = max(size - self.reserved, self._step)
        self._space.reserve(more, self._replacing)
        self.reserved += more


class Publication(NamedTuple):
    """An entry that is ready to be published.

    Attributes:
        key: of the entry.
        staged: its content.
        entry: its metadata.
    """

    key: CacheKey
    staged: StagedContent
    entry: CacheEntry


class NewEntry(NamedTuple):
    """A new entry for the cache.

    Attributes:
        key: of the entry.
        content: of it.
        entry: its metadata.
        generation: of the key, from before the request.
    """

    key: CacheKey
    content: bytes
    entry: CacheEntry
    generation: int


def publish(engine: CacheEngine, entries: Sequence[NewEntry]) -> None:
    """Publish entries, except those for which the cache has no room.

    Raises:
        OSError, or an error of the engine's database: none was published.
    """
    publications: list[tuple[Publication, int]] = []
    try:
        for key, content, entry, generation in entries:
            staged = stage_content(engine, content)
            if staged is not None:
                publications.append((Publication(key, staged, entry), generation))
        if publications:
            engine.publish(publications)
    finally:
        for publication, _ in publications:
            if publication.staged.pending:
                publication.staged.discard()


def stage_content(
    engine: CacheEngine, content: bytes, replacing: CacheKey | None = None
) -> StagedContent | None:
    """The content, staged; None if the cache has no room for it."""
    staged = None
    try:
        staged = engine.stage(len(content), replacing)
        if staged is not None:
            staged.write(content)
    except BaseException as error:
        if staged is not None:
            staged.discard()
        if isinstance(error, OverCacheLimitError):
            return None
        raise
    return staged
