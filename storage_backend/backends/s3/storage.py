"""S3Storage: the public methods."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, BinaryIO, Literal, cast

from typing_extensions import override

from storage_backend import identifiers, url_escaping
from storage_backend.backends.s3 import batches, listing, uploading
from storage_backend.backends.s3.bucket import Bucket, version_parameter
from storage_backend.backends.s3.hooks import S3Hooks
from storage_backend.backends.s3.object_reader import RawObjectReader, read_again
from storage_backend.backends.s3.reading import read_span, read_whole
from storage_backend.backends.s3.settings import S3Settings, takes
from storage_backend.base import Identifiers, Item, StorageBackend
from storage_backend.counted import Progress, delete_counted, read_counted, write_counted
from storage_backend.errors import (
    BucketNotFoundError,
    ConfigurationError,
    IntegrityError,
    InvalidIdentifierError,
    PreconditionFailedError,
    StorageError,
)
from storage_backend.hooks import Hooks
from storage_backend.info import Capability, ObjectInfo
from storage_backend.scanning import OnSkip
from storage_backend.secrets import refuse_pickle
from storage_backend.streams import (
    Content,
    StoppingReader,
    Writer,
    check_mode,
    check_range,
    plain,
    unwatched,
)

URL_LONGEST = 7 * 24 * 3600  # seconds; the limit of signature version 4


class S3Storage(StorageBackend):
    """Objects in a bucket of Amazon S3, or of a compatible service.

    boto3 resolves credentials, region and endpoint. The frequent requests then go through our own HTTP client, which is
    several times faster, unless the boto3 client has custom hooks. All methods are thread-safe. No request is sent before
    the first operation.

    Args:
        bucket: the name of the bucket, or the ARN of an access point.
        prefix: put before all keys, with a slash; leading and trailing slashes do not matter.
        region: the region of the bucket; by default from AWS_REGION, AWS_DEFAULT_REGION, the profile, or the service's responses.
        endpoint_url: "https://host:port" of a service other than Amazon's.
        access_key: with *secret_key* and perhaps *session_token*, each as the value, "env:NAME" or "file:PATH". Without them
            boto3 finds credentials (environment, profile, role, SSO) and renews them. If the service rejects them as
            expired or unknown, they are read once more from their source.
        secret_key: if given as the value, this object cannot be pickled.
        session_token: as *secret_key*.
        profile: a profile of ~/.aws/config.
        anonymous: sign nothing.
        client: a boto3 client, or an object that behaves like one, for all requests; this object then cannot be pickled.
        create_bucket: the first write creates the bucket if it is missing; until then it looks empty.
        max_concurrency: the most requests that one call sends in parallel.
        multipart_chunk_size: minimum size of a part, in bytes (5 MiB to 5 GiB); parts grow so that 10,000 suffice.
        multipart_threshold: content of a reader or file of at most so many bytes is sent by one request.
        storage_class: of new objects, such as "STANDARD_IA".
        server_side_encryption: of new objects: "AES256" or "aws:kms".
        sse_kms_key_id: the key of "aws:kms".
        request_payer: "requester" for a Requester Pays bucket; the URLs of `get_url` carry it.
        content_type: of new objects; by default guessed from the name. The one in an `ObjectInfo` takes precedence.
        acl: of new objects, a canned ACL such as "bucket-owner-full-control".
        accelerate: use the bucket's Transfer Acceleration endpoint.
        addressing_style: "auto", "path" or "virtual".
        ca_bundle: a file of certificates to trust instead of the default authorities.
        checksum: sent with each upload for the service to verify: "md5", "crc32", "sha256", or "auto": CRC-32 or SHA-256
            for Amazon, and MD5, which every service supports, for others.
        attempts: the most attempts of a request if the network or the service fails.
        connect_timeout: seconds to wait for a connection.
        io_timeout: seconds to wait for the next bytes, when sending or receiving.
        clock: seconds since the epoch.
        sleep: called with the seconds to wait.

    Raises:
        ConfigurationError: a parameter is wrong.
    """

    @takes(S3Settings)
    def __init__(self, *given: Any, **parameters: Any) -> None:
        self._bucket = Bucket(S3Settings(*given, **parameters))

    def __getstate__(self) -> dict[str, Any]:
        settings = self._bucket.settings
        if settings.client is not None:
            raise ConfigurationError(
                f"{self.location}: a client cannot be pickled; set region, endpoint_url and profile instead of client",
                parameter="client",
                backend=self.location,
            )
        refuse_pickle(
            self.location,
            *settings.secrets[1:],  # an access key is no secret
            advice='a profile, the environment, "env:NAME" or "file:PATH"',
        )
        return {"settings": settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._bucket = Bucket(state["settings"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._bucket.settings.bucket

    @property
    def prefix(self) -> str:
        """The prefix of all keys, without leading and trailing slashes."""
        return self._bucket.settings.prefix

    @property
    def client(self) -> Any:
        """The boto3 client."""
        with self._bucket.translated_errors("create a client for"):
            return self._bucket.router.client

    @override
    def exists(self, identifier: str) -> bool:
        if not identifiers.is_valid(identifier):
            return False
        try:
            self._bucket.head(identifier)
        except BucketNotFoundError:
            if not self._bucket.may_be_missing:
                raise
            return False
        except (FileNotFoundError, InvalidIdentifierError):  # with the prefix it may be too long
            return False
        return True

    @override
    def read(self, identifier: str, *, version_id: str | None = None) -> bytes:
        """The whole object. Its length and, if the service returns one, its checksum are verified.

        Args:
            identifier: the object.
            version_id: of an older version, in a bucket that keeps them.

        Raises:
            NotFoundError: there is none; a FileNotFoundError.
            IntegrityError: the content did not match the checksum, twice.
        """
        source = self._bucket.read_source(identifier, version_id)
        content = read_whole(source)
        return read_again(source) if content is None else content

    @override
    def write(self, identifier: str, content: Content) -> bool:
        self._bucket.put(identifier, plain(content))
        return True

    @override
    def delete(self, identifier: str) -> bool:
        self._bucket.head(identifier)
        self._bucket.delete(identifier)
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
        # The order of code points is that of the UTF-8 bytes, as there are no surrogates.
        return sorted(identifier for identifier in found if glob.matches(identifier))

    @override
    def get_path(self, identifier: str) -> str:
        """`s3://bucket/prefix/identifier`, where "%", "#" and "?" are percent-encoded, as in every URL."""
        return f"s3://{self.bucket}/{url_escaping.escaped(self._bucket.key(identifier))}"

    @override
    def size(self, identifier: str) -> int:
        size = self._bucket.head(identifier).size
        if size is None:
            raise StorageError(
                f"the service did not return the size of {identifier!r} in {self.location}",
                identifier=identifier,
                backend=self.location,
            )
        return size

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        self._bucket.key(dest_id)
        if source_id == dest_id:
            self._bucket.head(source_id)
            return True
        self._bucket.copy(self._bucket, source_id, dest_id)
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
            and not source._bucket.router.boto3.verifies_checksums
            & self._bucket.router.boto3.verifies_checksums
        ):
            raise ConfigurationError(
                f"{source.location} and {self.location} are different services: use sync() or migrate()",
                parameter="source",
                backend=self.location,
            )
        self._bucket.copy(source._bucket, source_id, source_id if dest_id is None else dest_id)
        return True

    @property
    def endpoint(self) -> str | None:
        """The service's URL; None if the given client does not have one."""
        found = getattr(getattr(self.client, "meta", None), "endpoint_url", None)
        return found.rstrip("/") if isinstance(found, str) else None

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        self._bucket.key(dest_id)
        source = self._bucket.head(source_id)
        if source_id == dest_id:
            return True
        self._bucket.copy(self._bucket, source_id, dest_id, source)
        if self._bucket.head(dest_id).size != source.size:
            raise IntegrityError(
                f"the copy of {source_id!r} at {dest_id!r} differs in size; nothing was deleted",
                identifier=source_id,
                backend=self.location,
            )
        self._bucket.delete(source_id, source.etag)  # unless another writer has replaced it meanwhile
        return True

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        self._bucket.put(identifier, reader, info, verify=verify)
        return True

    @override
    def stat(self, identifier: str, *, version_id: str | None = None) -> ObjectInfo:
        """The object's metadata.

        Args:
            identifier: the object.
            version_id: of an older version, in a bucket that keeps them.

        Raises:
            NotFoundError: there is none.
        """
        # Other services may return the checksum that the uploader claimed, unverified.
        with self._bucket.translated_errors("look up", identifier):
            verified = self._bucket.requests.verifies_checksums
        extra = {"ChecksumMode": "ENABLED"} if verified else {}
        head = self._bucket.head(identifier, **version_parameter(version_id), **extra)
        return head.info(identifier, head.digest("sha256") if verified else None)

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        with self._bucket.listing():
            found = listing.objects(self._bucket.requests, self._bucket.root, prefix, self.location, on_skip)
            if self.bucket.endswith("--x-s3"):
                # Directory buckets are listed unsorted ("ListObjectsV2", Amazon S3 API Reference).
                found = iter(sorted(found, key=lambda info: info.identifier))
            yield from found

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        with self._bucket.listing():
            yield from listing.level(self._bucket.requests, self._bucket.root, prefix, self.location, on_skip)

    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        return batches.look_up(self._bucket, self.stat, identifiers)

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
            NotFoundError: there is no such object; raised here, not at the first read.
            ValueError: another mode.
        """
        check_mode(mode)
        if mode == "rb":
            source = self._bucket.read_source(identifier, version_id)
            raw = RawObjectReader(source)
            source.saw(raw.head)
            return StoppingReader(raw)
        errors = partial(self._bucket.translated_errors, "write", identifier)
        sink = self._bucket.send(identifier, lambda to: uploading.StreamUpload(to, errors=errors))
        return cast(BinaryIO, Writer(sink))

    @override
    def read_range(
        self, identifier: str, start: int, end: int | None = None, *, version_id: str | None = None
    ) -> bytes:
        check_range(start, end)
        return read_span(self._bucket.read_source(identifier, version_id), start, end)

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        return read_counted(batches.read_many(self._bucket, self.read, identifiers), progress)

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        return batches.write_many(self._bucket, items, verify=verify)

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        return batches.delete_many(self._bucket, identifiers)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        return self.hooks.download(identifier, path, unwatched)

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        return self.hooks.upload(path, identifier, unwatched)

    @override
    def create(self, identifier: str, content: Content) -> bool:
        try:
            self._bucket.put_if(identifier, content, {"IfNoneMatch": "*"})
        except PreconditionFailedError:
            return False
        return True

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        try:
            stored = self._bucket.put_if(identifier, content, {"IfMatch": f'"{etag}"'})
        except BucketNotFoundError:
            raise
        except (PreconditionFailedError, FileNotFoundError) as error:
            raise PreconditionFailedError(
                f"{identifier!r} in {self.location} is gone, or its ETag is no longer {etag!r}",
                identifier=identifier,
                backend=self.location,
            ) from error
        return stored.etag or ""

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        """The digest of the object, lower-case hex; the one that Amazon has stored if it has one, else computed.

        Args:
            identifier: the object.
            algorithm: one of `hashlib.algorithms_guaranteed`.

        Raises:
            NotFoundError: there is no such object.
            ConfigurationError: the algorithm is unknown.
        """
        return self.hooks.checksum(identifier, algorithm, unwatched)

    @override
    def get_url(
        self, identifier: str, expires_in: int = 3600, *, method: Literal["GET", "PUT"] = "GET"
    ) -> str:
        """A URL that a plain HTTP client can fetch, or PUT to, without credentials. No I/O.

        Args:
            identifier: the object.
            expires_in: seconds until the URL expires, at most 7 days.
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
        with self._bucket.translated_errors("sign a URL for", identifier):
            return self._bucket.router.boto3.presigned(
                calls[method], self._bucket.key(identifier), expires_in
            )

    @override
    def flush(self) -> bool:
        return True  # S3 acknowledges only what is durable

    @property
    @override
    def capabilities(self) -> Capability:
        # Not CHECKSUM: few objects have a digest that the service verified, so most are read.
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
        return self._bucket.location

    @property
    @override
    def hooks(self) -> Hooks:
        return S3Hooks(self, self._bucket)

    @override
    def close(self) -> None:
        self._bucket.close()

    def abort_incomplete_uploads(self, older_than: timedelta = timedelta(days=1)) -> int:
        """Abort unfinished uploads beneath the prefix; their parts take space, which is billed, until then.

        Args:
            older_than: only uploads that began longer ago than this.

        Returns:
            The number of uploads aborted.
        """
        return self._bucket.abort_uploads(
            datetime.fromtimestamp(self._bucket.settings.clock(), UTC) - older_than
        )
