"""ObjectHead: an object's metadata, parsed from the headers of a response."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from storage_backend.info import ObjectInfo

CARRIED: Mapping[str, str] = {
    "cache-control": "CacheControl",
    "content-disposition": "ContentDisposition",
    "content-encoding": "ContentEncoding",
    "content-language": "ContentLanguage",
    "expires": "Expires",
    "x-amz-storage-class": "StorageClass",
}
"""Headers that a copy keeps besides type and metadata -> boto3's names."""

MD5 = re.compile("[0-9a-f]{32}")
"""An ETag that may be an MD5; that of an object uploaded in parts is not."""

_META = "x-amz-meta-"
_DIGESTS = {f"x-amz-checksum-{name}": name for name in ("crc32", "crc32c", "crc64nvme", "sha1", "sha256")}
_MONTHS = {
    f" {name} ": f"{number:02}"
    for number, name in enumerate(
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"], 1
    )
}


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """An object's metadata.

    Attributes:
        size: bytes of the whole object.
        modified: in whole seconds, UTC.
        etag: without quotes; None if it is absent or weak.
        content_type: as stored.
        digests: algorithm -> base64; only digests of the whole object.
        encryption: such as "aws:kms", with which the ETag is not an MD5.
        metadata: user metadata, with lower-case names.
        carried: what a copy keeps besides type and metadata, with boto3's names (CacheControl, StorageClass, ...).
    """

    size: int | None = None
    modified: datetime | None = None
    etag: str | None = None
    content_type: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    encryption: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    carried: Mapping[str, str] = field(default_factory=dict)

    def info(self, identifier: str, sha256: str | None = None) -> ObjectInfo:
        """The public `ObjectInfo`."""
        return ObjectInfo(identifier, self.size, self.modified, self.etag, sha256, self.content_type)

    def digest(self, algorithm: str) -> str | None:
        """The stored digest of the whole object in hex; None if there is none."""
        kept = self.digests.get(algorithm)
        if kept is not None:
            return base64.b64decode(kept).hex()
        # The ETag is the MD5 if one request stored the object, without SSE-KMS or SSE-C ("Object", Amazon S3 API Reference).
        plain = algorithm == "md5" and self.encryption in {None, "AES256"}
        return self.etag if plain and MD5.fullmatch(self.etag or "") else None


def head_of(headers: Mapping[str, str], size: int | None, *, whole: bool = True) -> ObjectHead:
    """The metadata in *headers*, of an object of *size* bytes; digests only if the response has the *whole* object."""
    digests = {}
    metadata = {}
    carried = {}
    for name, value in headers.items():
        if name in CARRIED:
            carried[CARRIED[name]] = value
        elif name.startswith("x-amz-"):
            if name in _DIGESTS:
                digests[_DIGESTS[name]] = value
            elif name.startswith(_META):
                metadata[name.removeprefix(_META)] = value
    if digests and (not whole or headers.get("x-amz-checksum-type") == "COMPOSITE"):
        digests = {}
    modified = headers.get("last-modified")
    return ObjectHead(
        size=size,
        modified=None if modified is None else http_date(modified),
        etag=etag_of(headers.get("etag")),
        content_type=headers.get("content-type"),
        # "value-N" is a checksum of the parts' checksums ("Checking object integrity", S3 User Guide).
        digests={name: value for name, value in digests.items() if "-" not in value},
        encryption=headers.get("x-amz-server-side-encryption"),
        metadata=metadata,
        carried=carried,
    )


def etag_of(text: str | None) -> str | None:
    """The ETag in the text of a header or element, without quotes; None if it is absent or weak.

    A weak ETag does not identify the exact bytes, and If-Match never matches it (RFC 9110, 13.1.1).
    """
    bare = (text or "").strip()
    if bare.startswith("W/"):
        return None
    return bare.strip('"') or None


def http_date(text: str) -> datetime | None:
    """The time in a Last-Modified or Date header, aware, UTC; None if it is not a date.

    Accepts the formats of RFC 9110, 5.6.7, and others of `email.utils`.
    """
    try:
        if (
            len(text) == 29
            and text[-4:] == " GMT"
            and text[3:5] == ", "
            and text[16] == " "
            and text[19] == ":" == text[22]
        ):
            return datetime.fromisoformat(
                f"{text[12:16]}-{_MONTHS[text[7:12]]}-{text[5:7]}T{text[17:-4]}+00:00"
            )
    except (ValueError, KeyError, IndexError):
        pass
    return _obsolete_date(text)


def _obsolete_date(text: str) -> datetime | None:
    from email.utils import parsedate_to_datetime

    try:
        found = parsedate_to_datetime(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
