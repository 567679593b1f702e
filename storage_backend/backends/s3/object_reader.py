"""The seekable reader of one object, pinned to the version of its first response."""

from __future__ import annotations

import copy
import io
import os

from typing_extensions import Buffer, override

from storage_backend.backends.s3 import checksums
from storage_backend.backends.s3.errors import is_refusal
from storage_backend.backends.s3.object_head import ObjectHead
from storage_backend.backends.s3.reading import ReadSource, checked_algorithm, delay_or_raise, raise_as, taken
from storage_backend.backends.s3.requests import GetResponse
from storage_backend.errors import IntegrityError, SourceChangedError, StorageError
from storage_backend.streams import CHUNK, SeekableRaw

SKIP_MOST = 1 << 20  # bytes; reading over a gap of this length is faster than a new request
AHEAD_FIRST = 128 << 10  # bytes requested after a seek; doubled while reading is sequential
AHEAD_MOST = 16 << 20
GROWTH_FIRST = 64 << 20  # bytes that are allocated before any has arrived


def read_again(source: ReadSource) -> bytes:
    """The whole object, after `read_whole` failed: a response that breaks off is resumed; damage is an IntegrityError."""
    with RawObjectReader(source) as reader:
        content = reader.readall()
    source.saw(reader.head)
    return content


class RangesIgnoredError(Exception):
    """The service responded to a range request with the whole object."""


class RawObjectReader(SeekableRaw):
    """The unbuffered reader beneath a `StoppingReader`.

    It begins with one GET of the whole object. After a seek it requests ranges, each twice as long as the one before while
    reading is sequential, so that neither many small reads nor a few distant ones cost much. A response that breaks off is
    resumed. All responses must be of the same version of the object.

    Args:
        source: the object.
        head: the object's metadata, if known; then the constructor sends no request.
        ahead: bytes to request after a seek.

    Attributes:
        head: the object's metadata.
        size: the object's size in bytes.

    Raises:
        StorageError: the object does not exist or cannot be read.
    """

    def __init__(
        self, source: ReadSource, *, head: ObjectHead | None = None, ahead: int = AHEAD_FIRST
    ) -> None:
        self._source = source
        self._got: GetResponse | None = None
        self._branch = head is not None
        self._kept: bytes | None = None
        self._pid = os.getpid()
        if head is None:
            self._got = source.get()
            head = self._got.head
            if head.size is None:
                # S3 always sends the size; a mock, or a proxy that sends everything in chunks, may not.
                _, self._kept = taken(source, lambda got: got.body.read(), self._got)
                head = ObjectHead(size=len(self._kept))
                self._got = GetResponse(head, 0, len(self._kept), io.BytesIO(self._kept))
        assert head.size is not None
        self.head = head
        self.size: int = head.size
        self._position = 0  # of the reader
        self._at = 0  # of the body
        self._until = self.size  # where the body ends
        self._first_ahead = self._ahead = ahead
        self._algorithm = checked_algorithm(head) if not self._branch else None
        self._digest = checksums.running_digest(self._algorithm) if self._algorithm else None
        if self._got is not None and not self.size:
            # Nothing will be read, so a body that is not empty must be detected here.
            if self._got.length is None:
                self._check_end(self._got)
            if self._digest is not None:
                self._drop()
                self._check()

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        self._check_open()
        if self.failure is not None:
            raise copy.copy(self.failure)
        try:
            return self._readinto(buffer)
        except StorageError as error:
            # A copy, without the frames that hold this reader.
            self.failure = copy.copy(error)
            raise
        except BaseException:
            self.failure = self._source.broken(
                "a read was interrupted; seek() to the position to read on from"
            )
            raise

    def _readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        if not view:
            return 0
        if self._digest is not None and self._position != self._at:
            self._digest = None  # not read from one end to the other
        count = self._read(view)
        if self._got is not None and self._got.length is None and self._position + count == self.size:
            self._check_end(self._got)
        if self._digest is not None:
            self._digest.update(view[:count])
            if self._position + count == self.size:
                self._check()
        self._position += count
        self._at = self._position
        return count

    @override
    def readall(self) -> bytes:
        self._check_open()
        left = max(0, self.size - self._position)
        content = bytearray(min(left, GROWTH_FIRST))
        done = 0
        while done < left:
            if done == len(content):
                # Grown as bytes arrive, since a service can claim any size.
                content += bytes(min(left, 2 * done) - done)
            with memoryview(content) as view:
                while done < len(content):
                    done += self.readinto(view[done:])
        return bytes(content)

    @override
    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, view: memoryview) -> int:
        """At least one byte from the reader's position."""
        attempt = 0
        while True:
            attempt += 1
            try:
                self._seek_body()
                assert self._got is not None
                count = self._got.body.readinto(view[: self._until - self._position])
            except RangesIgnoredError:
                raise
            except Exception as error:  # noqa: BLE001 - raised as ours
                self._drop()
                self._source.settings.sleep(delay_or_raise(self._source, error, attempt))
                continue
            except BaseException:
                self._drop()  # the position in the body is unknown now
                raise
            if count:
                return count
            # Shorter than announced: request what is missing, without a delay.
            self._drop()
            short = f"it ends at byte {self._position:,} of {self.size:,}"
            delay_or_raise(self._source, self._source.broken(short), attempt)

    def _seek_body(self) -> None:
        """Move the body to the reader's position, by skipping or a new request."""
        if self._pid != os.getpid():
            # A forked child reads on over its own connection and does not touch the parent's.
            self._drop()
            self._pid = os.getpid()
        gap = self._position - self._at
        if self._got is not None and 0 < gap <= SKIP_MOST and self._position < self._until:
            self._skip(gap)
        if self._got is not None and self._at == self._position and self._at < self._until:
            return
        sequential = self._at == self._position and self._at > 0
        self._drop()
        self._ahead = min(AHEAD_MOST, self._ahead * 2) if sequential else self._first_ahead
        # A response that broke off is resumed up to its end.
        end = self._until if sequential and self._until > self._position else self._position + self._ahead
        self._request_range(min(self.size, end))

    def _request_range(self, end: int) -> None:
        if self._kept is not None:
            self._got = GetResponse(self.head, 0, self.size, io.BytesIO(self._kept))
            self._at, self._until = 0, self.size
            self._skip(self._position)
            return
        parameters = {"Range": f"bytes={self._position}-{end - 1}"}
        if self.head.etag is not None:
            parameters["IfMatch"] = f'"{self.head.etag}"'
        try:
            got = self._source.router.requests.get(self._source.key, **self._source.parameters, **parameters)
        except Exception as error:
            if is_refusal(error, 404, 412, 416):
                raise self._changed() from error
            raise
        head = got.head
        self._got = got
        if (head.size, head.etag) != (self.size, self.head.etag) or head.modified != self.head.modified:
            self._drop()
            raise self._changed()
        if self._branch and got.start != self._position:
            self._drop()
            raise RangesIgnoredError
        self._at, self._until = got.start, end
        if got.start > self._position:
            self._drop()
            raise self._source.broken(
                f"requested bytes from {self._position}, received bytes from {got.start}"
            )
        if got.length is not None and got.start + got.length > end:
            self._until = min(self.size, got.start + got.length)
        self._skip(self._position - self._at)

    def _skip(self, gap: int) -> None:
        assert self._got is not None
        scratch = memoryview(bytearray(min(gap, CHUNK)))
        while gap:
            count = self._got.body.readinto(scratch[:gap])
            if not count:
                raise self._source.broken("the response ends early")
            gap -= count
            self._at += count

    def _check_end(self, got: GetResponse) -> None:
        """Check that a body of unknown length ends at the object's size, which came from another response."""
        try:
            more = got.body.read(1)
        except Exception as error:  # noqa: BLE001 - raised as ours
            self._drop()
            raise_as(self._source.error(error), error)
        if more:
            self._drop()
            raise self._source.broken(f"it is longer than its size of {self.size:,} bytes")

    def _check(self) -> None:
        assert self._digest is not None
        assert self._algorithm is not None
        expected = self.head.digests[self._algorithm]
        found = checksums.base64_of(self._digest.digest())
        if found != expected:
            raise self.damaged(self._algorithm, found)

    def leave_unchecked(self) -> None:
        """Do not verify the checksum; the caller does."""
        self._digest = None

    def damaged(self, algorithm: str, found: str) -> IntegrityError:
        """The error for content whose checksum is *found* instead of the object's."""
        where = self._source.settings.location
        return IntegrityError(
            f"{self._source.identifier!r} in {where}: the {algorithm} of the content received is {found}, that of the object "
            f"{self.head.digests[algorithm]}",
            identifier=self._source.identifier,
            backend=where,
        )

    def _changed(self) -> SourceChangedError:
        return SourceChangedError(
            f"{self._source.identifier!r} in {self._source.settings.location} changed while it was read",
            identifier=self._source.identifier,
            backend=self._source.settings.location,
        )

    def _drop(self) -> None:
        got, self._got = self._got, None
        if got is not None:
            got.body.close()
