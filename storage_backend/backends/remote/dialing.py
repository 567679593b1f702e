"""dial: a connection to the first endpoint that works.

Seconds that each step may take, per endpoint: TCP `connection_timeout` for each address, the server's first line at least 5,
key exchange at least 15, authentication 30 for all methods together, none of them less than `connection_timeout`
(`storage_backend.backends.remote.transports.Limits` has the reasons). What another host or program lies in front of has
as much for each.
"""

from __future__ import annotations

import errno as codes
import logging
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from storage_backend.backends.remote.authentication import Authentication
from storage_backend.backends.remote.hostkeys import HostKeyPolicy
from storage_backend.backends.remote.library import ssh_library
from storage_backend.backends.remote.proxies import ProxyCommandSocket
from storage_backend.backends.remote.settings import Endpoint, Settings
from storage_backend.backends.remote.transports import (
    Limits,
    make_transport,
    quiet_log_channel,
    transport_class,
)
from storage_backend.errors import (
    AuthenticationError,
    NoEndpointError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
)

log = logging.getLogger(__name__)

STAGGER = 0.25  # seconds without a banner after which the next endpoint is tried as well
IDLE = 3600.0  # seconds to wait for a thread at a time
SLACK = 5.0  # seconds for what has no limit of its own: names, an agent, a busy machine

T = TypeVar("T")
Check = Callable[[Any, Endpoint], T]
"""Says what it found on a client that has logged in; raises if the endpoint is of no use."""


class RefusedEverywhereError(NoEndpointError, AuthenticationError):
    """Each endpoint refused our key or password, or showed a host key that we refuse."""

    default_errno = codes.EACCES
    default_retryable = False


@dataclass(frozen=True)
class Dialed(Generic[T]):
    """A connection that works.

    Attributes:
        client: a connected `paramiko.SSHClient`.
        endpoint: what it is connected to.
        found: what the check returned.
    """

    client: Any
    endpoint: Endpoint
    found: T
    _link: _Link = field(repr=False)

    def close(self) -> None:
        """Close the client, and what it goes through. Idempotent."""
        self._link.close()


def dial(
    settings: Settings,
    check: Check[T],
    *,
    endpoints: Sequence[Endpoint] | None = None,
    where: str,
    make: Callable[..., Any] | None = None,
    stagger: float = STAGGER,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Dialed[T]:
    """Connect to the first endpoint that works: it lets the user in, and *check* is content.

    The next endpoint is tried when the one before it has failed, or beside it when that has been silent for *stagger*
    seconds. The first that works is taken; the others are given up, and closed even if they succeed later.

    Args:
        settings: who, where and how.
        check: called with the client and its endpoint, in the thread that connected.
        endpoints: those to try, in this order, instead of the settings'.
        where: the backend's location, for messages.
        make: makes a transport of a socket and paramiko's options, instead of `transport_class`.
        stagger: seconds.
        limits: of each step.
        clock: monotonic seconds.

    Raises:
        NoEndpointError: none works; tells the reason of each. If each refuses our credentials, or we its host key, it is
            an AuthenticationError too. Its cause is the first endpoint's error.
        MissingClientError: paramiko is not installed.
    """
    ssh_library()
    plan = tuple(settings.endpoints if endpoints is None else endpoints)
    race = _Race(
        settings,
        check,
        where,
        make,
        Limits.of(settings.connection_timeout) if limits is None else limits,
        clock,
    )
    return race.run(plan, stagger)


@dataclass
class _Race(Generic[T]):
    """The attempts of one dial."""

    settings: Settings
    check: Check[T]
    where: str
    make: Callable[..., Any] | None
    limits: Limits
    clock: Callable[[], float]
    _several: bool = field(default=False, init=False)
    _events: queue.SimpleQueue[_Attempt[T]] = field(default_factory=queue.SimpleQueue, init=False)
    _attempts: list[_Attempt[T]] = field(default_factory=list, init=False)

    def run(self, plan: Sequence[Endpoint], stagger: float) -> Dialed[T]:
        winner: Dialed[T] | None = None
        waiting = list(plan)
        self._several = len(plan) > 1
        try:
            while True:
                if waiting and self._next_may_start(stagger):
                    self._start(waiting.pop(0))
                if not waiting and all(attempt.error is not None for attempt in self._attempts):
                    raise self._failed()
                with suppress(queue.Empty):
                    self._events.get(timeout=self._patience(stagger if waiting else math.inf))
                for attempt in self._attempts:
                    self._look_at(attempt)
                    if attempt.dialed is not None:
                        winner = attempt.take()
                        log.debug("%s: connected to %s", self.where, winner.endpoint)
                        self._give_up()
                        return winner
        except BaseException:
            # Ctrl-C comes at any time.
            self._give_up()
            if winner is not None:
                winner.close()
            raise

    def _give_up(self) -> None:
        for attempt in self._attempts:
            attempt.abandon()

    def _start(self, endpoint: Endpoint) -> None:
        attempt = _Attempt(self, endpoint, self.clock())
        self._attempts.append(attempt)
        threading.Thread(target=attempt.run, name=f"ssh-dial-{endpoint}", daemon=True).start()

    def _next_may_start(self, stagger: float) -> bool:
        if not self._attempts:
            return True
        last = self._attempts[-1]
        return last.error is not None or (not last.heard and self.clock() >= last.started + stagger)

    def _patience(self, stagger: float) -> float:
        """Seconds until something is to be done though nothing has happened."""
        now = self.clock()
        last = self._attempts[-1]
        ends = [
            attempt.deadline for attempt in self._attempts if attempt.error is None and not attempt.let_in
        ]
        if not last.heard and last.error is None:
            ends.append(last.started + stagger)
        return max(0.0, min([IDLE, *(end - now for end in ends)]))

    def _look_at(self, attempt: _Attempt[T]) -> None:
        if attempt.error is None and not attempt.let_in and self.clock() >= attempt.deadline:
            attempt.abandon()
            attempt.error = StorageTimeoutError(
                f"nothing came of it within {attempt.deadline - attempt.started:g} s"
            )
        if attempt.error is None or attempt.told:
            return
        attempt.told = True
        if not isinstance(attempt.error, Exception):
            raise attempt.error
        level = logging.WARNING if self._several else logging.DEBUG
        log.log(level, "%s: %s does not work: %s", self.where, attempt.endpoint, attempt.error)

    def _failed(self) -> NoEndpointError:
        reasons = "; ".join(f"{attempt.endpoint}: {attempt.error}" for attempt in self._attempts)
        refused = all(isinstance(attempt.error, AuthenticationError) for attempt in self._attempts)
        kind = RefusedEverywhereError if refused and self._attempts else NoEndpointError
        error = kind(f"{self.where}: no endpoint works: {reasons or 'there are none'}", backend=self.where)
        error.__cause__ = self._attempts[0].error if self._attempts else None
        return error


class _Attempt(Generic[T]):
    """One endpoint, tried by a thread of its own.

    Attributes:
        heard: whether the server has said something.
        let_in: whether it has let the user in.
        dialed: the connection, if it works.
        error: why it does not.
        told: whether that was logged.
    """

    def __init__(self, race: _Race[T], endpoint: Endpoint, now: float) -> None:
        self.endpoint = endpoint
        self.started = now
        self.deadline = now + (race.limits.whole + SLACK) * (1 + len(endpoint.jumps))
        self.heard = False
        self.let_in = False
        self.dialed: Dialed[T] | None = None
        self.error: BaseException | None = None
        self.told = False
        self._race = race
        self._lock = threading.Lock()
        self._abandoned = False
        self._link = _Link(race.settings, race.limits, race.make, self._hear)

    def run(self) -> None:
        race = self._race
        try:
            client = self._link.connect(self.endpoint)
            self.let_in = True
            found = race.check(client, self.endpoint)
        except BaseException as error:  # noqa: BLE001 - raised, or told, by the thread that dials
            self._link.close()
            with self._lock:
                if not self._abandoned:
                    self.error = _ours(error, race.limits)
        else:
            with self._lock:
                if not self._abandoned:
                    self.dialed = Dialed(client, self.endpoint, found, self._link)
            if self.dialed is None:
                self._link.close()
        race._events.put(self)

    def take(self) -> Dialed[T]:
        """The connection, which from now on is the caller's."""
        assert self.dialed is not None
        with self._lock:
            taken, self.dialed = self.dialed, None
            self._abandoned = True
            self._link.release()
        return taken

    def abandon(self) -> None:
        """End it, now or when it has come to its end. Idempotent."""
        with self._lock:
            if self._abandoned:
                return
            self._abandoned = True
            done = self.dialed
        if done is not None:
            done.close()
        else:
            self._link.interrupt()

    def _hear(self) -> None:
        self.heard = True


class _Link:
    """The clients and programs that one connection consists of. `connect` is called once."""

    def __init__(
        self, settings: Settings, limits: Limits, make: Callable[..., Any] | None, heard: Callable[[], object]
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._make = make
        self._heard = heard
        self._lock = threading.Lock()
        self._handle: socket.socket | None = (
            None  # a second name of the connection, to end it from another thread
        )
        self._interrupted = False
        self._closers: list[Callable[[], object]] = []

    def connect(self, endpoint: Endpoint) -> Any:
        """A client that is logged in at *endpoint*."""
        # A password is for the host that it was given for, not for those on the way.
        hop_settings = replace(self._settings, password=None)
        through: Any = None
        for at, hop in enumerate(endpoint.jumps):
            target = endpoint.jumps[at + 1] if at + 1 < len(endpoint.jumps) else endpoint
            with _naming(f"through {hop}", self._limits):
                client = self._join(hop, hop_settings, through)
            through = self._tunnel(client, hop, target)
        return self._join(endpoint, self._settings, through)

    def interrupt(self) -> None:
        """End the connection from another thread; the one that makes it then closes it."""
        with self._lock:
            self._interrupted = True
            self._shut_handle()

    def release(self) -> None:
        """The connection stands: nobody will interrupt it any more."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def close(self) -> None:
        """Close all of it, the last first. Idempotent."""
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
                raise UnavailableError(f"{hop} does not lead to {target}: {_words(error)}") from error

        return open_channel

    def _join(self, endpoint: Endpoint, settings: Settings, through: Callable[[], Any] | None) -> Any:
        """A client that is logged in, over *through* where that is given.

        A server shows one of several host keys, and which one is pinned is not known beforehand: each kind is asked for.
        """
        refusal: AuthenticationError | None = None
        without: set[str] = set()
        while True:
            single = _Single(self, endpoint, settings, through, without)
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
        """Note *sock* as what `interrupt` ends."""
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


class _Single:
    """One client of a link."""

    def __init__(
        self,
        link: _Link,
        endpoint: Endpoint,
        settings: Settings,
        through: Callable[[], Any] | None,
        without: set[str],
    ) -> None:
        self.policy = HostKeyPolicy(settings, endpoint, peer=self._peer, without=without)
        self._link = link
        self._endpoint = endpoint
        self._settings = settings
        self._through = through
        self._client: Any = None
        self._sock: Any = None
        self._transport: Any = None
        self._program: ProxyCommandSocket | None = None

    def connect(self) -> Any:
        endpoint, limits = self._endpoint, self._link._limits
        options: dict[str, Any] = {}
        if self._through is not None:
            options["sock"] = self._sock = self._through()
        elif endpoint.proxy_command is not None:
            self._program = ProxyCommandSocket(endpoint.proxy_command)
            options["sock"] = self._program.sock
        client = self._client = ssh_library().SSHClient()
        # A substitute may lack any of these.
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
                    f"{_words(_ours(error, limits))} (ProxyCommand says: {complaint})"
                ) from error
            raise
        if self._transport is not None and self._settings.keepalive:
            self._transport.set_keepalive(math.ceil(self._settings.keepalive))
        with self._link._lock:
            self._link._closers.append(self.close)
        return client

    def close(self) -> None:
        with suppress(OSError, EOFError):
            _call(self._client, "close")
        # A client that gave up before its transport ran leaves the socket open.
        for leftover in (self._transport, self._sock, self._program):
            if leftover is not None:
                with suppress(OSError, EOFError):
                    leftover.close()

    def _factory(self, sock: Any, **options: Any) -> Any:
        self._sock = sock
        link = self._link
        if isinstance(sock, socket.socket):
            link._watch(sock)
        self._transport = make_transport(
            transport_class(link._heard, link._limits.negotiation) if link._make is None else link._make,
            sock,
            self.policy,
            heard=link._heard,
            banner=link._limits.banner,
            io_timeout=self._settings.io_timeout,
            **options,
        )
        return self._transport

    def _peer(self) -> str | None:
        """The address at the other end, where we made the connection ourselves."""
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


@contextmanager
def _naming(way: str, limits: Limits) -> Iterator[None]:
    """Say in an error which host on the way it is about."""
    try:
        yield
    except Exception as error:
        found = _ours(error, limits)
        raise type(found)(f"{way}: {found}") from error


def _ours(error: BaseException, limits: Limits) -> BaseException:
    """Our error for what paramiko, the system or a substitute raised; ours, and what is no Exception, as they are."""
    if isinstance(error, StorageError) or not isinstance(error, Exception):
        return error
    paramiko = ssh_library()
    kind: type[StorageError] = UnavailableError
    reason = _words(error)
    if isinstance(error, paramiko.AuthenticationException | paramiko.BadHostKeyException):
        kind = AuthenticationError
    elif isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        reason = ", ".join(dict.fromkeys(_words(each) for each in error.errors.values()))
    elif isinstance(error, TimeoutError):
        kind, reason = StorageTimeoutError, f"no connection within {limits.connect:g} s"
    elif isinstance(error, EOFError):
        reason = "the server closed the connection"
    found = kind(reason)
    found.__cause__ = error
    return found


def _words(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
