"""What the response to each operation must have to be taken for a success, and what it then tells.

A captive portal, a wrong endpoint or a proxy also answers "200 OK", and some operations send it before they fail.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn, Protocol, TypeVar

from typing_extensions import Buffer

from storage_backend.backends.s3.errors import (
    S3ResponseError,
    UnreachableError,
    response_error_of,
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

FIRST = "bytes=0-0"  # the Range of an object's first byte
MOST_ERROR = 64 << 10  # bytes that are read of a response that is no success

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)


class S3Response(Protocol):
    """What `http.HTTPResponse` has."""

    status: int
    headers: dict[str, str]
    length: int | None

    def read(self, size: int = -1, /) -> bytes:
        """Read on."""

    def readinto(self, buffer: Buffer, /) -> int:
        """Read on into *buffer*."""

    def close(self) -> None:
        """Let go of the connection."""

    def drain(self, at_most: int) -> bool:
        """Read and drop the rest."""


def head_response(answer: S3Response) -> ObjectHead:
    """The metadata in a successful response to HeadObject.

    Raises:
        UnexpectedResponseError: it is no response to this operation; as all functions here.
        EmbeddedError: it is an error document; as all functions here.
    """
    _require(answer, "etag" in answer.headers, "an ETag")
    answer.close()
    length = answer.headers.get("content-length", "")
    return head_of(answer.headers, int(length) if length.isdecimal() else None)


def put_response(answer: S3Response) -> ObjectHead:
    """The metadata in a successful response to PutObject or UploadPart."""
    _require(answer, "etag" in answer.headers, "an ETag")
    _require_no_body(answer)
    return head_of(answer.headers, None)


def delete_response(answer: S3Response) -> None:
    """Check a successful response to DeleteObject."""
    # S3 itself answers 204; "200 OK" without a body could be anybody's.
    ours = answer.status == 204 or any(name.startswith("x-amz-") for name in answer.headers)
    _require(answer, ours, "status 204")
    _require_no_body(answer)


def get_response(answer: S3Response, *, ranged: bool) -> tuple[S3Response, int, int | None]:
    """A successful response to GetObject, where its body begins in the object, and the object's size if it tells."""
    _require(answer, answer.status in {200, 206} and "etag" in answer.headers, "an object with an ETag")
    given = answer.headers.get("content-range")
    if given is None:
        _require(answer, answer.status == 200, "Content-Range with status 206")
        # A connection can break at any time, so its end is no proof that the body is complete.
        framed = answer.length is not None or "transfer-encoding" in answer.headers
        _require(answer, framed, "Content-Length, or a body in chunks")
        return answer, 0, answer.length
    # Some services send a range with status 200. Unasked it is not the object, whatever its status.
    _require(answer, ranged, "the whole object")
    found = _RANGE.fullmatch(given)
    if found is None:
        _refuse(answer, "Content-Range, bytes first-last/size")
    first, last = int(found[1]), int(found[2])
    whole = None if found[3] == "*" else int(found[3])
    _require(
        answer,
        first <= last < (last + 1 if whole is None else whole),
        "Content-Range within the object",
    )
    _require(answer, answer.length in {None, last - first + 1}, "as many bytes as Content-Range says")
    return answer, first, whole


def size_from_head(
    answer_etag: str | None, ask_head: Callable[[], ObjectHead], ask_first_byte: Callable[[], GetResponse]
) -> int | None:
    """The size of an object where the response to a GET does not tell: nothing else shows that the body was cut short.

    Args:
        answer_etag: of the response.
        ask_head: requests the object's HEAD.
        ask_first_byte: requests its first byte, whose Content-Range tells the size where a proxy answers HEAD without a length.
    """
    head = ask_head()
    if head.size is None:
        try:
            got = ask_first_byte()
        except Exception as error:
            refused = response_error_of(error)
            if refused is None or refused.status != 416:
                raise
            return 0  # an empty object has no first byte
        got.body.close()
        head = got.head
    if head.etag != answer_etag:
        raise UnreachableError(ConnectionError("a response of unknown length, and the object changed"), 1)
    return head.size


def xml_response(parse: Callable[[bytes], T]) -> Callable[[S3Response], T]:
    """Reads a response by *parse*."""

    def read(answer: S3Response) -> T:
        try:
            body = answer.read(MOST_DOCUMENT + 1)
        finally:
            answer.close()
        if len(body) > MOST_DOCUMENT:
            raise too_long(body)
        return parse(body)

    return read


def error_response(answer: S3Response, method: str) -> S3ResponseError:
    """The error in a response that is no success, which is closed."""
    headers = answer.headers
    try:
        body = b"" if method == "HEAD" else answer.read(MOST_ERROR)
        answer.drain(MOST_ERROR)
    except OSError:
        body = b""  # the status alone says enough
    finally:
        answer.close()
    refused = parse_error(body)
    date = http_date(headers["date"]) if "date" in headers else None
    return S3ResponseError(
        answer.status,
        refused.code if refused else "",
        refused.message if refused else "",
        region=headers.get("x-amz-bucket-region") or (refused.region if refused else None),
        retry_after=seconds_of(headers.get("retry-after")),
        server_time=None if date is None else date.timestamp(),
        redirected=headers.get("location"),
    )


def _require(answer: S3Response, fulfilled: bool, expected: str) -> None:
    if not fulfilled:
        _refuse(answer, expected)


def _require_no_body(answer: S3Response) -> None:
    """Check that there is no body, and read to its end, so that the connection can be used again."""
    if answer.length == 0:
        answer.close()
        return
    try:
        body = answer.read(MOST_ERROR)
    finally:
        answer.close()
    if body.strip():
        _raise(answer, "no body", body)


def _refuse(answer: S3Response, expected: str) -> NoReturn:
    try:
        body = answer.read(MOST_ERROR)
    finally:
        answer.close()
    _raise(answer, expected, body)


def _raise(answer: S3Response, expected: str, body: bytes) -> NoReturn:
    refused = parse_error(body)
    if refused is not None:
        raise EmbeddedError(refused)
    kind = answer.headers.get("content-type", "no Content-Type")
    raise unexpected(expected, f"status {answer.status}, {kind}: {_text(body)}")


def _text(body: bytes) -> str:
    return body[:1000].decode(errors="replace")
