"""Validates the response to each operation and parses it.

A captive portal, a wrong endpoint or a proxy may also send "200 OK", and some operations send it before they fail.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn, Protocol, TypeVar

from typing_extensions import Buffer

from storage_backend.backends.s3.errors import (
    S3ResponseError,
    UnreachableError,
    is_refusal,
    seconds_of,
)
from storage_backend.backends.s3.object_head import ObjectHead, head_of, http_date
from storage_backend.backends.s3.requests import GetResponse
from storage_backend.backends.s3.xml_documents import (
    MOST_DOCUMENT,
    EmbeddedError,
    parse_error,
    too_long,
    unexpected,
)

T = TypeVar("T")

FIRST = "bytes=0-0"  # the Range header for the first byte of an object
MOST_ERROR = 64 << 10  # bytes that are read of an error response

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)


class S3Response(Protocol):
    """A response of `http.HTTPResponse` or of a handler (moto)."""

    status: int
    headers: dict[str, str]
    length: int | None

    def read(self, size: int = -1, /) -> bytes:
        """As `BodyReader`."""

    def readinto(self, buffer: Buffer, /) -> int:
        """As `BodyReader`."""

    def close(self) -> None:
        """As `BodyReader`."""

    def drain(self, at_most: int) -> bool:
        """Read and discard the rest, of *at_most* bytes, so that the connection can be reused."""


def head_response(response: S3Response) -> ObjectHead:
    """The metadata in a successful response to HeadObject.

    Raises:
        UnexpectedResponseError: it is not a response to this operation. All functions here raise these two.
        EmbeddedError: it is an error document.
    """
    _require(response, "etag" in response.headers, "an ETag")
    response.close()
    length = response.headers.get("content-length", "")
    return head_of(response.headers, int(length) if length.isdecimal() else None)


def put_response(response: S3Response) -> ObjectHead:
    """The metadata in a successful response to PutObject or UploadPart."""
    _require(response, "etag" in response.headers, "an ETag")
    _require_no_body(response)
    return head_of(response.headers, None)


def delete_response(response: S3Response) -> None:
    """Check a successful response to DeleteObject."""
    # S3 sends 204; "200 OK" without a body may come from any server.
    ours = response.status == 204 or any(name.startswith("x-amz-") for name in response.headers)
    _require(response, ours, "status 204")
    _require_no_body(response)


def get_response(response: S3Response, *, ranged: bool) -> tuple[S3Response, int, int | None]:
    """A successful response to GetObject, the offset of its body in the object, and the object's size if given."""
    _require(response, response.status in {200, 206} and "etag" in response.headers, "an object with an ETag")
    given = response.headers.get("content-range")
    if given is None:
        _require(response, response.status == 200, "Content-Range with status 206")
        # A connection can break at any time, so its end does not prove that the body is complete.
        framed = response.length is not None or "transfer-encoding" in response.headers
        _require(response, framed, "Content-Length, or a body in chunks")
        return response, 0, response.length
    # Some services send a range with status 200. Without a Range in the request it is an error with either status.
    _require(response, ranged, "the whole object")
    found = _RANGE.fullmatch(given)
    if found is None:
        _refuse(response, "Content-Range, bytes first-last/size")
    first, last = int(found[1]), int(found[2])
    whole = None if found[3] == "*" else int(found[3])
    _require(
        response,
        first <= last < (last + 1 if whole is None else whole),
        "Content-Range within the object",
    )
    _require(response, response.length in {None, last - first + 1}, "as many bytes as Content-Range says")
    return response, first, whole


def size_from_head(
    etag: str | None, head_object: Callable[[], ObjectHead], get_first_byte: Callable[[], GetResponse]
) -> int | None:
    """The size of an object if the response to a GET has none: without it, a body that was cut short looks complete.

    Args:
        etag: the ETag of that response.
        head_object: sends HeadObject.
        get_first_byte: gets the first byte, whose Content-Range has the size if a proxy removes Content-Length from HEAD.
    """
    head = head_object()
    if head.size is None:
        try:
            got = get_first_byte()
        except Exception as error:
            if not is_refusal(error, 416):
                raise
            return 0  # an empty object has no first byte
        got.body.close()
        head = got.head
    if head.etag != etag:
        raise UnreachableError(ConnectionError("a response of unknown length, and the object changed"), 1)
    return head.size


def xml_response(parse: Callable[[bytes], T]) -> Callable[[S3Response], T]:
    """A function that reads a response's document and parses it by *parse*."""

    def read(response: S3Response) -> T:
        try:
            body = response.read(MOST_DOCUMENT + 1)
        finally:
            response.close()
        if len(body) > MOST_DOCUMENT:
            raise too_long(body)
        return parse(body)

    return read


def error_response(response: S3Response, method: str) -> S3ResponseError:
    """Read and close an error response."""
    headers = response.headers
    try:
        body = b"" if method == "HEAD" else response.read(MOST_ERROR)
        response.drain(MOST_ERROR)
    except OSError:
        body = b""  # the status is enough
    finally:
        response.close()
    refused = parse_error(body)
    date = http_date(headers["date"]) if "date" in headers else None
    return S3ResponseError(
        response.status,
        refused.code if refused else "",
        refused.message if refused else "",
        region=headers.get("x-amz-bucket-region") or (refused.region if refused else None),
        retry_after=seconds_of(headers.get("retry-after")),
        server_time=None if date is None else date.timestamp(),
        redirected=headers.get("location"),
    )


def _require(response: S3Response, fulfilled: bool, expected: str) -> None:
    if not fulfilled:
        _refuse(response, expected)


def _require_no_body(response: S3Response) -> None:
    """Check that there is no body, and read to its end, so that the connection can be reused."""
    if response.length == 0:
        response.close()
        return
    try:
        body = response.read(MOST_ERROR)
    finally:
        response.close()
    if body.strip():
        _raise(response, "no body", body)


def _refuse(response: S3Response, expected: str) -> NoReturn:
    try:
        body = response.read(MOST_ERROR)
    finally:
        response.close()
    _raise(response, expected, body)


def _raise(response: S3Response, expected: str, body: bytes) -> NoReturn:
    refused = parse_error(body)
    if refused is not None:
        raise EmbeddedError(refused)
    kind = response.headers.get("content-type", "no Content-Type")
    raise unexpected(expected, f"status {response.status}, {kind}: {_text(body)}")


def _text(body: bytes) -> str:
    return body[:1000].decode(errors="replace")
