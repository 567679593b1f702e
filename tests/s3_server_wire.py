"""HTTP/1.1 by hand for the S3 server of the tests: requests read, answers and resets sent, exact to the byte."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_plus
from xml.sax.saxutils import escape

HEAD_LIMIT = 64 << 10  # bytes
XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_REASONS = {
    200: "OK",
    204: "No Content",
    206: "Partial Content",
    301: "Moved Permanently",
    304: "Not Modified",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    411: "Length Required",
    412: "Precondition Failed",
    416: "Requested Range Not Satisfiable",
    429: "Too Many Requests",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Slow Down",
}


class S3Error(Exception):
    """An error that S3 answers with.

    Args:
        code: S3's; "Error responses", Amazon S3 API Reference.
        status: HTTP's.
        message: for the reader.
        headers: further ones of the answer.
        fields: further elements of the XML; *also* are those that Python cannot name.
    """

    def __init__(
        self,
        code: str,
        status: int,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        also: Mapping[str, str] | None = None,
        **fields: str | int,
    ) -> None:
        super().__init__(code, status, message)
        self.code = code
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        self.fields = {**(also or {}), **fields}


class ConnectionLostError(Exception):
    """The connection has ended, by the client's doing or by ours; there is nobody to answer."""


@dataclass(slots=True)
class Request:
    """One request.

    Attributes:
        method: GET, HEAD, PUT, POST or DELETE.
        path: as sent, with the bucket in front where the Host names it, not decoded.
        signed_path: as sent.
        query: decoded names and values, in the order sent.
        headers: with lower-case names.
        connection: the number of its connection, from 1.
        reused: whether the connection served a request before.
        operation, bucket, key: what it asks for; set by `verbs.route`.
        body: as stored: without aws-chunked, checked.
        checksums: those that were sent with the body and hold: algorithm -> value.
    """

    method: str
    path: str
    signed_path: str
    query: dict[str, str]
    pairs: list[tuple[str, str]]
    headers: dict[str, str]
    connection: int
    reused: bool
    operation: str = ""
    bucket: str = ""
    key: str = ""
    body: bytes = b""
    checksums: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Response:
    """One answer.

    Attributes:
        body: also for HEAD, which sends only its length.
        chunked: sent without Content-Length, as S3 sends its XML.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunked: bool = False


def xml(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer that is a document."""
    content = (XML + text).encode("utf-8", "surrogateescape")
    return Response(status, {"Content-Type": "application/xml", **(headers or {})}, content, chunked=True)


def text_of(value: str) -> str:
    """*value* for XML, with references for what it cannot hold, and for what parsers would change."""
    if value.isprintable():
        return escape(value)
    return "".join(f"&#x{ord(char):x};" if char < " " or char == "\x7f" else escape(char) for char in value)


def error_document(code: str, message: str, request_id: str, fields: Mapping[str, str | int]) -> str:
    """The `<Error>` document, without the declaration."""
    further = "".join(f"<{name}>{text_of(str(value))}</{name}>" for name, value in fields.items())
    return (
        f"<Error><Code>{code}</Code><Message>{text_of(message)}</Message>{further}"
        f"<RequestId>{request_id}</RequestId><HostId>{request_id}</HostId></Error>"
    )


class Connection:
    """One connection, as its thread sees it."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.served = 0
        self._buffer = bytearray()

    def wait(self) -> bool:
        """Wait for the first byte of a request; False if the client left instead."""
        return bool(self._buffer) or self._fill()

    def request(self) -> Request | None:
        """The head of the next request; None if the client left before one."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > HEAD_LIMIT or not self._fill():
                return None
        # UTF-8 and surrogates give back the same bytes when the signature is computed.
        lines = self._buffer[:end].decode("utf-8", "surrogateescape").split("\r\n")
        del self._buffer[: end + 4]
        method, target, _ = lines[0].split(" ", 2)
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            name = name.lower()
            headers[name] = f"{headers[name]},{value.strip()}" if name in headers else value.strip()
        if target.startswith("http"):  # what a proxy is asked for
            target = "/" + target.split("/", 3)[3]
        path, _, query = target.partition("?")
        pairs = [(unquote_plus(name), unquote_plus(value)) for name, value in _pairs(query)]
        request = Request(method, path, path, dict(pairs), pairs, headers, self.number, self.served > 0)
        self.served += 1
        return request

    def body(self, request: Request) -> bytes:
        """The body of *request* as sent, without the chunks of HTTP.

        Raises:
            ConnectionLostError: the client left before its end.
            S3Error: its length is not given.
        """
        if request.headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunks()
        length = request.headers.get("content-length")
        if length is None and request.method == "PUT":
            raise S3Error("MissingContentLength", 411, "You must provide the Content-Length HTTP header.")
        return self._exactly(int(length)) if length else b""

    def await_body(self, request: Request, count: int) -> None:
        """Return once *count* bytes of the body have arrived as sent, or all of it; they are still there to read.

        Raises:
            ConnectionLostError: the client left before.
        """
        chunked = request.headers.get("transfer-encoding", "").lower() == "chunked"
        if not chunked:
            count = min(count, int(request.headers.get("content-length", "0")))
        while len(self._buffer) < count and not (chunked and self._buffer.endswith(b"\r\n\r\n")):
            if not self._fill():
                raise ConnectionLostError("the client left in a body")

    def send(self, data: bytes) -> None:
        """Send all of *data*.

        Raises:
            ConnectionLostError: the client left.
        """
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise ConnectionLostError(str(error)) from error

    def reset(self) -> None:
        """End the connection with RST, after what was sent has reached the client.

        Raises:
            ConnectionLostError: always.
        """
        self.drain()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise ConnectionLostError("reset on purpose")

    def drain(self) -> None:
        """Return once the client's side has what was sent (RST throws away the rest), or does not take it for 5 s."""
        deadline = time.monotonic() + 5
        waiting = threading.Event()
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                (left,) = struct.unpack("i", fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))
                if left:
                    waiting.wait(0.001)
                    continue
            return

    def _fill(self) -> bool:
        try:
            data = self.sock.recv(256 << 10)
        except OSError:
            return False
        self._buffer += data
        return bool(data)

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if not self._fill():
                raise ConnectionLostError("the client left in a body")
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if not self._fill():
                raise ConnectionLostError("the client left in a body")
        return self._exactly(end + 2)[:-2]

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self._line().split(b";")[0], 16):
            parts.append(self._exactly(size))
            self._line()
        while self._line():
            pass
        return b"".join(parts)


def _pairs(query: str) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (each.partition("=") for each in query.split("&") if each)]


def head_of(response: Response, general: str, *, bodiless: bool, close: bool) -> bytes:
    """The status line and headers; *general* are the lines that each answer has."""
    lines = [f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Unknown')}\r\n{general}"]
    lines += [f"{name}: {value}\r\n" for name, value in response.headers.items()]
    if response.chunked:
        lines.append("Transfer-Encoding: chunked\r\n")
    elif not (bodiless and response.status in {204, 304}):
        lines.append(f"Content-Length: {len(response.body)}\r\n")
    if close:
        lines.append("Connection: close\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("utf-8", "surrogateescape")


def framed(body: bytes) -> bytes:
    """*body* as one chunk, and the last one."""
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
