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
from storage_backend.info import ObjectInfo, is_racy
from storage_backend.streams import SPOOL, SeekableRaw
from storage_backend.wrappers.retrying.attempts import RetryState

logger = logging.getLogger(__name__)
A = TypeVar("A")
T = TypeVar("T")

UNKNOWN = -1  # no position
LOOK_AHEAD = 64 << 10  # bytes read at a time for small reads and lines


@dataclass(frozen=True, slots=True)
class Pin:
    """The validators of an object before it was opened.

    Attributes:
        info: from `stat`; None if that is not permitted or not supported.
        looked: the time before that call.
    """

    info: ObjectInfo | None
    looked: float

    @classmethod
    def of(cls, backend: StorageBackend, identifier: str, clock: Callable[[], float]) -> Pin:
        """Stat the object.

        Raises:
            StorageError: it is absent, or `stat` failed.
        """
        looked = clock()
        try:
            return cls(info_of(backend.stat(identifier), identifier), looked)
        except (PermissionError, NotImplementedError):
            return cls(None, looked)  # reading may still be permitted; only resuming is impossible

    def same(self, now: ObjectInfo) -> bool | None:
        """Whether an object with the info *now* is the same; None if that is not certain."""
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
        return None if is_racy(then.modified.timestamp(), self.looked) else True


class ResumingReader(io.BufferedReader):
    """Reads an object through a `ResumingStream`. A failed call leaves the position unchanged."""

    def __init__(self, stream: ResumingStream) -> None:
        super().__init__(stream, LOOK_AHEAD)
        self._resuming = stream

    @override
    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 0 and self.tell() == self._resuming.tell():
            return self._restoring(self._direct, size)
        return self._restoring(super().read, size)

    def _direct(self, size: int) -> bytes:
        """`read` while nothing is buffered: bypasses the buffer, which would fetch more than was asked for and copy it once more."""
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
    def readinto1(self, buffer: Buffer, /) -> int:
        return self._restoring(super().readinto1, buffer)

    @override
    def readline(self, size: int | None = -1, /) -> bytes:
        return self._restoring(super().readline, size)

    def _restoring(self, call: Callable[[A], T], argument: A) -> T:
        start = self.tell()
        try:
            return call(argument)
        except BaseException:
            if not self.closed:
                self.seek(start)  # BufferedReader discards what a failed call has read
            raise


class ResumingStream(SeekableRaw):
    """Reads an object. After a retryable error it opens another reader and resumes at its offset.

    Args:
        backend: of the object.
        identifier: the object.
        stream: its first reader.
        pin: taken before that was opened.
        attempts: creates the RetryState of one read.
        clock: as `time.time`.
    """

    def __init__(
        self,
        backend: StorageBackend,
        identifier: str,
        stream: BinaryIO,
        pin: Pin,
        *,
        attempts: Callable[[], RetryState],
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._identifier = identifier
        self._stream: BinaryIO | None = stream
        self._pin = pin
        self._tries = attempts
        self._clock = clock
        self._stands_at = 0  # the position of the stream
        self._seen = False  # whether the caller has seen anything of this version of the object

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
        # Also when there was no data: reaching the end tells the caller the length.
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
        """The result of *call* on the stream at this reader's position; after a retryable error, on a new stream."""
        self._check_open()
        attempts = None
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
                attempts = attempts or self._tries()
                attempts.wait_or_raise(error)
            except BaseException:
                self._drop()  # interrupted: the state of the stream is unknown
                raise

    def _there(self) -> BinaryIO:
        """The stream, reopened if the last one broke."""
        if self._stream is not None:
            return self._stream
        if not self._seen:
            self._pin = Pin.of(self._backend, self._identifier, self._clock)
        stream = self._backend.open(self._identifier)
        self._stream, self._stands_at = stream, 0
        if self._seen:
            # Checked after opening: same validators before the first and after the last open prove the same object between.
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
            f"{self._identifier!r} in {where} {what} since it was opened, so a broken read cannot resume at byte "
            f"{self._position:,}; read it again from the start",
            identifier=self._identifier,
            backend=where,
            retryable=same is None,  # from the start it may succeed
        )

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except OSError as error:
                logger.debug("closing a broken reader of %r: %s", self._identifier, type(error).__name__)
