"""MultipartUpload: sends parts in parallel; if the process is killed, the next one resumes the upload."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storage_backend.backends.s3 import checksums
from storage_backend.backends.s3.checksums import BodyChecksums, base64_of
from storage_backend.backends.s3.destination import Destination, Piece, StoredObject
from storage_backend.backends.s3.errors import is_foreign, is_refusal, response_error_of
from storage_backend.backends.s3.file_parts import FilePart
from storage_backend.backends.s3.object_head import ObjectHead
from storage_backend.backends.s3.parallel import ParallelTasks
from storage_backend.backends.s3.settings import PARTS_MOST
from storage_backend.backends.s3.upload_records import UploadRecord
from storage_backend.errors import UnavailableError, UnsupportedOperationError
from storage_backend.threads import grace, run_within_grace

logger = logging.getLogger(__name__)

# Seconds by which the service's start time of an upload may differ from ours, if the response with its id was lost.
UNHEARD_SECONDS = 60.0
FEW = 3  # parts of a file that are sent in parallel at first
PACE_SECONDS = 0.5  # interval over which the rate is measured
BUFFERED_MOST = 24 << 20  # bytes of a stream's parts in memory at a time; parts of a file are not in memory


class MultipartUpload:
    """An upload in parts, several of which are sent in parallel. Used by one thread.

    It resumes the upload of a killed process: a part whose MD5 the service already has is not sent again.

    Args:
        destination: the key to write to.
        size: bytes of each part except the last.

    Attributes:
        part_size: bytes that `add` must get in each call except the last; of the resumed upload, if there is one.
        size: bytes added.
        count: parts added.
    """

    def __init__(self, destination: Destination, size: int) -> None:
        self._destination = destination
        self._pid = os.getpid()
        self.part_size = size
        self.size = 0
        self.count = 0
        self._existing: dict[int, tuple[int, str]] = {}
        self._parts: dict[int, _SentPart] = {}
        self._tasks: ParallelTasks[tuple[int, Piece, Any], _SentPart] = ParallelTasks(
            destination.workers, self._send
        )
        self._pace = _UploadPace(destination.settings.max_concurrency)
        # Whether the CRC-32 of the whole object is sent. This may raise, so it comes before the claim.
        self._crc = destination.router.requests.checksum in {"auto", "crc32"}
        self._record = destination.records.claim(destination.settings.location, destination.key)
        try:
            self.upload_id = self._resume(self._record) or self._begin()
        except BaseException:
            self._record.release()
            raise

    def add(self, body: Piece, done: Callable[[], object] | None = None) -> None:
        """Start sending the next part, after waiting while too many are being sent.

        Args:
            body: must not change until *done* is called.
            done: called in any thread when the part has been sent.

        Raises:
            UnsupportedOperationError: there are 10,000 parts already.
        """
        self._check_process()
        if self.count == PARTS_MOST:
            raise UnsupportedOperationError(
                f"more than {PARTS_MOST:,} parts of {self.part_size:,} bytes: set info.size, or a larger "
                "multipart_chunk_size",
                backend=self._destination.settings.location,
            )
        if isinstance(body, FilePart):
            self._wait(self._pace.window)
        else:
            self.wait()
        self.count += 1
        self.size += body.size if isinstance(body, FilePart) else len(body)
        self._tasks.submit((self.count, body, done))

    def wait(self) -> None:
        """Wait while as many parts are being sent as may be in memory; call this before allocating the next one."""
        self._wait(min(self._destination.settings.max_concurrency, max(1, BUFFERED_MOST // self.part_size)))

    def settle(self) -> None:
        """Wait until every part has been sent."""
        self._wait(1)

    def complete(self) -> StoredObject:
        """Publish the object.

        Raises:
            UnavailableError: a part could not be sent. S3 itself accepts gaps between the numbers of parts.
        """
        self._check_process()
        if len(self._parts) != self.count:
            where = self._destination.settings.location
            raise UnavailableError(
                f"a part of {self._destination.key!r} was not stored in {where}", backend=where
            )
        parts = [self._parts[number] for number in sorted(self._parts)]
        extra: dict[str, Any] = dict(self._destination.conditions)
        crc32 = None
        if self._crc:
            crc = 0
            for part in parts:
                crc = checksums.crc32_combined(crc, part.crc, part.size)
            crc32 = base64_of(crc.to_bytes(4))
            extra |= {"ChecksumCRC32": crc32, "ChecksumType": "FULL_OBJECT"}
        expected = (
            checksums.multipart_etag([part.md5 for part in parts]) if all(p.md5 for p in parts) else None
        )
        try:
            head = self._destination.router.boto3.complete_upload(
                self._destination.key, self.upload_id, [part.named() for part in parts], **extra
            )
        except Exception as error:
            completed = self._completed_head(error, expected, crc32)
            if completed is None:
                raise
            head = completed
        self._record.clear()
        self._record.release()
        proven = (self._crc and self._destination.router.requests.verifies_checksums) or (
            expected is not None and head.etag == expected
        )
        return StoredObject(self.size, head.etag, proven, parts=True)

    def abort(self) -> None:
        """Abort the upload. Never raises; if it fails, the record stays and the next upload tries again.

        After an interrupt it waits for the grace period only; a thread goes on.
        """
        if self._pid != os.getpid():
            return
        if grace() is None:
            self._abort()
        else:
            run_within_grace(self._abort, "storage-backend-s3-abort")

    def _abort(self) -> None:
        self._tasks.stop()
        try:
            self._destination.router.boto3.abort_upload(self._destination.key, self.upload_id)
        except Exception as error:  # noqa: BLE001 - the caller gets the error that caused the abort
            if not is_refusal(error, "NoSuchUpload"):
                logger.warning(
                    "an unfinished upload of %r could not be aborted yet: %s", self._destination.key, error
                )
                self._record.release()
                return
        self._record.clear()
        self._record.release()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ValueError(f"this upload belongs to process {self._pid}, not to its child")

    def _begin(self) -> str:
        extra = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"} if self._crc else {}
        # If this process is killed before it receives the id, the next one knows that there may be an upload.
        self._record.save(f"{self._fingerprint()} ", self.part_size)
        try:
            upload_id = self._destination.router.boto3.create_upload(
                self._destination.key, **self._destination.parameters, **extra
            )
        except Exception as error:
            if response_error_of(error) is not None:
                self._record.clear()
            raise
        self._record.save(f"{self._fingerprint()} {upload_id}", self.part_size)
        return upload_id

    def _abort_unheard(self, began: float) -> None:
        """Abort uploads of this key without parts that began at about *began*: one of them is ours, whose id was lost."""
        boto3 = self._destination.router.boto3
        try:
            for key, upload_id, moment in boto3.uploads(self._destination.key):
                near = abs(moment.timestamp() - began) < UNHEARD_SECONDS
                if key == self._destination.key and near and not boto3.parts(key, upload_id):
                    boto3.abort_upload(key, upload_id)
        except Exception as error:
            # Listing them may be denied. An upload without parts takes no space.
            if not is_foreign(error):
                raise
            logger.debug("%r: an upload without parts may remain: %s", self._destination.key, error)

    def _resume(self, record: UploadRecord) -> str | None:
        """The id of a killed process's upload if it can be resumed; else it is aborted."""
        fingerprint, _, upload_id = (record.upload_id or "").partition(" ")
        if not fingerprint or record.part_size is None:
            return None
        if not upload_id:
            self._abort_unheard(record.started)
            return None
        boto3 = self._destination.router.boto3
        if fingerprint == self._fingerprint() and record.part_size >= self.part_size:
            try:
                self._existing = boto3.parts(self._destination.key, upload_id)
            except Exception as error:
                if not is_refusal(error, 403, 404):
                    raise
            else:
                self.part_size = record.part_size
                logger.debug("%r: resuming with %s parts", self._destination.key, len(self._existing))
                return upload_id
        try:
            boto3.abort_upload(self._destination.key, upload_id)
        except Exception as error:
            # Without the permission to abort, uploading may still be allowed.
            if not is_refusal(error, 403, 404):
                raise
            if is_refusal(error, 403):
                logger.warning(
                    "the unfinished upload %s of %r could not be aborted: %s",
                    upload_id,
                    self._destination.key,
                    error,
                )
        record.clear()
        return None

    def _fingerprint(self) -> str:
        """A fingerprint of the object's metadata, which is set when the upload begins and cannot be changed later."""
        given = json.dumps([dict(self._destination.parameters), self._crc], sort_keys=True)
        return hashlib.sha256(given.encode()).hexdigest()[:16]

    def _send(self, task: tuple[int, Piece, Any]) -> _SentPart:
        number, body, done = task
        existing = self._existing.get(number)
        requests = self._destination.router.requests
        sums = BodyChecksums(requests, body, crc=self._crc, md5=existing is not None)
        if existing is None or existing != (sums.size, sums.md5.hex()):
            head = requests.upload_part(
                self._destination.key, body, UploadId=self.upload_id, PartNumber=number, **sums.parameters
            )
            etag = head.etag
        else:
            etag = existing[1]
        if done is not None:
            done()
        return _SentPart(number, etag or "", sums.size, sums.md5, sums.crc, with_crc=self._crc)

    def _wait(self, window: int) -> None:
        while self._tasks.pending >= window:
            self._take()

    def _take(self) -> None:
        _, part, error = self._tasks.next_done()
        if error is not None:
            raise error
        self._parts[part.number] = part
        self._pace.learn(part.size)

    def _completed_head(self, error: Exception, etag: str | None, crc32: str | None) -> ObjectHead | None:
        """The object's metadata if a completion that seems to have failed took effect.

        If its response was lost, the repeated request finds that the upload no longer exists.
        """
        if not is_refusal(error, "NoSuchUpload"):
            return None
        head = self._destination.router.requests.head(self._destination.key, ChecksumMode="ENABLED")
        same = head.etag == etag if etag is not None else head.digests.get("crc32") == crc32 is not None
        return head if same and head.size == self.size else None


class _UploadPace:
    """The number of parts of a file to send in parallel: few at first, more while that increases the rate.

    Three keep a near service busy; to a far one, each additional connection adds its own throughput.

    Args:
        most: maximum.

    Attributes:
        window: current number.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.window = min(FEW, most)
        self._most = most
        self._clock = clock
        self._since = clock()
        self._sent = 0
        self._best = 0.0  # bytes a second

    def learn(self, size: int) -> None:
        """Count *size* more bytes as sent."""
        self._sent += size
        elapsed = self._clock() - self._since
        if elapsed < PACE_SECONDS:
            return
        rate = self._sent / elapsed
        if rate > self._best * 1.1:
            self._best = rate
            self.window = min(self._most, self.window + max(1, self.window // 2))
        self._since, self._sent = self._clock(), 0


@dataclass(frozen=True, slots=True)
class _SentPart:
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
            named["ChecksumCRC32"] = base64_of(self.crc.to_bytes(4))
        return named
