"""The parameters of an S3Storage, and their validation."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

from storage_backend import identifiers, url_escaping
from storage_backend.errors import ConfigurationError, InvalidIdentifierError
from storage_backend.paths import expanded
from storage_backend.secrets import Secret

P = ParamSpec("P")
S = TypeVar("S")

MIB = 1 << 20
# "Amazon S3 multipart upload limits", S3 User Guide.
PART_LEAST = 5 * MIB  # bytes; minimum size of every part except the last
PART_MOST = 5 << 30  # bytes; also the limit of one PUT and of one CopyObject
PARTS_MOST = 10_000

CHECKSUMS = ("auto", "md5", "crc32", "sha256")
STYLES = ("auto", "path", "virtual")
_TEXTS = [
    "region",
    "endpoint_url",
    "profile",
    "storage_class",
    "server_side_encryption",
    "sse_kms_key_id",
    "request_payer",
    "content_type",
    "acl",
    "ca_bundle",
]


@dataclass(frozen=True)
class S3Settings:
    """The parameters of `S3Storage`, which describes them.

    Attributes:
        secrets: access key, secret key and session token.
    """

    bucket: str
    prefix: str = ""
    _: KW_ONLY
    region: str | None = None
    endpoint_url: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None
    anonymous: bool = False
    client: Any = field(default=None, repr=False)
    create_bucket: bool = False
    max_concurrency: int = 16
    multipart_chunk_size: int = 8 * MIB
    multipart_threshold: int = 16 * MIB
    storage_class: str | None = None
    server_side_encryption: str | None = None
    sse_kms_key_id: str | None = None
    request_payer: str | None = None
    content_type: str | None = None
    acl: str | None = None
    accelerate: bool = False
    addressing_style: str = "auto"
    ca_bundle: str | None = None
    checksum: str = "auto"
    attempts: int = 6
    connect_timeout: float = 5.0
    io_timeout: float = 60.0
    clock: Callable[[], float] = field(default=time.time, repr=False)
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False)
    secrets: tuple[Secret | None, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.bucket, str) or not self.bucket:
            raise _wrong("bucket", f"{self.bucket!r} must be the name of a bucket")
        object.__setattr__(self, "prefix", _normalised(self.prefix))
        names = ("access_key", "secret_key", "session_token")
        object.__setattr__(self, "secrets", tuple(_secret(name, getattr(self, name)) for name in names))
        for name in _TEXTS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise _wrong(name, f"{value!r} must be a string")
        self._check_credentials()
        self._check_endpoint()
        _one_of("checksum", self.checksum, CHECKSUMS)
        _one_of("addressing_style", self.addressing_style, STYLES)
        self._check_acceleration()
        for name in ("max_concurrency", "attempts"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise _wrong(name, f"{value!r} must be an integer of at least 1")
        for name in ("connect_timeout", "io_timeout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise _wrong(name, f"{value!r} must be a number of seconds above 0")
        for name in ("multipart_chunk_size", "multipart_threshold"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise _wrong(name, f"{value!r} must be a whole number of bytes")
        if not PART_LEAST <= self.multipart_chunk_size <= PART_MOST:
            raise _wrong(
                "multipart_chunk_size",
                f"{self.multipart_chunk_size:,} must be between 5 MiB and 5 GiB, as S3 requires",
            )
        if not 0 < self.multipart_threshold <= PART_MOST:
            raise _wrong(
                "multipart_threshold", f"{self.multipart_threshold:,} must be between 1 byte and 5 GiB"
            )
        if self.sse_kms_key_id is not None and self.server_side_encryption is None:
            raise _wrong("sse_kms_key_id", 'it requires server_side_encryption="aws:kms"')
        if self.ca_bundle is not None and not Path(expanded(self.ca_bundle)).exists():
            raise _wrong("ca_bundle", f"the file {expanded(self.ca_bundle)!r} does not exist")

    @property
    def location(self) -> str:
        """A URL from which `open_storage` opens the same storage, without secrets."""
        parameters = {
            "region": self.region,
            "endpoint_url": self.endpoint_url,
            "profile": self.profile,
            "anonymous": "true" if self.anonymous else None,
        }
        given = {name: value for name, value in parameters.items() if value is not None}
        query = url_escaping.parameters_as_text(given, safe=":/")
        path = url_escaping.quoted(self.prefix.removesuffix("/"))
        return f"s3://{url_escaping.quoted(self.bucket, safe=':')}{'/' if path else ''}{path}{'?' if query else ''}{query}"

    def object_parameters(self) -> Mapping[str, str]:
        """Parameters of each new object, with boto3's names."""
        found = {
            "StorageClass": self.storage_class,
            "ServerSideEncryption": self.server_side_encryption,
            "SSEKMSKeyId": self.sse_kms_key_id,
            "ACL": self.acl,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _check_credentials(self) -> None:
        if (self.access_key is None) != (self.secret_key is None):
            missing = "access_key" if self.access_key is None else "secret_key"
            raise _wrong(missing, "access_key and secret_key must be given together")
        if self.session_token is not None and self.access_key is None:
            raise _wrong("session_token", "it requires access_key and secret_key")
        ways = {
            "access_key": self.access_key is not None,
            "profile": self.profile is not None,
            "anonymous": self.anonymous,
            "client": self.client is not None,
        }
        chosen = [name for name, given in ways.items() if given]
        if len(chosen) > 1:
            raise _wrong(chosen[1], f"{' and '.join(chosen)} are mutually exclusive")
        if self.client is not None:
            for name in ("region", "endpoint_url", "ca_bundle"):
                if getattr(self, name) is not None:
                    raise _wrong(name, "it cannot be combined with client, which has its own")

    def _check_endpoint(self) -> None:
        if self.endpoint_url is None:
            return
        try:
            parts = urlsplit(self.endpoint_url)
            _ = parts.port  # raises ValueError where it is no number
        except ValueError as error:
            raise _wrong("endpoint_url", f"{error}; it must be https://host:port") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise _wrong("endpoint_url", "it must be https://host:port")
        if parts.username or parts.password:
            raise _wrong(
                "endpoint_url", "it must not contain a user or password: use access_key and secret_key"
            )
        if parts.query or parts.fragment:
            raise _wrong("endpoint_url", "it must not have a query or fragment")

    def _check_acceleration(self) -> None:
        if not self.accelerate:
            return
        if self.endpoint_url is not None:
            raise _wrong(
                "accelerate", "only Amazon has such endpoints, so it cannot be combined with endpoint_url"
            )
        if self.addressing_style == "path":
            raise _wrong(
                "accelerate",
                'its endpoints have the bucket in the host name, so addressing_style cannot be "path"',
            )


def _normalised(prefix: str) -> str:
    if not isinstance(prefix, str):
        raise _wrong("prefix", f"{prefix!r} must be a string")
    found = "/".join(segment for segment in prefix.split("/") if segment)
    if found:
        try:
            identifiers.check(found)
        except InvalidIdentifierError as error:
            raise _wrong("prefix", str(error)) from None
    return found


def _secret(name: str, value: str | None) -> Secret | None:
    if value is not None and not isinstance(value, str):
        raise _wrong(name, "it must be a string")
    found = Secret.given(name, value)
    if found is not None and found.literal:
        check_sendable(name, found.text)
    return found


def check_sendable(name: str, credential: str | None) -> None:
    """Check that a credential can be sent in a header: one pasted with a line break cannot.

    Raises:
        ConfigurationError: it cannot.
    """
    if credential and not (credential.isascii() and credential.isprintable()):
        kind = "a line feed" if "\n" in credential else "a non-ASCII or non-printable character"
        raise _wrong(name, f"it contains {kind}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise _wrong(name, f"{value!r} is unknown; known: {', '.join(known)}")


def _wrong(name: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{name}: {reason}", parameter=name)


def part_size(settings: S3Settings, size: int | None) -> int:
    """The part size in bytes with which 10,000 parts hold *size* bytes."""
    if size is None:
        return settings.multipart_chunk_size
    needed = -(-size // PARTS_MOST)
    # Whole MiB, so that a resumed upload has the same part boundaries.
    return max(settings.multipart_chunk_size, -(-needed // MIB) * MIB)


def takes(
    described: Callable[P, object],
) -> Callable[[Callable[Concatenate[S, ...], None]], Callable[Concatenate[S, P], None]]:
    """Give a constructor the parameters of *described*, for type checkers, `help` and `inspect` alike."""

    def decorate(constructor: Callable[Concatenate[S, ...], None]) -> Callable[Concatenate[S, P], None]:
        ours, theirs = inspect.signature(constructor), inspect.signature(described)
        parameters = [next(iter(ours.parameters.values())), *theirs.parameters.values()]
        constructor.__signature__ = theirs.replace(parameters=parameters)  # type: ignore[attr-defined]  # "PEP 362"
        return constructor

    return decorate
