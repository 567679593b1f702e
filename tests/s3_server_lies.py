"""Lies: answers that a hostile server, or a broken box before a good one, gives in the place of the proper ones.

Only what contradicts itself or HTTP, or what the checksum of an object shows to be wrong, is told: nobody can find out that a
service has given a consistent answer about another object.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeAlias

from tests.s3_server_faults import Fault, alter, error_200, raw, reply
from tests.s3_server_wire import Request, Response

Draw: TypeAlias = random.Random
Lie: TypeAlias = Callable[[Draw, Request], Fault]

LATE = 4.0  # seconds
MANY = 32 << 20  # bytes of what has no end: more than anybody may read

# Not 404, 412 and 416, which are answers, whoever gives them.
STATUSES = [
    *(
        100,
        101,
        199,
        201,
        202,
        203,
        204,
        205,
        206,
        207,
        226,
        299,
        300,
        301,
        302,
        303,
        304,
        305,
        307,
        308,
        399,
    ),
    *(400, 401, 402, 403, 405, 406, 407, 408, 409, 411, 413, 414, 415, 417, 418, 421, 425, 429, 431, 451),
    *(500, 501, 502, 503, 504, 505, 507, 508, 511, 599, 600, 999),
]
CODES = [
    *("AccessDenied", "InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "NotImplemented"),
    *("ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "BadDigest"),
    *(
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "InvalidRequest",
        "EntityTooLarge",
        "",
        "Nonsense",
    ),
]
TEXTS = [
    *("", " ", "0", "-1", "1e9", "99999999999999999999", "nan", "inf", "\u00e9", "a" * 5000, "%00", "<x>"),
    *(
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Mon, 99 Foo 99999 99:99:99 GMT",
        "*/*",
    ),
]
HEADERS = [
    *(
        "Last-Modified",
        "Content-Type",
        "x-amz-version-id",
        "x-amz-checksum-type",
        "x-amz-meta-mtime",
        "Expires",
    ),
    *("x-amz-server-side-encryption", "Date", "Retry-After", "x-amz-bucket-region", "Location", "Connection"),
]
PAGES = [
    b"",
    b" \r\n\t",
    b"<html><body>Log in</body></html>",
    b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body/></html>',
    b'{"error": "not here"}',
    b'<!DOCTYPE a [<!ENTITY b "cccccccccc">]><ListBucketResult>&b;</ListBucketResult>',
    b"<a>" * 20_000 + b"</a>" * 20_000,
    b"<ListBucketResult>" * 3,
    b"<Error><Code></Code></Error>",
    b"<Error/>",
    b"\xff\xfe<\x00E\x00r\x00r\x00o\x00r\x00/\x00>\x00",
    b"\x00\x01\x02",
    b"<CopyObjectResult><ETag></ETag></CopyObjectResult>",
    b"<DeleteResult><Error><Code>AccessDenied</Code></Error></DeleteResult>",
    b"<DeleteResult><Error><Key>another key</Key><Code>AccessDenied</Code></Error></DeleteResult>",
]


def page(draw: Draw, _: Request) -> Fault:
    """A page of somebody else."""
    kinds = ["text/html", "application/xml", "application/json", ""]
    answer = Response(200, {"Content-Type": draw.choice(kinds)}, draw.choice(PAGES), draw.random() < 0.5)
    return alter(lambda _: answer)


def status(draw: Draw, _: Request) -> Fault:
    """Another status, with or without a document."""
    number = draw.choice(STATUSES)
    if draw.random() < 0.3:
        return alter(lambda response: replace(response, status=number))
    return reply(
        number,
        draw.choice(CODES),
        xml=draw.random() < 0.6,
        retry_after=draw.choice([None, *TEXTS[:8]]),
        applied=draw.random() < 0.5,
    )


def error_inside(draw: Draw, _: Request) -> Fault:
    """An error document with status 200."""
    return error_200(draw.choice(CODES), applied=draw.random() < 0.5, padding=draw.choice([0, 5000]))


def no_etag(_: Draw, __: Request) -> Fault:
    """No ETag, in headers and document."""

    def change(response: Response) -> Response:
        headers = {name: value for name, value in response.headers.items() if name != "ETag"}
        return replace(response, headers=headers, body=response.body.replace(b"ETag>", b"Tag>"))

    return alter(change)


def odd_header(draw: Draw, request: Request) -> Fault:
    """A header with a value that nobody expects."""
    name, value = draw.choice(HEADERS), draw.choice(TEXTS)
    if request.operation == "GetObject" and draw.random() < 0.3:
        name, value = draw.choice(
            [
                ("ETag", 'W/"weak"'),
                ("ETag", '"another"'),
                ("x-amz-checksum-crc32", value),
                ("Content-Encoding", "gzip"),
            ]
        )

    def change(response: Response) -> Response:
        return replace(response, headers={**response.headers, name: value.encode().decode("latin-1")})

    return alter(change)


def wrong_range(draw: Draw, _: Request) -> Fault:
    """A Content-Range that contradicts itself or the length, or that nobody asked for."""
    value = draw.choice(
        [
            "bytes 5-1/9",
            "bytes 0-999999999/9",
            "bytes */9",
            "items 0-1/2",
            "bytes 0-0",
            "bytes 0-0/0",
            "0-5/6",
            "bytes",
        ]
    )

    def change(response: Response) -> Response:
        number = draw.choice([200, 206])
        if response.status == 206 and draw.random() < 0.5:  # the length contradicts
            return replace(response, body=response.body + b"more")
        return replace(response, status=number, headers={**response.headers, "Content-Range": value})

    return alter(change)


def wrong_size(draw: Draw, _: Request) -> Fault:
    """Another size of an object in the answer to HEAD."""
    size = draw.choice([0, 1, 100, 10_000_000])
    return alter(lambda response: replace(response, body=bytes(size)))


def half_in_chunks(draw: Draw, _: Request) -> Fault:
    """A body in chunks, or only a part of it, that ends as if it were whole; no length is told."""
    share = draw.choice([0.0, 0.5, 1.0])
    return alter(
        lambda response: replace(
            response, body=response.body[: int(len(response.body) * share)], chunked=True
        )
    )


def flipped(draw: Draw, request: Request) -> Fault:
    """Another byte in a body that has a checksum."""
    if "range" in request.headers:
        return half_in_chunks(draw, request)
    at = draw.randrange(1 << 20)

    def change(response: Response) -> Response:
        body = bytearray(response.body)
        if body and response.status == 200:
            body[at % len(body)] ^= 1 << (at % 8)
        return replace(response, body=bytes(body))

    return alter(change)


def listing(draw: Draw, _: Request) -> Fault:
    """A page of a listing that has what none should."""
    keys = ["key 0", "..", "a//b", "/", "x" * 2000, "%FF", "key 0", "other", "a%00b", "key%0A0", "%2e%2e/x"]
    size = draw.choice(["1", "-1", "", "x", "9" * 18, "9" * 40, " 7 "])
    date = draw.choice(["2024-01-02T03:04:05.000Z", "", "never", "99999-01-01T00:00:00Z", "2024-01-02"])
    entries = "".join(
        f"<Contents><Key>{draw.choice(keys)}</Key><LastModified>{date}</LastModified><ETag>&quot;e&quot;</ETag>"
        f"<Size>{size}</Size></Contents>"
        for _ in range(draw.randrange(4))
    )
    more = draw.choice(["true", "false", "", "maybe"])
    token = draw.choice(["", "<NextContinuationToken>t</NextContinuationToken>", "<NextContinuationToken/>"])
    encoding = draw.choice(["", "<EncodingType>url</EncodingType>"])
    text = f"<ListBucketResult>{encoding}<IsTruncated>{more}</IsTruncated>{token}{entries}</ListBucketResult>"
    return alter(lambda _: Response(200, {"Content-Type": "application/xml"}, text.encode()))


def head_of_nobody(draw: Draw, _: Request) -> Fault:
    """What is no head of HTTP/1.1, or one that says two things about the body."""
    length = re.compile(rb"Content-Length: \d+", re.IGNORECASE)
    ways: list[Callable[[bytes], bytes]] = [
        lambda _: b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        lambda _: b"\r\n" * 10,
        lambda head: head.replace(b"HTTP/1.1", b"HTTP/2"),
        lambda head: head.replace(b"HTTP/1.1 2", b"HTTP/1.1 2x"),
        lambda head: head.replace(b"\r\n", b"\n"),
        lambda head: head.replace(b"\r\nDate:", b"\r\n folded\r\nDate:"),
        lambda head: head.replace(b"\r\nDate:", b"\r\nX: a\0b\r\nDate:"),
        lambda head: head.replace(b"\r\nDate:", b"\r\nX: " + b"a" * 100_000 + b"\r\nDate:"),
        lambda head: b"HTTP/1.1 100 Continue\r\n\r\n" * 40 + head,
        lambda head: b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + head,
        lambda head: head[: draw.randrange(len(head))],
        lambda head: length.sub(b"Content-Length: -5", head),
        lambda head: length.sub(b"Content-Length: 5\r\nContent-Length: 6", head),
        lambda head: length.sub(b"Content-Length: +7", head),
        lambda head: length.sub(b"Content-Length: 999999999999999", head),
        lambda head: length.sub(b"Content-Length: " + b"9" * 40, head),
        lambda head: length.sub(b"Transfer-Encoding: gzip", head),
        lambda head: length.sub(b"Transfer-Encoding: chunked", head),
        lambda head: length.sub(lambda found: found[0] + b"\r\nTransfer-Encoding: chunked", head),
        lambda head: length.sub(b"X: y", head),
    ]
    way = draw.choice(ways)
    return raw(lambda head, body: [way(head) + body])


def wrong_end(draw: Draw, _: Request) -> Fault:
    """A body that ends too early, or not where it should."""
    junk = draw.choice(
        [b"\0" * 10, b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nETag: "e"\r\n\r\nbad', b"a" * 100_000]
    )
    ways: list[Callable[[bytes], bytes]] = [
        lambda body: body[: draw.randrange(len(body) + 1)],
        lambda body: body + junk,
        lambda body: body.replace(b"\r\n0\r\n\r\n", b"\r\nzz\r\n\r\n"),
        lambda body: body.replace(b"\r\n0\r\n\r\n", b"\r\n0\r\nno trailer\r\n\r\n"),
        lambda body: body.replace(b"\r\n0\r\n\r\n", b"\r\n0\r\n"),
    ]
    way = draw.choice(ways)
    return raw(lambda head, body: [head + way(body)])


def endless(draw: Draw, _: Request) -> Fault:
    """A head, a document, a line or trailers without an end."""
    begin, piece = draw.choice(
        [
            (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n"),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n<Abc>\r\n",
                b"7\r\n<a>b</a\r\n1\r\n>\r\n",
            ),
            (b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n<Error>\r\n", b"1\r\n \r\n"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n<Error>", b" "),
        ]
    )
    block = piece * (65536 // len(piece))
    return raw(lambda _head, _body: [begin, *[block] * (MANY // len(block))])


def late(draw: Draw, _: Request) -> Fault:
    """Nothing for longer than anybody waits, after some of the answer. Nothing is done later that was asked for meanwhile."""
    count = draw.randrange(400)

    def change(head: bytes, body: bytes) -> Iterator[bytes]:
        data = head + body
        yield data[:count]
        time.sleep(LATE)
        yield data[count:]

    return raw(change)


def dripping(draw: Draw, _: Request) -> Fault:
    """Everything, a byte at a time."""
    count = draw.randrange(1, 60)

    def change(head: bytes, body: bytes) -> Iterator[bytes]:
        data = head + body
        for at in range(count):
            yield data[at : at + 1]
            time.sleep(0.001)
        yield data[count:]

    return raw(change)


EVERYWHERE: list[Lie] = [
    page,
    status,
    error_inside,
    head_of_nobody,
    wrong_end,
    endless,
    odd_header,
    dripping,
    no_etag,
]
OF: dict[str, list[Lie]] = {
    "GetObject": [*[wrong_range, half_in_chunks, flipped] * 2],
    "ListObjectsV2": [*[listing] * 4, half_in_chunks],
    "HeadObject": [half_in_chunks, wrong_size, wrong_size],
}


class Liar:
    """Chooses which requests are lied to, and how; to be `Faults.choose`.

    Attributes:
        told: how often each lie was.
    """

    def __init__(self, draw: Draw, *, rate: float = 0.5, stalls: int = 0) -> None:
        self._draw = draw
        self._rate = rate
        self._stalls = stalls  # each costs a timeout
        self.told: Counter[str] = Counter()

    @property
    def lies(self) -> Iterable[str]:
        """The names of all."""
        return {lie.__name__ for lie in [*EVERYWHERE, late, *(lie for lies in OF.values() for lie in lies)]}

    def __call__(self, request: Request) -> Fault | None:
        draw = self._draw
        if draw.random() > self._rate:
            return None
        lie = draw.choice(EVERYWHERE + OF.get(request.operation, []))
        if self._stalls and draw.random() < 0.02:
            self._stalls -= 1
            lie = late
        if lie is endless:  # which costs more than others
            lie = endless if self._stalls and draw.random() < 0.3 else page
        self.told[lie.__name__] += 1
        return lie(draw, request)
