"""S3Storage: the verbs."""

from __future__ import annotations

import base64
import io
import logging
import mimetypes
import os
import posixpath
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

from typing_extensions import override

from storage_backend import identifiers
from storage_backend.backends.s3 import copying, downloading, listing, uploading
from storage_backend.backends.s3.calls import Calls, Facts
from storage_backend.backends.s3.documents import RefusedInside, can_be_xml
from storage_backend.backends.s3.errors import is_foreign, is_transient, refusal_of, translate
from storage_backend.backends.s3.reading import Pinned, Reader, Wanted, read_span, read_whole
from storage_backend.backends.s3.records import Records
from storage_backend.backends.s3.service import Service
from storage_backend.backends.s3.settings import MIB, PART_MOST, Settings
from storage_backend.backends.s3.target import Stored, Target
from storage_backend.backends.s3.workers import Answers, Workers, spread
from storage_backend.base import (
    Identifiers,
    Item,
    OnSkip,
    StorageBackend,
    check_mode,
)
from storage_backend.errors import (
    BucketNotFoundError,
    ConfigurationError,
    Failures,
    IntegrityError,
    InvalidIdentifierError,
    PreconditionFailedError,
    SourceChangedError,
    StorageError,
)
from storage_backend.files import state_directory, write_file
from storage_backend.info import Capability, ObjectInfo
from storage_backend.secrets import Secret, refuse_pickle
from storage_backend.streams import (
    Content,
    Writer,
    check_arrived,
    check_digest,
    check_range,
    hashing,
    new_digest,
    plain,
    sha256,
)

logger = logging.getLogger(__name__)

BATCH = 1000  # keys that one DeleteObjects takes ("DeleteObjects", Amazon S3 API Reference)
UNDER_WAY_MOST = 64 << 20  # bytes of objects of one batch that are held at a time
RECEIPTS = 10_000  # writes that are remembered until somebody asks how they show
MARK = "storage-backend-write"  # of the metadata of conditional writes
URL_LONGEST = 7 * 24 * 3600  # seconds that a signature of version 4 is good


class S3Storage(StorageBackend):
    """Objects in a bucket of Amazon S3, or of a service that speaks its protocol.

    boto3 decides who we are and where we talk; the frequent requests then go over connections of our own, several times
    faster, unless the client is not a plain one. Every method may be called from many threads. Nothing is asked of the
    service before the first operation.

    Args:
        bucket: its name, or the ARN of an access point.
        prefix: only what is beneath it; slashes at its ends do not matter.
        region: without it, AWS_REGION, AWS_DEFAULT_REGION, the profile, or what the bucket answers.
        endpoint_url: of another service than Amazon's, "https://host:port".
        access_key: with *secret_key* and perhaps *session_token*, each itself, "env:NAME" or "file:PATH". Without them
            boto3 finds credentials by itself (environment, profile, role, SSO) and renews them.
        secret_key: given as itself, this object cannot be pickled.
        session_token: as *secret_key*.
        profile: of ~/.aws/config.
        anonymous: sign nothing.
        client: a boto3 client, or what behaves like one, that all requests go through. Then this object cannot be
            pickled.
        create_bucket: create the bucket at the first use, if it is missing.
        max_concurrency: how many requests one call makes at the same time.
        multipart_chunk_size: the least size of a part, in bytes (5 MiB to 5 GiB); it grows so that 10,000 suffice.
        multipart_threshold: content from a reader or file of up to so many bytes is one request.
        storage_class: of new objects; also the next five.
        server_side_encryption: "AES256" or "aws:kms".
        sse_kms_key_id: the key of "aws:kms".
        request_payer: "requester" of a bucket where that is asked for.
        content_type: guessed from the name if None. That of `ObjectInfo` comes first.
        acl: a canned one, such as "bucket-owner-full-control".
        accelerate: use the bucket's acceleration endpoint.
        addressing_style: "auto", "path" or "virtual".
        ca_bundle: a file of certificates to trust instead of the usual ones.
        checksum: what each upload carries for the service to check: "md5", "crc32", "sha256", or "auto": a CRC-32 or a
            SHA-256 for Amazon, elsewhere an MD5, which every service knows.
        attempts: how often a request is made at most, when the network or the service fails.
        connect_timeout: seconds to wait for a connection.
        io_timeout: seconds to wait for the next bytes, either way.
        clock: seconds of Unix.
        sleep: for so many seconds.

    Raises:
        ConfigurationError: a parameter is wrong.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        session_token: str | None = None,
        profile: str | None = None,
        anonymous: bool = False,
        client: Any = None,
        create_bucket: bool = False,
        max_concurrency: int = 16,
        multipart_chunk_size: int = 8 * MIB,
        multipart_threshold: int = 16 * MIB,
        storage_class: str | None = None,
        server_side_encryption: str | None = None,
        sse_kms_key_id: str | None = None,
        request_payer: str | None = None,
        content_type: str | None = None,
        acl: str | None = None,
        accelerate: bool = False,
        addressing_style: str = "auto",
        ca_bundle: str | None = None,
        checksum: str = "auto",
        attempts: int = 6,
        connect_timeout: float = 5.0,
        io_timeout: float = 60.0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._begin(
            Settings(
                bucket=bucket,
                prefix=_normalised(prefix),
                region=region,
                endpoint_url=endpoint_url,
                access_key=Secret.given("access_key", access_key),
                secret_key=Secret.given("secret_key", secret_key),
                session_token=Secret.given("session_token", session_token),
                profile=profile,
                anonymous=anonymous,
                client=client,
                create_bucket=create_bucket,
                max_concurrency=max_concurrency,
                multipart_chunk_size=multipart_chunk_size,
                multipart_threshold=multipart_threshold,
                storage_class=storage_class,
                server_side_encryption=server_side_encryption,
                sse_kms_key_id=sse_kms_key_id,
                request_payer=request_payer,
                content_type=content_type,
                acl=acl,
                accelerate=accelerate,
                addressing_style=addressing_style,
                ca_bundle=ca_bundle,
                checksum=checksum,
                attempts=attempts,
                connect_timeout=connect_timeout,
                io_timeout=io_timeout,
                clock=clock,
                sleep=sleep,
            )
        )

    def _begin(self, settings: Settings) -> None:
        self._settings = settings
        self._root = f"{settings.prefix}/" if settings.prefix else ""
        self._location = settings.location
        self._service = Service(settings)
        self._workers = Workers(settings.max_concurrency)
        self._records = Records(state_directory() / "uploads", clock=settings.clock)
        self._ensured = not settings.create_bucket
        self._receipts: dict[str, ObjectInfo] = {}

    def __getstate__(self) -> dict[str, Any]:
        settings = self._settings
        if settings.client is not None:
            raise ConfigurationError(
                f"{self.location}: it was given a client, which does not go into a pickle; give region, endpoint_url and "
                "profile instead",
                parameter="client",
                backend=self.location,
            )
        refuse_pickle(
            self.location,
            settings.secret_key,
            settings.session_token,
            advice='a profile, the environment, "env:NAME" or "file:PATH"',
        )
        return {"_settings": settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin(state["_settings"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._settings.bucket

    @property
    def prefix(self) -> str:
        """What stands before every identifier, without slashes at its ends."""
        return self._settings.prefix

    @property
    def client(self) -> Any:
        """The boto3 client."""
        return self._service.client

    @override
    def exists(self, identifier: str) -> bool:
        if not identifiers.is_valid(identifier):
            return False
        try:
            self._facts(identifier)
        except (BucketNotFoundError, InvalidIdentifierError):
            raise
        except FileNotFoundError:
            return False
        return True

    @override
    def read(self, identifier: str, *, version_id: str | None = None) -> bytes:
        """The whole object, compared with its length and, where the service gives one, its checksum.

        Args:
            identifier: the object.
            version_id: of an older version, in a bucket that keeps them.

        Raises:
            NotFoundError: there is none; a FileNotFoundError.
            IntegrityError: twice the checksum was another.
        """
        return read_whole(self._wanted(identifier, version_id))

    @override
    def write(self, identifier: str, content: Content) -> bool:
        key = self._key(identifier)
        content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        self._put(identifier, key, content, None, verify=False)
        return True

    @override
    def delete(self, identifier: str) -> bool:
        self._facts(identifier)
        with self._mapped("delete", identifier):
            self._calls.delete(self._key(identifier))
        return True

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        if pattern is None:
            return sorted(info.identifier for info in self.scan())
        glob = identifiers.glob(pattern)
        if glob.recursive or glob.stem.count("/") + 1 < glob.depth:
            found = [info.identifier for info in self.scan(glob.stem)]
        else:
            level = self._scan_level(glob.stem)
            found = [entry.identifier for entry in level if isinstance(entry, ObjectInfo)]
        # Plain order is that of the encoded bytes: there are no surrogates.
        return sorted(identifier for identifier in found if glob.matches(identifier))

    @override
    def get_path(self, identifier: str) -> str:
        return f"s3://{self.bucket}/{self._key(identifier)}"

    @override
    def size(self, identifier: str) -> int:
        size = self._facts(identifier).size
        if size is None:
            raise StorageError(
                f"the service does not tell the size of {identifier!r} in {self.location}",
                identifier=identifier,
                backend=self.location,
            )
        return size

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        dest = self._key(dest_id)
        if source_id == dest_id:
            self._facts(source_id)
            return True
        self._copy(self, source_id, dest_id, dest)
        return True

    def copy_from(self, source: S3Storage, source_id: str, dest_id: str | None = None) -> bool:
        """Copy an object of another bucket or prefix of the same service, without moving its bytes through this process.

        Args:
            source: the storage that it is in; these credentials must be allowed to read there.
            source_id: its identifier there.
            dest_id: its identifier here; the same if None.

        Returns:
            True.

        Raises:
            NotFoundError: there is no such object.
            ConfigurationError: the two are different services.
        """
        if source.endpoint != self.endpoint:
            raise ConfigurationError(
                f"{source.location} and {self.location} are different services: use sync() or migrate()",
                parameter="source",
                backend=self.location,
            )
        dest_id = source_id if dest_id is None else dest_id
        self._copy(source, source_id, dest_id, self._key(dest_id))
        return True

    @property
    def endpoint(self) -> str | None:
        """The service's URL; None of a client that does not tell."""
        found = getattr(getattr(self.client, "meta", None), "endpoint_url", None)
        return found if isinstance(found, str) else None

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        dest = self._key(dest_id)
        source = self._facts(source_id)
        if source_id == dest_id:
            return True
        self._copy(self, source_id, dest_id, dest, source.etag)
        copied = self._facts(dest_id)
        if copied.size != source.size:
            raise IntegrityError(
                f"the copy of {source_id!r} at {dest_id!r} has another size; nothing was deleted",
                identifier=source_id,
                backend=self.location,
            )
        # Amazon S3 deletes it only if nobody has overwritten it meanwhile; others ignore the condition.
        pinned = {} if source.etag is None else {"IfMatch": f'"{source.etag}"'}
        with self._mapped("delete", source_id):
            try:
                self._calls.delete(self._key(source_id), **pinned)
            except Exception as error:
                # The answer to a first try was lost: with a condition the second finds nothing, because of ourselves.
                refusal = refusal_of(error)
                if refusal is None or refusal.code != "NoSuchKey" or refusal.attempts == 1:
                    raise
        return True

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        key = self._key(identifier)
        source = hashing(reader) if verify else None

        def check(size: int) -> str | None:
            digest = None if source is None else source.hexdigest()
            check_arrived(info, identifier, size, digest)
            return digest

        with self._mapped("write", identifier):
            stored = uploading.put_stream(
                self._target(key, identifier, info),
                reader if source is None else cast(BinaryIO, source),
                None if info is None else info.size,
                check,
            )
        self._finish(identifier, stored, None if source is None else source.hexdigest())
        return True

    @override
    def stat(self, identifier: str, *, version_id: str | None = None) -> ObjectInfo:
        """What is known of the object without reading it.

        Args:
            identifier: the object.
            version_id: of an older version, in a bucket that keeps them.

        Raises:
            NotFoundError: there is none.
        """
        # Elsewhere a checksum may be an echo of what the uploader claimed.
        extra = {"ChecksumMode": "ENABLED"} if self._service.vouches else {}
        facts = self._facts(identifier, **_version(version_id), **extra)
        digest = facts.digests.get("sha256") if extra else None
        return ObjectInfo(
            identifier,
            facts.size,
            facts.modified,
            facts.etag,
            None if digest is None else _hex(digest),
            facts.content_type,
        )

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        with self._mapped("list", None):
            found = listing.objects(self._calls, self._root, prefix, self.location, on_skip)
            if self.bucket.endswith("--x-s3"):
                # Directory buckets list in no order ("ListObjectsV2", Amazon S3 API Reference).
                found = iter(sorted(found, key=lambda info: info.identifier))
            yield from found

    @override
    def _scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        with self._mapped("list", None):
            yield from listing.level(self._calls, self._root, prefix, self.location, on_skip)

    @override
    def open(
        self, identifier: str, mode: Literal["rb", "wb"] = "rb", *, version_id: str | None = None
    ) -> BinaryIO:
        """A seekable reader of the object, or a writer that publishes it as a whole (see `streams.Writer`).

        Args:
            identifier: the object.
            mode: "rb" or "wb".
            version_id: read an older version, in a bucket that keeps them.

        Raises:
            NotFoundError: there is none to read; raised here, not at the first read.
            ValueError: another mode.
        """
        check_mode(mode)
        if mode == "rb":
            return Reader(Pinned(self._wanted(identifier, version_id)))
        target = self._target(self._key(identifier), identifier, None)
        return cast(
            BinaryIO, Writer(uploading.UploadSink(target, partial(self._mapped, "write", identifier)))
        )

    @override
    def read_range(
        self, identifier: str, start: int, end: int | None = None, *, version_id: str | None = None
    ) -> bytes:
        check_range(start, end)
        return read_span(self._wanted(identifier, version_id), start, end)

    @override
    def read_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        failures = Failures()
        window = _Window(self._settings.max_concurrency)
        for identifier, content, error in spread(self._workers, self.read, identifiers, window.now):
            if error is None:
                window.learn(len(content))
                yield identifier, content
                continue
            with failures.of(identifier):
                raise error
        failures.raise_any("read", self.location)

    @override
    def write_many(self, items: Iterable[Item], *, verify: bool = False) -> int:
        failures = Failures()
        window = _Window(self._settings.max_concurrency)
        answers: Answers[_Item, None] = Answers(self._workers, partial(self._put_item, verify=verify))
        under_way: set[str] = set()
        stored = 0

        def take() -> None:
            nonlocal stored
            (info, content), _, error = answers.take()
            under_way.discard(info.identifier)
            window.learn(len(content))
            with failures.of(info.identifier):
                if error is not None:
                    raise error
                failures.errors.pop(info.identifier, None)
                stored += 1

        try:
            for key, content in items:
                info = key if isinstance(key, ObjectInfo) else ObjectInfo(key)
                # Of one identifier never two at a time, so that the last one stays.
                while answers.pending >= window.now() or info.identifier in under_way:
                    take()
                under_way.add(info.identifier)
                answers.ask((info, content))
                del content
            while answers.pending:
                take()
        finally:
            answers.settle()
        failures.raise_any("write", self.location)
        return stored

    @override
    def delete_many(self, identifiers: Iterable[str]) -> int:
        failures = Failures()
        seen: set[str] = set()
        batch: Identifiers = []
        for identifier in identifiers:
            if identifier in seen:
                continue
            seen.add(identifier)
            batch.append(identifier)
            if len(batch) == BATCH:
                self._delete_batch(batch, failures)
                batch = []
        if batch:
            self._delete_batch(batch, failures)
        failures.raise_any("delete", self.location)
        return len(seen)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        wanted = self._wanted(identifier, None)
        write_file(path, lambda staged: downloading.fill(wanted, staged, self._workers))
        return True

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        key = self._key(identifier)
        with Path(path).open("rb") as reader:
            facts = os.fstat(reader.fileno())
            info = ObjectInfo(identifier, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC))
            if not stat.S_ISREG(facts.st_mode) or facts.st_size <= self._settings.multipart_threshold:
                return self.write_stream(
                    identifier, reader, info=info if stat.S_ISREG(facts.st_mode) else None
                )

            def check(size: int) -> None:
                now = os.fstat(reader.fileno())
                if (now.st_size, now.st_mtime_ns) != (size, facts.st_mtime_ns):
                    raise SourceChangedError(
                        f"{os.fspath(path)!r} changed while it was read; nothing was stored",
                        identifier=identifier,
                        backend=self.location,
                    )

            with self._mapped("write", identifier):
                stored = uploading.put_file(
                    self._target(key, identifier, info), reader.fileno(), facts.st_size, check
                )
        self._remember(identifier, stored)
        return True

    @override
    def create(self, identifier: str, content: Content) -> bool:
        try:
            self._put_if(identifier, content, {"IfNoneMatch": "*"})
        except PreconditionFailedError:
            return False
        return True

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        try:
            stored = self._put_if(identifier, content, {"IfMatch": f'"{etag}"'})
        except BucketNotFoundError:
            raise
        except (PreconditionFailedError, FileNotFoundError) as error:
            raise PreconditionFailedError(
                f"{identifier!r} in {self.location} is gone, or is another version than {etag!r}",
                identifier=identifier,
                backend=self.location,
            ) from error
        return stored.etag or ""

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        """The digest of the object, lower-case hex; the service's own where it is Amazon's and has it.

        Args:
            identifier: the object.
            algorithm: a name that `hashlib` guarantees.

        Raises:
            NotFoundError: there is no such object.
            ConfigurationError: the algorithm is unknown.
        """
        new_digest(algorithm)
        if self._service.vouches:
            facts = self._facts(identifier, ChecksumMode="ENABLED")
            kept = facts.digests.get(algorithm)
            if kept is not None:
                return _hex(kept)
            # The etag of what was stored by one request and is not encrypted with a key of its own.
            plain_etag = facts.encryption in {None, "AES256"} and re.fullmatch(
                "[0-9a-f]{32}", facts.etag or ""
            )
            if algorithm == "md5" and plain_etag:
                return plain_etag[0]
        return super().checksum(identifier, algorithm)

    @override
    def get_url(
        self, identifier: str, expires_in: int = 3600, *, method: Literal["GET", "PUT"] = "GET"
    ) -> str:
        """A URL that a plain HTTP client can fetch, or PUT to, without credentials. No I/O.

        Args:
            identifier: the object.
            expires_in: how long the URL is good, in seconds, 7 days at most.
            method: "GET" or "PUT".

        Raises:
            ConfigurationError: an argument is wrong.
        """
        calls = {"GET": "get_object", "PUT": "put_object"}
        if method not in calls:
            raise ConfigurationError(f'method: {method!r} is neither "GET" nor "PUT"', parameter="method")
        if not 0 < expires_in <= URL_LONGEST:
            raise ConfigurationError(
                f"expires_in: {expires_in!r} is not between 1 second and 7 days", parameter="expires_in"
            )
        with self._mapped("sign a URL for", identifier):
            return self._service.rare.presigned(calls[method], self._key(identifier), expires_in)

    @override
    def flush(self) -> bool:
        return True  # S3 acknowledges only what is durable

    @property
    @override
    def capabilities(self) -> Capability:
        # Not CHECKSUM: few objects have a digest that the service vouches for, so most are read.
        return (
            Capability.CREATE
            | Capability.REPLACE
            | Capability.URL
            | Capability.RANGES
            | Capability.SERVER_COPY
            | Capability.FLUSH
        )

    @property
    @override
    def location(self) -> str:
        return self._location

    @override
    def close(self) -> None:
        self._workers.close()
        self._service.close()

    def abort_incomplete_uploads(self, older_than: timedelta = timedelta(days=1)) -> int:
        """Drop the parts of uploads beneath the prefix that nobody completed, which are stored, and paid for, until then.

        Args:
            older_than: how long ago they began.

        Returns:
            How many uploads there were.
        """
        before = datetime.fromtimestamp(self._settings.clock(), UTC) - older_than
        count = 0
        with self._mapped("abort uploads", None):
            _ = self._calls
            for key, upload_id, began in self._service.rare.uploads(self._root):
                if began > before:
                    continue
                try:
                    self._service.rare.abort_upload(key, upload_id)
                except Exception as error:
                    refusal = refusal_of(error)
                    if refusal is None or refusal.code != "NoSuchUpload":
                        raise
                    continue  # completed or aborted meanwhile
                count += 1
        return count

    @property
    def _calls(self) -> Calls:
        if not self._ensured:
            self._ensure_bucket()
        return self._service.calls

    def _ensure_bucket(self) -> None:
        try:
            self._service.rare.create_bucket()
        except Exception as error:
            refusal = refusal_of(error)
            # It is there; or we may not create it, and if it is missing what follows says so.
            if refusal is None or refusal.status not in {403, 409}:
                raise
        self._ensured = True

    def _key(self, identifier: str) -> str:
        """Where the object is in the bucket: the one place where identifiers become keys."""
        identifiers.check(identifier)
        key = self._root + identifier
        if len(key) > identifiers.MAX_BYTES // 4 and len(key.encode()) > identifiers.MAX_BYTES:
            raise InvalidIdentifierError(
                f"invalid identifier {identifier[:40]!r}...: with the prefix {self.prefix!r} it has more than "
                f"{identifiers.MAX_BYTES:,} bytes, the most that S3 takes",
                identifier=identifier,
                backend=self.location,
            )
        return key

    @contextmanager
    def _mapped(self, tried: str, identifier: str | None) -> Iterator[None]:
        """Run the body with errors of S3, boto3 and the network as ours; a reader's own errors stay what they are."""
        try:
            yield
        except Exception as error:
            if isinstance(error, StorageError) or not is_foreign(error):
                raise
            raise translate(error, identifier, self.location, tried) from error

    def _facts(self, identifier: str, **parameters: Any) -> Facts:
        """What a HEAD tells; if it fails, which it does without a reason, what a GET of one byte says of that."""
        key = self._key(identifier)
        with self._mapped("look at", identifier):
            try:
                return self._calls.head(key, **parameters)
            except Exception as error:
                refusal = refusal_of(error)
                if refusal is None or refusal.code or is_transient(refusal) or not self._service.explains:
                    raise
            try:
                got = self._calls.get(key, **parameters, Range="bytes=0-0")
            except Exception as error:
                refusal = refusal_of(error)
                if refusal is None or refusal.status != 416:  # an empty object: it is there
                    raise
            else:
                got.body.close()
            # What was wrong (the region, the clock) is right now, or the object has just appeared.
            return self._calls.head(key, **parameters)

    def _wanted(self, identifier: str, version_id: str | None) -> Wanted:
        return Wanted(
            lambda: self._calls, self._key(identifier), identifier, self._settings, _version(version_id)
        )

    def _target(
        self,
        key: str,
        identifier: str,
        info: ObjectInfo | None,
        conditions: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Target:
        _ = self._calls  # the bucket, if it is to be created
        parameters: dict[str, Any] = dict(self._settings.object_parameters())
        kind = (info.content_type if info else None) or self._settings.content_type or _guessed(identifier)
        if kind is not None:
            parameters["ContentType"] = kind
        own = dict(metadata or {})
        if info is not None and info.modified is not None:
            own |= uploading.mtime_metadata(info.modified)
        if own:
            parameters["Metadata"] = own
        return Target(
            self._service, self._settings, self._workers, self._records, key, parameters, conditions or {}
        )

    def _put(
        self, identifier: str, key: str, content: bytes, info: ObjectInfo | None, *, verify: bool
    ) -> None:
        digest = sha256(content) if verify and info is not None and info.sha256 is not None else None
        check_arrived(info, identifier, len(content), digest)
        with self._mapped("write", identifier):
            target = self._target(key, identifier, info)
            if len(content) <= PART_MOST:
                stored = uploading.put(target, content, digest)
            else:
                stored = uploading.put_stream(target, io.BytesIO(content), len(content), lambda _: None)
        if not verify or stored.proven:
            self._remember(identifier, stored)
        else:
            self._finish(identifier, stored, digest or sha256(content))

    def _put_item(self, item: _Item, *, verify: bool) -> None:
        info, content = item
        found = plain(content)
        if not isinstance(found, bytes):
            raise TypeError("write_many takes bytes; use write_stream for readers")
        self._put(info.identifier, self._key(info.identifier), found, info, verify=verify)

    def _finish(self, identifier: str, stored: Stored, digest: str | None) -> None:
        """Prove what was stored: if the service did not, by reading it back. *digest* is None if that was not asked for."""
        if digest is not None and not stored.proven:
            try:
                check_digest(identifier, digest, super().checksum(identifier), "what was stored")
            except IntegrityError:
                self._withdraw(identifier, stored)
                raise
        self._remember(identifier, stored)

    def _withdraw(self, identifier: str, stored: Stored) -> None:
        """Remove an object that is not what it should be, if it is still the one that was stored."""
        try:
            if stored.etag is not None and self._facts(identifier).etag == stored.etag:
                with self._mapped("delete", identifier):
                    self._calls.delete(self._key(identifier))
        except StorageError as error:
            logger.warning(
                "%r in %s is damaged and could not be removed: %s", identifier, self.location, error
            )

    def _put_if(self, identifier: str, content: Content, conditions: Mapping[str, str]) -> Stored:
        """Store on a condition.

        If an answer is lost and the request made again, the condition no longer holds, because of ourselves. The mark in
        the object's metadata tells.
        """
        key = self._key(identifier)
        content = plain(content)
        mark = os.urandom(12).hex()
        with self._mapped("write", identifier):
            target = self._target(key, identifier, None, conditions, {MARK: mark})
            try:
                if isinstance(content, bytes) and len(content) <= PART_MOST:
                    return uploading.put(target, content)
                reader = io.BytesIO(content) if isinstance(content, bytes) else content
                return uploading.put_stream(target, reader, None, lambda _: None)
            except Exception as error:
                refusal = refusal_of(error)
                if refusal is None or refusal.status not in {404, 412} or refusal.attempts == 1:
                    raise
                facts = self._calls.head(key)
                if facts.metadata.get(MARK) != mark:
                    raise
                return Stored(facts.size or 0, facts.etag, proven=False)

    def _copy(
        self, source: S3Storage, source_id: str, dest_id: str, dest: str, etag: str | None = None
    ) -> None:
        def look() -> Facts:
            return source._facts(source_id)

        place = f"{source.bucket}/{source._key(source_id)}"
        with self._mapped("copy", source_id):
            target = self._target(dest, dest_id, None)
            kept = {name: value for name, value in target.parameters.items() if name != "ContentType"}
            copying.copy(replace(target, parameters=kept), place, look, etag)

    def _delete_batch(self, batch: Identifiers, failures: Failures) -> None:
        keys: dict[str, str] = {}
        for identifier in batch:
            with failures.of(identifier):
                keys[self._key(identifier)] = identifier
        plain_keys = [key for key in keys if can_be_xml(key)]
        if plain_keys:
            with self._mapped("delete", None):
                refused = self._calls.delete_batch(plain_keys)
            for key, why in refused.items():
                identifier = keys.get(key, key)
                with failures.of(identifier):
                    raise translate(RefusedInside(why), identifier, self.location, "delete")
        for key in keys.keys() - set(plain_keys):
            with failures.of(keys[key]), self._mapped("delete", keys[key]):
                self._calls.delete(key)

    def _remember(self, identifier: str, stored: Stored) -> None:
        if stored.etag is None or stored.parts:
            self._receipts.pop(identifier, None)
            return
        while len(self._receipts) >= RECEIPTS:
            self._receipts.pop(next(iter(self._receipts)), None)
        self._receipts[identifier] = ObjectInfo(identifier, stored.size, None, stored.etag)

    @override
    def _receipt(self, identifier: str) -> ObjectInfo | None:
        return self._receipts.pop(identifier, None)


_Item: TypeAlias = tuple[ObjectInfo, bytes]


class _Window:
    """How many objects may be under way, so that together they stay small."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._largest = 1

    def now(self) -> int:
        return max(1, min(self._most, UNDER_WAY_MOST // self._largest))

    def learn(self, size: int) -> None:
        # It forgets, slowly: one large object does not make thousands of small ones slow.
        self._largest = max(size, self._largest - (self._largest >> 5), 1)


def _normalised(prefix: str) -> str:
    found = "/".join(segment for segment in prefix.split("/") if segment)
    if found:
        try:
            identifiers.check(found)
        except InvalidIdentifierError as error:
            raise ConfigurationError(f"prefix: {error}", parameter="prefix") from None
    return found


def _version(version_id: str | None) -> dict[str, str]:
    return {} if version_id is None else {"VersionId": version_id}


def _hex(digest: str) -> str:
    return base64.b64decode(digest).hex()


def _guessed(identifier: str) -> str | None:
    return _guessed_of(posixpath.splitext(identifier)[1].lower())


@lru_cache(maxsize=1024)
def _guessed_of(suffix: str) -> str | None:
    kind, encoding = mimetypes.guess_type(f"name{suffix}")
    # Of "x.tar.gz" the type is that of the tar inside, which these bytes are not.
    return {"gzip": "application/gzip", None: kind}.get(encoding)
