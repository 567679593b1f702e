"""S3Storage: the verbs."""

from __future__ import annotations

import base64
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, BinaryIO, Literal, cast

from typing_extensions import override

from storage_backend import identifiers, locations
from storage_backend.backends.s3 import batches, downloading, listing, looking, uploading
from storage_backend.backends.s3.errors import refusal_of, rule_of
from storage_backend.backends.s3.hooks import S3Hooks
from storage_backend.backends.s3.objects import Objects, version_parameter
from storage_backend.backends.s3.reading import Pinned, Reader, read_span, read_whole
from storage_backend.backends.s3.settings import MIB, Settings, secret
from storage_backend.base import Identifiers, Item, StorageBackend
from storage_backend.counted import Progress, delete_counted, read_counted, write_counted
from storage_backend.destinations import write_file
from storage_backend.errors import (
    BucketNotFoundError,
    ConfigurationError,
    IntegrityError,
    InvalidIdentifierError,
    NotFoundError,
    PreconditionFailedError,
    SourceChangedError,
    StorageError,
)
from storage_backend.files import modified_of, open_source
from storage_backend.hooks import Hooks, digest_of
from storage_backend.info import Capability, ObjectInfo
from storage_backend.scanning import OnSkip
from storage_backend.secrets import refuse_pickle
from storage_backend.streams import (
    Content,
    Moved,
    Writer,
    check_arrived,
    check_mode,
    check_range,
    counting,
    hashing,
    new_digest,
    plain,
    unwatched,
)
from storage_backend.unsized import told_size

logger = logging.getLogger(__name__)

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
            boto3 finds credentials by itself (environment, profile, role, SSO) and renews them. What is refused as expired
            or unknown is looked up once more where it was found.
        secret_key: given as itself, this object cannot be pickled.
        session_token: as *secret_key*.
        profile: of ~/.aws/config.
        anonymous: sign nothing.
        client: a boto3 client, or what behaves like one, that all requests go through. Then this object cannot be
            pickled.
        create_bucket: the first write creates the bucket, if it is missing; until then it holds nothing.
        max_concurrency: how many requests one call makes at the same time.
        multipart_chunk_size: the least size of a part, in bytes (5 MiB to 5 GiB); it grows so that 10,000 suffice.
        multipart_threshold: content from a reader or file of up to so many bytes is one request.
        storage_class: of new objects, such as "STANDARD_IA".
        server_side_encryption: of new objects: "AES256" or "aws:kms".
        sse_kms_key_id: the key of "aws:kms".
        request_payer: "requester" of a bucket where that is asked for; the URLs of `get_url` carry it.
        content_type: of new objects; guessed from the name if None. That of `ObjectInfo` comes first.
        acl: of new objects, a canned one, such as "bucket-owner-full-control".
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
                access_key=secret("access_key", access_key),
                secret_key=secret("secret_key", secret_key),
                session_token=secret("session_token", session_token),
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
        self._objects = Objects(settings)

    def __getstate__(self) -> dict[str, Any]:
        settings = self._objects.settings
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
        return {"settings": settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin(state["settings"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._objects.settings.bucket

    @property
    def prefix(self) -> str:
        """What stands before every identifier, without slashes at its ends."""
        return self._objects.settings.prefix

    @property
    def client(self) -> Any:
        """The boto3 client."""
        with self._objects.mapped("make a client", None):
            return self._objects.service.client

    @override
    def exists(self, identifier: str) -> bool:
        if not identifiers.is_valid(identifier):
            return False
        try:
            self._objects.facts(identifier)
        except BucketNotFoundError:
            if not self._objects.may_be_missing:
                raise
            return False
        except (FileNotFoundError, InvalidIdentifierError):  # with the prefix it may be too long
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
        return read_whole(self._objects.wanted(identifier, version_id))

    @override
    def write(self, identifier: str, content: Content) -> bool:
        key = self._objects.key(identifier)
        content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        self._objects.put(identifier, key, content, None, verify=False)
        return True

    @override
    def delete(self, identifier: str) -> bool:
        self._objects.facts(identifier)
        with self._objects.mapped("delete", identifier):
            self._objects.calls.delete(self._objects.key(identifier))
        return True

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        if pattern is None:
            return sorted(info.identifier for info in self.scan())
        glob = identifiers.glob(pattern)
        if glob.recursive or glob.stem.count("/") + 1 < glob.depth:
            found = [info.identifier for info in self.scan(glob.stem)]
        else:
            level = self.scan_level(glob.stem)
            found = [entry.identifier for entry in level if isinstance(entry, ObjectInfo)]
        # Plain order is that of the encoded bytes: there are no surrogates.
        return sorted(identifier for identifier in found if glob.matches(identifier))

    @override
    def get_path(self, identifier: str) -> str:
        """`s3://bucket/prefix/identifier`, where "%", "#" and "?" are percent-encoded, as in every URL."""
        return f"s3://{self.bucket}/{locations.escaped(self._objects.key(identifier))}"

    @override
    def size(self, identifier: str) -> int:
        size = self._objects.facts(identifier).size
        if size is None:
            raise StorageError(
                f"the service does not tell the size of {identifier!r} in {self.location}",
                identifier=identifier,
                backend=self.location,
            )
        return size

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        dest = self._objects.key(dest_id)
        if source_id == dest_id:
            self._objects.facts(source_id)
            return True
        self._objects.copy(self._objects, source_id, dest_id, dest)
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
        if (
            source.endpoint != self.endpoint
            and not source._objects.service.vouches & self._objects.service.vouches
        ):
            raise ConfigurationError(
                f"{source.location} and {self.location} are different services: use sync() or migrate()",
                parameter="source",
                backend=self.location,
            )
        dest_id = source_id if dest_id is None else dest_id
        self._objects.copy(source._objects, source_id, dest_id, self._objects.key(dest_id))
        return True

    @property
    def endpoint(self) -> str | None:
        """The service's URL; None of a client that does not tell."""
        found = getattr(getattr(self.client, "meta", None), "endpoint_url", None)
        return found.rstrip("/") if isinstance(found, str) else None

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        dest = self._objects.key(dest_id)
        source = self._objects.facts(source_id)
        if source_id == dest_id:
            return True
        self._objects.copy(self._objects, source_id, dest_id, dest, source.etag)
        copied = self._objects.facts(dest_id)
        if copied.size != source.size:
            raise IntegrityError(
                f"the copy of {source_id!r} at {dest_id!r} has another size; nothing was deleted",
                identifier=source_id,
                backend=self.location,
            )
        # Amazon S3 deletes it only if nobody has overwritten it meanwhile; others ignore the condition.
        pinned = {} if source.etag is None else {"IfMatch": f'"{source.etag}"'}
        with self._objects.mapped("delete", source_id):
            try:
                self._objects.calls.delete(self._objects.key(source_id), **pinned)
            except Exception as error:
                # The answer to a first try was lost: with a condition the second finds nothing, because of ourselves.
                refusal = refusal_of(error)
                if refusal is None or refusal.attempts == 1:
                    raise
                if rule_of(refusal.status, refusal.code).kind is not NotFoundError:
                    raise
        return True

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        key = self._objects.key(identifier)
        source = hashing(reader) if verify else None

        def check(size: int) -> str | None:
            digest = None if source is None else source.hexdigest()
            check_arrived(info, identifier, size, digest)
            return digest

        with self._objects.mapped("write", identifier):
            stored = uploading.put_stream(
                self._objects.target(key, identifier, info),
                reader if source is None else cast(BinaryIO, source),
                None if info is None else info.size,
                check,
            )
        self._objects.prove(identifier, stored, None if source is None else source.hexdigest())
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
        with self._objects.mapped("look at", identifier):
            extra = {"ChecksumMode": "ENABLED"} if self._objects.service.vouches else {}
        facts = self._objects.facts(identifier, **version_parameter(version_id), **extra)
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
        with self._objects.listing():
            found = listing.objects(self._objects.calls, self._objects.root, prefix, self.location, on_skip)
            if self.bucket.endswith("--x-s3"):
                # Directory buckets list in no order ("ListObjectsV2", Amazon S3 API Reference).
                found = iter(sorted(found, key=lambda info: info.identifier))
            yield from found

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        with self._objects.listing():
            yield from listing.level(self._objects.calls, self._objects.root, prefix, self.location, on_skip)

    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        return looking.stat_many(self._objects, self.stat, identifiers)

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
            wanted = self._objects.wanted(identifier, version_id)
            pinned = Pinned(wanted)
            wanted.saw(pinned.facts)
            return Reader(pinned)
        key = self._objects.key(identifier)
        with self._objects.mapped("write", identifier):
            target = self._objects.target(key, identifier, None)
        return cast(
            BinaryIO, Writer(uploading.UploadSink(target, partial(self._objects.mapped, "write", identifier)))
        )

    @override
    def read_range(
        self, identifier: str, start: int, end: int | None = None, *, version_id: str | None = None
    ) -> bytes:
        check_range(start, end)
        return read_span(self._objects.wanted(identifier, version_id), start, end)

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        return read_counted(batches.read_many(self._objects, self.read, identifiers), progress)

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        return batches.write_many(self._objects, items, verify=verify)

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        return batches.delete_many(self._objects, identifiers)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        return self._download(identifier, path, unwatched)

    def _download(self, identifier: str, path: str | os.PathLike[str], moved: Moved) -> bool:
        wanted = self._objects.wanted(identifier, None)
        write_file(path, lambda staged: downloading.fill(wanted, staged, self._objects.workers, moved))
        return True

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        return self._upload(path, identifier, unwatched)

    def _upload(self, path: str | os.PathLike[str], identifier: str, moved: Moved) -> bool:
        key = self._objects.key(identifier)
        with open_source(path) as reader:
            facts = os.fstat(reader.fileno())
            info = ObjectInfo(identifier, told_size(facts), modified_of(facts))
            if not stat.S_ISREG(facts.st_mode) or facts.st_size <= self._objects.settings.multipart_threshold:
                known = info if stat.S_ISREG(facts.st_mode) else None
                return self.write_stream(identifier, counting(reader, moved), info=known)

            def check(size: int) -> None:
                now = os.fstat(reader.fileno())
                if (now.st_size, now.st_mtime_ns) != (size, facts.st_mtime_ns):
                    raise SourceChangedError(
                        f"{os.fspath(path)!r} changed while it was read; nothing was stored",
                        identifier=identifier,
                        backend=self.location,
                    )

            with self._objects.mapped("write", identifier):
                stored = uploading.put_file(
                    self._objects.target(key, identifier, info), reader.fileno(), facts.st_size, check, moved
                )
        self._objects.remember(identifier, stored)
        return True

    @override
    def create(self, identifier: str, content: Content) -> bool:
        try:
            self._objects.put_if(identifier, content, {"IfNoneMatch": "*"})
        except PreconditionFailedError:
            return False
        return True

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        try:
            stored = self._objects.put_if(identifier, content, {"IfMatch": f'"{etag}"'})
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
        return self._checksum(identifier, algorithm, unwatched)

    def _checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        new_digest(algorithm)
        with self._objects.mapped("read", identifier):
            vouches = self._objects.service.vouches
        if vouches:
            facts = self._objects.facts(identifier, ChecksumMode="ENABLED")
            kept = facts.digests.get(algorithm)
            if kept is not None:
                return _hex(kept)
            # The etag of what was stored by one request and is not encrypted with a key of its own.
            plain_etag = facts.encryption in {None, "AES256"} and re.fullmatch(
                "[0-9a-f]{32}", facts.etag or ""
            )
            if algorithm == "md5" and plain_etag:
                return plain_etag[0]
        return digest_of(self, identifier, algorithm, moved)

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
        with self._objects.mapped("sign a URL for", identifier):
            return self._objects.service.rare.presigned(
                calls[method], self._objects.key(identifier), expires_in
            )

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
        return self._objects.location

    @property
    @override
    def hooks(self) -> Hooks:
        return S3Hooks(self)

    @override
    def close(self) -> None:
        self._objects.close()

    def abort_incomplete_uploads(self, older_than: timedelta = timedelta(days=1)) -> int:
        """Drop the parts of uploads beneath the prefix that nobody completed, which are stored, and paid for, until then.

        Args:
            older_than: how long ago they began.

        Returns:
            How many uploads there were.
        """
        before = datetime.fromtimestamp(self._objects.settings.clock(), UTC) - older_than
        count = 0
        with self._objects.listing("abort uploads"):
            for key, upload_id, began in self._objects.service.rare.uploads(self._objects.root):
                if began > before:
                    continue
                try:
                    self._objects.service.rare.abort_upload(key, upload_id)
                except Exception as error:
                    refusal = refusal_of(error)
                    if refusal is None or refusal.code != "NoSuchUpload":
                        raise
                    continue  # completed or aborted meanwhile
                count += 1
        return count


def _normalised(prefix: str) -> str:
    if not isinstance(prefix, str):
        raise ConfigurationError(f"prefix: {prefix!r} is no text", parameter="prefix")
    found = "/".join(segment for segment in prefix.split("/") if segment)
    if found:
        try:
            identifiers.check(found)
        except InvalidIdentifierError as error:
            raise ConfigurationError(f"prefix: {error}", parameter="prefix") from None
    return found


def _hex(digest: str) -> str:
    return base64.b64decode(digest).hex()
