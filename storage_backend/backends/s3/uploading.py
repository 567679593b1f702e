"""Stores one object by one PUT or in parts. Each body carries a checksum, and is proven where the service can."""

from __future__ import annotations

import _thread
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
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
        destination: of the object.
        body: all of it.
        sha256: of the body in hex, if known.
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
    """Store all that *reader* gives.

    Args:
        destination: of the object.
        reader: of bytes.
        size: as announced; None if unknown.
        check: called with the number of bytes that were read, before the object is visible; returns their SHA-256 in
            hex if it is known. If it raises, the old object stays.
    """
    threshold = destination.settings.multipart_threshold
    source = _BufferFiller(reader)
    length = part_size(destination.settings, size)
    if size is None or size <= threshold:
        head = bytearray(min(threshold, size) + 1 if size is not None else threshold + 1)
        filled = source.fill(memoryview(head))
        if filled < len(head) or size is not None:
            return put(destination, memoryview(head)[:filled], check(filled))
    else:
        head = bytearray()
    upload = MultipartUpload(destination, length)
    try:
        rest = memoryview(head)
        del head
        while len(rest) >= upload.part_size:
            upload.add(rest[: upload.part_size])
            rest = rest[upload.part_size :]
        from_head = upload.count
        buffers = _BufferPool(upload.part_size)
        while True:
            if 0 < from_head == upload.count - 1:
                upload.settle()  # until then the parts hold all of the first buffer
            else:
                upload.wait()
            buffer = buffers.take()
            taken = len(rest)
            buffer[:taken] = rest
            rest = memoryview(b"")  # an empty slice would still hold what it was cut from
            filled = taken + source.fill(memoryview(buffer)[taken:])
            if filled == 0 and upload.count:
                break
            upload.add(memoryview(buffer)[:filled], done=partial(buffers.give, buffer))
            if filled < len(buffer):
                break
        upload.settle()
        check(upload.size)
        return upload.complete()
    except BaseException:
        upload.abort()
        raise


def put_file(
    destination: Destination, fd: int, size: int, check: Callable[[int], object], moved: Moved
) -> StoredObject:
    """As `put_stream`, of a file's first *size* bytes. Many parts may be under way, since none is held in memory.

    *moved* is told of each part that has been sent.
    """
    if size <= destination.settings.multipart_threshold:
        stored = put(destination, FilePart(fd, 0, size))
        check(size)
        return stored
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


class UploadSink:
    """The sink of a writer: one request if it stays small, else parts. What was not published is dropped.

    Args:
        destination: of the object.
        translated_errors: a context that raises errors of the service as ours.
    """

    def __init__(
        self, destination: Destination, translated_errors: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._destination = destination
        self._translated_errors = translated_errors
        self._buffer = bytearray()
        self._upload: MultipartUpload | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*."""
        rest = memoryview(data).cast("B")
        if (
            self._upload is None
            and len(self._buffer) + len(rest) > self._destination.settings.multipart_threshold
        ):
            self._begin()
        if self._upload is None:
            self._buffer += rest
            return
        with self._translated_errors():
            self._send(self._upload, self._upload.part_size)
            # Part by part: however much is given at once, little of it is held.
            while rest:
                room = self._upload.part_size - len(self._buffer)
                self._buffer += rest[:room]
                rest = rest[room:]
                self._send(self._upload, self._upload.part_size)

    def publish(self) -> None:
        """Make the object visible with all that was written."""
        with self._translated_errors():
            if self._upload is None:
                put(self._destination, memoryview(self._buffer))
                return
            self._send(self._upload, 1)
            self._upload.settle()
            self._upload.complete()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._upload = None

    def discard(self) -> None:
        """Drop what was written. Harmless after `publish`."""
        self._buffer = bytearray()
        upload, self._upload = self._upload, None
        if upload is not None and self._finalizer is not None and self._finalizer.detach() is not None:
            upload.abort()

    def _begin(self) -> None:
        with self._translated_errors():
            self._upload = MultipartUpload(self._destination, part_size(self._destination.settings, None))
        # A writer that is collected unclosed leaves no parts.
        self._finalizer = weakref.finalize(self, _abort_dropped, self._upload)

    def _send(self, upload: MultipartUpload, least: int) -> None:
        """Send parts as long as there are *least* bytes."""
        while len(self._buffer) >= least:
            # Handed over, not copied: the rest begins a new buffer.
            part, self._buffer = self._buffer, self._buffer[upload.part_size :]
            upload.add(memoryview(part)[: upload.part_size])


def _abort_dropped(upload: MultipartUpload) -> None:
    """Abort the upload of a writer that was collected, or that the end of the program finds open."""
    if threading.main_thread().is_alive():
        # The garbage collector interrupts anything: a worker that the abort would wait for, or code that holds a lock of
        # boto3's. threading.Thread takes a lock itself.
        _thread.start_new_thread(upload.abort, ())
    else:
        upload.abort()  # at exit, when no new thread would be waited for


class _BufferFiller:
    """Fills buffers from a reader, however few bytes it gives at a time."""

    def __init__(self, reader: BinaryIO) -> None:
        self._chunks = chunks(reader)
        self._rest = memoryview(b"")

    def fill(self, view: memoryview) -> int:
        """Fill *view* as far as the reader goes; how many bytes that was."""
        done = 0
        while done < len(view):
            if not self._rest:
                chunk = next(self._chunks, None)
                if chunk is None:
                    break
                self._rest = memoryview(chunk).cast("B")
            taken = min(len(self._rest), len(view) - done)
            view[done : done + taken] = self._rest[:taken]
            self._rest = self._rest[taken:]
            done += taken
        return done


class _BufferPool:
    """Buffers that are used again: fresh memory costs a page fault every 4 KiB."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        return self._free.pop() if self._free else bytearray(self._size)

    def give(self, buffer: bytearray) -> None:
        self._free.append(buffer)


def mtime_metadata(moment: datetime) -> dict[str, str]:
    """The time of the source, as rclone keeps it ("Modification times and hashes", rclone's S3 page)."""
    # Not by a float, which has not enough digits. Before 1970 the fraction counts backwards, too.
    total = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    seconds, rest = divmod(abs(total), 1_000_000)
    text = f"{seconds}.{rest:06}".rstrip("0").rstrip(".")
    return {"mtime": f"-{text}" if total < 0 else text}
