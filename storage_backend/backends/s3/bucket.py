"""Bucket: what the public methods share: identifiers and keys, translated errors, and writing an object."""

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
    is_refusal,
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

RECEIPTS = 10_000  # writes remembered for `Hooks.last_written`
NO_MATCH = (PreconditionFailedError, NotFoundError)  # a condition failed
MARK = "storage-backend-write"  # in the metadata of conditional writes


class Bucket:
    """The state of one storage, for all threads and processes.

    Args:
        settings: the settings of the storage.

    Attributes:
        settings: as given.
        root: put before each identifier to make a key: "", or ending in "/".
        location: the location of the storage.
        router: sends requests.
        workers: threads that send requests in parallel.
        records: records of unfinished uploads.
        receipts: the last objects written, as listings will show them.
        last_seen: the metadata of the objects read.
        deletes_singly: the service turned out not to support DeleteObjects.
        may_be_missing: the first write is yet to create the bucket if it is missing.
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
        self.may_be_missing = settings.create_bucket
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
    def translated_errors(self, operation: str, identifier: str | None = None) -> Iterator[None]:
        """Translate errors of S3, boto3 and the network; errors of a caller's reader pass unchanged.

        Args:
            operation: the operation, such as "read" an object, or "list objects in" the location.
            identifier: the object; None for an operation on the bucket.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, StorageError) or not is_foreign(error):
                raise
            raise translate(error, identifier, self.location, operation) from error

    @contextmanager
    def listing(self, operation: str = "list objects in") -> Iterator[None]:
        """As `translated_errors`, for listings: a bucket that the first write will create is empty."""
        try:
            with self.translated_errors(operation):
                yield
        except BucketNotFoundError:
            if not self.may_be_missing:
                raise

    def key(self, identifier: str) -> str:
        """The key of an object; nothing else turns identifiers into keys."""
        identifiers.check(identifier)
        key = self.root + identifier
        if len(key) > identifiers.MAX_BYTES // 4 and len(key.encode()) > identifiers.MAX_BYTES:
            raise InvalidIdentifierError(
                f"invalid identifier {identifier[:40]!r}...: with the prefix {self.settings.prefix!r} it exceeds "
                f"{identifiers.MAX_BYTES:,} bytes, the limit of S3",
                identifier=identifier,
                backend=self.location,
            )
        return key

    # Reading

    def head(self, identifier: str, **parameters: Any) -> ObjectHead:
        """The metadata of an object. An error response to HEAD has no document, so a GET of one byte then gets the reason."""
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
                if not is_refusal(error, 416):  # the object exists and is empty
                    raise
            else:
                got.body.close()
            # The GET corrected the region or the clock, or the object has just been created.
            return self.requests.head(key, **parameters)

    def read_source(self, identifier: str, version_id: str | None) -> ReadSource:
        """The object as a source for readers."""
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
        """Store bytes or the content of a reader; *info* and *verify* as for `write_stream`."""
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
        """Store a file; *moved* is called with the number of bytes sent."""
        self.key(identifier)
        with open_source(path) as reader:
            status = os.fstat(reader.fileno())
            regular = stat.S_ISREG(status.st_mode)
            info = ObjectInfo(identifier, told_size(status), modified_of(status)) if regular else None
            if info is None or status.st_size <= self.settings.multipart_threshold:
                self.put(identifier, counting(reader, moved), info)
                return

            def check(size: int) -> None:
                now = os.fstat(reader.fileno())
                if (now.st_size, now.st_mtime_ns) != (size, status.st_mtime_ns):
                    raise SourceChangedError(
                        f"{os.fspath(path)!r} changed while it was read; nothing was stored",
                        identifier=identifier,
                        backend=self.location,
                    )

            stored = self.send(
                identifier,
                lambda to: uploading.put_file(to, reader.fileno(), status.st_size, check, moved),
                info,
            )
        self.remember(identifier, stored)

    def put_if(self, identifier: str, content: Content, conditions: Mapping[str, str]) -> StoredObject:
        """Store if *conditions* (IfMatch, IfNoneMatch) hold.

        If a response is lost, the repeated request fails because the first one changed the object. A random mark in the
        object's metadata shows that this write was the one.
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
        """Call *action* with the object's destination and translate errors; all writes go through here."""
        key = self.key(identifier)
        with self.translated_errors("write", identifier):
            return action(self._destination(key, identifier, info, conditions, metadata))

    def prove(self, identifier: str, stored: StoredObject, digest: str | None) -> None:
        """Read the object back and compare its *digest*, unless the service verified it or *digest* is None."""
        if digest is not None and not stored.proven:
            try:
                check_digest(identifier, digest, self._read_back(identifier), "the stored object")
            except IntegrityError:
                self._delete_damaged(identifier, stored)
                raise
        self.remember(identifier, stored)

    def remember(self, identifier: str, stored: StoredObject) -> None:
        """Remember the object as a listing will show it, for `Hooks.last_written`."""
        if stored.etag is None or stored.parts:
            self.receipts.pop(identifier, None)
            return
        while len(self.receipts) >= RECEIPTS:
            self.receipts.pop(next(iter(self.receipts)), None)
        self.receipts[identifier] = ObjectInfo(identifier, stored.size, None, stored.etag)

    def copy(self, source: Bucket, source_id: str, dest_id: str, head: ObjectHead | None = None) -> None:
        """Copy inside the service; with *head*, only if the source still has its ETag."""
        key = self.key(dest_id)
        copied = f"{source.settings.bucket}/{source.key(source_id)}"
        with self.translated_errors("copy", source_id):
            to = self._destination(key, dest_id, None)
            kept = {name: value for name, value in to.parameters.items() if name != "ContentType"}
            copying.copy(replace(to, parameters=kept), copied, lambda: source.head(source_id), head)

    def delete(self, identifier: str, etag: str | None = None) -> None:
        """Delete; with *etag*, only that version, if the service supports the condition as Amazon S3 does."""
        pinned = {} if etag is None else {"IfMatch": f'"{etag}"'}
        with self.translated_errors("delete", identifier):
            try:
                self.requests.delete(self.key(identifier), **pinned)
            except Exception as error:
                # If the response to the first attempt was lost, the second one finds no object that matches.
                refused = response_error_of(error)
                if etag is None or refused is None or refused.attempts == 1:
                    raise
                if rule_of(refused.status, refused.code).kind is not NotFoundError:
                    raise

    def abort_uploads(self, before: datetime) -> int:
        """Abort the uploads beneath the prefix that began before that time; return their number."""
        count = 0
        with self.listing("abort uploads in"):
            for key, upload_id, began in self.router.boto3.uploads(self.root):
                if began > before:
                    continue
                try:
                    self.router.boto3.abort_upload(key, upload_id)
                except Exception as error:
                    if not is_refusal(error, "NoSuchUpload"):
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
        kind = (info.content_type if info else None) or self.settings.content_type or guess_type(identifier)
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
        """Create the bucket if it is missing. With an existing one no permission to create buckets is needed."""
        with self.translated_errors("look for the bucket of"):
            try:
                self.requests.page(self.root, limit=1)
            except Exception as error:
                refused = response_error_of(error)
                # Other refusals concern listing, which the user may never need.
                if refused is None:
                    raise
                if refused.code == "NoSuchBucket":
                    self._create()
        self.may_be_missing = False

    def _create(self) -> None:
        try:
            self.router.boto3.create_bucket()
        except Exception as error:
            # 409: another client created it first. 403: denied; then the write fails with NoSuchBucket.
            if not is_refusal(error, 403, 409):
                raise

    def _read_back(self, identifier: str) -> str:
        """The SHA-256 of the stored object in hex, by reading it."""
        digest = hashlib.sha256(usedforsecurity=False)
        view = memoryview(bytearray(CHUNK))
        with RawObjectReader(self.read_source(identifier, None)) as reader:
            while count := reader.readinto(view):
                digest.update(view[:count])
        return digest.hexdigest()

    def _delete_damaged(self, identifier: str, stored: StoredObject) -> None:
        """Delete a damaged object unless it has been replaced."""
        try:
            if stored.etag is not None and self.head(identifier).etag == stored.etag:
                self.delete(identifier)
        except StorageError as error:
            logger.warning(
                "%r in %s is damaged and could not be deleted: %s", identifier, self.location, error
            )


def version_parameter(version_id: str | None) -> dict[str, str]:
    """*version_id* as a parameter of requests."""
    return {} if version_id is None else {"VersionId": version_id}


def guess_type(identifier: str) -> str | None:
    """The media type by the extension."""
    return _guess_by_suffix(posixpath.splitext(identifier)[1].lower())


@lru_cache(maxsize=1024)
def _guess_by_suffix(suffix: str) -> str | None:
    kind, encoding = mimetypes.guess_type(f"name{suffix}")
    # The type of "x.tar.gz" is that of the archive inside, which these bytes are not.
    return {"gzip": "application/gzip", None: kind}.get(encoding)
