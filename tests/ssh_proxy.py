"""What can be wrong between a client and a server: a TCP proxy with latency and faults, and an address that never answers."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

if __package__:
    from tests.servers import ServerUnavailableError, end_with_parent

Direction = Literal["from_client", "from_server"]

CHUNK = 1 << 18
QUEUED = 64 << 20  # bytes on the way; 3 GB/s at 20 ms
SLICE = 0.0001  # seconds
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a RST (socket(7))


@dataclass(frozen=True)
class Counts:
    """What has gone through a proxy since it was made.

    Attributes:
        accepted: connections.
        from_client: bytes that were passed on to the server.
        from_server: bytes that were passed on to the client.
    """

    accepted: int
    from_client: int
    from_server: int


class Proxy:
    """A TCP proxy on a free port of 127.0.0.1, in a process of its own, so that it takes none of the tests' interpreter.

    Args:
        host: the server's.
        port: the server's.
        delay: seconds that each byte takes, in each direction, so that a round trip takes twice that. Neither the
            throughput nor the connecting is slowed.

    Raises:
        ServerUnavailableError: it does not start.
    """

    host = "127.0.0.1"

    def __init__(self, host: str, port: int, delay: float = 0.0) -> None:
        main = threading.current_thread() is threading.main_thread()  # the signal comes when its thread ends
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, host, str(port), str(delay)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGKILL) if main else None,  # noqa: PLW1509 - one system call
        )
        try:
            self.port = int(self._answer())
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def black_hole(self) -> None:
        """Swallow all that comes, from now on and both ways; connections stay, and new ones are taken."""
        self._ask("mode", "black_hole")

    def silent(self) -> None:
        """Take new connections, and neither pass on nor send anything on them; those there are go on."""
        self._ask("mode", "silent")

    def refuse(self) -> None:
        """Refuse new connections, as where nobody listens; those there are go on."""
        self._ask("mode", "refuse")

    def cut(self, reset: bool = True) -> None:
        """Break all connections now, by RST or else by FIN; new ones are taken."""
        self._ask("cut", reset)

    def cut_after(
        self, count: int, direction: Direction, *, reset: bool = True, then_refuse: bool = False
    ) -> None:
        """Break all connections once *count* more bytes, of all connections together, have been passed on.

        Args:
            count: at least 1, from now on; no more are passed on.
            direction: whose bytes are counted.
            reset: by RST, which may overtake some of them; else by FIN, which follows the last.
            then_refuse: as `refuse` after it, as if the server had died.
        """
        self._ask("cut_after", [count, direction, reset, then_refuse])

    def heal(self) -> None:
        """Take and pass on new connections again. Those that lost bytes stay as they are."""
        self._ask("mode", "pass")

    def set_delay(self, delay: float) -> None:
        """Another latency, for what comes from now on."""
        self._ask("delay", delay)

    def counts(self) -> Counts:
        """What has gone through."""
        return Counts(**self._ask("counts", None))

    @property
    def accepted(self) -> int:
        """How many connections were taken."""
        return self.counts().accepted

    def stop(self) -> None:
        """End it and all its connections."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, what: str, value: object) -> Any:
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps([what, value]).encode() + b"\n")
            self._process.stdin.flush()
            return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ServerUnavailableError("the proxy has ended")
        return json.loads(line)


class BlackHole:
    """An address where connecting neither succeeds nor fails, as where packets are dropped.

    Linux drops a SYN to a listener whose queue of connections is full (listen(2), tcp(7)); other systems may refuse it.

    Raises:
        ServerUnavailableError: connecting does not hang here.
    """

    host = "127.0.0.1"

    def __init__(self) -> None:
        self._sockets = [socket.create_server((self.host, 0), backlog=0)]
        self.port: int = self._sockets[0].getsockname()[1]
        try:
            self._fill()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on."""
        for each in self._sockets:
            each.close()
        self._sockets = []

    def _fill(self) -> None:
        hanging = 0
        while hanging < 2:
            if len(self._sockets) > 100:
                raise ServerUnavailableError("a full queue of connections takes more of them")
            connection = socket.socket()
            self._sockets.append(connection)
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.connect((self.host, self.port))
            connected = select.poll()
            connected.register(connection, select.POLLOUT)
            hanging += not connected.poll(300)  # one at loopback is there within a millisecond


def _ready(readers: list[Any], writers: list[Any], seconds: float | None) -> tuple[list[Any], list[Any]]:
    """Those that can be read and written, after *seconds* at most.

    As by select(2), but for descriptors of any number; poll(2) waits for whole milliseconds, and the rest goes by in slices.
    """
    masks = dict.fromkeys(readers, select.POLLIN)
    for each in writers:
        masks[each] = masks.get(each, 0) | select.POLLOUT
    ready = select.poll()
    for each, mask in masks.items():
        ready.register(each, mask)
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        rest = None if until is None else max(until - time.monotonic(), 0.0)
        found = dict(ready.poll(None if rest is None else int(rest * 1000)))
        if found or not rest:
            break
        if rest < 0.001:
            time.sleep(min(rest, SLICE))
    over = select.POLLERR | select.POLLHUP | select.POLLNVAL

    def able(one: Any, mask: int) -> bool:
        return bool(found.get(one if isinstance(one, int) else one.fileno(), 0) & (mask | over))

    return [one for one in readers if able(one, select.POLLIN)], [
        one for one in writers if able(one, select.POLLOUT)
    ]


class _Way:
    """One direction of a connection: what the source sends, to the target after the delay."""

    def __init__(self, direction: Direction, source: socket.socket, target: socket.socket | None) -> None:
        self.direction: Direction = direction
        self.source = source
        self.target = target
        self.queue: deque[tuple[float, bytes]] = deque()  # b"" for the end
        self.queued = 0
        self.ended = False  # the source has sent its end
        self.lost = target is None  # bytes are missing, so what follows them is swallowed too


class _Program:
    """The proxy's process: one thread, so that a connection can be reset while nothing waits for it."""

    def __init__(self, host: str, port: int, delay: float) -> None:
        self._server = (host, port)
        self._delay = delay
        self._mode = "pass"
        self._limit: tuple[int, Direction, bool, bool] | None = None
        self._counts = {"accepted": 0, "from_client": 0, "from_server": 0}
        self._ways: list[_Way] = []
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._place = self._listener.getsockname()

    def serve(self) -> None:
        """Answer each line of orders, the first by the port, until there is no more."""
        print(json.dumps(self._place[1]), flush=True)
        orders = b""
        while True:
            now = time.monotonic()
            due = [way for way in self._ways if way.queue and way.queue[0][0] <= now]
            later = [way.queue[0][0] - now for way in self._ways if way.queue and way.queue[0][0] > now]
            readers = {way.source: way for way in self._ways if not way.ended and way.queued < QUEUED}
            writers = {way.target: way for way in due if way.target is not None and not self._swallows(way)}
            for way in due:
                if self._swallows(way):
                    self._swallow(way)
            waiting: list[Any] = [0, *([] if self._listener is None else [self._listener]), *readers]
            readable, writable = _ready(waiting, list(writers), min(later, default=None))
            for target in writable:
                self._write(writers[target])
            for source in readable:
                if source == 0:
                    if not (data := os.read(0, 1 << 16)):
                        return
                    *lines, orders = (orders + data).split(b"\n")
                    for line in lines:
                        print(json.dumps(self._obey(*json.loads(line))), flush=True)
                elif self._listener is not None and source is self._listener:
                    self._accept(self._listener)
                elif source in readers:
                    self._read(readers[source])
            self._ways = [way for way in self._ways if way.source.fileno() >= 0]

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # closed since, or the client has gone
        self._counts["accepted"] += 1
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._mode != "pass":
            self._ways.append(_Way("from_client", client, None))
            return
        try:
            server = socket.create_connection(self._server, timeout=10)
        except OSError:
            _reset(client)
            return
        server.setblocking(False)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ways += [_Way("from_client", client, server), _Way("from_server", server, client)]

    def _read(self, way: _Way) -> None:
        if way.source.fileno() < 0:
            return  # cut since
        try:
            data = way.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            if self._swallows(way):
                way.source.close()
            else:
                self._break([way], reset=True)
            return
        way.ended = not data
        if way.ended and way.target is None:
            way.source.close()
        elif not self._swallows(way):
            way.queue.append((time.monotonic() + self._delay, data))
            way.queued += len(data)
        else:
            self._swallow(way)

    def _write(self, way: _Way) -> None:
        if way.target is None or way.target.fileno() < 0 or not way.queue:
            return
        due, data = way.queue[0]
        limit = self._limit
        left = limit[0] - self._counts[way.direction] if limit and limit[1] == way.direction else None
        try:
            if not data:
                way.target.shutdown(socket.SHUT_WR)
            sent = way.target.send(data[:left]) if data else 0
        except BlockingIOError:
            return
        except OSError:
            self._break([way], reset=True)
            return
        way.queue.popleft()
        way.queued -= sent
        if sent < len(data):
            way.queue.appendleft((due, data[sent:]))
        self._counts[way.direction] += sent
        if limit is not None and sent == left:
            self._limit = None
            if limit[3]:
                self._set_mode("refuse")
            self._break(self._ways, reset=limit[2])
        elif not data and self._other(way).ended and not self._other(way).queue:
            way.source.close()
            way.target.close()

    def _swallows(self, way: _Way) -> bool:
        return way.lost or self._mode == "black_hole"

    def _swallow(self, way: _Way) -> None:
        way.lost = True
        way.queue.clear()
        way.queued = 0
        other = self._other(way)
        if way.ended and other.ended:
            way.source.close()
            other.source.close()

    def _other(self, way: _Way) -> _Way:
        return next((each for each in self._ways if each.source is way.target), way)

    def _break(self, ways: list[_Way], reset: bool) -> None:
        """End these ways' connections, both sides."""
        for way in ways:
            for each in (way.source, way.target):
                if each is None or each.fileno() < 0:
                    continue
                if reset:
                    _reset(each)
                    continue
                with suppress(OSError):
                    each.shutdown(socket.SHUT_WR)
            # What still comes is read: close() would reset a connection with unread bytes (RFC 1122, 4.2.2.13).
            way.lost = True
            way.queue.clear()
            way.queued = 0
            if way.ended:
                way.source.close()

    def _obey(self, what: str, value: Any) -> object:
        if what == "mode":
            self._set_mode(value)
        elif what == "delay":
            self._delay = value
        elif what == "cut":
            self._break(self._ways, reset=value)
        elif what == "cut_after":
            count, direction, reset, then_refuse = value
            self._limit = (self._counts[direction] + count, direction, reset, then_refuse)
        return self._counts

    def _set_mode(self, mode: str) -> None:
        if mode == "refuse" and self._listener is not None:
            self._listener.close()
            self._listener = None
        elif mode != "refuse" and self._listener is None:
            self._listener = socket.create_server(self._place, backlog=128)
        self._mode = mode


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()


if __name__ == "__main__":
    _Program(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])).serve()
