"""A reader that resumes at its offset after an error, if the object is still the same."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from typing_extensions import Buffer, override

from storage_backend.base import StorageBackend
from storage_backend.defensive import info_of, location_of
from storage_backend.errors import SourceChangedError, is_retryable
from storage_backend.info import ObjectInfo
from storage_backend.streams import SPOOL, SeekableRaw
from storage_backend.wrappers.retrying.attempts import RetryState

logger = logging.getLogger(__name__)
A = TypeVar("A")
T = TypeVar("T")

# Kernels stamp times coarsely and SFTP in whole seconds: within this a second write may leave size and time as they
# were ("racy git", Documentation/technical/racy-git).
RACY_SECONDS = 2.0
UNKNOWN = -1  # no position
LOOK_AHEAD = 64 << 10  # bytes read at a time for small reads and lines


@dataclass(frozen=True, slots=True)
class Pin:
    """What an object showed before it was opened.

    Attributes:
        info: what `stat` said; None where we may not ask.
        looked: `time.time()` before that.
    """

    info: ObjectInfo | None
    looked: float

    @classmethod
    def of(cls, backend: StorageBackend, identifier: str, clock: Callable[[], float]) -> Pin:
        """Look at the object.

        Raises:
            StorageError: there is none, or the store cannot tell.
        """
        looked = clock()
        try:
            return cls(info_of(backend.stat(identifier), identifier), looked)
        except (PermissionError, NotImplementedError):
            return cls(None, looked)  # reading may be allowed all the same; only resuming is not

    def same(self, now: ObjectInfo) -> bool | None:
        """Whether an object that shows *now* is the same; None if that does not tell."""
        then = self.info
        if then is None:
            return None
        if None not in {then.size, now.size} and then.size != now.size:
            return False
        for one, other in ((then.etag, now.etag), (then.sha256, now.sha256)):
            if one is not None and other is not None:
                return one == other
        if then.modified is None or now.modified is None or then.size is None or now.size is None:
            return None
        if then.modified != now.modified:
            return False
        is_old = then.modified.timestamp() < self.looked - RACY_SECONDS
        return True if is_old else None


class ResumingReader(io.BufferedReader):
    """Reads an object through a `ResumingStream`. A call that fails leaves the reader where it was."""

    def __init__(self, stream: ResumingStream) -> None:
        super().__init__(stream, LOOK_AHEAD)
        self._resuming = stream

    @override
    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size >= LOOK_AHEAD and self.tell() == self._resuming.tell():
            return self._restoring(self._large, size)
        return self._restoring(super().read, size)

    def _large(self, size: int) -> bytes:
        """As `read` while nothing is buffered: without the buffer, which would copy all of it once more."""
        pieces = []
        while size and (piece := self._resuming.next_piece(size)):
            pieces.append(piece)
            size -= len(piece)
        super().seek(self._resuming.tell())
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @override
    def read1(self, size: int = -1, /) -> bytes:
        return self._restoring(super().read1, size)

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        return self._restoring(super().readinto, buffer)

    @override
    def readline(self, size: int | None = -1, /) -> bytes:
        return self._restoring(super().readline, size)

    def _restoring(self, call: Callable[[A], T], argument: A) -> T:
        start = self.tell()
        try:
            return call(argument)
        except BaseException:
            if not self.closed:
                self.seek(start)  # the buffer drops what a failed call has read
            raise


class ResumingStream(SeekableRaw):
    """Reads an object. After a retryable error it opens another reader and goes on at its offset.

    Args:
        backend: of the object.
        identifier: the object.
        stream: its first reader.
        pin: what it showed before that was opened.
        tries: gives the tries of one read.
        clock: as `time.time`.
    """

    def __init__(
        self,
        backend: StorageBackend,
        identifier: str,
        stream: BinaryIO,
        pin: Pin,
        *,
        tries: Callable[[], RetryState],
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._identifier = identifier
        self._stream: BinaryIO | None = stream
        self._pin = pin
        self._tries = tries
        self._clock = clock
        self._stands_at = 0  # the stream does
        self._seen = False  # something of this very object has been given out

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_END:
            return super().seek(offset, whence)
        self._position = self._stands_at = self._through(lambda stream: stream.seek(offset, whence))
        self._seen = True  # its length
        return self._position

    @override
    def readall(self) -> bytes:
        start = self._position
        try:
            return super().readall()
        except BaseException:
            self._position = start
            raise

    def next_piece(self, most: int) -> bytes:
        """Some of the next bytes, at most *most*; b"" at the end."""
        data = self._read_on(most)
        self._position += len(data)
        return data

    @override
    def _read_on(self, most: int) -> bytes:
        data = bytes(self._through(lambda stream: stream.read(min(most, SPOOL))))
        self._stands_at = self._position + len(data)
        # An end that was reached early says something of the object too.
        self._seen = True
        return data

    @override
    def close(self) -> None:
        try:
            if not self.closed:
                self._drop()
        finally:
            super().close()

    def _through(self, call: Callable[[BinaryIO], T]) -> T:
        """What *call* returns for a stream at this reader's position; after a retryable error, for a new one."""
        self._check_open()
        tries = None
        while True:
            try:
                stream = self._there()
                if self._stands_at != self._position:
                    stream.seek(self._position)
                    self._stands_at = self._position
                return call(stream)
            except SourceChangedError:
                self._drop()
                raise
            except Exception as error:
                self._stands_at = UNKNOWN
                if not is_retryable(error):
                    raise
                self._drop()
                tries = tries or self._tries()
                tries.failed(error)
            except BaseException:
                self._drop()  # interrupted in the middle of whatever it does
                raise

    def _there(self) -> BinaryIO:
        """The stream, opened again if the last one broke."""
        if self._stream is not None:
            return self._stream
        if not self._seen:
            self._pin = Pin.of(self._backend, self._identifier, self._clock)
        stream = self._backend.open(self._identifier)
        self._stream, self._stands_at = stream, 0
        if self._seen:
            # After it was opened: what shows the same before the first and after the last was the same between.
            self._check_same()
        return stream

    def _check_same(self) -> None:
        if self._pin.info is None:
            same = None
        else:
            same = self._pin.same(info_of(self._backend.stat(self._identifier), self._identifier))
        if same:
            return
        what = "changed" if same is False else "cannot be shown to be unchanged"
        where = location_of(self._backend)
        raise SourceChangedError(
            f"{self._identifier!r} in {where} {what} since it was opened, so a broken read cannot go on at byte "
            f"{self._position:,}; read it anew",
            identifier=self._identifier,
            backend=where,
            retryable=same is None,  # nothing is known to be wrong: from the beginning it may well succeed
        )

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError as error:
                logger.debug("closing a broken reader of %r: %s", self._identifier, type(error).__name__)
