"""ClientChain: authenticates at an endpoint, through its jump hosts or its ProxyCommand."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from storage_backend.backends.remote.authentication import Authentication
from storage_backend.backends.remote.errors import reason_of, translate_dial_error
from storage_backend.backends.remote.hostkeys import HostKeyPolicy
from storage_backend.backends.remote.library import ssh_library
from storage_backend.backends.remote.paramiko_transport import (
    DialTimeouts,
    make_transport,
    quiet_log_channel,
    transport_class,
)
from storage_backend.backends.remote.proxy_command import ProxyCommandSocket
from storage_backend.backends.remote.settings import Endpoint, SSHSettings
from storage_backend.errors import AuthenticationError, UnavailableError


class ClientChain:
    """The clients of one connection: jump hosts and the endpoint. Call `connect` once."""

    def __init__(
        self,
        settings: SSHSettings,
        limits: DialTimeouts,
        make: Callable[..., Any] | None,
        on_response: Callable[[], object],
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._make = make
        self._on_response = on_response
        self._lock = threading.Lock()
        self._handle: socket.socket | None = None  # a duplicate, for shutdown from another thread
        self._interrupted = False
        self._closers: list[Callable[[], object]] = []

    def connect(self, endpoint: Endpoint) -> Any:
        """A client that is authenticated at *endpoint*."""
        # The password is for the endpoint; jump hosts must not get it.
        hop_settings = replace(self._settings, password=None)
        through: Any = None
        for at, hop in enumerate(endpoint.jumps):
            target = endpoint.jumps[at + 1] if at + 1 < len(endpoint.jumps) else endpoint
            try:
                client = self._join(hop, hop_settings, through)
            except Exception as error:
                found = translate_dial_error(error, self._limits.connect)
                raise type(found)(f"through {hop}: {found}") from error
            through = self._tunnel(client, hop, target)
        return self._join(endpoint, self._settings, through)

    def interrupt(self) -> None:
        """Shut the connection down from another thread; `connect` then fails and closes it."""
        with self._lock:
            self._interrupted = True
            self._shut_handle()

    def release(self) -> None:
        """Disarm `interrupt`, once the connection is made."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def close(self) -> None:
        """Close all clients, the last first. Idempotent."""
        with self._lock:
            closers, self._closers = self._closers, []
        for closer in reversed(closers):
            closer()
        self.release()

    def _tunnel(self, client: Any, hop: Endpoint, target: Endpoint) -> Callable[[], Any]:
        def open_channel() -> Any:
            try:
                return client.get_transport().open_channel(
                    "direct-tcpip",
                    (target.hostname, target.port),
                    ("127.0.0.1", 0),
                    timeout=self._limits.connect + self._limits.banner,
                )
            except (ssh_library().SSHException, EOFError) as error:
                raise UnavailableError(f"{hop} cannot reach {target}: {reason_of(error)}") from error

        return open_channel

    def _join(self, endpoint: Endpoint, settings: SSHSettings, through: Callable[[], Any] | None) -> Any:
        """An authenticated client, over the channel that *through* opens, if it is given.

        A server with several host keys sends one, which may not be the pinned one: each key type is requested in turn.
        """
        refusal: AuthenticationError | None = None
        without: set[str] = set()
        while True:
            single = _ChainedClient(self, endpoint, settings, through, without)
            try:
                return single.connect()
            except BaseException as error:
                single.close()
                mismatch = single.policy.mismatch
                if isinstance(error, AuthenticationError) and mismatch not in {None, *without}:
                    refusal = refusal or error
                    without.add(str(mismatch))
                elif refusal is not None and isinstance(error, Exception):
                    raise refusal from None
                else:
                    raise

    def _watch(self, sock: socket.socket) -> None:
        """Have `interrupt` shut *sock* down."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
            self._handle = sock.dup()
            if self._interrupted:
                self._shut_handle()

    def _shut_handle(self) -> None:
        if self._handle is not None:
            with suppress(OSError):
                self._handle.shutdown(socket.SHUT_RDWR)


class _ChainedClient:
    """One client of a chain."""

    def __init__(
        self,
        chain: ClientChain,
        endpoint: Endpoint,
        settings: SSHSettings,
        through: Callable[[], Any] | None,
        without: set[str],
    ) -> None:
        self.policy = HostKeyPolicy(settings, endpoint, peer=self._peer, without=without)
        self._chain = chain
        self._endpoint = endpoint
        self._settings = settings
        self._through = through
        self._client: Any = None
        self._sock: Any = None
        self._transport: Any = None
        self._program: ProxyCommandSocket | None = None

    def connect(self) -> Any:
        endpoint, limits = self._endpoint, self._chain._limits
        options: dict[str, Any] = {}
        if self._through is not None:
            options["sock"] = self._sock = self._through()
        elif endpoint.proxy_command is not None:
            self._program = ProxyCommandSocket(endpoint.proxy_command)
            options["sock"] = self._program.sock
        client = self._client = ssh_library().SSHClient()
        # A mock may lack any of these.
        _call(client, "set_log_channel", quiet_log_channel())
        _call(client, "set_missing_host_key_policy", self.policy)
        try:
            client.connect(
                hostname=endpoint.hostname,
                port=endpoint.port,
                username=endpoint.user,
                timeout=limits.connect,
                banner_timeout=limits.banner,
                auth_timeout=limits.authentication,
                transport_factory=self._factory,
                auth_strategy=Authentication(self._settings, endpoint, limits.authentication),
                **options,
            )
        except Exception as error:
            complaint = "" if self._program is None else self._program.complaint()
            if complaint and not isinstance(error, AuthenticationError):
                raise UnavailableError(
                    f"{reason_of(translate_dial_error(error, limits.connect))} (ProxyCommand: {complaint})"
                ) from error
            raise
        if self._transport is not None and self._settings.keepalive:
            self._transport.set_keepalive(math.ceil(self._settings.keepalive))
        with self._chain._lock:
            self._chain._closers.append(self.close)
        return client

    def close(self) -> None:
        with suppress(OSError, EOFError):
            _call(self._client, "close")
        # A client that failed before its transport ran leaves the socket open.
        for leftover in (self._transport, self._sock, self._program):
            if leftover is not None:
                with suppress(OSError, EOFError):
                    leftover.close()

    def _factory(self, sock: Any, **options: Any) -> Any:
        self._sock = sock
        chain = self._chain
        if isinstance(sock, socket.socket):
            chain._watch(sock)
        self._transport = make_transport(
            transport_class(chain._on_response, chain._limits.negotiation)
            if chain._make is None
            else chain._make,
            sock,
            self.policy,
            on_response=chain._on_response,
            banner=chain._limits.banner,
            io_timeout=self._settings.io_timeout,
            **options,
        )
        return self._transport

    def _peer(self) -> str | None:
        """The server's address; None if a ProxyCommand or a jump host makes the connection."""
        if (
            self._through is not None
            or self._program is not None
            or not isinstance(self._sock, socket.socket)
        ):
            return None
        with suppress(OSError):
            return str(self._sock.getpeername()[0])
        return None


def _call(client: Any, name: str, *arguments: object) -> None:
    method = getattr(client, name, None)
    if callable(method):
        method(*arguments)
