"""Messages: the heads of requests and responses of HTTP/1.1, written and read strictly (RFC 9110, RFC 9112)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # a "token": RFC 9110, 5.6.2
_RESPONSE = re.compile(
    rf"HTTP/1\.([01]) ([1-9][0-9]{{2}})(?: [^\r\n\0]*)?((?:\r\n{NAME}:[^\r\n\0]*)*)", re.ASCII
)
_REQUEST = re.compile(
    rf"{NAME} [\x21-\x7e]+ HTTP/1\.1\r\n(?:{NAME}: [\t\x20-\x7e\x80-\xff]*\r\n)*\r\n", re.ASCII
)
_OWN = re.compile(r"\r\n(content-length|transfer-encoding):", re.ASCII | re.IGNORECASE)


class ProtocolError(ConnectionError):
    """The peer does not speak HTTP/1.1, or ended a message before its end."""


class Head(NamedTuple):
    """The head of a response."""

    status: int
    headers: dict[str, str]
    keep_alive: bool  # as far as version and "Connection" go


def request_head(method: str, target: str, headers: Mapping[str, str], size: int) -> bytes:
    """The head of a request.

    Raises:
        ValueError: it would not be read as it is meant.
    """
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    own = _OWN.search("\r\n".join(lines))
    if own is not None:
        raise ValueError(f"the header {own[1]!r} follows from the body and cannot be given")
    if size or method in {"PUT", "POST"}:
        lines.append(f"content-length: {size}")
    head = "\r\n".join(lines) + "\r\n\r\n"
    # The number of lines shows a break inside one, which the pattern alone would take for one more header.
    if _REQUEST.fullmatch(head) is None or head.count("\n") != len(lines) + 1:
        # Values stay out of the message: they hold signatures and tokens.
        names = ", ".join(map(repr, headers))
        raise ValueError(
            f"a character that cannot be sent is in the method, the target, or a name or value of {names}"
        )
    return head.encode("latin-1")


def response_head(head: bytes, origin: str) -> Head:
    """The head of a response from *origin*, without the empty line at its end.

    Raises:
        ProtocolError: it is none.
    """
    found = _RESPONSE.fullmatch(head.decode("latin-1"))
    if found is None:
        raise ProtocolError(f"{origin} sent a malformed head: {head[:100]!r}")
    minor, status, fields = found.groups()
    headers: dict[str, str] = {}
    for line in fields.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    options = headers.get("connection", "").lower().replace(" ", "").replace("\t", "").split(",")
    return Head(int(status), headers, keep_alive=minor == "1" and "close" not in options)


def framing(method: str, head: Head, origin: str) -> tuple[int | None, bool]:
    """The length of the body, and whether it is chunked (RFC 9112, 6.3)."""
    given = head.headers.get("content-length")
    length = None
    if given is not None:
        values = [value.strip(" \t") for value in given.split(",")]
        if not all(value.isascii() and value.isdigit() and len(value) <= 18 for value in values):
            raise ProtocolError(f"{origin} sent a malformed Content-Length: {given[:40]!r}")
        length = int(values[0])
        if any(int(value) != length for value in values):
            raise ProtocolError(f"{origin} sent contradictory lengths: {given[:40]!r}")
    if method == "HEAD" or head.status in {204, 304}:
        return 0, False
    coding = head.headers.get("transfer-encoding")
    if coding is None:
        return length, False
    if coding.lower() != "chunked":
        raise ProtocolError(f"{origin} sent an unknown Transfer-Encoding: {coding[:40]!r}")
    return None, True
