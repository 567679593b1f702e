"""What S3 says in headers and documents, and the conditions it checks."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import parse_qsl, quote_plus
from xml.etree import ElementTree as ET

from tests.s3_server_store import Stored
from tests.s3_server_wire import S3Error, text_of

NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_KEPT = frozenset(
    {
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-type",
        "expires",
        "x-amz-server-side-encryption",
        "x-amz-server-side-encryption-aws-kms-key-id",
        "x-amz-server-side-encryption-bucket-key-enabled",
        "x-amz-storage-class",
        "x-amz-tagging",
        "x-amz-website-redirect-location",
    }
)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def check_reading(sent: Mapping[str, str], stored: Stored, headers: dict[str, str]) -> None:
    """The conditions of GET and HEAD, in the order of RFC 9110, 13.2.2."""
    match, none_match = sent.get("if-match"), sent.get("if-none-match")
    unmodified, modified = sent.get("if-unmodified-since"), sent.get("if-modified-since")
    if match is not None:
        if not names(match, stored.etag):
            raise failed("If-Match")
    elif unmodified is not None and int(stored.modified) > date_of(unmodified):
        raise failed("If-Unmodified-Since")
    same = names(none_match, stored.etag) if none_match is not None else False
    if none_match is None and modified is not None:
        same = int(stored.modified) <= date_of(modified)
    if same:
        kept_headers = {name: headers[name] for name in ("ETag", "Last-Modified")}
        raise S3Error("NotModified", 304, "Not Modified", headers=kept_headers)


def span_of(header: str | None, size: int) -> tuple[int, int] | None:
    """The first and last byte that a Range asks for; None if it is to be ignored (RFC 9110, 14.2).

    Raises:
        S3Error: none of it is there.
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    if header is None or found is None or found.group() == "bytes=-":
        return None
    first, last = found.groups()
    if first and last and int(last) < int(first):
        return None
    begin = int(first) if first else max(size - int(last), 0)
    end = min(int(last), size - 1) if first and last else size - 1
    if begin >= size:
        raise S3Error(
            "InvalidRange",
            416,
            "The requested range is not satisfiable",
            headers={"Content-Range": f"bytes */{size}"},
            RangeRequested=header,
            ActualObjectSize=size,
        )
    return begin, end


def described(stored: Stored, *, versioned: bool) -> dict[str, str]:
    """The headers of GET and HEAD."""
    headers = {
        "ETag": f'"{stored.etag}"',
        "Last-Modified": formatdate(int(stored.modified), usegmt=True),
        "Accept-Ranges": "bytes",
        "x-amz-server-side-encryption": "AES256",
        "content-type": "binary/octet-stream",
        **stored.headers,
    }
    if headers.get("x-amz-storage-class") == "STANDARD":
        del headers["x-amz-storage-class"]
    if "x-amz-tagging" in headers:
        headers["x-amz-tagging-count"] = str(len(parse_qsl(headers.pop("x-amz-tagging"))))
    if versioned:
        headers["x-amz-version-id"] = stored.version
    return headers


def written(stored: Stored) -> dict[str, str]:
    """The headers of an answer to what stored an object."""
    encryption = stored.headers.get("x-amz-server-side-encryption", "AES256")
    headers = {"ETag": f'"{stored.etag}"', "x-amz-server-side-encryption": encryption}
    return headers if stored.version == "null" else headers | {"x-amz-version-id": stored.version}


def checksum_headers(checksums: Mapping[str, str], kind: str) -> dict[str, str]:
    """The x-amz-checksum headers of an answer."""
    headers = {f"x-amz-checksum-{name}": value for name, value in checksums.items()}
    return headers | {"x-amz-checksum-type": kind} if headers else {}


def checksum_elements(checksums: Mapping[str, str], kind: str) -> str:
    """As `checksum_headers`, in XML."""
    found = "".join(
        f"<Checksum{name.upper()}>{value}</Checksum{name.upper()}>" for name, value in checksums.items()
    )
    return f"{found}<ChecksumType>{kind}</ChecksumType>" if found else ""


def kept(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that stay with an object."""
    found = {
        name: value for name, value in headers.items() if name in _KEPT or name.startswith("x-amz-meta-")
    }
    if "content-encoding" in found:
        codings = [each.strip() for each in found.pop("content-encoding").split(",")]
        if left := ",".join(each for each in codings if each and each != "aws-chunked"):
            found["content-encoding"] = left
    return found


def names(header: str, etag: str) -> bool:
    """Whether a condition's header names *etag*."""
    return header.strip() == "*" or etag in (
        each.strip().removeprefix("W/").strip('"') for each in header.split(",")
    )


def failed(condition: str) -> S3Error:
    """The error for a condition that does not hold."""
    message = "At least one of the pre-conditions you specified did not hold"
    return S3Error("PreconditionFailed", 412, message, Condition=condition)


def denied() -> S3Error:
    """The error for what is not allowed."""
    return S3Error("AccessDenied", 403, "Access Denied")


def malformed() -> S3Error:
    """The error for a document that S3 does not take."""
    message = "The XML you provided was not well-formed or did not validate against our published schema"
    return S3Error("MalformedXML", 400, message)


def parse(document: bytes) -> ET.Element:
    """The root of a document.

    Raises:
        S3Error: it is none.
    """
    try:
        return ET.fromstring(document)
    except ET.ParseError as error:
        raise malformed() from error


def number(query: Mapping[str, str], name: str, default: int) -> int:
    """A number of the query, not below 0.

    Raises:
        S3Error: it is none.
    """
    value = query.get(name, str(default))
    if not value.isascii() or not value.isdigit():
        message = f"Provided {name} not an integer or within integer range"
        raise S3Error("InvalidArgument", 400, message, ArgumentName=name, ArgumentValue=value)
    return int(value)


def encoder(query: Mapping[str, str]) -> Callable[[str], str]:
    """How names are written in a listing."""
    kind = query.get("encoding-type")
    if kind not in {None, "url"}:
        raise S3Error("InvalidArgument", 400, "Invalid Encoding Method specified in Request")
    return _url if kind else text_of


def _url(name: str) -> str:
    return quote_plus(name, safe="/")


def iso(seconds: float) -> str:
    """A time as S3's XML has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(int(seconds)))


def date_of(header: str) -> float:
    """POSIX seconds of an HTTP date."""
    return parsedate_to_datetime(header).timestamp()
