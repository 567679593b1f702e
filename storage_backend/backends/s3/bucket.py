"""What the verbs share: identifiers and keys, our errors for those of S3, and the one way of an object into the bucket."""

from __future__ import annotations

import hashlib
import io
import logging
import mimetypes
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO, TypeVar, cast

from storage_backend import identifiers
from storage_backend.backends.s3 import copying, uploading
from storage_backend.backends.s3.destination import Destination, StoredObject
from storage_backend.backends.s3.errors import (
    is_foreign,
    response_error_of,
    rule_of,
    translate,
)
from storage_backend.backends.s3.object_head import ObjectHead
from storage_backend.backends.s3.object_reader import RawObjectReader
from storage_backend.backends.s3.reading import ReadSource
from storage_backend.backends.s3.requests import ObjectRequests
from storage_backend.backends.s3.responses import FIRST
from storage_backend.backends.s3.retries import is_transient
from storage_backend.backends.s3.router import RequestRouter
from storage_backend.backends.s3.settings import PART_MOST, S3Settings
from storage_backend.backends.s3.upload_records import UploadRecords
from storage_backend.errors import (
    BucketNotFoundError,
    IntegrityError,
    InvalidIdentifierError,
    NotFoundError,
    PreconditionFailedError,
    SourceChangedError,
    StorageError,
)
from storage_backend.files import modified_of, open_source, told_size
from storage_backend.info import ObjectInfo
from storage_backend.last_seen import LastSeen
from storage_backend.paths import state_directory
from storage_backend.streams import (
    CHUNK,
    Content,
    Moved,
    check_arrived,
    check_digest,
    counting,
    hashing,
    plain,
    sha256,
)
from storage_backend.threads import WorkerThreads

T = TypeVar("T")

logger = logging.getLogger(__name__)

RECEIPTS = 10_000  # writes whose listing is remembered until somebody asks for it
NO_MATCH = (PreconditionFailedError, NotFoundError)  # a condition does not hold
MARK = "storage-backend-write"  # in the metadata of conditional writes


class Bucket:
    """What one storage knows and holds, in every process and thread.

    Args:
        settings: of the storage.

    Attributes:
        settings: as given.
        root: what stands before each identifier in a key: "", or ending in "/".
        location: of the storage.
        router: that sends requests.
        workers: that send requests side by side.
        records: of unfinished uploads.
        receipts: what listings will show of the objects last written.
        last_seen: what reads saw.
        deletes_singly: the service has shown that it has no DeleteObjects.
    """

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self.root = f"{settings.prefix}/" if settings.prefix else ""
        self.location = settings.location
        self.router = RequestRouter(settings)
        self.workers = WorkerThreads(settings.max_concurrency, "storage-backend-s3")
        self.records = UploadRecords(state_directory() / "uploads", clock=settings.clock)
        self.receipts: dict[str, ObjectInfo] = {}
        self.last_seen = LastSeen()
        self.deletes_singly = False
        self.may_be_missing = settings.create_bucket  # until the first write
        self._parameters = settings.object_parameters()

    def close(self) -> None:
        """End threads and close connections."""
        self.workers.close()
        self.router.close()

    @property
    def requests(self) -> ObjectRequests:
        """The frequent requests."""
        return self.router.requests

    @contextmanager
    def translated_errors(self, tried: str, identifier: str | None = None) -> Iterator[None]:
        """Raise errors of S3, boto3 and the network as ours; errors of a caller's reader stay what they are.

        Args:
            tried: what the body does, such as "read" an object, or "list objects in" the location.
            identifier: of the object; None if the body is about the bucket.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, StorageError) or not is_foreign(error):
                raise
            raise translate(error, identifier, self.location, tried) from error

    @contextmanager
    def listing(self, tried: str = "list objects in") -> Iterator[None]:
        """As `translated_errors`, for listings: a bucket that the first write will create holds nothing."""
        try:
            with self.translated_errors(tried):
                yield
        except BucketNotFoundError:
            if not self.may_be_missing:
                raise

    def key(self, identifier: str) -> str:
        """The key of an object: the one place where identifiers become keys."""
        identifiers.check(identifier)
        key = self.root + identifier
        if len(key) > identifiers.MAX_BYTES // 4 and len(key.encode()) > identifiers.MAX_BYTES:
            raise InvalidIdentifierError(
                f"invalid identifier {identifier[:40]!r}...: with the prefix {self.settings.prefix!r} it has more than "
                f"{identifiers.MAX_BYTES:,} bytes, the most that S3 takes",
                identifier=identifier,
                backend=self.location,
            )
        return key

    # Reading

    def head(self, identifier: str, **parameters: Any) -> ObjectHead:
        """The metadata of an object. A HEAD fails without a reason; then a GET of one byte tells it."""
        key = self.key(identifier)
        with self.translated_errors("look up", identifier):
            try:
                return self.requests.head(key, **parameters)
            except Exception as error:
                refused = response_error_of(error)
                if (
                    refused is None
                    or refused.code
                    or is_transient(refused)
                    or not self.router.requests.is_real_service
                ):
                    raise
            try:
                got = self.requests.get(key, **parameters, Range=FIRST)
            except Exception as error:
                refused = response_error_of(error)
                if refused is None or refused.status != 416:  # the object is there, and empty
                    raise
            else:
                got.body.close()
            # What was wrong (the region, the clock) has been repaired, or the object has just appeared.
            return self.requests.head(key, **parameters)

    def read_source(self, identifier: str, version_id: str | None) -> ReadSource:
        """The object, to be read."""
        return ReadSource(
            self.router,
            self.key(identifier),
            identifier,
            self.settings,
            version_parameter(version_id),
            self.last_seen,
        )

    # Writing

    def put(
        self,
        identifier: str,
        content: bytes | BinaryIO,
        info: ObjectInfo | None = None,
        *,
        verify: bool = False,
    ) -> None:
        """Store bytes, or all that a reader gives; *info* and *verify* as for `write_stream`."""
        if isinstance(content, bytes) and len(content) <= PART_MOST:
            digest = None
            if info is not None:
                digest = sha256(content) if verify and info.sha256 is not None else None
                check_arrived(info, identifier, len(content), digest)
            stored = self.send(identifier, lambda to: uploading.put(to, content, digest), info)
            if verify and not stored.proven:
                digest = digest or sha256(content)
            self.prove(identifier, stored, digest if verify else None)
            return
        reader = io.BytesIO(content) if isinstance(content, bytes) else content
        size = len(content) if isinstance(content, bytes) else None if info is None else info.size
        source = hashing(reader) if verify else None

        def check(size: int) -> str | None:
            digest = None if source is None else source.hexdigest()
            check_arrived(info, identifier, size, digest)
            return digest

        stream = reader if source is None else cast(BinaryIO, source)
        stored = self.send(identifier, lambda to: uploading.put_stream(to, stream, size, check), info)
        self.prove(identifier, stored, None if source is None else source.hexdigest())

    def upload(self, path: str | os.PathLike[str], identifier: str, moved: Moved) -> None:
        """Store a file; *moved* is told of the bytes."""
        self.key(identifier)
        with open_source(path) as reader:
            facts = os.fstat(reader.fileno())
            regular = stat.S_ISREG(facts.st_mode)
            info = ObjectInfo(identifier, told_size(facts), modified_of(facts)) if regular else None
            if info is None or facts.st_size <= self.settings.multipart_threshold:
                self.put(identifier, counting(reader, moved), info)
                return

            def check(size: int) -> None:
                now = os.fstat(reader.fileno())
                if (now.st_size, now.st_mtime_ns) != (size, facts.st_mtime_ns):
                    raise SourceChangedError(
                        f"{os.fspath(path)!r} changed while it was read; nothing was stored",
                        identifier=identifier,
                        backend=self.location,
                    )

            stored = self.send(
                identifier,
                lambda to: uploading.put_file(to, reader.fileno(), facts.st_size, check, moved),
                info,
            )
        self.remember(identifier, stored)

    def put_if(self, identifier: str, content: Content, conditions: Mapping[str, str]) -> StoredObject:
        """Store on a condition.

        If the response is lost and the request repeated, the condition no longer holds, because of the first request. A
        mark in the object's metadata tells that it was ours.
        """
        found = plain(content)
        mark = os.urandom(12).hex()

        def put(to: Destination) -> StoredObject:
            try:
                if isinstance(found, bytes) and len(found) <= PART_MOST:
                    return uploading.put(to, found)
                reader = io.BytesIO(found) if isinstance(found, bytes) else found
                return uploading.put_stream(to, reader, None, lambda _: None)
            except Exception as error:
                refused = response_error_of(error)
                if refused is None or refused.attempts == 1:
                    raise
                if not issubclass(rule_of(refused.status, refused.code).kind, NO_MATCH):
                    raise
                head = self.requests.head(to.key)
                if head.metadata.get(MARK) != mark:
                    raise
                return StoredObject(head.size or 0, head.etag, proven=False)

        return self.send(identifier, put, conditions=conditions, metadata={MARK: mark})

    def send(
        self,
        identifier: str,
        action: Callable[[Destination], T],
        info: ObjectInfo | None = None,
        *,
        conditions: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> T:
        """What *action* makes of the object's destination: the one way in which objects are written."""
        key = self.key(identifier)
        with self.translated_errors("write", identifier):
            return action(self._destination(key, identifier, info, conditions, metadata))

    def prove(self, identifier: str, stored: StoredObject, digest: str | None) -> None:
        """Check what was stored by reading it back, if the service proved nothing; if *digest* is None, do not check."""
        if digest is not None and not stored.proven:
            try:
                check_digest(identifier, digest, self._read_back(identifier), "what was stored")
            except IntegrityError:
                self._withdraw(identifier, stored)
                raise
        self.remember(identifier, stored)

    def remember(self, identifier: str, stored: StoredObject) -> None:
        """Keep what a listing will show of the object, for `Hooks.last_written`."""
        if stored.etag is None or stored.parts:
            self.receipts.pop(identifier, None)
            return
        while len(self.receipts) >= RECEIPTS:
            self.receipts.pop(next(iter(self.receipts)), None)
        self.receipts[identifier] = ObjectInfo(identifier, stored.size, None, stored.etag)

    def copy(self, source: Bucket, source_id: str, dest_id: str, etag: str | None = None) -> None:
        """Copy inside the service; with *etag*, only if that is still the source's."""
        key = self.key(dest_id)
        copied = f"{source.settings.bucket}/{source.key(source_id)}"
        with self.translated_errors("copy", source_id):
            to = self._destination(key, dest_id, None)
            kept = {name: value for name, value in to.parameters.items() if name != "ContentType"}
            copying.copy(replace(to, parameters=kept), copied, lambda: source.head(source_id), etag)

    def delete(self, identifier: str, etag: str | None = None) -> None:
        """Delete; with *etag*, only that version, where the service heeds the condition as Amazon S3 does."""
        pinned = {} if etag is None else {"IfMatch": f'"{etag}"'}
        with self.translated_errors("delete", identifier):
            try:
                self.requests.delete(self.key(identifier), **pinned)
            except Exception as error:
                # If the response to a first try was lost, a second one on a condition finds nothing.
                refused = response_error_of(error)
                if etag is None or refused is None or refused.attempts == 1:
                    raise
                if rule_of(refused.status, refused.code).kind is not NotFoundError:
                    raise

    def abort_uploads(self, before: datetime) -> int:
        """Abort the uploads beneath the prefix that began before that moment; how many there were."""
        count = 0
        with self.listing("abort uploads in"):
            for key, upload_id, began in self.router.boto3.uploads(self.root):
                if began > before:
                    continue
                try:
                    self.router.boto3.abort_upload(key, upload_id)
                except Exception as error:
                    refused = response_error_of(error)
                    if refused is None or refused.code != "NoSuchUpload":
                        raise
                    continue  # it was completed or aborted meanwhile
                count += 1
        return count

    def _destination(
        self,
        key: str,
        identifier: str,
        info: ObjectInfo | None,
        conditions: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Destination:
        if self.may_be_missing:
            self._create_missing()
        parameters: dict[str, Any] = dict(self._parameters)
        kind = (info.content_type if info else None) or self.settings.content_type or guessed(identifier)
        if kind is not None:
            parameters["ContentType"] = kind
        own = dict(metadata or {})
        if info is not None and info.modified is not None:
            own |= uploading.mtime_metadata(info.modified)
        if own:
            parameters["Metadata"] = own
        return Destination(
            self.router, self.settings, self.workers, self.records, key, parameters, conditions or {}
        )

    def _create_missing(self) -> None:
        """Create the bucket if it is missing. Users of an existing one need no right to create any."""
        with self.translated_errors("look for the bucket of"):
            try:
                self.requests.page(self.root, limit=1)
            except Exception as error:
                refused = response_error_of(error)
                # Other refusals are about listing, which the user may never need.
                if refused is None:
                    raise
                if refused.code == "NoSuchBucket":
                    self._create()
        self.may_be_missing = False

    def _create(self) -> None:
        try:
            self.router.boto3.create_bucket()
        except Exception as error:
            refused = response_error_of(error)
            # 409: somebody else was faster. 403: we may not; the write that follows says that the bucket is missing.
            if refused is None or refused.status not in {403, 409}:
                raise

    def _read_back(self, identifier: str) -> str:
        """The SHA-256 of what the service returns, in hex."""
        digest = hashlib.sha256(usedforsecurity=False)
        view = memoryview(bytearray(CHUNK))
        with RawObjectReader(self.read_source(identifier, None)) as reader:
            while count := reader.readinto(view):
                digest.update(view[:count])
        return digest.hexdigest()

    def _withdraw(self, identifier: str, stored: StoredObject) -> None:
        """Delete a damaged object, if it is still the one that was stored."""
        try:
            if stored.etag is not None and self.head(identifier).etag == stored.etag:
                self.delete(identifier)
        except StorageError as error:
            logger.warning(
                "%r in %s is damaged and could not be removed: %s", identifier, self.location, error
            )


def version_parameter(version_id: str | None) -> dict[str, str]:
    """*version_id* as a parameter of requests."""
    return {} if version_id is None else {"VersionId": version_id}


def guessed(identifier: str) -> str | None:
    """The media type that the name suggests."""
    return _guessed_of(posixpath.splitext(identifier)[1].lower())


@lru_cache(maxsize=1024)
def _guessed_of(suffix: str) -> str | None:
    kind, encoding = mimetypes.guess_type(f"name{suffix}")
    # The type of "x.tar.gz" is that of the archive inside, which these bytes are not.
    return {"gzip": "application/gzip", None: kind}.get(encoding)
