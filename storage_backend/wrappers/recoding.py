"""RecodingWrapper: a wrapper whose backend holds other bytes than the wrapper was given."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, BinaryIO, Literal, Protocol, Self, TypeVar, cast

from typing_extensions import Buffer, override

from storage_backend import identifiers as names
from storage_backend.base import Item, StorageBackend, unsupported
from storage_backend.counted import Progress, read_counted, write_counted
from storage_backend.defensive import capabilities_of, info_of, location_of, store
from storage_backend.errors import BatchError, Failures, IntegrityError, SourceChangedError, StorageError
from storage_backend.hooks import Hooks, digest_of
from storage_backend.info import Capability, ObjectInfo
from storage_backend.scanning import OnSkip
from storage_backend.streams import (
    CHUNK,
    Content,
    Moved,
    check_arrived,
    check_mode,
    check_range,
    chunks,
    new_digest,
    plain,
    position_after,
    read_all,
    sha256,
)
from storage_backend.wrappers.base import Wrapper, WrapperHooks

T = TypeVar("T")

LOOKS = 10  # at an object that changes between the requests for it

Fault = Callable[[str], IntegrityError]
"""Gives the error for an object that is not as it was written, from the reason."""


class RecodingWrapper(Wrapper):
    """What follows from the few methods in which a subclass encodes and decodes; they stand first.

    The inner backend's sizes, digests and URLs are about its own bytes and never passed on as the content's. Its etags
    and times are: where the stored bytes are unchanged, so is the content.
    """

    @abstractmethod
    def _encode(self, identifier: str, content: bytes, *, verify: bool = False) -> bytes:
        """What to store for *content*; with *verify*, proved to give *content* again."""

    @abstractmethod
    def _blocks(self, identifier: str, stored: BinaryIO) -> Blocks | None:
        """The content of what *stored*, of which nothing was read yet, gives; None if that is the content itself."""

    @abstractmethod
    def _shown(self, info: ObjectInfo) -> ObjectInfo:
        """What a scan may say of the content, of all that it says of the stored object."""

    @override
    def read(self, identifier: str) -> bytes:
        names.check(identifier, surrogates=True)
        return self._decode(identifier, self.backend.read(identifier))

    @override
    def write(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        names.check(identifier, surrogates=True)
        return store(self.backend, identifier, self._encode(identifier, content))

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        return map(self._shown, self.backend.scan(prefix, on_skip=on_skip))

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        for found in self.backend.scan_level(prefix, on_skip=on_skip):
            yield found if isinstance(found, str) else self._shown(found)

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        names.check(identifier, surrogates=True)
        if mode == "wb":
            return self._writer(identifier)
        return self._settled(lambda: self._opened(identifier))

    @abstractmethod
    def _writer(self, identifier: str) -> BinaryIO:
        """What `open(identifier, "wb")` gives."""

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        check_range(start, end)
        names.check(identifier, surrogates=True)
        return self._settled(lambda: self._span(identifier, start, end))

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        if progress is not None:
            yield from read_counted(self.read_many(identifiers), progress)
            return
        batch = _Batch()
        with batch:
            for identifier, stored in self.backend.read_many(batch.watched(identifiers)):
                content = None
                with batch.of(identifier):
                    content = self._decode(identifier, stored)
                if content is not None:
                    yield identifier, content
        batch.raise_any("read", self.location)

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        batch = _Batch()
        stored = 0

        def coded(item: Item) -> list[Item]:
            key, content = item
            info = key if isinstance(key, ObjectInfo) else None
            identifier = info.identifier if info else cast(str, key)
            with batch.of(identifier):
                batch.errors.pop(identifier, None)
                names.check(identifier, surrogates=True)
                content = bytes(content)
                check_arrived(info, identifier, len(content), sha256(content) if verify else None)
                code = self._encode(identifier, content, verify=verify)
                return [(inner_info(info, identifier, len(code)), code)]
            return []

        with batch:
            stored = self.backend.write_many(
                (there for item in batch.watched(items) for there in coded(item)), verify=verify
            )
        batch.raise_any("write", self.location)
        return stored

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        return StorageBackend.download(self, identifier, path)

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        return StorageBackend.upload(self, path, identifier)

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        return StorageBackend.checksum(self, identifier, algorithm)

    @override
    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        raise unsupported(self, "get_url", identifier)

    @property
    @override
    def capabilities(self) -> Capability:
        return capabilities_of(self.backend) & ~(Capability.URL | Capability.CHECKSUM)

    @property
    @override
    def hooks(self) -> Hooks:
        return _RecodingHooks(self)

    def _opened(self, identifier: str) -> BinaryIO:
        stored = self.backend.open(identifier)
        try:
            blocks = self._blocks(identifier, stored)
            if blocks is not None:
                return _BlockReader(_BlockStream(blocks, stored))
            stored.seek(0)
        except BaseException:
            stored.close()
            raise
        return stored

    def _span(self, identifier: str, start: int, end: int | None) -> bytes:
        # By one reader, which is pinned: the pieces are of one version.
        with self.backend.open(identifier) as stored:
            blocks = self._blocks(identifier, stored)
            if blocks is not None:
                return self._span_of(identifier, blocks, start, end)
            stored.seek(start)
            return read_all(stored) if end is None else read_up_to(stored, end - start)

    def _settled(self, look: Callable[[], T]) -> T:
        """The answer of *look*, which takes several requests where the inner backend takes one, of one version."""
        for _ in range(LOOKS - 1):
            with suppress(SourceChangedError):
                return look()
        return look()

    def _decode(self, identifier: str, stored: bytes) -> bytes:
        blocks = self._blocks(identifier, io.BytesIO(stored))
        return stored if blocks is None else self._span_of(identifier, blocks, 0, None)

    def _span_of(self, identifier: str, blocks: Blocks, start: int, end: int | None) -> bytes:
        try:
            return blocks.span(start, end)
        except MemoryError:
            size = (blocks.size if end is None else min(end, blocks.size)) - start
            where = location_of(self.backend)
            raise StorageError(
                f"{identifier!r} in {where}: {size:,} bytes do not fit into memory; read it by open() or download()",
                identifier=identifier,
                backend=where,
            ) from None

    def _fault(self, identifier: str) -> Fault:
        where = location_of(self.backend)

        def fault(reason: str) -> IntegrityError:
            return IntegrityError(
                f"{identifier!r} in {where}: {reason}", identifier=identifier, backend=where
            )

        return fault


class _RecodingHooks(WrapperHooks):
    """Passes on what is true of the content; the MD5 and SHA-256 of the store are those of the stored bytes."""

    def __init__(self, storage: RecodingWrapper) -> None:
        super().__init__(storage)
        self._shown = storage._shown

    @override
    def last_read(self, identifier: str) -> ObjectInfo | None:
        found = self.inner.last_read(identifier)
        return found and self._shown(found)

    @override
    def last_written(self, identifier: str) -> ObjectInfo | None:
        found = self.inner.last_written(identifier)
        return found and self._shown(found)

    @override
    def md5_in(self, info: ObjectInfo) -> str | None:
        return None

    @override
    def sha256_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, str]]:
        return iter(())

    @override
    def checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        return digest_of(self.backend, identifier, algorithm, moved)


class Encoder(Protocol):
    """Turns content into what is stored, as it comes."""

    def update(self, data: Buffer, /) -> bytes:
        """Take in *data*; what can be stored by now."""

    def finish(self) -> bytes:
        """What is stored last."""


class Blocks:
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
        """Make certain that the content ends where *size* says."""
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


class _BlockReader(io.BufferedReader):
    """A reader of blocks.

    After an error it gives nothing until `seek` says where to go on: what it had read by then of the failed call is lost,
    and the next bytes would be taken for those.
    """

    def __init__(self, stream: _BlockStream) -> None:
        super().__init__(stream, CHUNK)
        self._stream = stream

    @override
    def seek(self, target: int, whence: int = io.SEEK_SET, /) -> int:
        self._stream.mend()
        return super().seek(target, whence)


class _BlockStream(io.RawIOBase):
    """The raw half of a reader of blocks; its end is a proved one."""

    def __init__(self, blocks: Blocks, stored: BinaryIO) -> None:
        self._blocks = blocks
        self._stored = stored
        self._position = 0
        self._failure: Exception | None = None

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return self._position

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_END:
            self._blocks.prove()
        self._position = position_after(offset, whence, self._position, self._blocks.size)
        return self._position

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._next(len(view))
        view[: len(data)] = data
        return len(data)

    @override
    def readall(self) -> bytes:
        # The default asks for 8 KiB at a time.
        return gathered(iter(lambda: self._next(_STEP), b""))

    def mend(self) -> None:
        """Read on after an error."""
        self._failure = None

    def _next(self, size: int) -> bytes:
        if self._failure is not None:
            raise self._failure
        try:
            data = self._blocks.span(self._position, self._position + size)
        except Exception as error:
            self._failure = error
            raise
        self._position += len(data)
        return data

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


def gathered(pieces: Iterable[Buffer]) -> bytes:
    """All of *pieces* as one."""
    # b"".join would first have all of them beside each other, in as much memory again.
    whole = io.BytesIO()
    for piece in pieces:
        whole.write(piece)
    return whole.getvalue()


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


def inner_info(info: ObjectInfo | None, identifier: str, size: int | None) -> ObjectInfo:
    """What the inner backend is told of an object of *size* stored bytes."""
    if info is None:
        return ObjectInfo(identifier, size)
    return ObjectInfo(identifier, size, info.modified, content_type=info.content_type)


def read_up_to(reader: BinaryIO, size: int) -> bytes:
    """The next *size* bytes; fewer only at the end."""
    pieces = []
    while size > 0 and (piece := reader.read(min(size, _STEP))):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


_STEP = 8 << 20  # bytes; a buffered reader allocates all that it is asked for


def outer_info(info: ObjectInfo, size: int | None) -> ObjectInfo:
    """What is true of content of *size* bytes, of all that is true of the stored object."""
    if type(info) is not ObjectInfo:
        info = info_of(info, cast(Any, info).identifier)
    return ObjectInfo(info.identifier, size, info.modified, info.etag, None, info.content_type)


class _Batch(Failures):
    """A context for a call on many objects: the inner backend's failures join ours.

    An error of the iterable that the caller passed in is passed on as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._foreign: BaseException | None = None

    def watched(self, iterable: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from iterable
        except BaseException as error:
            self._foreign = error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        foreign, self._foreign = self._foreign, None  # its traceback leads to whoever has this object
        if not isinstance(error, BatchError) or error is foreign:
            return False
        self.errors.update(error.failures)
        return True
