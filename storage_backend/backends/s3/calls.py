"""Calls: the requests of S3 that the verbs are made of, and what they give; made over the wire, or by a boto3 client.

Parameters beyond the key have boto3's names (`Range`, `IfMatch`, `ContentMD5`, ...), so that both take the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from typing_extensions import Buffer

from storage_backend.backends.s3.documents import Page, Refused
from storage_backend.backends.s3.http import FilePart

CARRIED: Mapping[str, str] = {
    "cache-control": "CacheControl",
    "content-disposition": "ContentDisposition",
    "content-encoding": "ContentEncoding",
    "content-language": "ContentLanguage",
    "expires": "Expires",
    "x-amz-storage-class": "StorageClass",
}
"""Headers of an object besides type and metadata, and boto3's names of them."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What an answer says of an object.

    Attributes:
        size: of the whole object, in bytes.
        modified: whole seconds, UTC.
        etag: without quotes; None where there is none, or a weak one.
        content_type: as stored.
        version_id: in a bucket with versions.
        digests: algorithm -> base64, only of the whole object.
        encryption: "aws:kms" and the like; then the etag is no MD5.
        metadata: the user's own, by lower-case names.
        carried: what a copy brings along besides type and metadata, in boto3's names (CacheControl, StorageClass, ...).
    """

    size: int | None = None
    modified: datetime | None = None
    etag: str | None = None
    content_type: str | None = None
    version_id: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    encryption: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    carried: Mapping[str, str] = field(default_factory=dict)


class Body(Protocol):
    """The bytes of an answer."""

    def read(self, size: int = -1, /) -> bytes:
        """Read on."""

    def readinto(self, buffer: Buffer, /) -> int:
        """Read on into *buffer*; 0 only at the end."""

    def close(self) -> None:
        """Let go of the connection."""


@dataclass(frozen=True, slots=True)
class Got:
    """The answer to a GET.

    Attributes:
        facts: of the object; its size is that of the whole.
        start: where the body begins in the object, in bytes.
        length: of the body in bytes; None where unknown.
        body: to be closed.
    """

    facts: Facts
    start: int
    length: int | None
    body: Body


class Calls(Protocol):
    """The frequent requests. *key* is the whole key in the bucket; what fails raises the client's own errors."""

    def get(self, key: str, **parameters: Any) -> Got:
        """GetObject."""

    def head(self, key: str, **parameters: Any) -> Facts:
        """HeadObject."""

    def put(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> Facts:
        """PutObject."""

    def delete(self, key: str, **parameters: Any) -> None:
        """DeleteObject."""

    def delete_batch(self, keys: Sequence[str]) -> dict[str, Refused]:
        """DeleteObjects: of up to 1,000 keys, those that were not deleted, and why."""

    def page(
        self, prefix: str, *, delimiter: str = "", token: str | None = None, limit: int | None = None
    ) -> Page:
        """ListObjectsV2: one page, of at most *limit* keys; as many as S3 gives if None."""

    def copy(self, key: str, source: str, **parameters: Any) -> Facts:
        """CopyObject; *source* is "bucket/key"."""

    def upload_part(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> Facts:
        """UploadPart."""

    def copy_part(self, key: str, source: str, **parameters: Any) -> Facts:
        """UploadPartCopy."""
