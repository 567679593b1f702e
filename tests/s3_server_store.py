"""What the S3 server of the tests holds: buckets, objects with their versions, uploads, checksums."""

from __future__ import annotations

import base64
import hashlib
import itertools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

FULL_OBJECT = "FULL_OBJECT"
COMPOSITE = "COMPOSITE"


@dataclass(slots=True)
class Settings:
    """What tests may set at any time.

    Attributes:
        page_size: entries of a page of a listing, at most.
        copy_limit: bytes of the largest source of one copy.
        put_limit: bytes of the largest body of one PUT.
        minimum_part: bytes of the smallest part that is not the last.
        repeatable_complete: whether a completion that is sent again with the same parts is answered as at first, as
            Amazon S3 does; otherwise with NoSuchUpload, as MinIO does.
        unannounced_checksums: whether an upload that was made for no checksum takes parts that have one, as boto3 sends
            them by default. They are checked and not kept. Amazon S3 refused them in 2024.
    """

    page_size: int = 1000
    copy_limit: int = 5 << 30
    put_limit: int = 5 << 30
    minimum_part: int = 5 << 20
    repeatable_complete: bool = True
    unannounced_checksums: bool = True


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of an object.

    Attributes:
        body: its bytes; empty for a delete marker.
        etag: without quotes.
        modified: POSIX seconds.
        headers: those kept with the object, with lower-case names: content-type, x-amz-meta-*, x-amz-storage-class...
        checksums: algorithm in lower case -> value as in the header.
        checksum_type: FULL_OBJECT or COMPOSITE.
        version: its id; "null" if the bucket has no versions.
        marker: whether it is a delete marker.
    """

    body: bytes
    etag: str
    modified: float
    headers: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    checksum_type: str = FULL_OBJECT
    version: str = "null"
    marker: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an unfinished upload; fields as in `Stored`."""

    body: bytes
    etag: str
    modified: float
    checksums: Mapping[str, str]


@dataclass(slots=True)
class Upload:
    """An unfinished multipart upload.

    Attributes:
        algorithm: of the checksum it was created with, in lower case; None without one.
    """

    key: str
    upload_id: str
    initiated: float
    headers: Mapping[str, str]
    algorithm: str | None
    checksum_type: str
    parts: dict[int, Part] = field(default_factory=dict)


class Bucket:
    """The objects and uploads of one bucket. The server's lock guards it."""

    def __init__(self, name: str, region: str, *, versioning: bool = False) -> None:
        self.name = name
        self.region = region
        self.versioning = versioning
        self.uploads: dict[str, Upload] = {}
        self.finished: dict[str, tuple[list[tuple[int, str]], str, str]] = {}
        """Upload id -> the parts that it was completed with, the key and the answer."""
        self._versions: dict[str, list[Stored]] = {}
        self._numbers = itertools.count(1)
        self._order: list[tuple[bytes, str]] | None = None

    def current(self, key: str) -> Stored | None:
        """The newest version, if it is no delete marker."""
        versions = self._versions.get(key)
        return versions[-1] if versions and not versions[-1].marker else None

    def latest(self, key: str) -> Stored | None:
        """The newest version, even if it is a delete marker."""
        versions = self._versions.get(key)
        return versions[-1] if versions else None

    def version(self, key: str, version: str) -> Stored | None:
        """The version of that id."""
        return next((each for each in self._versions.get(key, ()) if each.version == version), None)

    def next_version(self) -> str:
        """The id for what is stored next."""
        return f"v{next(self._numbers):08}" if self.versioning else "null"

    def put(self, key: str, stored: Stored) -> None:
        """Make *stored* the newest version."""
        versions = self._versions.get(key)
        if not versions or versions[-1].marker or stored.marker:
            self._order = None
        if self.versioning and versions:
            versions.append(stored)
        else:
            self._versions[key] = [stored]

    def remove(self, key: str, version: str | None = None) -> None:
        """Forget the object, or one version of it."""
        self._order = None
        if version is None:
            self._versions.pop(key, None)
            return
        kept = [each for each in self._versions.get(key, ()) if each.version != version]
        if kept:
            self._versions[key] = kept
        else:
            self._versions.pop(key, None)

    def order(self) -> list[tuple[bytes, str]]:
        """The keys in the order of listings, which is that of their UTF-8."""
        if self._order is None:
            self._order = sorted((key.encode(), key) for key in self._versions if self.current(key))
        return self._order

    def items(self) -> dict[str, Stored]:
        """Key -> newest version."""
        return {key: stored for _, key in self.order() if (stored := self.current(key))}


def checksum(algorithm: str, body: bytes) -> str:
    """The value of an x-amz-checksum header. "Checking object integrity", Amazon S3 User Guide."""
    return base64.b64encode(DIGESTS[algorithm](body)).decode()


def composite(algorithm: str, parts: list[Part]) -> str:
    """The checksum of the parts' checksums."""
    joined = b"".join(base64.b64decode(part.checksums[algorithm]) for part in parts)
    return f"{checksum(algorithm, joined)}-{len(parts)}"


def md5(body: bytes) -> str:
    """In hexadecimal, as in an ETag."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def _reflected(polynomial: int, width: int) -> Callable[[bytes], bytes]:
    """A CRC with all ones first and last, byte by byte: for the small bodies of tests."""

    def digest(body: bytes) -> bytes:
        table = _table(polynomial)
        register = ones = (1 << width) - 1
        for byte in body:
            register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
        return (register ^ ones).to_bytes(width // 8, "big")

    return digest


@lru_cache
def _table(polynomial: int) -> list[int]:
    table = []
    for value in range(256):
        register = value
        for _ in range(8):
            register = (register >> 1) ^ (polynomial if register & 1 else 0)
        table.append(register)
    return table


DIGESTS: Mapping[str, Callable[[bytes], bytes]] = {
    "crc32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    "crc32c": _reflected(0x82F63B78, 32),
    "crc64nvme": _reflected(0x9A6C9329AC4BC9B5, 64),
    "md5": lambda body: hashlib.md5(body, usedforsecurity=False).digest(),
    "sha1": lambda body: hashlib.sha1(body, usedforsecurity=False).digest(),
    "sha256": lambda body: hashlib.sha256(body).digest(),
    "sha512": lambda body: hashlib.sha512(body).digest(),
}
WHOLE = ("crc32", "crc32c", "crc64nvme")  # those that S3 can give for a whole multipart object
