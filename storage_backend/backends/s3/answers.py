"""Answers: what the success of each operation must have, and what it then says.

A portal, a wrong endpoint or a proxy answers "200 OK" too; and some services begin with it, and then have an error to tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NoReturn, Protocol, TypeVar

from typing_extensions import Buffer

from storage_backend.backends.s3.calls import CARRIED, Facts, Got
from storage_backend.backends.s3.documents import (
    MOST_DOCUMENT,
    RefusedInside,
    etag_of,
    http_date,
    parse_error,
    too_long,
    unexpected,
)
from storage_backend.backends.s3.errors import RefusalError, UnreachableError, refusal_of, seconds_of

T = TypeVar("T")

FIRST = "bytes=0-0"  # the Range of an object's first byte
MOST_ERROR = 64 << 10  # bytes of an answer that is no success that are read

_META = "x-amz-meta-"
_DIGESTS = {f"x-amz-checksum-{name}": name for name in ("crc32", "crc32c", "crc64nvme", "sha1", "sha256")}
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)


class Answer(Protocol):
    """What a `http.Response` has."""

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


def looked(answer: Answer) -> Facts:
    """What a HEAD tells of an object that is there.

    Raises:
        DocumentError: it is no answer to a HeadObject; as all others here.
        RefusedInside: it is an error document; as all others here.
    """
    _need(answer, "etag" in answer.headers, "an ETag")
    answer.close()
    length = answer.headers.get("content-length", "")
    return facts_of(answer.headers, int(length) if length.isdecimal() else None)


def stored(answer: Answer) -> Facts:
    """What the answer to a PUT tells of what was stored."""
    _need(answer, "etag" in answer.headers, "an ETag")
    _need_nothing(answer)
    return facts_of(answer.headers, None)


def removed(answer: Answer) -> None:
    """That the answer to a DELETE is one."""
    # S3 itself says 204; "200 OK" without a body could be anybody's.
    ours = answer.status == 204 or any(name.startswith("x-amz-") for name in answer.headers)
    _need(answer, ours, "status 204")
    _need_nothing(answer)


def begun(answer: Answer, *, ranged: bool) -> tuple[Answer, int, int | None]:
    """The answer to a GET, where its body begins in the object, and the whole size if it tells; its body is not read."""
    _need(answer, answer.status in {200, 206} and "etag" in answer.headers, "an object with an ETag")
    given = answer.headers.get("content-range")
    if given is None:
        _need(answer, answer.status == 200, "Content-Range with status 206")
        # The end of the connection may come at any time, and is no end of a body.
        framed = answer.length is not None or "transfer-encoding" in answer.headers
        _need(answer, framed, "Content-Length, or a body in chunks")
        return answer, 0, answer.length
    # Some services send a range with status 200. Unasked it is not the object, whatever its status.
    _need(answer, ranged, "the whole object")
    found = _RANGE.fullmatch(given)
    if found is None:
        _refuse(answer, "Content-Range, bytes first-last/size")
    first, last = int(found[1]), int(found[2])
    whole = None if found[3] == "*" else int(found[3])
    _need(
        answer,
        first <= last < (last + 1 if whole is None else whole),
        "Content-Range within the object",
    )
    _need(answer, answer.length in {None, last - first + 1}, "as many bytes as Content-Range says")
    return answer, first, whole


def told(answer_etag: str | None, head: Callable[[], Facts], first: Callable[[], Got]) -> int | None:
    """The size of an object whose answer does not tell it: then nothing else shows that a body was cut short.

    Args:
        answer_etag: of the answer.
        head: asks for the object's HEAD.
        first: asks for its first byte; whose Content-Range tells where a proxy sends HEAD without a length.
    """
    facts = head()
    if facts.size is None:
        try:
            got = first()
        except Exception as error:
            refused = refusal_of(error)
            if refused is None or refused.status != 416:
                raise
            return 0  # an empty object has no first byte
        got.body.close()
        facts = got.facts
    if facts.etag != answer_etag:
        raise UnreachableError(ConnectionError("an answer of unknown length, and the object changed"), 1)
    return facts.size


def document(parse: Callable[[bytes], T]) -> Callable[[Answer], T]:
    """Reads an answer by *parse*."""

    def read(answer: Answer) -> T:
        try:
            body = answer.read(MOST_DOCUMENT + 1)
        finally:
            answer.close()
        if len(body) > MOST_DOCUMENT:
            raise too_long(body)
        return parse(body)

    return read


def refusal(answer: Answer, method: str) -> RefusalError:
    """The error of an answer that is no success; its connection is let go of."""
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
    return RefusalError(
        answer.status,
        refused.code if refused else "",
        refused.message if refused else "",
        region=headers.get("x-amz-bucket-region") or (refused.region if refused else None),
        retry_after=seconds_of(headers.get("retry-after")),
        content_range=headers.get("content-range"),
        server_time=None if date is None else date.timestamp(),
        redirected=headers.get("location"),
    )


def facts_of(headers: Mapping[str, str], size: int | None, *, whole: bool = True) -> Facts:
    """What headers tell of an object of *size* bytes; the digests only if they are of the *whole*."""
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
    return Facts(
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


def _need(answer: Answer, fulfilled: bool, expected: str) -> None:
    if not fulfilled:
        _refuse(answer, expected)


def _need_nothing(answer: Answer) -> None:
    """Read an answer that has no body to its end, so that its connection can be used again."""
    if answer.length == 0:
        answer.close()
        return
    try:
        body = answer.read(MOST_ERROR)
    finally:
        answer.close()
    if body.strip():
        _raise(answer, "no body", body)


def _refuse(answer: Answer, expected: str) -> NoReturn:
    try:
        body = answer.read(MOST_ERROR)
    finally:
        answer.close()
    _raise(answer, expected, body)


def _raise(answer: Answer, expected: str, body: bytes) -> NoReturn:
    refused = parse_error(body)
    if refused is not None:
        raise RefusedInside(refused)
    kind = answer.headers.get("content-type", "no Content-Type")
    raise unexpected(expected, f"status {answer.status}, {kind}: {_text(body)}")


def _text(body: bytes) -> str:
    return body[:1000].decode(errors="replace")
