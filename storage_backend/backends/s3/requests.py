"""The frequent requests of S3 and their results; `signed_requests` and `boto3_requests` both implement them.

Parameters beyond the key have boto3's names (`Range`, `IfMatch`, `ContentMD5`, ...), so that both take the same.
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
        """Read on."""

    def readinto(self, buffer: Buffer, /) -> int:
        """Read on into *buffer*; 0 only at the end."""

    def close(self) -> None:
        """Release the connection."""


@dataclass(frozen=True, slots=True)
class GetResponse:
    """The response to GetObject.

    Attributes:
        head: of the object; its size is that of the whole.
        start: where the body begins in the object, in bytes.
        length: of the body in bytes; None where unknown.
        body: to be closed.
    """

    head: ObjectHead
    start: int
    length: int | None
    body: BodyReader


class ObjectRequests(Protocol):
    """The frequent requests. *key* is the whole key in the bucket; errors are those of `errors` or botocore, untranslated.

    Attributes:
        verifies_checksums: whether the service is Amazon's, which refuses a body that does not have its checksum.
    """

    verifies_checksums: bool

    @property
    def is_real_service(self) -> bool:
        """Whether a real service answers: a mock or a Stubber expects certain requests, and may leave out fields."""

    @property
    def checksum(self) -> str:
        """Which checksums a body carries: "md5", "crc32", "sha256", or "auto": a CRC-32, or a SHA-256 if it is known.

        "none" of a mock, which expects certain parameters, and of the caller's own client, which adds its own.
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
        """DeleteObjects: of up to 1,000 keys, those that were not deleted, and why."""

    def page(
        self, prefix: str, *, delimiter: str = "", token: str | None = None, limit: int | None = None
    ) -> ListingPage:
        """ListObjectsV2: one page, of at most *limit* keys; as many as S3 gives if None."""

    def copy(self, key: str, source: str, **parameters: Any) -> ObjectHead:
        """CopyObject; *source* is "bucket/key"."""

    def upload_part(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> ObjectHead:
        """UploadPart."""

    def copy_part(self, key: str, source: str, **parameters: Any) -> ObjectHead:
        """UploadPartCopy."""
