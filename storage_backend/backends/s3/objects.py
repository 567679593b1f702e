"""Objects: identifiers and keys, errors of S3 and ours, and what is stored: all that the verbs share."""

from __future__ import annotations

import hashlib
import io
import logging
import mimetypes
import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

from storage_backend import identifiers
from storage_backend.backends.s3 import copying, uploading
from storage_backend.backends.s3.calls import Calls, Facts
from storage_backend.backends.s3.errors import is_foreign, is_transient, refusal_of, rule_of, translate
from storage_backend.backends.s3.reading import Pinned, Wanted
from storage_backend.backends.s3.records import Records
from storage_backend.backends.s3.service import Service
from storage_backend.backends.s3.settings import PART_MOST, Settings
from storage_backend.backends.s3.target import Stored, Target
from storage_backend.backends.s3.workers import Workers
from storage_backend.errors import (
    BucketNotFoundError,
    IntegrityError,
    InvalidIdentifierError,
    NotFoundError,
    PreconditionFailedError,
    StorageError,
)
from storage_backend.files import state_directory
from storage_backend.info import ObjectInfo
from storage_backend.last_seen import LastSeen
from storage_backend.streams import CHUNK, Content, check_arrived, check_digest, plain, sha256

logger = logging.getLogger(__name__)

RECEIPTS = 10_000  # writes that are remembered until somebody asks how they show
NO_MATCH = (PreconditionFailedError, NotFoundError)  # a condition does not hold
MARK = "storage-backend-write"  # of the metadata of conditional writes


class Objects:
    """What one storage knows and holds, in every process and thread.

    Args:
        settings: of the storage.

    Attributes:
        settings: as given.
        root: what stands before each identifier in a key: "", or ending in "/".
        location: of the storage.
        service: whom requests go to.
        workers: that make requests side by side.
        records: of unfinished uploads.
        receipts: what listings will show of the objects last written.
        last_seen: what reads saw.
        deletes_singly: the service has shown that it deletes no batches.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.root = f"{settings.prefix}/" if settings.prefix else ""
        self.location = settings.location
        self.service = Service(settings)
        self.workers = Workers(settings.max_concurrency)
        self.records = Records(state_directory() / "uploads", clock=settings.clock)
        self.receipts: dict[str, ObjectInfo] = {}
        self.last_seen = LastSeen()
        self.deletes_singly = False
        self._ensured = not settings.create_bucket

    def close(self) -> None:
        """Let go of threads and connections."""
        self.workers.close()
        self.service.close()

    @property
    def calls(self) -> Calls:
        """The frequent requests of this moment."""
        return self.service.calls

    @property
    def may_be_missing(self) -> bool:
        """Whether the first write has yet to make the bucket, if it is missing."""
        return not self._ensured

    @contextmanager
    def listing(self, tried: str = "list") -> Iterator[None]:
        """As `mapped`, for what lists: a bucket that the first write will make holds nothing."""
        try:
            with self.mapped(tried, None):
                yield
        except BucketNotFoundError:
            if not self.may_be_missing:
                raise

    def ensure_bucket(self) -> None:
        """Before a write: create the bucket if it is missing. Who has one already needs no right to create any."""
        if not self.may_be_missing:
            return
        with self.mapped("look for the bucket of", None):
            try:
                self.service.calls.page(self.root, limit=1)
            except Exception as error:
                refusal = refusal_of(error)
                # What else is refused here concerns listing, which may not be wanted at all.
                if refusal is None:
                    raise
                if refusal.code == "NoSuchBucket":
                    self._create_bucket()
        self._ensured = True

    def _create_bucket(self) -> None:
        try:
            self.service.rare.create_bucket()
        except Exception as error:
            refusal = refusal_of(error)
            # Somebody else was faster; or we may not, and what follows says that it is missing.
            if refusal is None or refusal.status not in {403, 409}:
                raise

    def key(self, identifier: str) -> str:
        """Where the object is in the bucket: the one place where identifiers become keys."""
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

    @contextmanager
    def mapped(self, tried: str, identifier: str | None) -> Iterator[None]:
        """Run the body with errors of S3, boto3 and the network as ours; a reader's own errors stay what they are."""
        try:
            yield
        except Exception as error:
            if isinstance(error, StorageError) or not is_foreign(error):
                raise
            raise translate(error, identifier, self.location, tried) from error

    def facts(self, identifier: str, **parameters: Any) -> Facts:
        """What a HEAD tells; if it fails, which it does without a reason, what a GET of one byte says of that."""
        key = self.key(identifier)
        with self.mapped("look at", identifier):
            try:
                return self.calls.head(key, **parameters)
            except Exception as error:
                refusal = refusal_of(error)
                if refusal is None or refusal.code or is_transient(refusal) or not self.service.explains:
                    raise
            try:
                got = self.calls.get(key, **parameters, Range="bytes=0-0")
            except Exception as error:
                refusal = refusal_of(error)
                if refusal is None or refusal.status != 416:  # an empty object: it is there
                    raise
            else:
                got.body.close()
            # What was wrong (the region, the clock) is right now, or the object has just appeared.
            return self.calls.head(key, **parameters)

    def wanted(self, identifier: str, version_id: str | None) -> Wanted:
        """The object, to be read."""
        return Wanted(
            lambda: self.calls,
            self.key(identifier),
            identifier,
            self.settings,
            version_parameter(version_id),
            self.last_seen,
        )

    def target(
        self,
        key: str,
        identifier: str,
        info: ObjectInfo | None,
        conditions: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Target:
        """Where the object goes, and all that it is given."""
        self.ensure_bucket()
        _ = self.calls  # who makes the requests decides what an object is given
        parameters: dict[str, Any] = dict(self.settings.object_parameters())
        kind = (info.content_type if info else None) or self.settings.content_type or guessed(identifier)
        if kind is not None:
            parameters["ContentType"] = kind
        own = dict(metadata or {})
        if info is not None and info.modified is not None:
            own |= uploading.mtime_metadata(info.modified)
        if own:
            parameters["Metadata"] = own
        return Target(
            self.service, self.settings, self.workers, self.records, key, parameters, conditions or {}
        )

    def put(
        self, identifier: str, key: str, content: bytes, info: ObjectInfo | None, *, verify: bool
    ) -> None:
        """Store bytes."""
        digest = sha256(content) if verify and info is not None and info.sha256 is not None else None
        check_arrived(info, identifier, len(content), digest)
        with self.mapped("write", identifier):
            target = self.target(key, identifier, info)
            if len(content) <= PART_MOST:
                stored = uploading.put(target, content, digest)
            else:
                stored = uploading.put_stream(target, io.BytesIO(content), len(content), lambda _: None)
        if not verify or stored.proven:
            self.remember(identifier, stored)
        else:
            self.prove(identifier, stored, digest or sha256(content))

    def prove(self, identifier: str, stored: Stored, digest: str | None) -> None:
        """Prove what was stored: if the service did not, by reading it back. *digest* is None if that was not asked for."""
        if digest is not None and not stored.proven:
            try:
                check_digest(identifier, digest, self._read_back(identifier), "what was stored")
            except IntegrityError:
                self._withdraw(identifier, stored)
                raise
        self.remember(identifier, stored)

    def _read_back(self, identifier: str) -> str:
        """The SHA-256 of what the service gives, in hex."""
        digest = hashlib.sha256(usedforsecurity=False)
        view = memoryview(bytearray(CHUNK))
        with Pinned(self.wanted(identifier, None)) as reader:
            while count := reader.readinto(view):
                digest.update(view[:count])
        return digest.hexdigest()

    def _withdraw(self, identifier: str, stored: Stored) -> None:
        """Remove an object that is not what it should be, if it is still the one that was stored."""
        try:
            if stored.etag is not None and self.facts(identifier).etag == stored.etag:
                with self.mapped("delete", identifier):
                    self.calls.delete(self.key(identifier))
        except StorageError as error:
            logger.warning(
                "%r in %s is damaged and could not be removed: %s", identifier, self.location, error
            )

    def put_if(self, identifier: str, content: Content, conditions: Mapping[str, str]) -> Stored:
        """Store on a condition.

        If an answer is lost and the request made again, the condition no longer holds, because of ourselves. The mark in
        the object's metadata tells.
        """
        key = self.key(identifier)
        content = plain(content)
        mark = os.urandom(12).hex()
        with self.mapped("write", identifier):
            target = self.target(key, identifier, None, conditions, {MARK: mark})
            try:
                if isinstance(content, bytes) and len(content) <= PART_MOST:
                    return uploading.put(target, content)
                reader = io.BytesIO(content) if isinstance(content, bytes) else content
                return uploading.put_stream(target, reader, None, lambda _: None)
            except Exception as error:
                refusal = refusal_of(error)
                if refusal is None or refusal.attempts == 1:
                    raise
                if not issubclass(rule_of(refusal.status, refusal.code).kind, NO_MATCH):
                    raise
                facts = self.calls.head(key)
                if facts.metadata.get(MARK) != mark:
                    raise
                return Stored(facts.size or 0, facts.etag, proven=False)

    def copy(self, source: Objects, source_id: str, dest_id: str, dest: str, etag: str | None = None) -> None:
        """Copy inside the service; with *etag*, only if that is still the source's."""

        def look() -> Facts:
            return source.facts(source_id)

        place = f"{source.settings.bucket}/{source.key(source_id)}"
        with self.mapped("copy", source_id):
            target = self.target(dest, dest_id, None)
            kept = {name: value for name, value in target.parameters.items() if name != "ContentType"}
            copying.copy(replace(target, parameters=kept), place, look, etag)

    def remember(self, identifier: str, stored: Stored) -> None:
        """Keep what a listing will show of the object, for whoever asks."""
        if stored.etag is None or stored.parts:
            self.receipts.pop(identifier, None)
            return
        while len(self.receipts) >= RECEIPTS:
            self.receipts.pop(next(iter(self.receipts)), None)
        self.receipts[identifier] = ObjectInfo(identifier, stored.size, None, stored.etag)


def version_parameter(version_id: str | None) -> dict[str, str]:
    """*version_id* as a parameter of requests."""
    return {} if version_id is None else {"VersionId": version_id}


def guessed(identifier: str) -> str | None:
    """The media type that the name suggests."""
    return _guessed_of(posixpath.splitext(identifier)[1].lower())


@lru_cache(maxsize=1024)
def _guessed_of(suffix: str) -> str | None:
    kind, encoding = mimetypes.guess_type(f"name{suffix}")
    # Of "x.tar.gz" the type is that of the tar inside, which these bytes are not.
    return {"gzip": "application/gzip", None: kind}.get(encoding)
