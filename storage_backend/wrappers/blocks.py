"""Content that is encoded as it comes and decoded block by block: for wrappers that store other bytes than they are given."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Protocol, TypeAlias, cast

from typing_extensions import Buffer, override

from storage_backend.errors import IntegrityError
from storage_backend.info import ObjectInfo
from storage_backend.streams import CHUNK, SeekableRaw, check_arrived, chunks, gathered, new_digest

Fault: TypeAlias = Callable[[str], IntegrityError]
"""Gives the error for an object that is not as it was written, from the reason."""


class Encoder(Protocol):
    """Turns content into what is stored, as it comes."""

    def update(self, data: Buffer, /) -> bytes:
        """Take in *data*; what can be stored by now."""

    def finish(self) -> bytes:
        """What is stored last."""


class DecodedBlocks:
    """Content whose blocks are decoded each as a whole. Not for many threads at once.

    Args:
        size: of the content, in bytes.
        block_size: of each block of it but the last.
        load: gives the blocks [first, stop), in order and of their exact lengths, or raises.
        count: how many blocks there are.
        proved: whether *size* is certain; else it is once the last block was loaded.

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
        self._kept: tuple[int, bytes] = (
            -1,
            b"",
        )  # the block decoded last, which a reader asks for piece by piece

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
        """Check that the content ends where *size* says, by decoding the last block."""
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
    """The raw half of a reader of blocks; its end is a proved one.

    Args:
        blocks: the content.
        stored: what they are read from; it is closed with this reader.
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
    """Each piece with its position, of which the first is *position*."""
    for piece in pieces:
        yield position, memoryview(piece)
        position += len(piece)


def slices(content: bytes) -> Iterator[memoryview]:
    """*content*, piece by piece, uncopied."""
    with memoryview(content) as view:
        for at in range(0, len(content), CHUNK):
            yield view[at : at + CHUNK]


class PieceReader:
    """A reader of what an iterator gives."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._error: BaseException | None = None

    def read(self, size: int = -1, /) -> bytes:
        """Read on; less than *size* only at the end."""
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
        """The same, for a type checker: `read` is all that a source of bytes must have."""
        return cast(BinaryIO, self)

    def _next(self) -> bytes | None:
        if self._error is not None:
            # An iterator that raised is at its end, and would make what was read so far look like all.
            raise self._error
        try:
            return next(self._pieces, None)
        except BaseException as error:
            self._error = error
            raise


def encoded(encoder: Encoder, content: Iterable[Buffer]) -> Iterator[bytes]:
    """What *encoder* makes of *content*. If that raises, the end is never given."""
    for data in content:
        if piece := encoder.update(data):
            yield piece
    yield encoder.finish()


def arriving(
    reader: BinaryIO, identifier: str, info: ObjectInfo | None, *, verify: bool = False
) -> Iterator[bytes]:
    """What *reader* gives; at its end it is compared with *info*.

    Raises:
        IntegrityError: the size, or with *verify* the digest, differs.
        TypeError: the reader gives text.
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


_STEP = 8 << 20  # bytes; a buffered reader allocates all that it is asked for
