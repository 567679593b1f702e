"""A reader that resumes at its offset after an error, if the object is still the same."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from typing_extensions import override

from storage_backend.base import StorageBackend
from storage_backend.defensive import info_of, location_of
from storage_backend.errors import SourceChangedError, is_retryable
from storage_backend.info import ObjectInfo
from storage_backend.streams import position_after
from storage_backend.wrappers.retrying.attempts import RetryState

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Kernels stamp times coarsely and SFTP in whole seconds: within this a second write may leave size and time as they
# were ("racy git", Documentation/technical/racy-git).
RACY_SECONDS = 2.0
UNKNOWN = -1  # no position
LOOK_AHEAD = 64 << 10  # bytes read at a time for lines
STEP = 8 << 20  # bytes asked for at a time; what was got by then is not asked for again


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


class ResumingReader(io.BufferedIOBase):
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
        self._position = 0
        self._stands_at = 0  # the stream does
        self._ahead = b""  # read for a line, from this reader's position on but for `_used` of it
        self._used = 0
        self._seen = False  # something of this very object has been given out

    @override
    def read(self, size: int | None = -1, /) -> bytes:
        wanted = None if size is None or size < 0 else size
        start = self._position
        pieces = []
        try:
            while wanted is None or wanted > 0:
                piece = self.read1(STEP if wanted is None else min(wanted, STEP))
                if not piece:
                    break
                pieces.append(piece)
                if wanted is not None:
                    wanted -= len(piece)
        except BaseException:
            self._go_to(start)  # what was got is not given out
            raise
        self._check_open()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @override
    def read1(self, size: int = -1, /) -> bytes:
        most = STEP if size < 0 else size
        if self._used < len(self._ahead):
            return self._take(min(most, len(self._ahead) - self._used))
        data = self._fetch(most)
        self._position += len(data)
        return data

    @override
    def readline(self, size: int | None = -1, /) -> bytes:
        # Not by the stream's own: what it had of a line when it broke would be asked for again, and again.
        most = None if size is None or size < 0 else size
        start = self._position
        pieces: list[bytes] = []
        left = most
        try:
            while left is None or left > 0:
                if self._used == len(self._ahead):
                    self._ahead, self._used = self._fetch(LOOK_AHEAD), 0
                    if not self._ahead:
                        break
                end = self._ahead.find(b"\n", self._used) + 1 or len(self._ahead)
                count = end - self._used if left is None else min(left, end - self._used)
                pieces.append(self._take(count))
                left = None if left is None else left - count
                if pieces[-1].endswith(b"\n"):
                    break
        except BaseException:
            self._go_to(start)
            raise
        self._check_open()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._check_open()
        if whence == io.SEEK_END:
            self._go_to(self._position)
            self._position = self._stands_at = self._through(lambda stream: stream.seek(offset, whence))
            self._seen = True  # its length
        else:
            self._go_to(position_after(offset, whence, self._position, 0))
        return self._position

    @override
    def tell(self) -> int:
        self._check_open()
        return self._position

    @override
    def close(self) -> None:
        try:
            if not self.closed:
                self._drop()
        finally:
            super().close()

    def _take(self, count: int) -> bytes:
        """The next bytes of those that were read ahead."""
        data = self._ahead[self._used : self._used + count]
        self._used += count
        self._position += count
        return data

    def _go_to(self, position: int) -> None:
        """Stand at *position*; the stream follows when it is read."""
        self._position = position
        self._ahead, self._used = b"", 0

    def _fetch(self, most: int) -> bytes:
        """At most so many bytes from this reader's position, where the stream then stands behind them."""
        data = bytes(self._through(lambda stream: stream.read(most)))
        self._stands_at = self._position + len(data)
        # An end that was reached early says something of the object too.
        self._seen = True
        return data

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

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed reader")
