"""transport_factory: makes of a fresh connection a `paramiko.Transport` that is bounded, fast and quiet."""

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

# It encrypts and authenticates in one call: measured with paramiko, 303 to 346 MB/s against 221 with its first choice.
CIPHER = "aes128-gcm@openssh.com"
LOG_CHANNEL = "paramiko.storage_backend"


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that each step may take.

    Attributes:
        connect: TCP, for each address of the host.
        banner: the server's first line. A server that listens but is overloaded takes a while to send it.
        negotiation: key exchange: several round trips, and arithmetic on both sides. 15 is paramiko's own limit.
        authentication: all methods together. Behind them may be a directory service or a slow DNS; 30 is paramiko's limit
            for one, and `sshd` gives 120 (LoginGraceTime).
    """

    connect: float
    banner: float
    negotiation: float = 15.0
    authentication: float = 30.0

    @classmethod
    def of(cls, connection_timeout: float) -> Limits:
        """The limits where TCP has *connection_timeout*, which none of the others falls below."""
        return cls(
            connection_timeout,
            max(connection_timeout, 5.0),
            max(connection_timeout, 15.0),
            max(connection_timeout, 30.0),
        )

    @property
    def whole(self) -> float:
        """What a connection may take up to its authentication: two addresses, then each step."""
        return 2 * self.connect + self.banner + self.negotiation + self.authentication


def transport_class(heard: Callable[[], object], negotiation: float) -> Any:
    """A `paramiko.Transport` whose negotiation may take *negotiation* seconds, and which calls *heard* after it.

    `SSHClient.connect` gives `start_client` the seconds that were meant for TCP, and a slow key exchange then fails with
    "No existing session".
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
            heard()

        @override
        def run(self) -> None:
            try:
                super().run()
            finally:
                # Its timer is a thread that the interpreter's end would wait for.
                self.packetizer.complete_handshake()

    return BoundedTransport


@functools.cache
def key_exchanges() -> dict[str, Any]:
    """Paramiko's key exchanges, of whose steps, which compute and check signatures, no fork comes in the middle."""
    return {name: _whole_steps(kind) for name, kind in ssh_library().Transport._kex_info.items()}


def _whole_steps(kind: Any) -> Any:
    class KeyExchange(kind):  # type: ignore[misc]  # paramiko has no types
        @override
        def start_kex(self) -> None:
            with no_fork():
                super().start_kex()

        @override
        def parse_next(self, ptype: int, m: Any) -> None:
            with no_fork():
                super().parse_next(ptype, m)

    KeyExchange.__name__ = kind.__name__  # it is logged
    return KeyExchange


def make_transport(
    make: Callable[..., Any],
    sock: Any,
    policy: HostKeyPolicy,
    *,
    heard: Callable[[], object],
    banner: float,
    io_timeout: float,
    **options: Any,
) -> Any:
    """A transport on *sock* that prefers the fast cipher and the host keys that can be checked.

    Args:
        make: `transport_class`, or what else takes a socket and *options*.
        sock: a connected socket, or what paramiko uses in its place.
        policy: says which host keys to ask for.
        heard: called when the server's first byte is there, if *sock* is a socket.
        banner: seconds to wait for it.
        io_timeout: seconds after which the kernel takes the connection for dead if the peer acknowledges nothing.
        options: paramiko's.

    Raises:
        UnavailableError: the peer closed the connection.
        StorageTimeoutError: it said nothing.
    """
    if isinstance(sock, socket.socket):
        _tune(sock, io_timeout)
        _await_banner(sock, banner)
        heard()
    transport = make(sock, **options)
    security = transport.get_security_options()
    ciphers = tuple(security.ciphers)
    security.ciphers = tuple(sorted(ciphers, key=lambda name: name != CIPHER))
    kinds = policy.order(security.key_types)
    if not kinds:
        raise AuthenticationError("host key refused: no other kind of key is left to ask for")
    security.key_types = kinds
    return transport


def quiet_log_channel() -> str:
    """The name of a logger for paramiko, whose records are all of level DEBUG.

    paramiko logs each failure with its stack at level ERROR, which Python prints to a console even where nothing was
    set up; here failures are raised and told once.
    """
    logger = logging.getLogger(LOG_CHANNEL)
    if not any(isinstance(known, _Demotion) for known in logger.filters):
        logger.addFilter(_Demotion())
    return LOG_CHANNEL


class _Demotion(logging.Filter):
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
            f"connected, but it sent nothing within {seconds:g} s; it is no SSH server, or hangs"
        )
    if not sock.recv(1, socket.MSG_PEEK):
        raise UnavailableError(
            "it closed the connection without a word; it is no SSH server, or refuses more sessions"
        )
