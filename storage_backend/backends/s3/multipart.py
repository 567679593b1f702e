"""Multipart: an upload in parts, several at a time, that a killed process leaves to the next one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storage_backend.backends.s3 import digests
from storage_backend.backends.s3.calls import Facts
from storage_backend.backends.s3.errors import is_foreign, refusal_of
from storage_backend.backends.s3.http import FilePart
from storage_backend.backends.s3.records import Record
from storage_backend.backends.s3.settings import PARTS_MOST
from storage_backend.backends.s3.sums import Sums, base64_of, uses_crc
from storage_backend.backends.s3.target import Piece, Stored, Target, size_of
from storage_backend.backends.s3.workers import Answers
from storage_backend.errors import UnsupportedOperationError
from storage_backend.threads import attend, patience

logger = logging.getLogger(__name__)

UNHEARD_SECONDS = 60.0  # that the start of an upload whose answer was lost may lie from the start of ours, by the service's clock
FEW = 3  # parts of a file that are sent at a time at first
PACE_SECONDS = 0.5  # that a rate is taken over
BUFFERED_MOST = 24 << 20  # bytes of parts from a stream that are held at a time; parts of a file need none


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
        self._pace = _Pace(target.settings.max_concurrency)
        self._record = target.records.claim(target.settings.location, target.key)
        self._crc = uses_crc(target)
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
        self._check_process()
        if self.count == PARTS_MOST:
            raise UnsupportedOperationError(
                f"more than {PARTS_MOST:,} parts of {self.part_size:,} bytes: give info.size, or a larger "
                "multipart_chunk_size",
                backend=self._target.settings.location,
            )
        if isinstance(body, FilePart):
            self._wait(self._pace.window)
        else:
            self.wait()
        self.count += 1
        self.size += size_of(body)
        self._answers.ask((self.count, body, done))

    def wait(self) -> None:
        """Wait while as many parts are under way as may be held; called before memory is taken for the next one."""
        self._wait(min(self._target.settings.max_concurrency, max(1, BUFFERED_MOST // self.part_size)))

    def settle(self) -> None:
        """Wait until each part is there."""
        self._wait(1)

    def complete(self) -> Stored:
        """Publish the object."""
        self._check_process()
        parts = [self._parts[number] for number in sorted(self._parts)]
        extra: dict[str, Any] = dict(self._target.conditions)
        crc32 = None
        if self._crc:
            crc = 0
            for part in parts:
                crc = digests.crc32_combined(crc, part.crc, part.size)
            crc32 = base64_of(crc.to_bytes(4))
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
        """Drop the parts. It never raises; what cannot be dropped is remembered, and done by the next upload.

        After an interrupt it returns soon; a silent service is then waited for by a thread.
        """
        if self._pid != os.getpid():
            return
        if patience() is None:
            self._abort()
        else:
            attend(self._abort, "storage-backend-s3-abort")

    def _abort(self) -> None:
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

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ValueError(f"this upload belongs to process {self._pid}, not to its child")

    def _begun(self) -> str:
        extra = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"} if self._crc else {}
        # Killed before it has the id, the next process knows at least that there may be an upload.
        self._record.save(f"{self._fingerprint()} ", self.part_size)
        try:
            upload_id = self._target.service.rare.create_upload(
                self._target.key, **self._target.parameters, **extra
            )
        except Exception as error:
            if refusal_of(error) is not None:
                self._record.clear()
            raise
        self._record.save(f"{self._fingerprint()} {upload_id}", self.part_size)
        return upload_id

    def _abort_unheard(self, began: float) -> None:
        """Abort the uploads of this key that began at about *began* and have no part: of one of them the id was lost."""
        rare = self._target.service.rare
        try:
            for key, upload_id, moment in rare.uploads(self._target.key):
                near = abs(moment.timestamp() - began) < UNHEARD_SECONDS
                if key == self._target.key and near and not rare.parts(key, upload_id):
                    rare.abort_upload(key, upload_id)
        except Exception as error:
            # It may not be allowed to list them. What has no part costs nothing.
            if not is_foreign(error):
                raise
            logger.debug("%r: an upload may be left that has no parts: %s", self._target.key, error)

    def _resumed(self, record: Record) -> str | None:
        """The id of the upload that a killed process left, if it can be gone on with; else it is dropped."""
        fingerprint, _, upload_id = (record.upload_id or "").partition(" ")
        if not fingerprint or record.part_size is None:
            return None
        if not upload_id:
            self._abort_unheard(record.started)
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
            if _is_refused(error, 403):
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
        sums = Sums(self._target, body, crc=self._crc, md5=there is not None)
        if there is None or there != (size_of(body), sums.md5_hex):
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
        size = size_of(body)
        if done is not None:
            done()
        return _Part(number, etag or "", size, sums.md5, sums.crc, with_crc=self._crc)

    def _wait(self, window: int) -> None:
        while self._answers.pending >= window:
            self._take()

    def _take(self) -> None:
        _, part, error = self._answers.take()
        if error is not None:
            raise error
        self._parts[part.number] = part
        self._pace.learn(part.size)

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


class _Pace:
    """How many parts of a file are sent at a time: few at first, and more as long as more are faster.

    A near service is busy with three; a far one is not, and there each further one adds what a connection can carry.

    Args:
        most: how many there may be.

    Attributes:
        window: how many there are to be now.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.window = min(FEW, most)
        self._most = most
        self._clock = clock
        self._since = clock()
        self._sent = 0
        self._best = 0.0  # bytes a second

    def learn(self, size: int) -> None:
        """*size* bytes more have arrived."""
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
            named["ChecksumCRC32"] = base64_of(self.crc.to_bytes(4))
        return named


def _is_refused(error: Exception, *statuses: int) -> bool:
    refusal = refusal_of(error)
    return refusal is not None and refusal.status in statuses
