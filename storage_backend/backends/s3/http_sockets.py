"""Sockets of the HTTP client: connect with timeouts, and close even if a forked child has a copy."""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import sys
import time
from contextlib import suppress

from storage_backend.forks import no_fork


def dial(host: str, port: int, tls: ssl.SSLContext | None, timeout: float) -> socket.socket:
    """Connect, with a TLS handshake if *tls* is given; *timeout* (seconds) applies to each of the two."""
    sock = socket.create_connection((host, port), timeout)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            # By default Python treats a cut connection as the end of the data.
            sock = tls.wrap_socket(
                sock, server_hostname=host, suppress_ragged_eofs=False, do_handshake_on_connect=False
            )
            _shake_hands(sock, timeout)
    except BaseException:
        sock.close()
        raise
    return sock


def _shake_hands(sock: ssl.SSLSocket, timeout: float) -> None:
    """The TLS handshake, non-blocking: no fork happens inside OpenSSL, and none waits for the network."""
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


def kernel_timeout(sock: socket.socket, timeout: float) -> float | None:
    """Set the timeout in the kernel where supported; return the timeout to set in Python.

    Python's timeout costs a poll(2) before each call: one more system call, and one more release of the GIL.
    """
    if isinstance(sock, ssl.SSLSocket) or sys.platform != "linux":
        return timeout
    whole = int(timeout)
    value = struct.pack("@ll", whole, max(int((timeout - whole) * 1_000_000), 0 if whole else 1))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
    return None


def hang_up(sock: socket.socket, pid: int) -> None:
    """Close the socket; in another process than *pid* only the copy of the descriptor."""
    if os.getpid() != pid:
        descriptor = sock.detach()
        if descriptor >= 0:
            os.close(descriptor)
        return
    # Shut down for the copies in forked children, too. Fails if the peer has already closed.
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
