"""The XML documents of the S3 protocol. No input or output.

Shapes: "API Reference", Amazon S3. Elements are matched by local name, since services disagree about the namespace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from typing import Final
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from storage_backend.backends.s3.object_head import etag_of

# Bytes of a document: a page has 1,000 keys of at most 3 KiB each, percent-encoded.
MOST_DOCUMENT = 8 << 20
SHOWN = 200  # characters of an unexpected document that an error shows

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_BLANK = " \t\r\n"  # XML 1.0, production 3; str.strip() would take more


class UnexpectedResponseError(ValueError):
    """A response is malformed, cut short or of another kind; the message has the expected and the actual content.

    Attributes:
        attempts: requests made.
    """

    attempts = 1


class EmbeddedError(Exception):
    """The service sent an error document with a success status.

    Attributes:
        refused: the error document.
    """

    def __init__(self, refused: ErrorDocument) -> None:
        super().__init__(refused)
        self.refused = refused

    def __str__(self) -> str:
        return f"{self.refused.code}: {self.refused.message}"


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One object of a listing.

    Attributes:
        key: the full key, decoded.
        size: in bytes; None only from a mock client, since S3 always sends it.
        modified: aware, UTC, in whole seconds, as HEAD has them.
        etag: as from `etag_of`.
    """

    key: str
    size: int | None
    modified: datetime | None
    etag: str | None


@dataclass(frozen=True, slots=True)
class ListingPage:
    """One response to ListObjectsV2.

    Attributes:
        entries: in the service's order.
        prefixes: common prefixes, decoded, in the service's order.
        token: the continuation token; None on the last page.
    """

    entries: list[ListedObject]
    prefixes: list[str]
    token: str | None


@dataclass(frozen=True, slots=True)
class ErrorDocument:
    """An error document.

    Attributes:
        code: the error code, such as "NoSuchKey".
        message: the description.
        region: the region of the bucket, if the document has it.
        fields: the document's other fields ("Endpoint", "HostId", "RequestId", ...).
    """

    code: str
    message: str
    region: str | None
    fields: Mapping[str, str] = field(hash=False)


def parse_page(body: bytes) -> ListingPage:
    """Parse a response to ListObjectsV2.

    Raises:
        UnexpectedResponseError: it is not such a response, is cut short, has an entry without key or size, or has no
            continuation token although it is not the last page.
        EmbeddedError: it is an error document.
    """
    text = _text(body)
    page = _plain_page(text)
    return _any_page(_tree(text)) if page is None else page


def parse_error(body: bytes) -> ErrorDocument | None:
    """Parse an error document; None if *body* is not one: empty, HTML, JSON, cut short. Never raises."""
    try:
        root = _tree(_text(body))
        return _refused(root) if _local(root) == "Error" else None
    except UnexpectedResponseError:
        return None


def parse_deleted(body: bytes) -> dict[str, ErrorDocument]:
    """Parse a response to DeleteObjects: an error for each key that was not deleted.

    Raises:
        UnexpectedResponseError: it is not such a response, or has an error without key or code.
        EmbeddedError: it is an error document: nothing was deleted.
    """
    root = _rooted(_tree(_text(body)), "DeleteResult")
    failures = {}
    for child in root:
        if _local(child) == "Error":
            refused = _refused(child)
            key = refused.fields.get("Key")
            if not key:
                raise unexpected("Error with Key", child)
            failures[key] = refused
    return failures


def parse_copied(body: bytes) -> str | None:
    """Parse a response to CopyObject or UploadPartCopy: the ETag of the copy, None if it is weak.

    Raises:
        UnexpectedResponseError: it is not such a response, or has no ETag.
        EmbeddedError: the copy failed after the success status had been sent ("CopyObject", API Reference).
    """
    root = _rooted(_tree(_text(body)), "CopyObjectResult", "CopyPartResult")
    fields = _fields(root, _COPIED)
    if not fields.get("ETag"):
        raise unexpected("a copy with its ETag", root)
    return etag_of(fields["ETag"])


def delete_request(keys: Iterable[str]) -> bytes:
    """The body of a DeleteObjects for at most 1,000 keys; the response lists failures only.

    Raises:
        ValueError: XML cannot represent a key (`can_be_xml`).
    """
    parts = []
    for key in keys:
        if not can_be_xml(key):
            raise ValueError(f"XML 1.0 cannot represent the key {key!r}: delete it by DeleteObject")
        parts.append(f"<Object><Key>{key.translate(_ESCAPES)}</Key></Object>")
    objects = "".join(parts)
    return f'<Delete xmlns="{_NAMESPACE}">{objects}<Quiet>true</Quiet></Delete>'.encode()


def can_be_xml(key: str) -> bool:
    """Whether XML 1.0 can represent *key* (production 2, "Char")."""
    return _NO_CHAR.search(key) is None


def moment_of(text: str) -> datetime:
    """Parse a time in ISO 8601, such as "2024-01-02T03:04:05.678Z"; aware, UTC, in whole seconds as in Last-Modified.

    Without an offset it is UTC.

    Raises:
        UnexpectedResponseError: it is not a time.
    """
    try:
        found = datetime.fromisoformat(text.strip())
        if found.tzinfo is None:
            found = found.replace(tzinfo=UTC)
        return found.astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        raise unexpected("moment in ISO 8601", text) from None


_CHAR = r"[^\x00-\x1f<>&\ufffe\uffff]"  # text without markup; narrower than XML's
_S = rf"[{_BLANK}]*+"
_QUOTE = '(?:&quot;|&#34;|")'  # Amazon; services written in Go; others


def _maybe(*names: str) -> str:
    return "".join(rf"(?:<{name}>{_CHAR}*+</{name}>{_S})?+" for name in names)


_OWNER = rf"(?:<Owner>{_S}{_maybe('ID', 'DisplayName')}</Owner>{_S})?+"
_ENTRY: Final = re.compile(
    rf"<Contents>{_S}<Key>({_CHAR}++)</Key>{_S}"
    r"<LastModified>([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]{1,9})?+Z</LastModified>"
    rf"{_S}<ETag>{_QUOTE}([0-9A-Za-z-]++){_QUOTE}</ETag>{_S}{_maybe('ChecksumAlgorithm', 'ChecksumType')}"
    rf"<Size>([0-9]{{1,19}})</Size>{_S}{_OWNER}{_maybe('StorageClass')}{_OWNER}{_maybe('Type')}</Contents>{_S}"
)
"""An entry as Amazon, MinIO, Ceph and rclone write it; its groups equal the result of an XML parser."""


def _plain_page(text: str) -> ListingPage | None:
    """As `_any_page`, but three times as fast, for pages whose entries all match `_ENTRY`; None for others.

    The text around the entries is parsed as XML, with one element in place of all entries.
    """
    before, *found = _ENTRY.split(text)
    if not found:
        return None
    after = found[-1]
    # Otherwise there is an entry of another form, or the element found below may not be ours.
    if any(found[4:-1:5]) or "Contents" in before or "Contents" in after:
        return None
    try:
        root = _tree(f"{before}<Contents/>{after}")
        ours = [child for child in root if _local(child) == "Contents"]
        if not ours:  # the entries are in a comment, or nested
            return None
        root.remove(ours[0])
        page = _any_page(root)
        keys = _decoded(found[0::5]) if _is_encoded(root) else found[0::5]
        # Parsed once each: many entries share a second.
        seconds = {second: datetime.fromisoformat(f"{second}+00:00") for second in {*found[1::5]}}
    except ValueError:  # `_any_page` reports the error for the original document
        return None
    entries = map(
        ListedObject, keys, map(int, found[3::5]), map(seconds.__getitem__, found[1::5]), found[2::5]
    )
    return ListingPage([*entries], page.prefixes, page.token)


def _any_page(root: ET.Element) -> ListingPage:
    _rooted(root, "ListBucketResult")
    moments = cache(moment_of)
    keys, rest, prefixes = [], [], []
    for child in root:
        match _local(child):
            case "Contents":
                fields = _fields(child, _LISTED)
                if not fields.get("Key"):
                    raise unexpected("Contents with Key", child)
                keys.append(fields["Key"])
                modified = fields.get("LastModified")
                etag = etag_of(fields.get("ETag"))
                rest.append((_size(fields, child), moments(modified) if modified else None, etag))
            case "CommonPrefixes":
                prefix = _fields(child, _PREFIX).get("Prefix")
                if not prefix:
                    raise unexpected("CommonPrefixes with Prefix", child)
                prefixes.append(prefix)
    if _is_encoded(root):
        keys, prefixes = _decoded(keys), _decoded(prefixes)
    entries = [ListedObject(key, *others) for key, others in zip(keys, rest, strict=True)]
    return ListingPage(entries, prefixes, _token(root))


def _size(fields: Mapping[str, str], element: ET.Element) -> int:
    digits = fields.get("Size", "").strip(_BLANK)
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 19):
        raise unexpected("Contents with Size, a number", element)
    return int(digits)


def _token(root: ET.Element) -> str | None:
    """The continuation token. A page without IsTruncated is an error, not the last page."""
    fields = _fields(root, _CONTROL)
    match fields.get("IsTruncated", "").strip(_BLANK).lower():
        case "false" | "0":
            return None
        case "true" | "1":
            token = fields.get("NextContinuationToken")
            if not token:
                raise unexpected("NextContinuationToken, as IsTruncated is true", root)
            return token
        case _:
            raise unexpected("IsTruncated, true or false", root)


def _is_encoded(root: ET.Element) -> bool:
    return _fields(root, _CONTROL).get("EncodingType", "").strip(_BLANK) == "url"


def _decoded(texts: list[str]) -> list[str]:
    """Decode each text as `unquote_plus` does, but several times as fast.

    Raises:
        UnexpectedResponseError: one is not UTF-8. Replacement characters would name another object.
    """
    # The same few runs of %XX, such as "%3D", are frequent.
    meaning = cache(partial(unquote, errors="strict"))

    def decoded(text: str) -> str:
        return _RUN.sub(lambda run: meaning(run[0]), text.replace("+", " "))

    try:
        found = decoded("\n".join(texts)).split("\n")
        # With another length, a key has a line feed.
        return found if len(found) == len(texts) else [decoded(text) for text in texts]
    except UnicodeDecodeError as error:
        raise unexpected("keys in UTF-8", str(error.object)) from None


def _refused(error: ET.Element) -> ErrorDocument:
    fields: dict[str, str] = {}
    for child in error:
        fields.setdefault(_local(child), child.text or "")
    code = fields.pop("Code", "").strip(_BLANK)
    if not code:
        raise unexpected("Error with Code", error)
    message = fields.pop("Message", "")
    region = fields.pop("Region", "").strip(_BLANK)
    return ErrorDocument(code, message, region or None, fields)


def _rooted(root: ET.Element, *names: str) -> ET.Element:
    """Return *root* after checking that it has one of these names."""
    name = _local(root)
    if name in names:
        return root
    if name == "Error":
        raise EmbeddedError(_refused(root))
    raise unexpected(" or ".join(names), root)


def _fields(element: ET.Element, names: frozenset[str]) -> dict[str, str]:
    """The texts of the children with these names. One that is repeated or has children is an error, as it is ambiguous."""
    found: dict[str, str] = {}
    for child in element:
        name = child.tag.rpartition("}")[2]  # `_local` inlined: there are eight per entry
        if name in names:
            if name in found or len(child):
                raise unexpected(f"one plain {name}", element)
            found[name] = child.text or ""
    return found


def _local(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _text(body: bytes) -> str:
    # During a long copy the service sends white space to keep the connection open, which XML forbids before the declaration.
    try:
        return body.lstrip(_BLANK.encode()).decode()
    except UnicodeDecodeError:
        raise unexpected("XML in UTF-8", body[: SHOWN * 4].decode(errors="replace")) from None


def _tree(text: str) -> ET.Element:
    """The root of a document without declarations: by entities a small document can expand to a huge one, or read files."""
    # expat detects "<" and NUL as UTF-16, in which a declaration has other bytes.
    if "\0" in text or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise unexpected("XML without declarations", text)
    try:
        return ET.fromstring(text)  # noqa: S314 - there are no entities
    except ET.ParseError as error:
        raise unexpected(f"whole XML ({error})", text) from None


def unexpected(expected: str, found: str | ET.Element) -> UnexpectedResponseError:
    """The error for a response that has *found* instead of *expected*."""
    text = found if isinstance(found, str) else _sketch(found)
    more = "..." if len(text) > SHOWN else ""
    return UnexpectedResponseError(f"expected {expected}, but received {text[:SHOWN]!r}{more}")


def too_long(body: bytes | bytearray) -> UnexpectedResponseError:
    """The error for a response of more than `MOST_DOCUMENT` bytes, which begins with *body*."""
    return unexpected(
        f"a document of at most {MOST_DOCUMENT:,} bytes", body[: SHOWN * 4].decode(errors="replace")
    )


def _sketch(element: ET.Element) -> str:
    """The beginning of an element, one level deep: serialising all of it could recurse without bound."""
    inner = (f"<{_local(child)}>{(child.text or '')[:SHOWN]}" for child in element[:SHOWN])
    return f"<{_local(element)}>{(element.text or '')[:SHOWN]}{''.join(inner)}"


_LISTED = frozenset({"Key", "Size", "LastModified", "ETag"})
_PREFIX = frozenset({"Prefix"})
_CONTROL = frozenset({"EncodingType", "IsTruncated", "NextContinuationToken"})
_COPIED = frozenset({"ETag"})
_RUN: Final = re.compile(
    "%[0-9A-Fa-f]{2}(?:%[0-9A-Fa-f]{2})*+"
)  # begins with a literal, which is found faster
_NO_CHAR: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# A parser turns a bare "\r" into "\n" (XML 1.0, 2.11); "]]>" is not allowed in text (2.4).
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;", "\n": "&#10;", "\t": "&#9;"})
