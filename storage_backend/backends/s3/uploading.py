"""Uploading: one object stored by one PUT, or in parts; each carries a checksum, and is proven where the service can."""

from __future__ import annotations

import _thread
import base64
import hashlib
import json
import logging
import os
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, BinaryIO, TypeAlias

from typing_extensions import Buffer

from storage_backend.backends.s3 import digests
from storage_backend.backends.s3.calls import Facts
from storage_backend.backends.s3.errors import refusal_of
from storage_backend.backends.s3.http import FilePart
from storage_backend.backends.s3.records import Record, Records
from storage_backend.backends.s3.service import Service
from storage_backend.backends.s3.settings import PARTS_MOST, Settings, part_size
from storage_backend.backends.s3.workers import Answers, Workers
from storage_backend.errors import UnsupportedOperationError
from storage_backend.streams import CHUNK, chunks

logger = logging.getLogger(__name__)

BUFFERED_MOST = 24 << 20  # bytes of parts from a stream that are held at a time; parts of a file need none

Piece: TypeAlias = bytes | memoryview | FilePart


@dataclass(frozen=True)
class Target:
    """Where an object goes.

    Attributes:
        service: of the storage.
        settings: of the storage.
        workers: that send parts.
        records: of unfinished uploads.
        key: in the bucket.
        parameters: what the object is given, in boto3's names.
        conditions: IfMatch or IfNoneMatch.
    """

    service: Service
    settings: Settings
    workers: Workers
    records: Records
    key: str
    parameters: Mapping[str, Any]
    conditions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stored:
    """What has been stored.

    Attributes:
        size: in bytes.
        etag: as the service gave it.
        parts: whether it went in parts; then some services show another etag later (rclone does).
        proven: whether the service told, or is known to have checked, a digest of what it stored.
    """

    size: int
    etag: str | None
    proven: bool
    parts: bool = False


def put(target: Target, body: Piece, sha256: str | None = None) -> Stored:
    """Store *body* by one request.

    Args:
        target: where.
        body: all of it.
        sha256: of the body in hex, if known.
    """
    sums = _Sums(target, body, sha256=sha256)
    facts = target.service.calls.put(
        target.key, body, **target.parameters, **target.conditions, **sums.parameters
    )
    return Stored(_size(body), facts.etag, sums.are_proven_by(facts))


def put_stream(
    target: Target, reader: BinaryIO, size: int | None, check: Callable[[int], str | None]
) -> Stored:
    """Store all that *reader* gives.

    Args:
        target: where.
        reader: of bytes.
        size: as announced; None if unknown.
        check: is given the number of bytes once all have been read, before the object is visible, and gives their
            SHA-256 in hex if it is known. If it raises, the old object stays.
    """
    threshold = target.settings.multipart_threshold
    source = _Filler(reader)
    length = part_size(target.settings, size)
    if size is None or size <= threshold:
        head = bytearray(min(threshold, size) + 1 if size is not None else threshold + 1)
        filled = source.fill(memoryview(head))
        if filled < len(head) or size is not None:
            return put(target, memoryview(head)[:filled], check(filled))
    else:
        head = bytearray()
    upload = Multipart(target, length)
    try:
        buffers = _Buffers(upload.part_size)
        rest = memoryview(head)
        del head
        while True:
            buffer = buffers.take()
            taken = min(len(rest), len(buffer))
            buffer[:taken] = rest[:taken]
            # An empty view would still hold all of the head.
            rest = rest[taken:] if taken < len(rest) else memoryview(b"")
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


def put_file(target: Target, fd: int, size: int, check: Callable[[int], object]) -> Stored:
    """As `put_stream`, of a file's first *size* bytes. Many parts may be under way, since none of them is held."""
    if size <= target.settings.multipart_threshold:
        stored = put(target, FilePart(fd, 0, size))
        check(size)
        return stored
    upload = Multipart(target, part_size(target.settings, size))
    try:
        for offset in range(0, size, upload.part_size):
            upload.add(FilePart(fd, offset, min(upload.part_size, size - offset)))
        upload.settle()
        check(size)
        return upload.complete()
    except BaseException:
        upload.abort()
        raise


class UploadSink:
    """The sink of a writer: one request if it stays small, else parts. What was not published is dropped.

    Args:
        target: where.
        mapped: a context in which errors of the service become ours.
    """

    def __init__(self, target: Target, mapped: Callable[[], AbstractContextManager[None]]) -> None:
        self._target = target
        self._mapped = mapped
        self._buffer = bytearray()
        self._upload: Multipart | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*."""
        rest = memoryview(data).cast("B")
        if self._upload is None and len(self._buffer) + len(rest) > self._target.settings.multipart_threshold:
            self._begin()
        if self._upload is None:
            self._buffer += rest
            return
        with self._mapped():
            self._send(self._upload, self._upload.part_size)
            # Part by part: however much is given at once, little of it is held.
            while rest:
                room = self._upload.part_size - len(self._buffer)
                self._buffer += rest[:room]
                rest = rest[room:]
                self._send(self._upload, self._upload.part_size)

    def publish(self) -> None:
        """Make the object visible with all that was written."""
        with self._mapped():
            if self._upload is None:
                put(self._target, memoryview(self._buffer))
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
        with self._mapped():
            self._upload = Multipart(self._target, part_size(self._target.settings, None))
        # A writer that is dropped unclosed leaves no parts.
        self._finalizer = weakref.finalize(self, _abort_dropped, self._upload)

    def _send(self, upload: Multipart, least: int) -> None:
        """Send parts as long as there are *least* bytes."""
        while len(self._buffer) >= least:
            # Handed over, not copied: the rest begins a new buffer.
            part, self._buffer = self._buffer, self._buffer[upload.part_size :]
            upload.add(memoryview(part)[: upload.part_size])


def _abort_dropped(upload: Multipart) -> None:
    """Abort the upload of a writer that was collected, or that the end of the program finds open."""
    if threading.main_thread().is_alive():
        # The collector runs in the middle of anything: in a worker that the abort would wait for, or where a lock of
        # boto3's is held. threading.Thread takes a lock itself.
        _thread.start_new_thread(upload.abort, ())
    else:
        upload.abort()  # weakref.finalize at exit, when new threads would not be waited for


class _Filler:
    """Fills buffers from a reader of bytes, whatever it gives at a time."""

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


class _Buffers:
    """Buffers that are used again: fresh memory costs a page fault every 4 KiB."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        return self._free.pop() if self._free else bytearray(self._size)

    def give(self, buffer: bytearray) -> None:
        self._free.append(buffer)


class Multipart:
    """An upload in parts, of which several are sent at a time. Used by one thread.

    It goes on with what a killed process has begun: parts that the service has already are compared by their MD5, not
    sent again.

    Args:
        target: where.
        size: of each part but the last, in bytes.

    Attributes:
        part_size: what `add` must be given each time but the last; of the upload that is gone on with, if there is one.
        size: bytes added.
        count: parts added.
    """

    def __init__(self, target: Target, size: int) -> None:
        self._target = target
        self._pid = os.getpid()
        self.part_size = size
        self.size = 0
        self.count = 0
        self._there: dict[int, tuple[int, str]] = {}
        self._parts: dict[int, _Part] = {}
        self._answers: Answers[tuple[int, Piece, Any], _Part] = Answers(target.workers, self._send)
        self._record = target.records.claim(target.settings.location, target.key)
        self._crc = _uses_crc(target)
        try:
            self.upload_id = self._resumed(self._record) or self._begun()
        except BaseException:
            self._record.release()
            raise

    def add(self, body: Piece, done: Callable[[], object] | None = None) -> None:
        """Begin to send the next part; wait while as many are under way as may be.

        Args:
            body: unchanged until *done* is called.
            done: called in some thread once the part is sent.

        Raises:
            UnsupportedOperationError: it would be the 10,001st.
        """
        if self.count == PARTS_MOST:
            raise UnsupportedOperationError(
                f"more than {PARTS_MOST:,} parts of {self.part_size:,} bytes: give info.size, or a larger "
                "multipart_chunk_size",
                backend=self._target.settings.location,
            )
        window = self._target.settings.max_concurrency
        if not isinstance(body, FilePart):
            window = min(window, max(1, BUFFERED_MOST // self.part_size))
        while self._answers.pending >= window:
            self._take()
        self.count += 1
        self.size += _size(body)
        self._answers.ask((self.count, body, done))

    def settle(self) -> None:
        """Wait until each part is there."""
        while self._answers.pending:
            self._take()

    def complete(self) -> Stored:
        """Publish the object."""
        parts = [self._parts[number] for number in sorted(self._parts)]
        extra: dict[str, Any] = dict(self._target.conditions)
        crc32 = None
        if self._crc:
            crc = 0
            for part in parts:
                crc = digests.crc32_combined(crc, part.crc, part.size)
            crc32 = _base64(crc.to_bytes(4))
            extra |= {"ChecksumCRC32": crc32, "ChecksumType": "FULL_OBJECT"}
        expected = digests.multipart_etag([part.md5 for part in parts]) if all(p.md5 for p in parts) else None
        try:
            facts = self._target.service.rare.complete_upload(
                self._target.key, self.upload_id, [part.named() for part in parts], **extra
            )
        except Exception as error:
            landed = self._landed(error, expected, crc32)
            if landed is None:
                raise
            facts = landed
        self._record.clear()
        self._record.release()
        proven = (self._crc and self._target.service.vouches) or (
            expected is not None and facts.etag == expected
        )
        return Stored(self.size, facts.etag, proven, parts=True)

    def abort(self) -> None:
        """Drop the parts. It never raises; what cannot be dropped is remembered, and done by the next upload."""
        if self._pid != os.getpid():
            return
        self._answers.settle()
        try:
            self._target.service.rare.abort_upload(self._target.key, self.upload_id)
        except Exception as error:  # noqa: BLE001 - the cause of the abort is what the caller must hear of
            refusal = refusal_of(error)
            if refusal is None or refusal.code != "NoSuchUpload":
                logger.warning("an unfinished upload of %r stays for now: %s", self._target.key, error)
                self._record.release()
                return
        self._record.clear()
        self._record.release()

    def _begun(self) -> str:
        extra = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"} if self._crc else {}
        upload_id = self._target.service.rare.create_upload(
            self._target.key, **self._target.parameters, **extra
        )
        self._record.save(f"{self._fingerprint()} {upload_id}", self.part_size)
        return upload_id

    def _resumed(self, record: Record) -> str | None:
        """The id of the upload that a killed process left, if it can be gone on with; else it is dropped."""
        fingerprint, _, upload_id = (record.upload_id or "").partition(" ")
        if not upload_id or record.part_size is None:
            return None
        rare = self._target.service.rare
        if fingerprint == self._fingerprint() and record.part_size >= self.part_size:
            try:
                self._there = rare.parts(self._target.key, upload_id)
            except Exception as error:
                if not _is_refused(error, 403, 404):
                    raise
            else:
                self.part_size = record.part_size
                logger.debug("%r: going on with %s parts", self._target.key, len(self._there))
                return upload_id
        try:
            rare.abort_upload(self._target.key, upload_id)
        except Exception as error:
            # Who may not abort may upload all the same.
            if not _is_refused(error, 403, 404):
                raise
            logger.warning("the unfinished upload %s of %r stays: %s", upload_id, self._target.key, error)
        record.clear()
        return None

    def _fingerprint(self) -> str:
        """Of what the object was given when the upload began, which cannot be changed later."""
        given = json.dumps([dict(self._target.parameters), self._crc], sort_keys=True)
        return hashlib.sha256(given.encode()).hexdigest()[:16]

    def _send(self, task: tuple[int, Piece, Any]) -> _Part:
        number, body, done = task
        there = self._there.get(number)
        sums = _Sums(self._target, body, crc=self._crc, md5=there is not None)
        if there is None or there != (_size(body), sums.md5_hex):
            facts = self._target.service.calls.upload_part(
                self._target.key,
                body,
                UploadId=self.upload_id,
                PartNumber=number,
                **sums.parameters,
            )
            etag = facts.etag
        else:
            etag = there[1]
        size = _size(body)
        if done is not None:
            done()
        return _Part(number, etag or "", size, sums.md5, sums.crc, with_crc=self._crc)

    def _take(self) -> None:
        _, part, error = self._answers.take()
        if error is not None:
            raise error
        self._parts[part.number] = part

    def _landed(self, error: Exception, etag: str | None, crc32: str | None) -> Facts | None:
        """What stands there, if a completion that looks failed has been done.

        Its answer was lost, and asked again S3 knows the upload no more.
        """
        refusal = refusal_of(error)
        if refusal is None or refusal.code != "NoSuchUpload":
            return None
        facts = self._target.service.calls.head(self._target.key, ChecksumMode="ENABLED")
        same = facts.etag == etag if etag is not None else facts.digests.get("crc32") == crc32 is not None
        return facts if same and facts.size == self.size else None


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    etag: str
    size: int
    md5: bytes
    crc: int
    with_crc: bool

    def named(self) -> dict[str, Any]:
        """As CompleteMultipartUpload takes it."""
        named: dict[str, Any] = {"PartNumber": self.number, "ETag": f'"{self.etag}"'}
        if self.with_crc:
            named["ChecksumCRC32"] = _base64(self.crc.to_bytes(4))
        return named


def _is_refused(error: Exception, *statuses: int) -> bool:
    refusal = refusal_of(error)
    return refusal is not None and refusal.status in statuses


class _Sums:
    """The checksums of one body: those that are sent, and the MD5 where the answer can be compared with it.

    Args:
        target: where the body goes.
        body: the bytes.
        sha256: in hex, if known.
        crc: of a part, where the whole is checked by its CRC-32.
        md5: compute it in any case.
    """

    def __init__(
        self, target: Target, body: Piece, *, sha256: str | None = None, crc: bool = False, md5: bool = False
    ) -> None:
        self.md5 = b""
        self.crc = 0
        self.parameters: dict[str, str] = {}
        algorithm = _algorithm(target) if not crc else "crc32"
        self._vouched = target.service.vouches and algorithm != "md5"
        if algorithm == "sha256" or (algorithm == "auto" and sha256 is not None):
            digest = bytes.fromhex(sha256) if sha256 is not None else _hashed(body, "sha256")
            self.parameters["ChecksumSHA256"] = _base64(digest)
        elif algorithm in {"crc32", "auto"}:
            self.crc = _crc_of(body)
            self.parameters["ChecksumCRC32"] = _base64(self.crc.to_bytes(4))
        if algorithm in {"md5", "none"} or md5:
            self.md5 = _hashed(body, "md5")
        if algorithm == "md5":
            self.parameters["ContentMD5"] = _base64(self.md5)

    @property
    def md5_hex(self) -> str:
        return self.md5.hex()

    def are_proven_by(self, facts: Facts) -> bool:
        """Whether the answer shows that the service has these very bytes."""
        return self._vouched or (bool(self.md5) and facts.etag == self.md5_hex)


def _algorithm(target: Target) -> str:
    """One of "md5", "crc32", "sha256", "auto" (either of the latter two), or "none": the caller's own client decides."""
    chosen = target.settings.checksum
    if chosen != "auto":
        return chosen
    if target.settings.client is not None:
        return "none"
    return "auto" if target.service.vouches else "md5"


def _uses_crc(target: Target) -> bool:
    return _algorithm(target) in {"auto", "crc32"}


def _hashed(body: Piece, algorithm: str) -> bytes:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for block in _blocks(body):
        digest.update(block)
    return digest.digest()


def _crc_of(body: Piece) -> int:
    crc = 0
    for block in _blocks(body):
        crc = zlib.crc32(block, crc)
    return crc


def _blocks(body: Piece) -> Iterator[Buffer]:
    if not isinstance(body, FilePart):
        yield body
        return
    buffer = memoryview(bytearray(min(CHUNK, body.size)))
    done = 0
    while done < body.size:
        count = os.preadv(body.fd, [buffer[: body.size - done]], body.offset + done)
        if not count:
            return  # shorter than it was: found out when it is sent
        done += count
        yield buffer[:count]


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _size(body: Piece) -> int:
    return body.size if isinstance(body, FilePart) else len(body)


def mtime_metadata(moment: datetime) -> dict[str, str]:
    """The time of the source, as rclone keeps it ("Modification times and hashes", rclone's S3 page)."""
    # Not by a float, which has not enough digits. Before 1970 the fraction counts backwards, too.
    total = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    seconds, rest = divmod(abs(total), 1_000_000)
    text = f"{seconds}.{rest:06}".rstrip("0").rstrip(".")
    return {"mtime": f"-{text}" if total < 0 else text}
