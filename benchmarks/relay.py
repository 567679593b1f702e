"""`python relay.py LISTENING PORT DELAY`: forwards TCP connections to a port of 127.0.0.1, each byte DELAY seconds later.

Both ways, so that a round trip takes twice that. Connecting and throughput are not slowed.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import suppress
from queue import Queue
from threading import Thread

CHUNK = 1 << 18
QUEUED = 1 << 10  # chunks on the way


def main(listening: int, port: int, delay: float) -> None:
    """Forward connections to the port *listening*, for ever."""
    with socket.create_server(("127.0.0.1", listening), backlog=128) as listener:
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", port))
            for source, target in ((client, server), (server, client)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                way: Queue[tuple[float, bytes]] = Queue(QUEUED)
                Thread(target=_take, args=(source, way, delay), daemon=True).start()
                Thread(target=_give, args=(target, way), daemon=True).start()


def _take(source: socket.socket, way: Queue[tuple[float, bytes]], delay: float) -> None:
    data = b"to be filled"
    while data:
        try:
            data = source.recv(CHUNK)
        except OSError:
            data = b""
        way.put((time.monotonic() + delay, data))


def _give(target: socket.socket, way: Queue[tuple[float, bytes]]) -> None:
    lost = False
    while True:
        due, data = way.get()
        time.sleep(max(0.0, due - time.monotonic()))
        # After an error, keep emptying the queue: its writer would block.
        with suppress(OSError):
            if not data:
                target.shutdown(socket.SHUT_WR)
            elif not lost:
                lost = True
                target.sendall(data)
                lost = False
        if not data:
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
