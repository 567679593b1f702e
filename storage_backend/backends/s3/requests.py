"""The frequent requests of S3 and their results; implemented by `signed_requests` and `boto3_requests`.

Parameters beyond the key have boto3's names (`Range`, `IfMatch`, `ContentMD5`, ...), in both implementations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from typing_extensions import Buffer

from storage_backend.backends.s3.file_parts import FilePart
from storage_backend.backends.s3.object_head import ObjectHead
from storage_backend.backends.s3.xml_documents import ErrorDocument, ListingPage


class BodyReader(Protocol):
    """The body of a response."""

    def read(self, size: int = -1, /) -> bytes:
        """Read *size* bytes, fewer only at the end; all the rest if it is negative."""

    def readinto(self, buffer: Buffer, /) -> int:
        """Read into *buffer* and return the number of bytes; 0 only at the end."""

    def close(self) -> None:
        """Release the connection."""


@dataclass(frozen=True, slots=True)
class GetResponse:
    """The response to GetObject.

    Attributes:
        head: the metadata of the object; its size is that of the whole object.
        start: offset of the body in the object, in bytes.
        length: bytes of the body; None if unknown.
        body: the caller closes it.
    """

    head: ObjectHead
    start: int
    length: int | None
    body: BodyReader


class ObjectRequests(Protocol):
    """The frequent requests. *key* is the full key in the bucket; errors are not translated yet (see `errors.translate`).

    Attributes:
        verifies_checksums: whether the service is Amazon's, which rejects a body that does not match its checksum.
    """

    verifies_checksums: bool

    @property
    def is_real_service(self) -> bool:
        """False for a mock or a Stubber, which expects certain requests and may omit fields of responses."""

    @property
    def checksum(self) -> str:
        """The checksum sent with a body: "md5", "crc32", "sha256", or "auto": CRC-32, or SHA-256 if it is already known.

        "none" for a mock, which expects certain parameters, and for the caller's own client, which adds its own.
        """

    def get(self, key: str, **parameters: Any) -> GetResponse:
        """GetObject."""

    def head(self, key: str, **parameters: Any) -> ObjectHead:
        """HeadObject."""

    def put(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> ObjectHead:
        """PutObject."""

    def delete(self, key: str, **parameters: Any) -> None:
        """DeleteObject."""

    def delete_batch(self, keys: Sequence[str]) -> dict[str, ErrorDocument]:
        """DeleteObjects for at most 1,000 keys; returns an error for each key that was not deleted."""

    def page(
        self, prefix: str, *, delimiter: str = "", token: str | None = None, limit: int | None = None
    ) -> ListingPage:
        """ListObjectsV2: one page of at most *limit* keys (None: the service's limit)."""

    def copy(self, key: str, source: str, **parameters: Any) -> ObjectHead:
        """CopyObject; *source* is "bucket/key"."""

    def upload_part(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> ObjectHead:
        """UploadPart."""

    def copy_part(self, key: str, source: str, **parameters: Any) -> ObjectHead:
        """UploadPartCopy."""
