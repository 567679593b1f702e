"""ObjectHead: an object's metadata, as the headers of a response tell it."""

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
"""Headers of an object besides type and metadata, and boto3's names of them."""

MD5 = re.compile("[0-9a-f]{32}")
"""An etag that may be one; that of an object uploaded in parts is not."""

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
    """An object's metadata, as the headers of a response tell it.

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

    def info(self, identifier: str, sha256: str | None = None) -> ObjectInfo:
        """What callers learn of the object."""
        return ObjectInfo(identifier, self.size, self.modified, self.etag, sha256, self.content_type)

    def digest(self, algorithm: str) -> str | None:
        """The digest that Amazon has of the whole object, in hex; None if it has none, and must be computed."""
        kept = self.digests.get(algorithm)
        if kept is not None:
            return base64.b64decode(kept).hex()
        # The etag of what one request stored and no key of its own encrypts ("Object", Amazon S3 API Reference).
        plain = algorithm == "md5" and self.encryption in {None, "AES256"}
        return self.etag if plain and MD5.fullmatch(self.etag or "") else None


def head_of(headers: Mapping[str, str], size: int | None, *, whole: bool = True) -> ObjectHead:
    """The metadata in the headers of an object of *size* bytes; digests only if they are of the *whole*."""
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
        version_id=headers.get("x-amz-version-id"),
        # "value-N" is of the parts' checksums ("Checking object integrity", S3 User Guide).
        digests={name: value for name, value in digests.items() if "-" not in value},
        encryption=headers.get("x-amz-server-side-encryption"),
        metadata=metadata,
        carried=carried,
    )


def etag_of(text: str | None) -> str | None:
    """The opaque etag in a header's or element's text, without quotes; None if there is none, or a weak one.

    A weak etag names no exact bytes, and If-Match never matches it (RFC 9110, 13.1.1).
    """
    bare = (text or "").strip()
    if bare.startswith("W/"):
        return None
    return bare.strip('"') or None


def http_date(text: str) -> datetime | None:
    """The moment in a Last-Modified or Date header, aware, UTC; None if it names none.

    The formats are those of RFC 9110, 5.6.7, and what `email.utils` takes besides.
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
