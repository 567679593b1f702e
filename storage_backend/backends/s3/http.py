"""HTTPConnection and ConnectionPool: a small, strict HTTP/1.1 client.

Strict, since guessing the end of a body can lose data: any message not framed exactly by RFC 9112 is an error, and a connection
returns to its pool only if its state is certain.
"""

from __future__ import annotations

import errno
import math
import os
import re
import select
import socket
import ssl
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from typing_extensions import Buffer

from storage_backend.backends.s3.file_parts import PIECE, FilePart
from storage_backend.backends.s3.http_response import (
    HEAD_LIMIT,
    NAME,
    RECEIVE,
    HTTPProtocolError,
    HTTPResponse,
    parse_head,
)
from storage_backend.backends.s3.http_sockets import dial, hang_up, kernel_timeout

INFORMATIONAL_LIMIT = 16  # 1xx responses before the final one
SMALL = 64 << 10  # bytes; up to this size copying is cheaper than a separate packet or TLS record

_REQUEST = re.compile(
    rf"{NAME} [\x21-\x7e]+ HTTP/1\.1\r\n(?:{NAME}: [\t\x20-\x7e\x80-\xff]*\r\n)*\r\n", re.ASCII
)
_OWN = re.compile(r"\r\n(content-length|transfer-encoding):", re.ASCII | re.IGNORECASE)
_PEER_GONE = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError)
_MORE = getattr(socket, "MSG_MORE", 0)  # Linux: the head is sent in one packet with the body

Payload: TypeAlias = Buffer | FilePart
"""A request's body."""


class StaleConnectionError(ConnectionError):
    """The peer closed a *reused* connection before any byte of a response: send again at once, on a new connection."""


class ConnectionPool:
    """Idle connections to one origin, most recently used first. Thread-safe and fork-safe.

    There is no lock, which could stay locked after a fork: each operation on the deque is atomic, and a connection belongs
    to the process that opened it.

    Args:
        host: as for `HTTPConnection`.
        port: as for `HTTPConnection`.
        tls: as for `HTTPConnection`.
        connect_timeout: as for `HTTPConnection`.
        io_timeout: as for `HTTPConnection`.
        idle: maximum number of idle connections.
        idle_seconds: how long a connection is kept idle.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        connect_timeout: float = 5.0,
        io_timeout: float = 60.0,
        idle: int = 16,
        idle_seconds: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dial = partial(
            HTTPConnection, host, port, tls=tls, connect_timeout=connect_timeout, io_timeout=io_timeout
        )
        self._limit = idle
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._idle: deque[tuple[HTTPConnection, float]] = deque()
        self._inherited: list[
            HTTPConnection
        ] = []  # the parent's, kept so that its TLS objects are not finalised here
        self._closed = False

    def exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: Payload = b""
    ) -> HTTPResponse:
        """Send a request over an idle connection or a new one; closing the response returns it to the pool.

        A StaleConnectionError drops all idle connections, so the next attempt uses a new one.

        Raises:
            ValueError: as `HTTPConnection.exchange`, as are all others.
        """
        connection = self._take() or self._dial()
        try:
            response = connection.exchange(method, target, headers, body)
        except BaseException as error:
            # A failure before anything was sent leaves the connection usable.
            self._take_back(connection, not connection._busy)
            if isinstance(error, StaleConnectionError):
                self._drop()
            raise
        response._give_back = self._take_back
        return response

    def close(self) -> None:
        """Close all idle connections, and from now on each one that is returned. Idempotent."""
        self._closed = True
        self._drop()

    def _take(self) -> HTTPConnection | None:
        while True:
            try:
                connection, since = self._idle.pop()
            except IndexError:
                return None
            usable = self._is_own(connection) and self._clock() - since <= self._idle_seconds
            if usable and not connection.idle_is_broken():
                return connection
            connection.close()

    def _take_back(self, connection: HTTPConnection, usable: bool) -> None:
        if not self._is_own(connection) or not usable:
            connection.close()
            return
        now = self._clock()
        self._idle.append((connection, now))
        try:
            while True:
                oldest, since = self._idle.popleft()
                if len(self._idle) < self._limit and now - since <= self._idle_seconds:
                    self._idle.appendleft((oldest, since))
                    break
                oldest.close()
        except IndexError:
            pass
        if self._closed:
            self._drop()

    def _drop(self) -> None:
        while True:
            try:
                connection, _ = self._idle.pop()
            except IndexError:
                return
            self._is_own(connection)
            connection.close()

    def _is_own(self, connection: HTTPConnection) -> bool:
        """Whether this process opened *connection*; if not, keep it from being finalised."""
        if connection._pid == os.getpid():
            return True
        self._inherited.append(connection)
        return False


class HTTPConnection:
    """One connection. Used by one thread at a time.

    Args:
        host: name or address; with TLS the certificate must match it.
        port: TCP port.
        tls: None for plain HTTP.
        connect_timeout: seconds for each address, and again for the TLS handshake.
        io_timeout: seconds for a single send or receive.

    Attributes:
        reused: whether an exchange was completed on it.

    Raises:
        TimeoutError: a timeout passed.
        ssl.SSLCertVerificationError: the certificate is not trusted, or for another host.
        OSError: the host cannot be reached.
    """

    def __init__(
        self, host: str, port: int, *, tls: ssl.SSLContext | None, connect_timeout: float, io_timeout: float
    ) -> None:
        self.reused = False
        self._origin = f"{host}:{port}"
        self._pid = os.getpid()
        self._io_timeout = io_timeout
        self._sock = dial(host, port, tls, connect_timeout)
        # Closes once, when called or garbage-collected, without a ResourceWarning.
        self._finalizer = weakref.finalize(self, hang_up, self._sock, self._pid)
        self._tls = isinstance(self._sock, ssl.SSLSocket)
        self._timeout = kernel_timeout(self._sock, io_timeout)
        self._sock.settimeout(self._timeout)
        self._readable = select.poll()
        self._readable.register(self._sock, select.POLLIN)
        self._data = b""  # received, and consumed up to _at
        self._at = 0
        self._busy = False  # from a request to the end of its response
        self._heard = False  # a byte of the response was received
        self._ragged = False  # TLS ended without close_notify, so an attacker may have cut it
        self._informational = 0
        self._final: bytes | None = None

    def exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: Payload = b""
    ) -> HTTPResponse:
        """Send a request and receive the head of its response.

        Args:
            method: the HTTP method.
            target: path and query, percent-encoded.
            headers: with "host"; "content-length" is added.
            body: the body.

        Raises:
            ValueError: the request has a line break, NUL or space in the wrong place. Nothing was sent.
            StaleConnectionError: the peer had closed this reused connection.
            HTTPProtocolError: the response is malformed.
            ConnectionError: the peer closed or reset the connection without a response.
            FileChangedError: the file became shorter.
            TimeoutError: a single send or receive took longer than `io_timeout`.
        """
        if self._busy or not self._finalizer.alive:
            raise ValueError(f"{self._origin}: the connection is closed, or its last response is unread")
        self._check_process()
        payload = _prepared(body)
        head = request_head(
            method, target, headers, payload.size if isinstance(payload, FilePart) else len(payload)
        )
        self._busy = True
        self._heard = False
        self._informational = 0
        self._final = None
        try:
            try:
                whole = self._send(head, payload)
            except BlockingIOError:
                raise self._timeout_error("could be sent") from None
            except (*_PEER_GONE, ssl.SSLError) as error:
                # A server may send an error response and close without reading the rest of the request (RFC 9112, 9.5).
                return HTTPResponse(self, method, self._head_before_close(error), whole=False)
            return HTTPResponse(self, method, self._head(), whole=whole)
        except BaseException:
            self.close()
            raise

    def idle_is_broken(self) -> bool:
        """Whether the peer has closed the idle connection or sent unsolicited bytes."""
        if self._busy or not self._finalizer.alive or self._at < len(self._data):
            return True
        if isinstance(self._sock, ssl.SSLSocket):
            return self._sock.pending() > 0 or (bool(self._readable.poll(0)) and self._has_unsolicited_data())
        return bool(self._readable.poll(0))

    def close(self) -> None:
        """Close the socket; in a forked child only its copy of the descriptor. Idempotent."""
        self._finalizer()

    def _has_unsolicited_data(self) -> bool:
        """Whether TLS data was received, and not only a session ticket or a key update."""
        self._sock.settimeout(0)
        try:
            self._sock.recv(1)
        except ssl.SSLWantReadError:
            return False
        except OSError:
            return True
        finally:
            self._sock.settimeout(self._timeout)
        return True

    # Sending

    def _send(self, head: bytes, body: memoryview | FilePart) -> bool:
        """Send the request; False if a final response arrived before the end of the body."""
        sock = self._sock
        if isinstance(body, FilePart):
            sock.sendall(head, 0 if self._tls else _MORE)
            return self._push(body.sender(sock, by_kernel=not self._tls), 0, body.size)
        if not body:
            sent = sock.send(head)
        elif self._tls:
            sent = sock.send(b"".join((head, body[:SMALL])))
        else:
            # Does not block until a long body is sent: the response may come first.
            sent = sock.sendmsg((head, body[:PIECE]), (), socket.MSG_DONTWAIT if len(body) > SMALL else 0)
        if sent < len(head):
            sock.sendall(memoryview(head)[sent:])
        position = max(sent - len(head), 0)
        return position == len(body) or self._push(
            lambda position: sock.send(body[position : position + PIECE]), position, len(body)
        )

    def _push(self, step: Callable[[int], int], position: int, size: int) -> bool:
        """Call *step*, which sends from a position and returns how much, until *size* is reached or a response arrives."""
        self._sock.settimeout(0)
        either = select.poll()
        either.register(self._sock, select.POLLIN | select.POLLOUT)
        patience = math.ceil(self._io_timeout * 1000)
        try:
            while position < size:
                if self._has_response():
                    return False
                try:
                    position += step(position)
                except (BlockingIOError, ssl.SSLWantWriteError):
                    # A peer that has responded may have stopped reading, so wait for either.
                    if not either.poll(patience):
                        raise TimeoutError(
                            f"{self._origin}: nothing could be sent for {self._io_timeout:g} s"
                        ) from None
            return True
        finally:
            self._sock.settimeout(self._timeout)

    def _has_response(self) -> bool:
        """Whether the head of a final response has arrived. The socket is non-blocking."""
        if not self._readable.poll(0):
            return False
        try:
            more = self._receive(RECEIVE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        if not more:
            raise ConnectionResetError(f"{self._origin} closed the connection while the body was sent")
        self._append(more)
        self._final = self._next_head()
        return self._final is not None

    def _head_before_close(self, error: OSError) -> bytes:
        """The response head that the peer sent before it closed the connection; raises *error* if there is none."""
        try:
            return self._head()
        except (ConnectionError, TimeoutError):
            if self.reused and not self._heard:
                raise StaleConnectionError(f"{self._origin} closed the idle connection") from error
            if isinstance(error, ssl.SSLError):
                raise HTTPProtocolError(f"{self._origin}: TLS: {error}") from error
            raise error from None

    # Receiving

    def _head(self) -> bytes:
        """The head of the final response."""
        found = self._final or (self._next_head() if self._at < len(self._data) else None)
        while found is None:
            try:
                more = self._receive(RECEIVE)
            except _PEER_GONE as error:
                if self.reused and not self._heard:
                    raise StaleConnectionError(f"{self._origin} reset the idle connection") from error
                raise
            if not more:
                if self._heard:
                    raise HTTPProtocolError(f"{self._origin} closed the connection within a head")
                if self.reused:
                    raise StaleConnectionError(f"{self._origin} closed the idle connection")
                raise ConnectionResetError(f"{self._origin} closed the connection without a response")
            self._append(more)
            found = self._next_head()
        return found

    def _next_head(self) -> bytes | None:
        """The next final head in the received data, unparsed; None if it is incomplete."""
        while True:
            end = self._data.find(b"\r\n\r\n", self._at)
            if (len(self._data) if end < 0 else end + 4) - self._at > HEAD_LIMIT:
                raise HTTPProtocolError(f"{self._origin} sent a head of more than {HEAD_LIMIT:,} bytes")
            if end < 0:
                begin = self._data[self._at : self._at + 7]
                if not b"HTTP/1.".startswith(begin):
                    raise HTTPProtocolError(f"{self._origin} does not speak HTTP/1.1: it begins {begin!r}")
                return None
            head = self._data[self._at : end]
            self._at = end + 4
            if head[9:12] >= b"200":
                return head
            status = parse_head(head, self._origin).status
            self._informational += 1
            # 101 would change the protocol, which was not requested (RFC 9110, 7.8).
            if status == 101 or self._informational > INFORMATIONAL_LIMIT:
                raise HTTPProtocolError(f"{self._origin} sent {status} instead of a response")

    def _append(self, more: bytes) -> None:
        self._heard = True
        self._data = self._data[self._at :] + more if self._at < len(self._data) else more
        self._at = 0

    def _receive(self, size: int) -> bytes:
        """Receive at most *size* bytes; b"" at the end."""
        self._check_process()
        try:
            return self._sock.recv(size)
        except BlockingIOError:
            raise self._timeout_error("came") from None
        except ssl.SSLError as error:
            self._tls_trouble(error)
            return b""

    def _receive_into(self, view: memoryview) -> int:
        self._check_process()
        try:
            return self._sock.recv_into(view)
        except BlockingIOError:
            raise self._timeout_error("came") from None
        except ssl.SSLError as error:
            self._tls_trouble(error)
            return 0

    def _timeout_error(self, what: str) -> OSError:
        """The error for EAGAIN: on a blocking socket it means that the kernel's timeout has passed."""
        if self._sock.gettimeout() == 0:
            return BlockingIOError(errno.EAGAIN, "not yet")
        return TimeoutError(f"{self._origin}: nothing {what} for {self._io_timeout:g} s")

    def _tls_trouble(self, error: ssl.SSLError) -> None:
        """Note an end without close_notify; raise anything else."""
        if isinstance(error, ssl.SSLWantReadError):
            raise error
        if not isinstance(error, ssl.SSLEOFError):
            raise HTTPProtocolError(f"{self._origin}: TLS: {error}") from error
        self._ragged = True

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ValueError(
                f"{self._origin}: this connection belongs to process {self._pid}, not to its child"
            )

    def _line(self, what: str) -> bytes:
        """The next line of a chunked body's framing, without the line break."""
        while (end := self._data.find(b"\r\n", self._at)) < 0 and len(self._data) - self._at <= HEAD_LIMIT:
            more = self._receive(RECEIVE)
            if not more:
                raise HTTPProtocolError(f"{self._origin} closed the connection within {what}")
            self._append(more)
        if end < 0 or end - self._at > HEAD_LIMIT:
            raise HTTPProtocolError(f"{self._origin} sent more than {HEAD_LIMIT:,} bytes as {what}")
        line = self._data[self._at : end]
        self._at = end + 2
        return line


def request_head(method: str, target: str, headers: Mapping[str, str], size: int) -> bytes:
    """The head of a request.

    Raises:
        ValueError: the server would parse it differently.
    """
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    own = _OWN.search("\r\n".join(lines))
    if own is not None:
        raise ValueError(f"the header {own[1]!r} is set from the body and cannot be given")
    if size or method in {"PUT", "POST"}:
        lines.append(f"content-length: {size}")
    head = "\r\n".join(lines) + "\r\n\r\n"
    # The count detects a line break inside a line, which matches the pattern as another header.
    if _REQUEST.fullmatch(head) is None or head.count("\n") != len(lines) + 1:
        # Values may be signatures and tokens, so they are not in the message.
        names = ", ".join(map(repr, headers))
        raise ValueError(
            f"a character that cannot be sent is in the method, the target, or a name or value of {names}"
        )
    return head.encode("latin-1")


def _prepared(body: Payload) -> memoryview | FilePart:
    """*body* in a form to send; a small part of a file is read, so that it is sent in one packet with the head."""
    if not isinstance(body, FilePart):
        return memoryview(body).cast("B")
    return body if body.size > SMALL else memoryview(body.read_all())
