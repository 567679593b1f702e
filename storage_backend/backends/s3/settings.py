"""Settings: what an S3Storage was told, checked, and all of it that may go into a pickle."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from storage_backend import locations
from storage_backend.errors import ConfigurationError
from storage_backend.paths import expanded
from storage_backend.secrets import Secret

MIB = 1 << 20
# "Amazon S3 multipart upload limits", S3 User Guide.
PART_LEAST = 5 * MIB  # bytes; but the last
PART_MOST = 5 << 30  # bytes; also the most that one PUT or one CopyObject takes
PARTS_MOST = 10_000

CHECKSUMS = ("auto", "md5", "crc32", "sha256")
STYLES = ("auto", "path", "virtual")
_TEXTS = (
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
)


@dataclass(frozen=True)
class Settings:
    """The parameters of `S3Storage`, which describes them."""

    bucket: str
    prefix: str
    region: str | None
    endpoint_url: str | None
    access_key: Secret | None
    secret_key: Secret | None
    session_token: Secret | None
    profile: str | None
    anonymous: bool
    client: Any = field(repr=False)
    create_bucket: bool
    max_concurrency: int
    multipart_chunk_size: int
    multipart_threshold: int
    storage_class: str | None
    server_side_encryption: str | None
    sse_kms_key_id: str | None
    request_payer: str | None
    content_type: str | None
    acl: str | None
    accelerate: bool
    addressing_style: str
    ca_bundle: str | None
    checksum: str
    attempts: int
    connect_timeout: float
    io_timeout: float
    clock: Callable[[], float] = field(default=time.time, repr=False)
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.bucket, str) or not self.bucket:
            raise _wrong("bucket", f"{self.bucket!r} is not the name of a bucket")
        for name in _TEXTS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise _wrong(name, f"{value!r} is no text")
        self._check_credentials()
        self._check_endpoint()
        _one_of("checksum", self.checksum, CHECKSUMS)
        _one_of("addressing_style", self.addressing_style, STYLES)
        self._check_acceleration()
        for name in ("max_concurrency", "attempts"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise _wrong(name, f"{value!r} is not a number of at least 1")
        for name in ("connect_timeout", "io_timeout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise _wrong(name, f"{value!r} is not a number of seconds above 0")
        for name in ("multipart_chunk_size", "multipart_threshold"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise _wrong(name, f"{value!r} is not a whole number of bytes")
        if not PART_LEAST <= self.multipart_chunk_size <= PART_MOST:
            raise _wrong(
                "multipart_chunk_size",
                f"{self.multipart_chunk_size:,} is not between 5 MiB and 5 GiB, as S3 asks",
            )
        if not 0 < self.multipart_threshold <= PART_MOST:
            raise _wrong("multipart_threshold", f"{self.multipart_threshold:,} is not between 1 and 5 GiB")
        if self.sse_kms_key_id is not None and self.server_side_encryption is None:
            raise _wrong("sse_kms_key_id", 'it needs server_side_encryption="aws:kms"')
        if self.ca_bundle is not None and not Path(expanded(self.ca_bundle)).exists():
            raise _wrong("ca_bundle", f"there is no file {expanded(self.ca_bundle)!r}")

    @property
    def location(self) -> str:
        """The place as a URL that opens it again, without secrets."""
        parameters = {
            "region": self.region,
            "endpoint_url": self.endpoint_url,
            "profile": self.profile,
            "anonymous": "true" if self.anonymous else None,
        }
        given = {name: value for name, value in parameters.items() if value is not None}
        query = locations.parameters_as_text(given, safe=":/")
        path = locations.quoted(self.prefix.removesuffix("/"))
        return f"s3://{locations.quoted(self.bucket, safe=':')}{'/' if path else ''}{path}{'?' if query else ''}{query}"

    def object_parameters(self) -> Mapping[str, str]:
        """What each new object is given, in boto3's names."""
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
            raise _wrong(missing, "access_key and secret_key come together")
        if self.session_token is not None and self.access_key is None:
            raise _wrong("session_token", "it belongs to an access_key and a secret_key")
        ways = {
            "access_key": self.access_key is not None,
            "profile": self.profile is not None,
            "anonymous": self.anonymous,
            "client": self.client is not None,
        }
        chosen = [name for name, given in ways.items() if given]
        if len(chosen) > 1:
            raise _wrong(chosen[1], f"{' and '.join(chosen)} contradict each other; give one")
        if self.client is not None:
            for name in ("region", "endpoint_url", "ca_bundle"):
                if getattr(self, name) is not None:
                    raise _wrong(name, "the client that was given has one already")

    def _check_endpoint(self) -> None:
        if self.endpoint_url is None:
            return
        try:
            parts = urlsplit(self.endpoint_url)
            _ = parts.port
        except ValueError as error:
            raise _wrong("endpoint_url", f"{error}; it is of the form https://host:port") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise _wrong("endpoint_url", "it is of the form https://host:port")
        if parts.username or parts.password:
            raise _wrong("endpoint_url", "no user and password: use access_key and secret_key")
        if parts.query or parts.fragment:
            raise _wrong("endpoint_url", "it has no query and no fragment")

    def _check_acceleration(self) -> None:
        if not self.accelerate:
            return
        if self.endpoint_url is not None:
            raise _wrong("accelerate", "only Amazon has such endpoints, and endpoint_url names another")
        if self.addressing_style == "path":
            raise _wrong(
                "accelerate", 'its endpoints name the bucket in the host, so not addressing_style="path"'
            )


def secret(name: str, value: str | None) -> Secret | None:
    """The secret that *value* means.

    Raises:
        ConfigurationError: it is no text, or cannot be sent.
    """
    if value is not None and not isinstance(value, str):
        raise _wrong(name, "it is no text")
    found = Secret.given(name, value)
    if found is not None and found.literal:
        check_sendable(name, found.text)
    return found


def check_sendable(name: str, credential: str | None) -> None:
    """Check that a credential can stand in a header, as what was read or pasted with its line's end cannot.

    Raises:
        ConfigurationError: it cannot.
    """
    if credential and not (credential.isascii() and credential.isprintable()):
        kind = "a line feed" if "\n" in credential else "a character that no credential has"
        raise _wrong(name, f"there is {kind} in it")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise _wrong(name, f"{value!r} is unknown; known: {', '.join(known)}")


def _wrong(name: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{name}: {reason}", parameter=name)


def part_size(settings: Settings, size: int | None) -> int:
    """How long each part is, in bytes, so that 10,000 of them hold *size* bytes."""
    if size is None:
        return settings.multipart_chunk_size
    needed = -(-size // PARTS_MOST)
    # Whole MiB, so that the parts of a resumed upload fall on the same bounds.
    return max(settings.multipart_chunk_size, -(-needed // MIB) * MIB)
