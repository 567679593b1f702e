"""Creates a `paramiko.Transport` with timeouts, a fast cipher and quiet logging."""

from __future__ import annotations

import functools
import logging
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from storage_backend.backends.remote.hostkeys import HostKeyPolicy
from storage_backend.backends.remote.library import ssh_library
from storage_backend.errors import AuthenticationError, StorageTimeoutError, UnavailableError
from storage_backend.forks import no_fork

# Encrypts and authenticates in one call: with paramiko, we measured 303 to 346 MB/s, and 221 with its default.
CIPHER = "aes128-gcm@openssh.com"
LOG_CHANNEL = "paramiko.storage_backend"


@dataclass(frozen=True, slots=True)
class DialTimeouts:
    """Seconds for each step of a connection.

    Attributes:
        connect: TCP, for each address of the host.
        banner: the server's first line, which an overloaded server may send long after it accepts the connection.
        negotiation: key exchange, which takes several round trips and computation. 15 is paramiko's default.
        authentication: all methods together. The server may query a directory service or a slow DNS; 30 is paramiko's default
            for one method, and sshd's for all is 120 (LoginGraceTime).
    """

    connect: float
    banner: float
    negotiation: float = 15.0
    authentication: float = 30.0

    @classmethod
    def of(cls, connection_timeout: float) -> DialTimeouts:
        """The timeouts with *connection_timeout* for TCP and at least that for each other step."""
        return cls(
            connection_timeout,
            max(connection_timeout, 5.0),
            max(connection_timeout, 15.0),
            max(connection_timeout, 30.0),
        )

    @property
    def whole(self) -> float:
        """All steps together, for a host with two addresses."""
        return 2 * self.connect + self.banner + self.negotiation + self.authentication


def transport_class(on_response: Callable[[], object], negotiation: float) -> Any:
    """A `paramiko.Transport` that allows *negotiation* seconds for key exchange and then calls *on_response*.

    `SSHClient.connect` passes its TCP timeout to `start_client`: a slow key exchange would fail with "No existing session".
    """
    base: Any = ssh_library().Transport

    class BoundedTransport(base):  # type: ignore[misc]  # paramiko has no types
        _kex_info = key_exchanges()

        @override
        def start_client(self, event: threading.Event | None = None, timeout: float | None = None) -> None:
            done = threading.Event() if event is None else event
            super().start_client(event=done)
            if event is not None:
                return
            if not done.wait(negotiation):
                raise StorageTimeoutError(f"no key exchange within {negotiation:g} s")
            if not self.is_active():
                error = self.get_exception()
                if error is None or isinstance(error, EOFError):
                    error = UnavailableError("the server closed the connection during key exchange")
                raise error
            on_response()

        @override
        def run(self) -> None:
            try:
                super().run()
            finally:
                # Stop the handshake timer, a thread that would keep the interpreter alive.
                self.packetizer.complete_handshake()

    return BoundedTransport


@functools.cache
def key_exchanges() -> dict[str, Any]:
    """Paramiko's key exchanges, with forks blocked during each step, which computes in OpenSSL."""
    return {name: _without_forks(kind) for name, kind in ssh_library().Transport._kex_info.items()}


def _without_forks(kind: Any) -> Any:
    class KeyExchange(kind):  # type: ignore[misc]  # paramiko has no types
        @override
        def start_kex(self) -> None:
            with no_fork():
                super().start_kex()

        @override
        def parse_next(self, ptype: int, m: Any) -> None:
            with no_fork():
                super().parse_next(ptype, m)

    KeyExchange.__name__ = kind.__name__  # for paramiko's log
    return KeyExchange


def make_transport(
    make: Callable[..., Any],
    sock: Any,
    policy: HostKeyPolicy,
    *,
    on_response: Callable[[], object],
    banner: float,
    io_timeout: float,
    **options: Any,
) -> Any:
    """A transport on *sock* that prefers the fast cipher and host keys that can be checked.

    Args:
        make: the class from `transport_class`, or another callable with its arguments.
        sock: a connected socket, or a paramiko channel.
        policy: orders the host key algorithms.
        on_response: called when the server's first byte arrives, if *sock* is a socket.
        banner: seconds to wait for that byte.
        io_timeout: seconds without acknowledgement after which the kernel drops the connection.
        options: paramiko's arguments.

    Raises:
        AuthenticationError: no host key type is left to request.
        UnavailableError: the peer closed the connection.
        StorageTimeoutError: the peer sent nothing.
    """
    if isinstance(sock, socket.socket):
        _tune(sock, io_timeout)
        _await_banner(sock, banner)
        on_response()
    transport = make(sock, **options)
    security = transport.get_security_options()
    ciphers = tuple(security.ciphers)
    security.ciphers = tuple(sorted(ciphers, key=lambda name: name != CIPHER))
    kinds = policy.order(security.key_types)
    if not kinds:
        raise AuthenticationError("host key refused: the server has no other key type")
    security.key_types = kinds
    return transport


def quiet_log_channel() -> str:
    """The name of a logger for paramiko that demotes all records to DEBUG.

    paramiko logs each failure with a traceback at level ERROR, which Python prints even if logging is not configured. We raise
    it instead.
    """
    logger = logging.getLogger(LOG_CHANNEL)
    if not any(isinstance(known, _DemoteToDebug) for known in logger.filters):
        logger.addFilter(_DemoteToDebug())
    return LOG_CHANNEL


class _DemoteToDebug(logging.Filter):
    @override
    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.DEBUG:
            record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


def _tune(sock: socket.socket, io_timeout: float) -> None:
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux, tcp(7); in milliseconds
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(io_timeout * 1000)))


def _await_banner(sock: socket.socket, seconds: float) -> None:
    readable = select.poll()
    readable.register(sock, select.POLLIN)
    if not readable.poll(seconds * 1000):
        raise StorageTimeoutError(
            f"connected, but it sent nothing within {seconds:g} s; it is not an SSH server, or hangs"
        )
    if not sock.recv(1, socket.MSG_PEEK):
        raise UnavailableError(
            "it closed the connection without sending anything; it is not an SSH server, or refuses more sessions"
        )
