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
from storage_backend.wrappers.recoding import LOOKS, RecodingWrapper, outer_info
from storage_backend.wrappers.sources import info_for_copy

T = TypeVar("T")

LEVELS = range(-(1 << 17), 23)  # ZSTD_minCLevel() to ZSTD_maxCLevel(), "zstd.h" 1.5


class CompressedStorage(RecodingWrapper):
    """Objects are stored compressed by zstd, and read and measured as if they were not.

    What is stored is a zstd file: `zstd -d` gives the content (see `frames` for the format). An object without our
    header is raw and read as it is, so a store may hold both, and one that was filled before stays readable. Content is
    checked when it is read: what is damaged or truncated raises IntegrityError, but for what is cut within its first
    8 bytes, which looks like a raw object.

    Sizes, ranges and digests are the content's; `scan` gives no sizes, since each would cost a request. A range moves
    and decompresses the blocks of 1 MiB that it touches. `copy` and `move` are the inner backend's. A stream whose size
    is not told by `info`, and all that is written through `open`, waits in memory, from 8 MiB of compressed bytes on in
    a temporary file, because the size stands first. With *verify* each block is decompressed again before it is stored,
    and the inner backend verifies what it stored.

    Args:
        backend: the backend within.
        level: of compression: 1 to 22, 0 for zstd's own choice, negative for less and faster.
        max_object_size: bytes of the largest content that is decompressed, in whatever way it is read; None sets no limit.
            What others have written may be small where it is stored, and larger than a memory or a disk.

    Attributes:
        backend: the backend within.
        level: as given.
        max_object_size: as given.

    Raises:
        ConfigurationError: there is no such level, or the limit is negative.
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
        for _ in range(LOOKS):
            head = self.backend.read_range(identifier, 0, frames.HEADER_SIZE)
            size = frames.content_size(head, fault)
            if size is not None:
                return size
            if len(head) < frames.HEADER_SIZE:
                return len(head)
            stored = self.backend.size(identifier)
            # It may have been replaced by a compressed one just before it was measured.
            if self.backend.read_range(identifier, 0, frames.HEADER_SIZE) == head:
                return stored
        raise SourceChangedError(
            f"{identifier!r} in {self.location} changes whenever it is measured",
            identifier=identifier,
            backend=self.location,
        )

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        # In this order the etag is never newer than the size, so a caller that relies on both notices a change in between.
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
        """The pieces of the stored object, while its content of exactly *size* bytes arrives."""
        yield frames.header(size)
        encoder = frames.FrameEncoder(self.level, verify=verify)
        yield from encoded(encoder, arriving(reader, identifier, info, verify=verify))

    def _spooled(
        self, content: Iterable[Buffer], deliver: Callable[[BinaryIO, int], T], *, verify: bool = False
    ) -> T:
        """Deliver the stored object once all of its content is there."""
        answers: list[T] = []
        sink = _FrameSink(
            frames.FrameEncoder(self.level, verify=verify),
            lambda spool, size: answers.append(deliver(spool, size)),
        )
        try:
            for data in content:
                sink.write(data)
            sink.publish()
        finally:
            sink.discard()
        return answers[0]

    def _conditional(self, identifier: str, content: Content, call: Callable[[Content], T]) -> T:
        content = plain(content)
        names.check(identifier, surrogates=True)
        if isinstance(content, bytes):
            return call(self._encode(identifier, content))
        return self._spooled(arriving(content, identifier, None), lambda spool, _: call(spool))


class _FrameSink:
    """Keeps the stored object until the content's size is known, and delivers it with its own size."""

    def __init__(self, encoder: frames.FrameEncoder, deliver: Callable[[BinaryIO, int], object]) -> None:
        self._encoder = encoder

        # It refers to nothing of this object, which has the spool: no cycle keeps a spool that is dropped.
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
