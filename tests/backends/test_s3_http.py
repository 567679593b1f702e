"""The HTTP client, against peers that send exact bytes."""

import datetime as dt
import fcntl
import gc
import ipaddress
import itertools
import os
import select
import signal
import socket
import ssl
import struct
import termios
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_backend.backends.s3.file_parts import FileChangedError, FilePart
from storage_backend.backends.s3.http import ConnectionPool, HTTPConnection, StaleConnectionError
from storage_backend.backends.s3.http_response import HEAD_LIMIT, HTTPProtocolError, HTTPResponse
from storage_backend.testing.subject import content_of, same

HOST = {"host": "127.0.0.1"}
PATIENCE = 60.0  # seconds; reached only where something hangs
BRIEF = 0.2  # seconds; for waits that are meant to run out
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        # Nagle's algorithm would hold a second small piece back, and a close with unread data then discards it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def request(self) -> bytes:
        """The next request, head and body; b"" if the client has gone."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.sock.recv(65536)
            if not more:
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        pieces = [body]
        length -= len(body)
        while length > 0 and (more := self.sock.recv(1 << 20)):
            length -= len(more)
            pieces.append(more)
        return head + b"\r\n\r\n" + b"".join(pieces)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sock.sendall(piece)

    def answer(self, *pieces: bytes) -> bytes:
        """Wait for a request, send *pieces*, and return the request."""
        request = self.request()
        self.send(*pieces)
        return request

    def until_gone(self) -> bytes:
        """All that comes until the client closes."""
        pieces = []
        with suppress(ConnectionError, ssl.SSLError):
            while more := self.sock.recv(65536):
                pieces.append(more)
        return b"".join(pieces)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Conversation = Callable[[Peer], object]


class Server:
    """Holds one conversation after the other, each on its own connection and thread; the last one for all that follow."""

    def __init__(self, *conversations: Conversation, tls: ssl.SSLContext | None = None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self.listener.getsockname()[1]
        self.accepted = 0
        self.closed = threading.Event()  # set when a conversation is over
        self._conversations = conversations
        self._tls = tls
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._wake, self._woken = socket.socketpair()
        self._main = threading.Thread(target=self._run)
        self._main.start()

    def _run(self) -> None:
        either = select.poll()
        for each in (self.listener, self._woken):
            either.register(each, select.POLLIN)
        while self._woken.fileno() not in dict(either.poll()):
            sock, _ = self.listener.accept()
            talk = self._conversations[min(self.accepted, len(self._conversations) - 1)]
            self.accepted += 1
            self._sockets.append(sock)
            self._threads.append(threading.Thread(target=self._hold, args=(sock, talk)))
            self._threads[-1].start()

    def _hold(self, sock: socket.socket, talk: Conversation) -> None:
        try:
            sock.settimeout(PATIENCE)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
            talk(Peer(sock))
        except (OSError, ValueError):
            pass  # the client went, which is often the point
        finally:
            with suppress(OSError):
                sock.close()
            self.closed.set()

    def stop(self) -> None:
        self._wake.close()
        self._main.join()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        for sock in [*self._sockets, self.listener, self._woken]:
            sock.close()


@contextmanager
def serving(*conversations: Conversation, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(*conversations, tls=tls)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def connected(server: Server, *, io_timeout: float = PATIENCE) -> Iterator[HTTPConnection]:
    connection = HTTPConnection(
        "127.0.0.1", server.port, tls=None, connect_timeout=PATIENCE, io_timeout=io_timeout
    )
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def pooled(server: Server, **options: Any) -> Iterator[ConnectionPool]:
    pool = ConnectionPool("127.0.0.1", server.port, **{"tls": None, "io_timeout": PATIENCE, **options})
    try:
        yield pool
    finally:
        pool.close()


@contextmanager
def answered(
    *pieces: bytes, method: str = "GET", closing: bool = True
) -> Iterator[tuple[HTTPConnection, HTTPResponse]]:
    """A connection whose peer answers with exactly *pieces*, and closes or waits for the client to."""

    def talk(peer: Peer) -> None:
        peer.answer(*pieces)
        if not closing:
            peer.until_gone()

    with serving(talk) as server, connected(server) as connection:
        yield connection, connection.exchange(method, "/", HOST)


def repeating(*pieces: bytes) -> Conversation:
    def talk(peer: Peer) -> None:
        while peer.request():
            peer.send(*pieces)

    return talk


def get(pool: ConnectionPool) -> bytes:
    response = pool.exchange("GET", "/", HOST)
    try:
        return response.read()
    finally:
        response.close()


class TestRequest:
    def asked(self, *arguments: Any) -> bytes:
        heard: list[bytes] = []
        with (
            serving(lambda peer: heard.append(peer.answer(EMPTY))) as server,
            connected(server) as connection,
        ):
            connection.exchange(*arguments)
        return heard[0]

    def test_head_holds_exactly_what_was_given(self) -> None:
        found = self.asked("GET", "/a%20b?c=d", {"host": "h", "x-a": "v \xe9"})
        assert found == b"GET /a%20b?c=d HTTP/1.1\r\nhost: h\r\nx-a: v \xe9\r\n\r\n"

    @pytest.mark.parametrize("method", ["PUT", "POST"])
    def test_empty_put_and_post_have_a_length(self, method: str) -> None:
        assert b"content-length: 0\r\n" in self.asked(method, "/", HOST)

    @pytest.mark.parametrize("size", [1, 65_536, 65_537, 262_144, 262_145, 3 << 20])
    def test_bodies_of_every_kind_arrive(self, tmp_path: Path, size: int) -> None:
        body = content_of(size)
        path = tmp_path / "file"
        path.write_bytes(b"before" + body + b"after")
        with path.open("rb") as file:
            for payload in (body, bytearray(body), memoryview(body), FilePart(file.fileno(), 6, size)):
                found = self.asked("PUT", "/", HOST, payload)
                assert same(
                    found, b"PUT / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n" % size + body
                )
            assert file.tell() == 0

    def test_size_of_a_buffer_is_in_bytes(self) -> None:
        assert self.asked("PUT", "/", HOST, memoryview(b"12345678").cast("I")).endswith(
            b"content-length: 8\r\n\r\n12345678"
        )

    def test_small_body_shares_the_packet_of_the_head(self) -> None:
        heard: list[bytes] = []

        def talk(peer: Peer) -> None:
            heard.append(peer.sock.recv(65536))
            peer.send(EMPTY)

        with serving(talk) as server, connected(server) as connection:
            connection.exchange("PUT", "/", HOST, b"body")
        assert heard[0].endswith(b"\r\n\r\nbody")

    @pytest.mark.skipif(
        not Path("/proc/self/environ").exists(), reason="a file that sendfile refuses is needed"
    )
    def test_file_that_sendfile_refuses_is_read(self) -> None:
        # Linux has no splice for this file; its size is what the process began with.
        padding = {**os.environ, "PADDING": "x" * 100_000}
        child = os.posix_spawn("/bin/sleep", ["sleep", "600"], padding)
        try:
            path = Path(f"/proc/{child}/environ")
            # exec lets the parent go on before the kernel has noted where the environment ends.
            while len(expected := path.read_bytes()) < 100_000:
                pass
            with path.open("rb", buffering=0) as file:
                found = self.asked("PUT", "/", HOST, FilePart(file.fileno(), 0, len(expected)))
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert same(found.partition(b"\r\n\r\n")[2], expected)

    @pytest.mark.parametrize("bad", ["\r", "\n", "\0", "\r\n", "\r\nx-evil: 1", "\u0100"])
    @pytest.mark.parametrize("place", ["method", "target", "name", "value", "end of value"])
    def test_injection_is_refused_and_nothing_is_sent(self, bad: str, place: str) -> None:
        heard: list[bytes] = []

        def talk(peer: Peer) -> None:
            heard.append(peer.until_gone())

        with serving(talk) as server:
            with connected(server) as connection:
                with pytest.raises(ValueError) as caught:
                    connection.exchange(
                        f"G{bad}ET" if place == "method" else "GET",
                        f"/a{bad}b" if place == "target" else "/",
                        {
                            "host": "h",
                            f"x{bad if place == 'name' else ''}-a": f"secret{bad}b"
                            if place == "value"
                            else "v",
                            "x-z": f"v{bad}" if place == "end of value" else "v",
                        },
                        b"body",
                    )
                assert "secret" not in str(caught.value)
                assert not connection.idle_is_broken()
            assert server.closed.wait(PATIENCE)
        assert heard == [b""]

    @pytest.mark.parametrize(
        ("target", "headers"),
        [
            ("/a b", HOST),
            ("", HOST),
            ("/\u00e9", HOST),
            ("/", {"": "v"}),
            ("/", {"a b": "v"}),
            ("/", {"Content-Length": "3"}),
            ("/", {"transfer-encoding": "chunked"}),
        ],
    )
    def test_what_would_be_read_otherwise_is_refused(self, target: str, headers: dict[str, str]) -> None:
        with serving(repeating(EMPTY)) as server, connected(server) as connection:
            with pytest.raises(ValueError):
                connection.exchange("GET", target, headers)
            assert connection.exchange("GET", "/", HOST).done

    @pytest.mark.parametrize("size", [1_000, 65_537, 5 << 20])
    def test_file_that_became_shorter_is_told(self, tmp_path: Path, size: int) -> None:
        path = tmp_path / "file"
        path.write_bytes(bytes(size - 1))
        with (
            serving(Peer.until_gone) as server,
            connected(server) as connection,
            path.open("rb") as file,
            pytest.raises(FileChangedError, match="shorter"),
        ):
            connection.exchange("PUT", "/", HOST, FilePart(file.fileno(), 0, size))

    def test_second_request_before_the_end_of_the_response_is_refused(self) -> None:
        with answered(OK, closing=False) as (connection, response):
            with pytest.raises(ValueError, match="unread"):
                connection.exchange("GET", "/", HOST)
            assert response.read() == b"hello"


class TestHead:
    def test_names_are_lower_case_and_repeated_ones_joined(self) -> None:
        head = b'HTTP/1.1 200 \r\nX-A:1\r\nx-a: \t2 \r\nETag: "a:b"\r\nX-E:\r\nX-L: \xe9\r\nContent-Length: 0\r\n\r\n'
        with answered(head) as (_, response):
            expected = {"x-a": "1, 2", "etag": '"a:b"', "x-e": "", "x-l": "\xe9", "content-length": "0"}
            assert response.headers == expected

    def test_status_without_a_phrase_or_space_is_read(self) -> None:
        with answered(b"HTTP/1.1 503\r\nContent-Length: 0\r\n\r\n") as (_, response):
            assert response.status == 503

    @pytest.mark.parametrize(
        "bytes_sent",
        [
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HTTP/2 200 OK\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1  200 OK\r\n\r\n",
            b"http/1.1 200 OK\r\n\r\n",
            b"\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nname : v\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n: v\r\n\r\n",
            b"HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
            b"HTTP/1.1 200 OK\r\na: b\nc: d\r\n\r\n",
            b"HTTP/1.1 200 OK\r\na: b\rc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\na: \0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + OK,
            b"HTTP/1.1 200 OK\r\nx: " + b"y" * HEAD_LIMIT,
            b"HTTP/1.1 200 OK\r\nx: " + b"y" * HEAD_LIMIT + b"\r\n\r\n",
        ],
        ids=range(29),
    )
    def test_malformed_head_is_refused_while_the_peer_waits(self, bytes_sent: bytes) -> None:
        with pytest.raises(HTTPProtocolError), answered(bytes_sent, closing=False):
            pass

    def test_head_of_just_the_limit_is_read(self) -> None:
        start, end = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nx: ", b"\r\n\r\n"
        value = b"y" * (HEAD_LIMIT - len(start) - len(end))
        with answered(start + value + end) as (_, response):
            assert response.headers["x"] == value.decode()
        with pytest.raises(HTTPProtocolError, match="65,536"), answered(start + value + b"y" + end):
            pass

    def test_equal_lengths_are_one(self) -> None:
        with answered(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello") as (
            _,
            response,
        ):
            assert response.length == 5
            assert response.read() == b"hello"

    def test_informational_responses_are_skipped(self) -> None:
        early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        with answered(early * 8 + OK, closing=False) as (_, response):
            assert (response.status, response.headers) == (200, {"content-length": "5"})
            assert response.read() == b"hello"
            assert response.done

    @pytest.mark.parametrize(
        ("method", "head"),
        [
            ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
            ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            ("DELETE", b"HTTP/1.1 204 No Content\r\n\r\n"),
            ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ],
    )
    def test_some_responses_have_no_body(self, method: str, head: bytes) -> None:
        with answered(head, method=method, closing=False) as (connection, response):
            assert (response.done, response.length, response.read(), response.readinto(bytearray(9))) == (
                *(True, 0, b""),
                0,
            )
            assert connection.reused
            assert not connection.idle_is_broken()


class TestBody:
    CHUNKED = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b'3;name=value;other="x;y"\r\nhel\r\n0002 \r\nlo\r\n000;last\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n'
    )
    UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhello"

    @pytest.mark.parametrize("response_bytes", [OK, CHUNKED, UNTIL_CLOSE], ids=["length", "chunked", "close"])
    def test_response_split_at_every_byte_is_read_the_same(self, response_bytes: bytes) -> None:
        for cut in range(1, len(response_bytes)):
            clients: list[HTTPConnection] = []

            def talk(peer: Peer, cut: int = cut, clients: list[HTTPConnection] = clients) -> None:
                peer.answer(response_bytes[:cut])
                # The second half follows once the client has taken the first.
                while not _has_taken_all(clients[0]):
                    pass
                peer.send(response_bytes[cut:])

            with serving(talk) as server, connected(server) as connection:
                clients.append(connection)
                response = connection.exchange("GET", "/", HOST)
                assert response.read() == b"hello"
                assert response._ended

    @pytest.mark.parametrize("response_bytes", [OK, CHUNKED, UNTIL_CLOSE], ids=["length", "chunked", "close"])
    def test_response_sent_byte_by_byte_is_read_the_same(self, response_bytes: bytes) -> None:
        with answered(*(bytes([byte]) for byte in response_bytes)) as (_, response):
            assert response.status == 200
            assert response.read() == b"hello"

    @pytest.mark.parametrize("whole", [OK, CHUNKED], ids=["length", "chunked"])
    def test_response_cut_anywhere_is_never_a_short_success(self, whole: bytes) -> None:
        for cut in range(len(whole)):
            with pytest.raises(ConnectionError), answered(whole[:cut]) as (_, response):
                response.read()

    def test_body_shorter_than_its_length_is_refused_and_not_before_its_end(self) -> None:
        with answered(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello") as (_, response):
            assert response.read(5) == b"hello"
            with pytest.raises(HTTPProtocolError, match="5 bytes before the end"):
                response.read(1)
            assert not response.done
            with pytest.raises(ValueError):
                response.read()

    @pytest.mark.parametrize(
        "frames",
        [
            b"\r\n",
            b"x\r\n",
            b"-1\r\n",
            b"+1\r\na\r\n",
            b"0x1\r\na\r\n",
            b" 1\r\na\r\n",
            b"1_0\r\n",
            b"1\na\n0\n\n",
            b"1\r\nab\r\n0\r\n\r\n",
            b"1\r\na0\r\n\r\n",
            b"1;a\nb\r\na\r\n0\r\n\r\n",
            b"1" + b"0" * 15 + b"\r\n",
            b"1;" + b"e" * (HEAD_LIMIT + 100),
            b"0\r\nno colon\r\n\r\n",
            b"0\r\n" + b"x: y\r\n" * 20_000,
        ],
        ids=range(15),
    )
    def test_malformed_chunks_are_refused(self, frames: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        with answered(head + frames) as (_, response):
            with pytest.raises(HTTPProtocolError):
                response.read()
            assert not response.done

    def test_chunked_wins_over_length_and_the_connection_ends(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        with answered(head + b"5\r\nhello\r\n0\r\n\r\n", closing=False) as (_, response):
            assert response.length is None
            assert response.read() == b"hello"
            assert not response.done

    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nConnection: x , Close\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nConnection: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
        ],
    )
    def test_connection_that_will_be_closed_is_not_used_again(self, head: bytes) -> None:
        with answered(head + b"hello", closing=False) as (_, response):
            assert response.read() == b"hello"
            assert not response.done
            assert not response.drain(100)

    @pytest.mark.parametrize("unasked", [b"x", OK])
    def test_bytes_beyond_the_end_are_never_the_next_response(self, unasked: bytes) -> None:
        with serving(repeating(OK + unasked), repeating(EMPTY)) as server, pooled(server) as pool:
            assert get(pool) == b"hello"
            assert get(pool) == b""
            assert server.accepted == 2

    def test_read_and_readinto_never_go_beyond_the_end(self) -> None:
        with answered(OK, closing=False) as (_, response):
            buffer = bytearray(b"----------")
            assert response.read(0) == b""
            assert response.readinto(bytearray()) == 0
            assert response.read(2) == b"he"
            assert response.readinto(buffer) == 3
            assert buffer == b"llo-------"
            assert (response.readinto(buffer), response.read(5), response.read()) == (0, b"", b"")
            assert response.done

    def test_read_waits_for_all_that_it_was_asked_for(self) -> None:
        body = content_of(3 << 20)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        with answered(head, body) as (_, response):
            assert same(response.read((2 << 20) + 1), body[: (2 << 20) + 1])
            assert same(response.read(2 << 20), body[(2 << 20) + 1 :])

    @pytest.mark.parametrize(("at_most", "expected"), [(0, False), (4, False), (5, True), (6, True)])
    @pytest.mark.parametrize("response_bytes", [OK, CHUNKED], ids=["length", "chunked"])
    def test_drain_reads_no_more_than_allowed(
        self, response_bytes: bytes, at_most: int, *, expected: bool
    ) -> None:
        with answered(response_bytes, closing=False) as (_, response):
            assert response.drain(at_most) is expected
            assert response.done is expected

    def test_drain_of_a_broken_body_is_not_clean(self) -> None:
        with answered(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello") as (_, response):
            assert response.drain(100) is False

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_random_bodies_are_read_back_in_any_mix_of_calls(self, data: st.DataObject) -> None:
        sizes = st.one_of(st.integers(0, 40), st.integers(0, 200_000))
        bodies = [
            content_of(size, seed)
            for seed, size in enumerate(data.draw(st.lists(sizes, min_size=1, max_size=6)))
        ]
        sent = []
        for body in bodies:
            if data.draw(st.booleans(), label="chunked"):
                ends = sorted(
                    data.draw(st.sets(st.integers(1, max(1, len(body) - 1)), max_size=8)) | {len(body)}
                )
                starts = [0, *ends]
                parts = [body[a:b] for a, b in zip(starts, ends, strict=False) if body[a:b]]
                framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
                whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"
            else:
                whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            cuts = [
                0,
                *sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=8), label="cuts")),
                len(whole),
            ]
            sent.append([whole[a:b] for a, b in itertools.pairwise(cuts)])

        # Drawn beforehand: how much one readinto gives is the network's choice.
        lengths = st.one_of(st.integers(1, 50), st.integers(1_000, 100_000))
        calls = itertools.cycle(
            data.draw(st.lists(st.tuples(lengths, st.booleans()), min_size=1, max_size=8))
        )

        def talk(peer: Peer) -> None:
            for pieces in sent:
                peer.answer(*pieces)
            peer.until_gone()

        with serving(talk) as server, connected(server) as connection:
            for body in bodies:
                response = connection.exchange("GET", "/", HOST)
                found = bytearray()
                while not response._ended:
                    size, into = next(calls)
                    if into:
                        buffer = bytearray(size)
                        found += buffer[: response.readinto(buffer)]
                    else:
                        piece = response.read(size)
                        assert len(piece) == size or response._ended
                        found += piece
                assert same(bytes(found), body)
                assert response.done


def _has_taken_all(connection: HTTPConnection) -> bool:
    """Whether the client's kernel holds nothing that the client has not received."""
    waiting = fcntl.ioctl(connection._sock.fileno(), termios.FIONREAD, bytes(4))
    return waiting == bytes(4)


class TestTrouble:
    def once_used(self, then: Conversation) -> Conversation:
        def talk(peer: Peer) -> None:
            peer.answer(OK)
            then(peer)

        return talk

    def test_reused_connection_that_closes_on_the_request_is_stale(self) -> None:
        for end in (Peer.request, lambda peer: (peer.request(), peer.reset())):
            with serving(self.once_used(end), repeating(EMPTY)) as server, pooled(server) as pool:
                assert get(pool) == b"hello"
                with pytest.raises(StaleConnectionError):
                    get(pool)
                assert get(pool) == b""

    def test_fresh_connection_that_closes_is_not_stale(self) -> None:
        for end in (Peer.request, lambda peer: (peer.request(), peer.reset())):
            with serving(end) as server, connected(server) as connection:
                with pytest.raises(ConnectionError) as caught:
                    connection.exchange("GET", "/", HOST)
                assert not isinstance(caught.value, StaleConnectionError)

    def test_first_byte_of_a_response_ends_being_stale(self) -> None:
        with serving(self.once_used(lambda peer: peer.answer(b"H"))) as server, pooled(server) as pool:
            get(pool)
            with pytest.raises(HTTPProtocolError):
                get(pool)

    def test_connection_closed_while_idle_is_not_used(self) -> None:
        with serving(self.once_used(lambda _: None), repeating(EMPTY)) as server, pooled(server) as pool:
            assert get(pool) == b"hello"
            assert server.closed.wait(PATIENCE)
            assert get(pool) == b""

    def test_reset_within_the_body_is_no_short_success(self) -> None:
        go = threading.Event()

        def talk(peer: Peer) -> None:
            peer.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
            go.wait(PATIENCE)
            peer.reset()

        with serving(talk) as server, connected(server) as connection:
            response = connection.exchange("GET", "/", HOST)
            assert response.read(5) == b"hello"
            go.set()
            with pytest.raises(ConnectionError):
                response.read()

    @pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"])
    def test_stall_of_the_peer_times_out(self, sent: bytes) -> None:
        def talk(peer: Peer) -> None:
            peer.answer(sent)
            peer.until_gone()

        with (
            serving(talk) as server,
            connected(server, io_timeout=BRIEF) as connection,
            pytest.raises(TimeoutError),
        ):
            connection.exchange("GET", "/", HOST).read()

    @pytest.mark.parametrize("kind", ["bytes", "file"])
    def test_peer_that_reads_nothing_times_out(self, tmp_path: Path, kind: str) -> None:
        with (tmp_path / "file").open("wb+") as file, serving(lambda _: go.wait(PATIENCE)) as server:
            file.truncate(64 << 20)
            body = bytes(64 << 20) if kind == "bytes" else FilePart(file.fileno(), 0, 64 << 20)
            go = threading.Event()
            try:
                with connected(server, io_timeout=BRIEF) as connection, pytest.raises(TimeoutError):
                    connection.exchange("PUT", "/", HOST, body)
            finally:
                go.set()

    @pytest.mark.parametrize("kind", ["bytes", "file"])
    @pytest.mark.parametrize("closes", [True, False])
    def test_early_response_ends_the_upload(self, tmp_path: Path, kind: str, *, closes: bool) -> None:
        refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"

        def talk(peer: Peer) -> None:
            peer.sock.recv(10)
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n", refusal)
            if closes:
                peer.sock.close()
            else:
                go.wait(PATIENCE)

        go = threading.Event()
        with (tmp_path / "file").open("wb+") as file, serving(talk) as server:
            file.truncate(64 << 20)
            body = bytes(64 << 20) if kind == "bytes" else FilePart(file.fileno(), 0, 64 << 20)
            try:
                with connected(server) as connection:
                    response = connection.exchange("PUT", "/", HOST, body)
                    assert response.status == 403
                    assert response.read() == b"no"
                    assert not response.done
            finally:
                go.set()

    def test_upload_to_a_peer_that_goes_without_a_word_is_an_error(self) -> None:
        def talk(peer: Peer) -> None:
            peer.sock.recv(10)
            peer.reset()

        with serving(talk) as server, connected(server) as connection, pytest.raises(ConnectionError):
            connection.exchange("PUT", "/", HOST, bytes(64 << 20))

    def test_closed_port_is_a_connection_error(self) -> None:
        with serving(Peer.request) as server:
            port = server.port
        with pytest.raises(ConnectionRefusedError):
            HTTPConnection("127.0.0.1", port, tls=None, connect_timeout=PATIENCE, io_timeout=PATIENCE)


class TestPool:
    def test_connection_is_reused_after_a_whole_response_only(self) -> None:
        with serving(repeating(OK)) as server, pooled(server) as pool:
            assert get(pool) == get(pool) == b"hello"
            assert server.accepted == 1
            pool.exchange("GET", "/", HOST).close()
            assert get(pool) == b"hello"
            assert server.accepted <= 2

    def test_idle_time_and_number_are_limited(self) -> None:
        now = [0.0]
        with (
            serving(repeating(OK)) as server,
            pooled(server, idle=1, idle_seconds=5, clock=lambda: now[0]) as pool,
        ):
            both = [pool.exchange("GET", "/", HOST) for _ in range(2)]
            for response in both:
                response.read()
                response.close()
                response.close()
            get(pool)
            assert server.accepted == 2
            now[0] = 6.0
            get(pool)
            assert server.accepted == 3

    def test_closed_pool_keeps_nothing(self) -> None:
        with serving(repeating(OK)) as server, pooled(server) as pool:
            response = pool.exchange("GET", "/", HOST)
            pool.close()
            assert response.read() == b"hello"
            response.close()
            assert server.closed.wait(PATIENCE)
            assert get(pool) == b"hello"  # one that comes late is served all the same
            assert server.accepted == 2
            assert not pool._idle

    def test_interrupt_leaves_nothing_in_the_pool(self) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        asked = threading.Event()

        def talk(peer: Peer) -> None:
            peer.answer(OK)
            peer.request()
            asked.set()
            peer.until_gone()

        previous = signal.signal(signal.SIGUSR1, interrupt)
        main = threading.get_ident()

        def strike() -> None:
            asked.wait(PATIENCE)
            signal.pthread_kill(main, signal.SIGUSR1)

        helper = threading.Thread(target=strike)
        try:
            with serving(talk, repeating(EMPTY)) as server, pooled(server) as pool:
                get(pool)
                helper.start()
                with pytest.raises(KeyboardInterrupt):
                    get(pool)
                assert get(pool) == b""
        finally:
            helper.join()
            signal.signal(signal.SIGUSR1, previous)

    def test_two_hundred_threads_get_their_own_answers(self) -> None:
        def talk(peer: Peer) -> None:
            while request := peer.request():
                body = request.split(b" ")[1] * 50
                peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)

        wrong: list[object] = []
        done: list[int] = []
        with serving(talk) as server, pooled(server, connect_timeout=PATIENCE) as pool:

            def work(number: int) -> None:
                for turn in range(10):
                    target = f"/{number}/{turn}"
                    try:
                        response = pool.exchange("GET", target, HOST)
                        if response.read() != target.encode() * 50:
                            wrong.append(target)
                        response.close()
                        done.append(number)
                    except Exception as error:  # noqa: BLE001 - reported by the test
                        wrong.append(error)

            threads = [threading.Thread(target=work, args=(number,)) for number in range(200)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not wrong
        assert len(done) == 2000

    def test_what_is_dropped_unclosed_is_closed_in_silence(self) -> None:
        with serving(repeating(OK)) as server, warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            pool = ConnectionPool("127.0.0.1", server.port, tls=None)
            pool.exchange("GET", "/", HOST)
            gc.collect()
            assert server.closed.wait(PATIENCE)
            assert not pool._idle
            get(pool)
            server.closed.clear()
            del pool
            gc.collect()
            assert server.closed.wait(PATIENCE)
        assert not [warning for warning in heard if issubclass(warning.category, ResourceWarning)]


def _in_child(work: Callable[[], bool]) -> None:
    """Assert that *work* is true in a forked child."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what users do
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Authority:
    """A throwaway certificate for 127.0.0.1, and contexts for both sides."""

    def __init__(self, directory: Path) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
        now = dt.datetime.now(dt.UTC)
        day = dt.timedelta(days=1)
        certificate = (
            x509.CertificateBuilder(
                name, name, key.public_key(), x509.random_serial_number(), now - day, now + day
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        path = directory / "pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(path)
        self.client = ssl.create_default_context(
            cadata=certificate.public_bytes(serialization.Encoding.PEM).decode()
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    pytest.importorskip("cryptography", reason="makes the certificate")
    return Authority(tmp_path_factory.mktemp("tls"))


class TestTLS:
    def test_exchanges_reuse_the_connection(self, authority: Authority, tmp_path: Path) -> None:
        heard: list[bytes] = []
        body = content_of(3 << 20)
        (tmp_path / "file").write_bytes(body)

        def talk(peer: Peer) -> None:
            heard.extend(peer.answer(OK).partition(b"\r\n\r\n")[2] for _ in range(3))

        with (
            serving(talk, tls=authority.server) as server,
            pooled(server, tls=authority.client) as pool,
            (tmp_path / "file").open("rb") as file,
        ):
            for payload in (b"small", body, FilePart(file.fileno(), 0, len(body))):
                response = pool.exchange("PUT", "/", HOST, payload)
                assert response.read() == b"hello"
                response.close()
            assert server.accepted == 1
        assert same(heard, [b"small", body, body])

    def test_untrusted_certificate_and_wrong_name_are_refused(self, authority: Authority) -> None:
        with serving(repeating(OK), tls=authority.server) as server:
            for host, context in (
                ("127.0.0.1", ssl.create_default_context()),
                ("localhost", authority.client),
            ):
                with pytest.raises(ssl.SSLCertVerificationError):
                    HTTPConnection(
                        host, server.port, tls=context, connect_timeout=PATIENCE, io_timeout=PATIENCE
                    )

    def test_handshake_that_stalls_times_out(self, authority: Authority) -> None:
        with serving(Peer.until_gone) as server, pytest.raises(TimeoutError):
            HTTPConnection(
                "127.0.0.1", server.port, tls=authority.client, connect_timeout=BRIEF, io_timeout=PATIENCE
            )

    def test_cut_without_a_goodbye_is_no_end(self, authority: Authority) -> None:
        with (
            serving(lambda peer: peer.answer(TestBody.UNTIL_CLOSE), tls=authority.server) as server,
            pooled(server, tls=authority.client) as pool,
            pytest.raises(HTTPProtocolError),
        ):
            get(pool)

    def test_early_response_ends_the_upload(self, authority: Authority) -> None:
        go = threading.Event()

        def talk(peer: Peer) -> None:
            peer.sock.recv(10)
            peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
            go.wait(PATIENCE)

        with serving(talk, tls=authority.server) as server, pooled(server, tls=authority.client) as pool:
            try:
                response = pool.exchange("PUT", "/", HOST, bytes(64 << 20))
                assert (response.status, response.read(), response.done) == (403, b"no", False)
                response.close()
            finally:
                go.set()


class TestFork:
    @pytest.mark.parametrize("secure", [False, True])
    def test_child_leaves_the_parents_connections_alone(self, authority: Authority, *, secure: bool) -> None:
        body = content_of(8 << 20)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        tls = (authority.server, authority.client) if secure else (None, None)
        with serving(repeating(head, body), tls=tls[0]) as server, pooled(server, tls=tls[1]) as pool:
            get(pool)  # becomes idle once more below
            extra = pool.exchange("GET", "/", HOST)
            response = pool.exchange("GET", "/", HOST)
            extra.read()
            extra.close()
            first = response.read(1000)

            def work() -> bool:
                with pytest.raises(ValueError, match="process"):
                    response.read()
                response.close()
                good = get(pool) == body
                pool.close()
                gc.collect()
                return good

            _in_child(work)
            assert same(first + response.read(), body)
            response.close()
            accepted = server.accepted
            assert same(get(pool), body)
            assert (server.accepted, accepted) == (3, 3)  # two of the parent, one of the child
