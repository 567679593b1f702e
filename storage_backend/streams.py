"""Readers that hash, count and verify; the seekable ranged reader; the writer."""

from __future__ import annotations

import hashlib
import io
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import BinaryIO, Protocol, Self, TypeAlias, cast

from typing_extensions import Buffer, override

from storage_backend.errors import ConfigurationError, IntegrityError, StorageError
from storage_backend.info import ObjectInfo

Content: TypeAlias = Buffer | BinaryIO
"""The content that our classes' `write` accepts."""

CHUNK = 256 << 10  # bytes; larger ones leave the allocator's cache and cost a page fault every 4 KiB
SPOOL = 8 << 20  # bytes kept in memory before a temporary file is used


def plain(content: Content) -> bytes | BinaryIO:
    """*content* as one of two kinds: the bytes of a buffer (not copied if they are bytes already), or the reader itself.

    Raises:
        TypeError: it is text, a text reader, or neither buffer nor reader.
    """
    if type(content) is bytes:
        return content
    if isinstance(content, str | io.TextIOBase):
        raise TypeError(
            f"content must be bytes or a binary reader, not {type(content).__name__}: encode text first"
        )
    if callable(getattr(content, "read", None)):
        return cast(BinaryIO, content)
    try:
        return bytes(memoryview(cast(Buffer, content)))
    except TypeError:
        raise TypeError(f"content must be bytes or a binary reader, not {type(content).__name__}") from None


def whole(content: Content) -> bytes:
    """The bytes of a buffer, or the content of a reader.

    Raises:
        TypeError: as `plain`.
    """
    found = plain(content)
    return found if isinstance(found, bytes) else read_all(found)


def chunks(reader: BinaryIO, size: int = CHUNK) -> Iterator[bytes]:
    """Everything from the reader's position to its end, at most *size* bytes at a time.

    Raises:
        TypeError: the reader returns something other than bytes.
    """
    while chunk := _bytes_from(reader, reader.read(size)):
        yield chunk


def read_all(reader: BinaryIO) -> bytes:
    """Everything from the reader's position to its end, as one object.

    Raises:
        TypeError: the reader returns something other than bytes.
    """
    first = _bytes_from(reader, reader.read())
    # read() of a raw stream may return less than everything.
    rest = _bytes_from(reader, reader.read()) if first else b""
    if not rest:
        return bytes(first)
    return b"".join([first, rest, *chunks(reader)])


def _bytes_from(reader: BinaryIO, chunk: object) -> bytes:
    if not isinstance(chunk, bytes | bytearray | memoryview):
        raise TypeError(f"{type(reader).__name__} must return bytes, not {type(chunk).__name__}")
    return cast(bytes, chunk)


class Hasher(Protocol):
    """A digest object of `hashlib`."""

    def update(self, data: Buffer, /) -> None:
        """Add *data*."""

    def hexdigest(self) -> str:
        """Lower-case hex of all data so far."""


def new_digest(algorithm: str) -> Hasher:
    """A new digest.

    Raises:
        ConfigurationError: the algorithm is unknown, or has no fixed length.
    """
    try:
        digest = hashlib.new(algorithm, usedforsecurity=False)
    except (ValueError, TypeError):
        digest = None
    if digest is None or digest.digest_size == 0:
        known = sorted(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake"))
        raise ConfigurationError(
            f"unknown algorithm {algorithm!r}; known: {', '.join(known)}", parameter="algorithm"
        )
    return digest


def sha256(content: Buffer) -> str:
    """Lower-case hex of the SHA-256 of *content*."""
    return hashlib.sha256(content, usedforsecurity=False).hexdigest()


class HashingReader:
    """Forwards to a reader and digests what was read.

    Attributes:
        size: bytes read so far.
    """

    def __init__(self, reader: BinaryIO, algorithm: str = "sha256") -> None:
        self._reader = reader
        self._digest = new_digest(algorithm)
        self.algorithm = algorithm
        self.size = 0

    def read(self, size: int = -1, /) -> bytes:
        """Read on, as the reader within does."""
        chunk = self._reader.read(size)
        self._digest.update(chunk)
        self.size += len(chunk)
        return chunk

    def hexdigest(self) -> str:
        """Lower-case hex of what was read."""
        return self._digest.hexdigest()


Moved: TypeAlias = Callable[[int], object]
"""Called with the number of bytes just transferred; from any thread, also concurrently."""


def unwatched(size: int, /) -> None:
    """A `Moved` that does nothing."""


class CountingReader:
    """Forwards to a reader and counts the bytes that are read.

    Args:
        reader: of bytes.
        moved: called with the length of each read.
    """

    def __init__(self, reader: BinaryIO, moved: Moved) -> None:
        self._reader = reader
        self._moved = moved

    def read(self, size: int = -1, /) -> bytes:
        """Read on, as the reader within does."""
        chunk = self._reader.read(size)
        self._moved(len(chunk))
        return chunk


def counting(reader: BinaryIO, moved: Moved) -> BinaryIO:
    """*reader*, with *moved* called for each read; the reader itself for `unwatched`."""
    return reader if moved is unwatched else cast(BinaryIO, CountingReader(reader, moved))


def hashing(reader: BinaryIO) -> HashingReader:
    """A reader that computes the SHA-256: *reader* itself if it does and nothing was read yet."""
    if isinstance(reader, HashingReader) and reader.algorithm == "sha256" and reader.size == 0:
        return reader
    return HashingReader(reader)


def check_arrived(info: ObjectInfo | None, identifier: str, size: int, sha256: str | None = None) -> None:
    """Compare the received content with *info*.

    Raises:
        IntegrityError: the length, or the digest where both are known, differs.
    """
    if info is None:
        return
    if info.size is not None and info.size != size:
        raise IntegrityError(
            f"{identifier!r}: {size:,} of {info.size:,} bytes arrived; nothing was stored",
            identifier=identifier,
        )
    if sha256 is not None:
        check_digest(identifier, info.sha256, sha256, "what arrived")


def check_digest(identifier: str, expected: str | None, found: str, what: str) -> None:
    """Compare two digests; an *expected* of None passes.

    Raises:
        IntegrityError: they differ.
    """
    if expected is not None and expected != found:
        raise IntegrityError(
            f"{identifier!r}: the SHA-256 of {what} is {found}, expected {expected}", identifier=identifier
        )


def check_mode(mode: str) -> None:
    """Refuse an invalid mode of `open`.

    Raises:
        ValueError: it is neither "rb" nor "wb".
    """
    if mode not in {"rb", "wb"}:
        raise ValueError(f'mode must be "rb" or "wb", not {mode!r}')


def check_range(start: int, end: int | None) -> None:
    """Refuse a negative bound.

    Raises:
        ValueError: a bound is negative.
    """
    if start < 0 or (end is not None and end < 0):
        raise ValueError(f"bounds must not be negative: start={start}, end={end}")


def position_after(offset: int, whence: int, position: int, size: int) -> int:
    """The position after a seek from *position* in a stream of *size* bytes.

    Raises:
        ValueError: it is negative; or *whence* is none of `io.SEEK_SET`, `io.SEEK_CUR` and `io.SEEK_END`.
    """
    starts = {io.SEEK_SET: 0, io.SEEK_CUR: position, io.SEEK_END: size}
    if whence not in starts:
        raise ValueError(f"whence must be 0, 1 or 2, not {whence!r}")
    if starts[whence] + offset < 0:
        raise ValueError(f"negative seek position {starts[whence] + offset}")
    return starts[whence] + offset


class SeekableRaw(io.RawIOBase):
    """The raw stream of a seekable reader. A subclass implements `_read_on`; the position is kept here.

    Attributes:
        size: of the object in bytes; set by the subclass.
        failure: the error of a read; a subclass under a `StoppingReader` raises it again until a seek clears it.
    """

    size = 0
    failure: Exception | None = None
    _position = 0

    def _read_on(self, most: int) -> bytes:
        """The next bytes, at most *most*; b"" only at the end."""
        raise NotImplementedError

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        self._check_open()
        return self._position

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._check_open()
        self._position = position_after(offset, whence, self._position, self.size)
        return self._position

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        self._check_open()
        view = memoryview(buffer).cast("B")
        data = self._read_on(len(view)) if view else b""
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    @override
    def readall(self) -> bytes:
        self._check_open()
        return gathered(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        # The default readall() reads 8 KiB at a time.
        while data := self._read_on(SPOOL):
            self._position += len(data)
            yield data

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed reader")


class StoppingReader(io.BufferedReader):
    """The buffered reader over a `SeekableRaw`.

    After an error it reads nothing until a `seek`: the bytes that the failed call had read are lost, and the next ones would
    be mistaken for them.
    """

    def __init__(self, raw: SeekableRaw) -> None:
        super().__init__(raw, CHUNK)
        self._raw = raw

    @override
    def seek(self, target: int, whence: int = io.SEEK_SET, /) -> int:
        self._raw.failure = None
        return super().seek(target, whence)


def gathered(pieces: Iterable[Buffer]) -> bytes:
    """The concatenation of *pieces*."""
    found = iter(pieces)
    first = next(found, b"")
    second = next(found, None)
    if second is None:
        return bytes(first)  # not copied if it is bytes
    # b"".join would hold all pieces and the result in memory at the same time.
    whole = io.BytesIO()
    whole.write(first)
    del first
    whole.write(second)
    del second
    for piece in found:
        whole.write(piece)
    return whole.getvalue()


class _RangeReader(SeekableRaw):
    """The raw stream of `ranged_reader`."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch = fetch
        self.size = size

    @override
    def _read_on(self, most: int) -> bytes:
        end = min(self._position + most, self.size)
        return self._fetch(self._position, end) if self._position < end else b""


def ranged_reader(fetch: Callable[[int, int], bytes], size: int, buffer_size: int = CHUNK) -> BinaryIO:
    """A seekable reader of an object that is fetched in ranges.

    Args:
        fetch: returns bytes of [start, end), pinned to the object that was opened; never empty before *size*.
        size: of the object, in bytes.
        buffer_size: the minimum to fetch at a time, in bytes.
    """
    return io.BufferedReader(_RangeReader(fetch, size), buffer_size)


class Sink(Protocol):
    """Receives the bytes of one object and publishes them as a whole, or not at all."""

    def write(self, data: Buffer, /) -> object:
        """Append all of *data*."""

    def publish(self) -> None:
        """Make the object visible."""

    def discard(self) -> None:
        """Drop what was written. Harmless after `publish`."""


class Writer:
    """The writer that `open(identifier, "wb")` returns.

    In a `with` statement only a clean exit publishes: neither an exception nor a `close()` by a wrapper around it (a
    TextIOWrapper, a GzipFile) does. Without `with`, `close()` publishes. After a failed write nothing is published, and publishing
    raises a StorageError. If it is garbage-collected unclosed, everything is discarded; so this does not inherit from io.IOBase,
    whose finaliser closes.
    """

    mode = "wb"

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._entered = False
        self._done = False
        self._broken = False  # a write failed: the sink may lack some of its bytes
        self._position = 0
        self.closed = False

    def write(self, data: Buffer, /) -> int:
        """Append all of *data* and return its length in bytes."""
        self._check_open()
        if isinstance(data, str):
            raise TypeError("a binary writer takes bytes, not str: encode text first")
        size = memoryview(data).nbytes
        broken, self._broken = self._broken, True
        self._sink.write(data)
        self._broken = broken
        self._position += size
        return size

    def writelines(self, lines: Iterable[Buffer], /) -> None:
        """Append each of *lines*."""
        for line in lines:
            self.write(line)

    def readable(self) -> bool:
        """Never."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Never: the bytes written may have been sent already."""
        return False

    def isatty(self) -> bool:
        """Never."""
        return False

    def tell(self) -> int:
        """The number of bytes written."""
        return self._position

    def flush(self) -> None:
        """Do nothing: all bytes become visible together."""

    def close(self) -> None:
        """Publish, unless this is inside a `with` statement, whose exit decides."""
        self.closed = True
        if not self._entered:
            self._finish(publish=True)

    def __enter__(self) -> Self:
        self._check_open()
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True
        self._finish(publish=kind is None)

    def _finish(self, *, publish: bool) -> None:
        if self._done:
            return
        self._done = True
        try:
            if publish and self._broken:
                raise StorageError(
                    "an earlier write to this writer failed, so nothing was stored; write the object again"
                )
            if publish:
                self._sink.publish()
        finally:
            self._sink.discard()

    def _check_open(self) -> None:
        if self.closed or self._done:
            raise ValueError("I/O operation on a closed writer")


class SpooledSink:
    """A sink that buffers a whole object: in memory first, then in a temporary file."""

    def __init__(self, deliver: Callable[[BinaryIO], object]) -> None:
        self._deliver = deliver
        import tempfile  # not needed for reading

        self._spool = tempfile.SpooledTemporaryFile(max_size=SPOOL)  # noqa: SIM115 - closed by discard
        # A writer that is dropped unclosed is discarded without a ResourceWarning.
        self._finalizer = weakref.finalize(self, self._spool.close)

    def write(self, data: Buffer, /) -> object:
        """Append all of *data*."""
        return self._spool.write(data)

    def publish(self) -> None:
        """Deliver what was written."""
        self._spool.seek(0)
        self._deliver(cast(BinaryIO, self._spool))

    def discard(self) -> None:
        """Drop what was written."""
        self._finalizer()
