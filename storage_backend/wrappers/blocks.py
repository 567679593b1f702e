"""Streaming encoders and block-wise decoding, for wrappers that transform the stored bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Protocol, TypeAlias, cast

from typing_extensions import Buffer, override

from storage_backend.errors import IntegrityError
from storage_backend.info import ObjectInfo
from storage_backend.streams import CHUNK, SeekableRaw, check_arrived, chunks, gathered, new_digest

Fault: TypeAlias = Callable[[str], IntegrityError]
"""Makes the error for a damaged object from the reason."""


class Encoder(Protocol):
    """Encodes content incrementally."""

    def update(self, data: Buffer, /) -> bytes:
        """Add *data*; return the bytes that are ready to be stored."""

    def finish(self) -> bytes:
        """Return the remaining bytes to be stored."""


class DecodedBlocks:
    """Content that is decoded in whole blocks. Not thread-safe.

    Args:
        size: of the content, in bytes.
        block_size: of each block but the last, in bytes.
        load: yields the blocks [first, stop), in order and of their exact lengths, or raises.
        count: the number of blocks.
        proved: whether *size* is certain; else decoding the last block proves it.

    Attributes:
        size: as given.
    """

    def __init__(
        self,
        size: int,
        block_size: int,
        load: Callable[[int, int], Iterable[bytes]],
        *,
        count: int,
        proved: bool = True,
    ) -> None:
        self.size = size
        self._block_size = block_size
        self._load = load
        self._count = count
        self._proved = proved
        self._kept = (-1, b"")  # the number and content of the block decoded last: small reads use it again

    def span(self, start: int, end: int | None = None) -> bytes:
        """The bytes of [start, end), clamped."""
        if start >= self.size:
            self.prove()
        end = self.size if end is None else min(end, self.size)
        if start >= end:
            return b""
        first, stop = start // self._block_size, (end - 1) // self._block_size + 1
        position = first * self._block_size
        pieces = self._pieces(first, stop)
        return gathered(piece[max(0, start - at) : end - at] for at, piece in _placed(pieces, position))

    def prove(self) -> None:
        """Verify *size* by decoding the last block."""
        if not self._proved:
            for _ in self._pieces(self._count - 1, self._count):
                continue

    def _pieces(self, first: int, stop: int) -> Iterator[bytes]:
        number, block = self._kept
        if number == first:
            yield block
            first += 1
        for block in self._load(first, stop):
            yield block
        self._kept = (stop - 1, block)
        self._proved = self._proved or stop == self._count


class BlockStream(SeekableRaw):
    """The raw stream under a buffered reader of blocks. Seeking to the end proves the size.

    Args:
        blocks: the content.
        stored: the stored object's reader; closed with this one.
    """

    def __init__(self, blocks: DecodedBlocks, stored: BinaryIO) -> None:
        self.size = blocks.size
        self._blocks = blocks
        self._stored = stored

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_END:
            self._blocks.prove()
        return super().seek(offset, whence)

    @override
    def _read_on(self, most: int) -> bytes:
        if self.failure is not None:
            raise self.failure
        try:
            return self._blocks.span(self._position, self._position + most)
        except Exception as error:
            self.failure = error
            raise

    @override
    def close(self) -> None:
        if not self.closed:
            super().close()
            self._stored.close()


def _placed(pieces: Iterable[bytes], position: int) -> Iterator[tuple[int, memoryview]]:
    """Each piece with its position; the first is at *position*."""
    for piece in pieces:
        yield position, memoryview(piece)
        position += len(piece)


def slices(content: bytes) -> Iterator[memoryview]:
    """*content* in pieces, without a copy."""
    with memoryview(content) as view:
        for at in range(0, len(content), CHUNK):
            yield view[at : at + CHUNK]


class PieceReader:
    """A reader over an iterator of bytes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._error: BaseException | None = None

    def read(self, size: int = -1, /) -> bytes:
        """Read *size* bytes; fewer only at the end."""
        found: list[Buffer] = []
        left = size if size is not None and size >= 0 else None
        while left is None or left > 0:
            if not self._rest:
                piece = self._next()
                if piece is None:
                    break
                self._rest = memoryview(piece)
            taken = self._rest[:left]
            self._rest = self._rest[len(taken) :]
            found.append(taken)
            left = None if left is None else left - len(taken)
        return gathered(found)

    def as_binary(self) -> BinaryIO:
        """This reader as BinaryIO for the type checker: a source needs only `read`."""
        return cast(BinaryIO, self)

    def _next(self) -> bytes | None:
        if self._error is not None:
            # An iterator that raised is exhausted: without this, the next read would look like a normal end.
            raise self._error
        try:
            return next(self._pieces, None)
        except BaseException as error:
            self._error = error
            raise


def encoded(encoder: Encoder, content: Iterable[Buffer]) -> Iterator[bytes]:
    """The encoded *content*. If *content* raises, the final bytes are never yielded."""
    for data in content:
        if piece := encoder.update(data):
            yield piece
    yield encoder.finish()


def arriving(
    reader: BinaryIO, identifier: str, info: ObjectInfo | None, *, verify: bool = False
) -> Iterator[bytes]:
    """The chunks of *reader*; at the end they are compared with *info*.

    Raises:
        IntegrityError: the size, or with *verify* the digest, differs.
        TypeError: the reader returns text.
    """
    digest = new_digest("sha256") if verify and info is not None and info.sha256 is not None else None
    size = 0
    for chunk in chunks(reader):
        size += len(chunk)
        if digest is not None:
            digest.update(chunk)
        yield chunk
    check_arrived(info, identifier, size, digest.hexdigest() if digest else None)


def read_up_to(reader: BinaryIO, size: int) -> bytes:
    """The next *size* bytes; fewer only at the end."""
    pieces = []
    while size > 0 and (piece := reader.read(min(size, _STEP))):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


_STEP = 8 << 20  # bytes; a buffered reader allocates the whole requested size at once
