"""Connection and Response: a lean, strict HTTP/1.1 client.

Strict, since what is guessed about the end of a body is lost data: anything but exact framing ("HTTP/1.1", RFC 9112)
is an error, and a connection goes back to its pool only when nothing about its state is in doubt.
"""

from __future__ import annotations

import errno
import math
import os
import re
import select
import socket
import ssl
import struct
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from typing_extensions import Buffer

from storage_backend.backends.s3.messages import (
    NAME,
    Head,
    ProtocolError,
    framing,
    request_head,
    response_head,
)
from storage_backend.forks import no_fork

HEAD_LIMIT = 64 << 10  # bytes of a head, of a chunk's size line and of the trailers
TINY = 64  # bytes of a chunk, which costs more than its content
TINY_MOST = 100_000  # such chunks of one body
INFORMATIONAL_LIMIT = 16  # 1xx responses before the final one
RECEIVE = 64 << 10  # bytes asked for where a head or a chunk's frame is expected
PIECE = 256 << 10  # bytes sent or received at a time; larger objects leave the allocator's cache
SMALL = 64 << 10  # bytes; up to here copying is cheaper than a packet, or a TLS record, of its own

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?")
_TRAILER = re.compile(rf"{NAME}:[^\r\n\0]*".encode())

_PEER_GONE = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError)
_NO_SENDFILE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # not from this kind of file: sendfile(2)
_MORE = getattr(socket, "MSG_MORE", 0)  # Linux: the head waits for the body and shares its packet


class StaleError(ConnectionError):
    """The peer ended a *reused* connection before one byte of a response: send again at once, on a fresh one."""


class FileChangedError(OSError):
    """The file that is being sent has become shorter than the part that was promised."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """A body that is *size* bytes of an open file, from *offset*. The file's own position is neither used nor moved."""

    fd: int
    offset: int
    size: int


Payload: TypeAlias = Buffer | FilePart
"""A request's body."""


class Connection:
    """One socket. Used by one thread at a time.

    Args:
        host: name or address; under TLS the certificate must be for it.
        port: TCP port.
        tls: None for plain HTTP.
        connect_timeout: seconds for each address tried, and again for the TLS handshake.
        io_timeout: seconds that a single send or receive may wait.

    Attributes:
        reused: whether a whole exchange has been done on it.

    Raises:
        TimeoutError: a wait took too long.
        ssl.SSLCertVerificationError: the certificate is not trusted, or for another name.
        OSError: it cannot be reached.
    """

    def __init__(
        self, host: str, port: int, *, tls: ssl.SSLContext | None, connect_timeout: float, io_timeout: float
    ) -> None:
        self.reused = False
        self._origin = f"{host}:{port}"
        self._pid = os.getpid()
        self._io_timeout = io_timeout
        self._sock = _dial(host, port, tls, connect_timeout)
        # Closes once, whether called or collected, without a ResourceWarning.
        self._finalizer = weakref.finalize(self, _hang_up, self._sock, self._pid)
        self._tls = isinstance(self._sock, ssl.SSLSocket)
        self._wait = _kernel_wait(self._sock, io_timeout)
        self._sock.settimeout(self._wait)
        self._readable = select.poll()
        self._readable.register(self._sock, select.POLLIN)
        self._data = b""  # received, and used up to _at
        self._at = 0
        self._busy = False  # between a request and the end of its response
        self._heard = False  # a byte of the response has come
        self._ragged = False  # TLS ended without close_notify: perhaps not by the peer
        self._informational = 0
        self._final: Head | None = None

    def exchange(self, method: str, target: str, headers: Mapping[str, str], body: Payload = b"") -> Response:
        """Send a request and receive the head of its response.

        Args:
            method: as it is sent.
            target: path and query, percent-encoded.
            headers: "host" among them; "content-length" is set here.
            body: replayable, so that the caller can send again.

        Raises:
            ValueError: the request cannot be sent as one: a line break, NUL or space where none may be. Nothing was sent.
            StaleError: as there.
            ProtocolError: as there.
            ConnectionError: the peer closed or reset the connection and left no response.
            FileChangedError: as there.
            TimeoutError: a single send or receive waited for longer than `io_timeout`.
        """
        if self._busy or not self._finalizer.alive:
            raise ValueError(f"{self._origin}: the connection is closed, or its last response is unread")
        self._check_process()
        payload = _payload(body)
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
                raise self._waited("could be sent") from None
            except (*_PEER_GONE, ssl.SSLError) as error:
                # A server that refuses a request often answers and closes without reading on.
                return Response(self, method, self._last_words(error), whole=False)
            return Response(self, method, self._head(), whole=whole)
        except BaseException:
            self.close()
            raise

    def idle_is_broken(self) -> bool:
        """Whether the idle connection has been closed by the peer, or holds bytes that nobody asked for."""
        if self._busy or not self._finalizer.alive or self._at < len(self._data):
            return True
        if isinstance(self._sock, ssl.SSLSocket):
            return self._sock.pending() > 0 or (bool(self._readable.poll(0)) and self._speaks_unasked())
        return bool(self._readable.poll(0))

    def close(self) -> None:
        """Close the socket; in another process than its own, only that process's copy of the descriptor. Idempotent."""
        self._finalizer()

    def _speaks_unasked(self) -> bool:
        """Under TLS what can be read need not be data: session tickets and key updates come at any time."""
        self._sock.settimeout(0)
        try:
            self._sock.recv(1)
        except ssl.SSLWantReadError:
            return False
        except OSError:
            return True
        finally:
            self._sock.settimeout(self._wait)
        return True

    # Sending

    def _send(self, head: bytes, body: memoryview | FilePart) -> bool:
        """Send the request; whether as a whole, since a final response may come before the end of the body."""
        sock = self._sock
        if isinstance(body, FilePart):
            sock.sendall(head, 0 if self._tls else _MORE)
            return self._push(self._reading(body) if self._tls else self._sendfile(body), 0, body.size)
        if not body:
            sent = sock.send(head)
        elif self._tls:
            sent = sock.send(b"".join((head, body[:SMALL])))
        else:
            # Not waiting for all of a long body to be taken: an answer may come first.
            sent = sock.sendmsg((head, body[:PIECE]), (), socket.MSG_DONTWAIT if len(body) > SMALL else 0)
        if sent < len(head):
            sock.sendall(memoryview(head)[sent:])
        position = max(sent - len(head), 0)
        return position == len(body) or self._push(
            lambda position: sock.send(body[position : position + PIECE]), position, len(body)
        )

    def _push(self, step: Callable[[int], int], position: int, size: int) -> bool:
        """Call *step*, which sends from a position and says how much, until *size* is reached or a response is there."""
        self._sock.settimeout(0)
        either = select.poll()
        either.register(self._sock, select.POLLIN | select.POLLOUT)
        patience = math.ceil(self._io_timeout * 1000)
        try:
            while position < size:
                if self._is_answered():
                    return False
                try:
                    position += step(position)
                except (BlockingIOError, ssl.SSLWantWriteError):
                    # A peer that has answered may have stopped reading, so this waits for both.
                    if not either.poll(patience):
                        raise TimeoutError(
                            f"{self._origin}: nothing could be sent for {self._io_timeout:g} s"
                        ) from None
            return True
        finally:
            self._sock.settimeout(self._wait)

    def _sendfile(self, part: FilePart) -> Callable[[int], int]:
        sock = self._sock.fileno()
        reading = self._reading(part)
        works = True

        def step(position: int) -> int:
            nonlocal works
            if works:
                try:
                    sent = os.sendfile(
                        sock, part.fd, part.offset + position, min(PIECE, part.size - position)
                    )
                except OSError as error:
                    if error.errno not in _NO_SENDFILE:
                        raise
                    works = False
                else:
                    return sent or _shortened(part, position)
            return reading(position)

        return step

    def _reading(self, part: FilePart) -> Callable[[int], int]:
        start, piece = 0, b""

        def step(position: int) -> int:
            nonlocal start, piece
            # TLS wants the very bytes again that it could not send ("SSL_write", OpenSSL).
            if not start <= position < start + len(piece):
                start, piece = position, _read(part, position, PIECE)
            return self._sock.send(memoryview(piece)[position - start :])

        return step

    def _is_answered(self) -> bool:
        """Whether the head of a final response is there, without waiting. The socket does not block."""
        if not self._readable.poll(0):
            return False
        try:
            more = self._receive(RECEIVE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        if not more:
            raise ConnectionResetError(f"{self._origin} closed the connection while the body was sent")
        self._append(more)
        self._final = self._parse()
        return self._final is not None

    def _last_words(self, error: OSError) -> Head:
        """The head that the peer sent before it went; *error* if there is none."""
        try:
            return self._head()
        except (ConnectionError, TimeoutError):
            if self.reused and not self._heard:
                raise StaleError(f"{self._origin} closed the idle connection") from error
            if isinstance(error, ssl.SSLError):
                raise ProtocolError(f"{self._origin}: TLS: {error}") from error
            raise error from None

    # Receiving

    def _head(self) -> Head:
        """The head of the final response."""
        found = self._final or (self._parse() if self._at < len(self._data) else None)
        while found is None:
            try:
                more = self._receive(RECEIVE)
            except _PEER_GONE as error:
                if self.reused and not self._heard:
                    raise StaleError(f"{self._origin} reset the idle connection") from error
                raise
            if not more:
                if self._heard:
                    raise ProtocolError(f"{self._origin} closed the connection within a head")
                if self.reused:
                    raise StaleError(f"{self._origin} closed the idle connection")
                raise ConnectionResetError(f"{self._origin} closed the connection without a response")
            self._append(more)
            found = self._parse()
        return found

    def _parse(self) -> Head | None:
        """The next final head in what was received, None if it is not complete."""
        while True:
            end = self._data.find(b"\r\n\r\n", self._at)
            if (len(self._data) if end < 0 else end + 4) - self._at > HEAD_LIMIT:
                raise ProtocolError(f"{self._origin} sent a head of more than {HEAD_LIMIT:,} bytes")
            if end < 0:
                begin = self._data[self._at : self._at + 7]
                if not b"HTTP/1.".startswith(begin):
                    raise ProtocolError(f"{self._origin} does not speak HTTP/1.1: it begins {begin!r}")
                return None
            head = response_head(self._data[self._at : end], self._origin)
            self._at = end + 4
            if head.status >= 200:
                return head
            self._informational += 1
            # 101 would change the protocol, which was not asked for (RFC 9110, 7.8).
            if head.status == 101 or self._informational > INFORMATIONAL_LIMIT:
                raise ProtocolError(f"{self._origin} sent {head.status} where a response was due")

    def _append(self, more: bytes) -> None:
        self._heard = True
        self._data = self._data[self._at :] + more if self._at < len(self._data) else more
        self._at = 0

    def _receive(self, size: int) -> bytes:
        """At most *size* bytes, b"" at the end."""
        self._check_process()
        try:
            return self._sock.recv(size)
        except BlockingIOError:
            raise self._waited("came") from None
        except ssl.SSLError as error:
            self._tls_trouble(error)
            return b""

    def _receive_into(self, view: memoryview) -> int:
        self._check_process()
        try:
            return self._sock.recv_into(view)
        except BlockingIOError:
            raise self._waited("came") from None
        except ssl.SSLError as error:
            self._tls_trouble(error)
            return 0

    def _waited(self, what: str) -> OSError:
        """What EAGAIN means: of a socket that blocks, that the kernel has waited for as long as it was told to."""
        if self._sock.gettimeout() == 0:
            return BlockingIOError(errno.EAGAIN, "not yet")
        return TimeoutError(f"{self._origin}: nothing {what} for {self._io_timeout:g} s")

    def _tls_trouble(self, error: ssl.SSLError) -> None:
        """Note an end without close_notify; raise anything else."""
        if isinstance(error, ssl.SSLWantReadError):
            raise error
        if not isinstance(error, ssl.SSLEOFError):
            raise ProtocolError(f"{self._origin}: TLS: {error}") from error
        self._ragged = True

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ValueError(
                f"{self._origin}: this connection belongs to process {self._pid}, not to its child"
            )

    def _line(self, what: str) -> bytes:
        """The next line of a chunked body's frame, without its end."""
        while (end := self._data.find(b"\r\n", self._at)) < 0 and len(self._data) - self._at <= HEAD_LIMIT:
            more = self._receive(RECEIVE)
            if not more:
                raise ProtocolError(f"{self._origin} closed the connection within {what}")
            self._append(more)
        if end < 0 or end - self._at > HEAD_LIMIT:
            raise ProtocolError(f"{self._origin} sent more than {HEAD_LIMIT:,} bytes as {what}")
        line = self._data[self._at : end]
        self._at = end + 2
        return line


class Response:
    """The response to one request; its body is read from the connection. Used by one thread at a time.

    Collected unclosed, it closes its connection. In a child of the process that made it, `close` is all that may be called.

    Attributes:
        status: 200 to 999.
        headers: lower-case name -> value; the values of a repeated name are joined by ", ".
        length: bytes of the body; None if only its end will tell. 0 for HEAD, 204 and 304, which have none.
        done: the whole body has arrived, and the connection may be used again.
    """

    __slots__ = (
        *("__weakref__", "_chunked", "_connection", "_ended", "_left", "_give_back", "_reusable", "_tiny"),
        *("done", "headers", "length", "status"),
    )

    def __init__(self, connection: Connection, method: str, head: Head, *, whole: bool) -> None:
        self.status = head.status
        self.headers = head.headers
        self.done = False
        self.length, self._chunked = framing(method, head, connection._origin)
        # One who sends both may have been tricked into passing on two responses as one (RFC 9112, 6.3).
        doubtful = "transfer-encoding" in head.headers and "content-length" in head.headers
        until_close = self.length is None and not self._chunked
        self._reusable = whole and head.keep_alive and not doubtful and not until_close
        # Bytes to come of the body, or of the present chunk; -1: no chunk has begun; endless where closing is the end.
        self._left = -1 if self._chunked else sys.maxsize if self.length is None else self.length
        self._ended = False
        self._tiny = 0  # chunks so far of less than TINY bytes
        self._give_back: Callable[[Connection, bool], None] | None = None  # a pool's
        self._connection: Connection | None = connection
        if self._left == 0:
            self._end(connection)

    def read(self, size: int = -1) -> bytes:
        """Exactly *size* bytes, fewer only where the body ends; all the rest if *size* is negative.

        Raises:
            ProtocolError: the body broke off, or its chunks are malformed.
            ConnectionError: the connection was reset.
            TimeoutError: nothing came for `io_timeout`.
        """
        connection = self._open()
        wanted = size if size >= 0 else sys.maxsize
        pieces = []
        try:
            while wanted > 0 and self._advance(connection) and (piece := self._take(connection, wanted)):
                wanted -= len(piece)
                pieces.append(piece)
        except BaseException:
            self._fail(connection)
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: Buffer) -> int:
        """Put at least one byte into *buffer* and return how many; 0 only at the end (or for an empty buffer).

        Raises:
            ProtocolError, ConnectionError, TimeoutError: as `read`.
        """
        connection = self._open()
        view = memoryview(buffer).cast("B")
        try:
            if not len(view) or not self._advance(connection):
                return 0
            wanted = min(len(view), self._left)
            if connection._at < len(connection._data) or (self._chunked and wanted < RECEIVE):
                piece = self._take(connection, wanted)
                view[: len(piece)] = piece
                return len(piece)
            received = connection._receive_into(view[:wanted])
            self._arrived(connection, received)
        except BaseException:
            self._fail(connection)
            raise
        return received

    def drain(self, at_most: int) -> bool:
        """Read and drop the rest if it is at most *at_most* bytes; whether the connection may be used again."""
        connection = self._connection
        if self.done or connection is None or not self._reusable:
            return self.done
        try:
            while self._advance(connection):
                if self._left > at_most:
                    return False
                at_most -= len(self._take(connection, at_most))
        except (ConnectionError, TimeoutError):
            self._fail(connection)
        except BaseException:
            self._fail(connection)
            raise
        return self.done

    def close(self) -> None:
        """Give the connection back to its pool if `done`, else close it. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._give_back is not None:
            self._give_back(connection, self.done)
        elif not self.done or connection._pid != os.getpid():
            connection.close()

    def _open(self) -> Connection:
        if self._connection is None:
            raise ValueError("the response is closed, or broke off")
        return self._connection

    def _advance(self, connection: Connection) -> bool:
        """Whether a byte of the body is next; reads the frame before it. False at the end."""
        if self._left > 0:
            return True
        if self._ended:
            return False
        if self._left == 0 and connection._line("a chunk's end"):
            raise ProtocolError(f"{connection._origin} sent a chunk that is longer than it said")
        line = connection._line("a chunk's size")
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise ProtocolError(f"{connection._origin} sent a malformed chunk size: {line[:40]!r}")
        self._left = int(found[1], 16)
        self._tiny += self._left < TINY
        if self._tiny > TINY_MOST:
            raise ProtocolError(f"{connection._origin} sent more than {TINY_MOST:,} chunks of a few bytes")
        if self._left > 0:
            return True
        allowed = HEAD_LIMIT
        while line := connection._line("the trailers"):
            allowed -= len(line) + 2
            if allowed < 0 or not _TRAILER.fullmatch(line):
                raise ProtocolError(f"{connection._origin} sent malformed or oversized trailers")
        self._end(connection)
        return False

    def _take(self, connection: Connection, limit: int) -> bytes:
        """1 to *limit* bytes that stand next; b"" where closing was the end."""
        wanted = min(limit, self._left)
        if connection._at == len(connection._data):
            # The frames of small chunks come along with their content.
            framed = self._chunked and wanted < RECEIVE
            more = connection._receive(RECEIVE if framed else min(wanted, PIECE))
            if not framed or not more:
                self._arrived(connection, len(more))
                return more
            connection._append(more)
        piece = connection._data[connection._at : connection._at + wanted]
        connection._at += len(piece)
        self._arrived(connection, len(piece))
        return piece

    def _arrived(self, connection: Connection, size: int) -> None:
        """Count *size* bytes of the body; 0 says that the peer has closed."""
        if size == 0:
            if self._chunked or self.length is not None or connection._ragged:
                short = "" if self.length is None else f" {self._left:,} bytes"
                raise ProtocolError(
                    f"{connection._origin} closed the connection{short} before the end of the body"
                )
            self._left = 0
        else:
            self._left -= size
        if self._left == 0 and not self._chunked:
            self._end(connection)

    def _end(self, connection: Connection) -> None:
        self._ended = True
        # What came beyond the end, unasked, would be taken for the next response.
        if self._reusable and connection._at == len(connection._data):
            connection._data, connection._at = b"", 0
            connection.reused = True
            connection._busy = False
            self.done = True

    def _fail(self, connection: Connection) -> None:
        self.done = False
        self.close()
        connection.close()


def _dial(host: str, port: int, tls: ssl.SSLContext | None, timeout: float) -> socket.socket:
    sock = socket.create_connection((host, port), timeout)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            # Python would otherwise take a cut connection for the end of the data.
            sock = tls.wrap_socket(
                sock, server_hostname=host, suppress_ragged_eofs=False, do_handshake_on_connect=False
            )
            _shake_hands(sock, timeout)
    except BaseException:
        sock.close()
        raise
    return sock


def _shake_hands(sock: ssl.SSLSocket, timeout: float) -> None:
    """The TLS handshake: what OpenSSL does is not forked in the middle, and what the network takes holds up no fork."""
    deadline = time.monotonic() + timeout
    sock.setblocking(False)
    while True:
        try:
            with no_fork():
                sock.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            ready = select.poll()
            ready.register(sock, select.POLLIN if isinstance(error, ssl.SSLWantReadError) else select.POLLOUT)
            if not ready.poll(max(deadline - time.monotonic(), 0) * 1000):
                raise TimeoutError(f"no TLS handshake within {timeout:g} s") from None
        else:
            return


def _kernel_wait(sock: socket.socket, timeout: float) -> float | None:
    """Have the kernel wait for at most *timeout* seconds where it can; what Python's own timeout of the socket is then.

    Python waits by a poll(2) before each call: one more system call, and one more moment in which other threads take the
    interpreter's lock.
    """
    if isinstance(sock, ssl.SSLSocket) or sys.platform != "linux":
        return timeout
    whole = int(timeout)
    value = struct.pack("@ll", whole, max(int((timeout - whole) * 1_000_000), 0 if whole else 1))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
    return None


def _hang_up(sock: socket.socket, pid: int) -> None:
    if os.getpid() != pid:
        descriptor = sock.detach()
        if descriptor >= 0:
            os.close(descriptor)
        return
    # A child that has inherited the descriptor must not keep the peer waiting. The peer may have been faster.
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def _payload(body: Payload) -> memoryview | FilePart:
    """*body*, ready to be sent; a small part of a file is read, so that it shares the head's packet."""
    if not isinstance(body, FilePart):
        return memoryview(body).cast("B")
    if body.size > SMALL:
        return body
    pieces = []
    position = 0
    while position < body.size:
        pieces.append(_read(body, position, SMALL))
        position += len(pieces[-1])
    return memoryview(b"".join(pieces))


def _read(part: FilePart, position: int, size: int) -> bytes:
    data = os.pread(part.fd, min(size, part.size - position), part.offset + position)
    if not data:
        _shortened(part, position)
    return data


def _shortened(part: FilePart, position: int) -> NoReturn:
    raise FileChangedError(
        f"the file became shorter while it was sent: {position:,} of {part.size:,} bytes from {part.offset:,} are there"
    )
