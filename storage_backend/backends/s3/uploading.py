"""Stores one object, by one PUT or in parts, each with a checksum."""

from __future__ import annotations

import _thread
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, BinaryIO

from typing_extensions import Buffer

from storage_backend.backends.s3.checksums import BodyChecksums
from storage_backend.backends.s3.destination import Destination, Piece, StoredObject
from storage_backend.backends.s3.file_parts import FilePart
from storage_backend.backends.s3.multipart import MultipartUpload
from storage_backend.backends.s3.settings import part_size
from storage_backend.streams import Moved, chunks


def put(destination: Destination, body: Piece, sha256: str | None = None) -> StoredObject:
    """Store *body* by one request.

    Args:
        destination: the key to write to.
        body: the whole content.
        sha256: the SHA-256 of the body in hex, if known.
    """
    requests = destination.router.requests
    sums = BodyChecksums(requests, body, sha256=sha256)
    head = requests.put(
        destination.key, body, **destination.parameters, **destination.conditions, **sums.parameters
    )
    return sums.stored(head)


def put_stream(
    destination: Destination, reader: BinaryIO, size: int | None, check: Callable[[int], str | None]
) -> StoredObject:
    """Store the content of *reader*.

    Args:
        destination: the key to write to.
        reader: a binary reader.
        size: the expected number of bytes; None if unknown.
        check: called with the number of bytes read before the object becomes visible; returns their SHA-256 in hex if
            known. If it raises, the old object stays.
    """
    upload = StreamUpload(destination, size)
    try:
        for chunk in chunks(reader):
            if size is not None and upload.size + len(chunk) > size:
                check(upload.size + len(chunk))  # which raises, without reading the rest
            upload.write(chunk)
        return upload.complete(check)
    except BaseException:
        upload.discard()
        raise


def put_file(
    destination: Destination, fd: int, size: int, check: Callable[[int], object], moved: Moved
) -> StoredObject:
    """As `put_stream`, for the first *size* bytes of a file. Many parts are sent in parallel, as none is in memory.

    *moved* is called with the size of each part that has been sent.
    """
    upload = MultipartUpload(destination, part_size(destination.settings, size))
    try:
        for offset in range(0, size, upload.part_size):
            part = FilePart(fd, offset, min(upload.part_size, size - offset))
            upload.add(part, done=partial(moved, part.size))
        upload.settle()
        check(size)
        return upload.complete()
    except BaseException:
        upload.abort()
        raise


class StreamUpload:
    """Writes an object piece by piece: by one request if it is small, else in parts. Also the sink of a `Writer`.

    Args:
        destination: the key to write to.
        expected: the expected number of bytes; None if unknown.
        errors: a context manager that translates the errors of requests.

    Attributes:
        size: bytes written.
    """

    def __init__(
        self,
        destination: Destination,
        expected: int | None = None,
        errors: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.size = 0
        self._destination = destination
        self._expected = expected
        self._errors = errors
        self._head = bytearray()  # everything written, until it is too much for one request
        self._upload: MultipartUpload | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        # Buffers are reused: fresh memory costs a page fault every 4 KiB.
        self._free: list[bytearray] = []
        self._buffer: bytearray | None = None  # of the next part
        self._filled = 0  # bytes in it
        self._from_head = 0  # parts that are slices of the head

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*."""
        rest = memoryview(data).cast("B")
        self.size += len(rest)
        if self._upload is None and max(self.size, self._expected or 0) <= self._threshold:
            self._head += rest
            return
        with self._errors():
            upload = self._upload or self._begin()
            # Part by part, so that memory stays bounded for any size of *data*.
            while rest:
                rest = rest[self._fill(upload, rest) :]

    def publish(self) -> None:
        """Make the object visible with everything written."""
        self.complete(lambda _: None)

    def complete(self, check: Callable[[int], str | None]) -> StoredObject:
        """As `publish`, after a check as in `put_stream`."""
        with self._errors():
            upload = self._upload
            if upload is None:
                return put(self._destination, memoryview(self._head), check(self.size))
            if self._filled or not upload.count:
                self._send(upload)
            upload.settle()
            check(self.size)
            stored = upload.complete()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._upload = None
        return stored

    def discard(self) -> None:
        """Discard everything written. No effect after `publish`."""
        self._head = bytearray()
        self._buffer = None
        upload, self._upload = self._upload, None
        if upload is not None and self._finalizer is not None and self._finalizer.detach() is not None:
            upload.abort()

    @property
    def _threshold(self) -> int:
        return self._destination.settings.multipart_threshold

    def _begin(self) -> MultipartUpload:
        upload = self._upload = MultipartUpload(
            self._destination, part_size(self._destination.settings, self._expected)
        )
        # A writer that is garbage-collected without close leaves no parts.
        self._finalizer = weakref.finalize(self, _abort_dropped, upload)
        rest = memoryview(self._head)
        self._head = bytearray()
        while len(rest) >= upload.part_size:
            upload.add(rest[: upload.part_size])
            rest = rest[upload.part_size :]
        self._from_head = upload.count
        if rest:
            self._fill(upload, rest)
        return upload

    def _fill(self, upload: MultipartUpload, rest: memoryview) -> int:
        """Copy bytes into the next part, send it when full, and return the number of bytes copied."""
        if self._buffer is None:
            if 0 < self._from_head == upload.count - 1:
                upload.settle()  # until then the parts keep the whole head in memory
            else:
                upload.wait()
            self._buffer = self._free.pop() if self._free else bytearray(upload.part_size)
        taken = min(len(rest), upload.part_size - self._filled)
        self._buffer[self._filled : self._filled + taken] = rest[:taken]
        self._filled += taken
        if self._filled == upload.part_size:
            self._send(upload)
        return taken

    def _send(self, upload: MultipartUpload) -> None:
        buffer, filled = self._buffer or bytearray(), self._filled
        self._buffer, self._filled = None, 0
        upload.add(memoryview(buffer)[:filled], done=partial(self._free.append, buffer))


def _abort_dropped(upload: MultipartUpload) -> None:
    """Abort the upload of a writer that was garbage-collected, or is still open at exit."""
    if threading.main_thread().is_alive():
        # The garbage collector can run in any code: in a worker that the abort would wait for, or under a lock of boto3.
        # Not threading.Thread, which takes a lock itself.
        _thread.start_new_thread(upload.abort, ())
    else:
        upload.abort()  # at exit, which does not wait for new threads


def mtime_metadata(moment: datetime) -> dict[str, str]:
    """The source's modification time in rclone's format ("Modification times and hashes", rclone's S3 page)."""
    # A float has too few digits. Before 1970 the fraction is negative, too.
    total = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    seconds, rest = divmod(abs(total), 1_000_000)
    text = f"{seconds}.{rest:06}".rstrip("0").rstrip(".")
    return {"mtime": f"-{text}" if total < 0 else text}
