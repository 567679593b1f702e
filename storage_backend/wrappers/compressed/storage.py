"""CompressedStorage: the public methods."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import BinaryIO, TypeVar, cast

from typing_extensions import Buffer, override

from storage_backend import identifiers as names
from storage_backend.base import StorageBackend
from storage_backend.defensive import info_of
from storage_backend.errors import ConfigurationError, SourceChangedError, StorageError
from storage_backend.info import ObjectInfo
from storage_backend.streams import SPOOL, Content, SpooledSink, Writer, gathered, plain
from storage_backend.wrappers.blocks import DecodedBlocks, PieceReader, arriving, encoded, slices
from storage_backend.wrappers.compressed import frames
from storage_backend.wrappers.recoding import MAX_READS, RecodingWrapper, outer_info
from storage_backend.wrappers.sources import info_for_copy

T = TypeVar("T")

LEVELS = range(-(1 << 17), 23)  # ZSTD_minCLevel() to ZSTD_maxCLevel(), "zstd.h" 1.5


class CompressedStorage(RecodingWrapper):
    """Stores objects compressed with zstd. Callers see the uncompressed content and its size.

    A stored object is a zstd file: `zstd -d` decompresses it (see `frames` for the format). An object without our header
    is raw and read as it is, so an existing store stays readable and may hold both kinds. Reads verify the content:
    damage and truncation raise IntegrityError, except for an object truncated within its first 8 bytes, which looks raw.

    Sizes, ranges and digests are the content's; `scan` returns no sizes, since each would cost a request. A range
    transfers and decompresses the 1 MiB blocks that it touches. `copy` and `move` are the inner backend's. The header
    contains the size, so a stream of unknown size and everything written through `open` is buffered (beyond 8 MiB
    of compressed bytes in a temporary file). With *verify* each block is decompressed again before it is stored, and the
    inner backend verifies what it stored.

    Args:
        backend: the backend within.
        level: of compression: 1 to 22, 0 for zstd's own choice, negative for less and faster.
        max_object_size: size limit in bytes of content that is decompressed, however it is read; None sets no limit. A
            small object from an untrusted writer may expand beyond memory or disk.

    Attributes:
        backend, level, max_object_size: as given.

    Raises:
        ConfigurationError: there is no such level, or the limit is negative.
        TypeError: the level is not an int.
    """

    def __init__(
        self, backend: StorageBackend, level: int = 3, *, max_object_size: int | None = None
    ) -> None:
        super().__init__(backend)
        if not isinstance(level, int) or isinstance(level, bool):
            raise TypeError(f"level must be an int, not {type(level).__name__}")
        if level not in LEVELS:
            raise ConfigurationError(
                f"level must be from {LEVELS[0]} to {LEVELS[-1]}, not {level}", parameter="level"
            )
        if max_object_size is not None and max_object_size < 0:
            raise ConfigurationError(
                f"max_object_size must not be negative: {max_object_size}", parameter="max_object_size"
            )
        self.level = level
        self.max_object_size = max_object_size

    @override
    def size(self, identifier: str) -> int:
        names.check(identifier, surrogates=True)
        fault = self._fault(identifier)
        for _ in range(MAX_READS):
            head = self.backend.read_range(identifier, 0, frames.HEADER_SIZE)
            size = frames.content_size(head, fault)
            if size is not None:
                return size
            if len(head) < frames.HEADER_SIZE:
                return len(head)
            stored = self.backend.size(identifier)
            # A compressed object may have replaced it before `size` was called.
            if self.backend.read_range(identifier, 0, frames.HEADER_SIZE) == head:
                return stored
        raise SourceChangedError(
            f"{identifier!r} in {self.location} changed during each of {MAX_READS} attempts to get its size",
            identifier=identifier,
            backend=self.location,
        )

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        # In this order the etag is never newer than the size, so a caller that uses both notices a change in between.
        found = info_of(self.backend.stat(identifier), identifier)
        return outer_info(found, self.size(identifier))

    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        return StorageBackend.stat_many(self, identifiers)

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        names.check(identifier, surrogates=True)
        if info is not None and info.size is not None and info.size > SPOOL:
            pieces = self._pieces(identifier, reader, info, info.size, verify=verify)
            stream = PieceReader(pieces).as_binary()
            told = info_for_copy(info, identifier, None)
            return self.backend.write_stream(identifier, stream, info=told, verify=verify) is not False

        def deliver(spool: BinaryIO, size: int) -> bool:
            told = info_for_copy(info, identifier, size)
            return self.backend.write_stream(identifier, spool, info=told, verify=verify) is not False

        return self._spooled(arriving(reader, identifier, info, verify=verify), deliver, verify=verify)

    @override
    def create(self, identifier: str, content: Content) -> bool:
        return self._conditional(identifier, content, lambda stored: self.backend.create(identifier, stored))

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        return self._conditional(
            identifier, content, lambda stored: self.backend.replace(identifier, stored, etag)
        )

    @override
    def _encode(self, identifier: str, content: bytes, *, verify: bool = False) -> bytes:
        encoder = frames.FrameEncoder(self.level, verify=verify)
        return gathered(chain([frames.header(len(content))], encoded(encoder, slices(content))))

    @override
    def _blocks(self, identifier: str, stored: BinaryIO) -> DecodedBlocks | None:
        blocks = frames.blocks_of(stored, self._fault(identifier))
        if blocks is not None and self.max_object_size is not None and blocks.size > self.max_object_size:
            raise StorageError(
                f"{identifier!r} in {self.location} has {blocks.size:,} bytes of content, and max_object_size is "
                f"{self.max_object_size:,}",
                identifier=identifier,
                backend=self.location,
            )
        return blocks

    @override
    def _shown(self, info: ObjectInfo) -> ObjectInfo:
        return outer_info(info, None)

    @override
    def _writer(self, identifier: str) -> BinaryIO:
        def deliver(spool: BinaryIO, size: int) -> object:
            return self.backend.write_stream(identifier, spool, info=ObjectInfo(identifier, size))

        return cast(BinaryIO, Writer(_FrameSink(frames.FrameEncoder(self.level), deliver)))

    def _pieces(
        self, identifier: str, reader: BinaryIO, info: ObjectInfo, size: int, *, verify: bool
    ) -> Iterator[bytes]:
        """The stored object in pieces, encoded from *reader* with exactly *size* bytes of content."""
        yield frames.header(size)
        encoder = frames.FrameEncoder(self.level, verify=verify)
        yield from encoded(encoder, arriving(reader, identifier, info, verify=verify))

    def _spooled(
        self, content: Iterable[Buffer], deliver: Callable[[BinaryIO, int], T], *, verify: bool = False
    ) -> T:
        """Deliver the stored object after all of *content* has arrived."""
        results: list[T] = []
        sink = _FrameSink(
            frames.FrameEncoder(self.level, verify=verify),
            lambda spool, size: results.append(deliver(spool, size)),
        )
        try:
            for data in content:
                sink.write(data)
            sink.publish()
        finally:
            sink.discard()
        return results[0]

    def _conditional(self, identifier: str, content: Content, call: Callable[[Content], T]) -> T:
        content = plain(content)
        names.check(identifier, surrogates=True)
        if isinstance(content, bytes):
            return call(self._encode(identifier, content))
        return self._spooled(arriving(content, identifier, None), lambda spool, _: call(spool))


class _FrameSink:
    """Buffers the stored object until the content's size is known, then delivers it with the stored size."""

    def __init__(self, encoder: frames.FrameEncoder, deliver: Callable[[BinaryIO, int], object]) -> None:
        self._encoder = encoder

        # It must not refer to this object, which holds the spool: a cycle would keep a dropped spool alive.
        def completed(spool: BinaryIO) -> None:
            size = spool.seek(0, io.SEEK_END)
            spool.seek(0)
            spool.write(frames.header(encoder.size))
            spool.seek(0)
            deliver(spool, size)

        self._spool = SpooledSink(completed)
        self._spool.write(bytes(frames.HEADER_SIZE))

    def write(self, data: Buffer, /) -> object:
        return self._spool.write(self._encoder.update(data))

    def publish(self) -> None:
        self._spool.write(self._encoder.finish())
        self._spool.publish()

    def discard(self) -> None:
        self._spool.discard()
