"""Connects to the first endpoint that works, trying several in parallel (as Happy Eyeballs, RFC 8305).

Timeouts per endpoint: TCP `connection_timeout` for each address, the server's first line at least 5 s, key exchange at
least 15 s, authentication 30 s for all methods together; each at least `connection_timeout`; see
`storage_backend.backends.remote.paramiko_transport.DialTimeouts` for the reasons. Each jump host has the same again.
"""

from __future__ import annotations

import errno as codes
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from storage_backend.backends.remote.client_chain import ClientChain
from storage_backend.backends.remote.errors import translate_dial_error
from storage_backend.backends.remote.library import ssh_library
from storage_backend.backends.remote.paramiko_transport import DialTimeouts
from storage_backend.backends.remote.settings import Endpoint, SSHSettings
from storage_backend.errors import (
    AuthenticationError,
    NoEndpointError,
    StorageTimeoutError,
)
from storage_backend.threads import start_daemon

logger = logging.getLogger(__name__)

STAGGER = 0.25  # seconds without a banner before the next endpoint is tried in parallel
MAX_WAIT = 3600.0  # seconds; upper bound of one wait, the loop then waits again
SLACK = 5.0  # seconds for steps without a timeout of their own: name resolution, an SSH agent, a busy machine

T = TypeVar("T")
Check = Callable[[Any, Endpoint], T]
"""Called with an authenticated client; returns what `Dialed.found` holds. Raises if the endpoint cannot be used."""


class RefusedEverywhereError(NoEndpointError, AuthenticationError):
    """Every endpoint refused our credentials, or we refused its host key."""

    default_errno = codes.EACCES
    default_retryable = False


@dataclass(frozen=True)
class Dialed(Generic[T]):
    """A connection that works.

    Attributes:
        client: a connected `paramiko.SSHClient`.
        endpoint: what it is connected to.
        found: result of the check.
    """

    client: Any
    endpoint: Endpoint
    found: T
    _chain: ClientChain = field(repr=False)

    def close(self) -> None:
        """Close the client, its jump hosts and proxy commands. Idempotent."""
        self._chain.close()


def dial(
    settings: SSHSettings,
    check: Check[T],
    *,
    endpoints: Sequence[Endpoint] | None = None,
    where: str,
    make: Callable[..., Any] | None = None,
    stagger: float = STAGGER,
    limits: DialTimeouts | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Dialed[T]:
    """Connect to the first endpoint that works: authentication succeeds and *check* does not raise.

    The next endpoint is tried when the previous one has failed, or in parallel when it has sent nothing for *stagger* seconds.
    The first that works is used; the others are closed, even if they connect later.

    Args:
        settings: of the backend.
        check: called with the client and its endpoint, in the thread that connected.
        endpoints: tried in this order; by default those of the settings.
        where: the backend's location, for messages.
        make: creates a transport from a socket and paramiko's options, instead of `transport_class`.
        stagger: seconds without a banner before the next endpoint is tried in parallel.
        limits: timeouts of the steps.
        clock: monotonic seconds.

    Raises:
        NoEndpointError: none works; the message has the reason for each. It is also an AuthenticationError if every endpoint
            refused our credentials, or we its host key. Its cause is the first endpoint's error.
        MissingClientError: paramiko is not installed.
    """
    ssh_library()
    plan = tuple(settings.endpoints if endpoints is None else endpoints)
    race = _Race(
        settings,
        check,
        where,
        make,
        DialTimeouts.of(settings.connection_timeout) if limits is None else limits,
        clock,
    )
    return race.run(plan, stagger)


@dataclass
class _Race(Generic[T]):
    """The attempts of one call of `dial`."""

    settings: SSHSettings
    check: Check[T]
    where: str
    make: Callable[..., Any] | None
    limits: DialTimeouts
    clock: Callable[[], float]
    _several: bool = field(default=False, init=False)
    _wakeups: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue, init=False)
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
                    self._wakeups.get(timeout=self._wait_time(stagger if waiting else math.inf))
                for attempt in self._attempts:
                    self._settle(attempt)
                    if attempt.dialed is not None:
                        winner = attempt.take()
                        logger.debug("%s: connected to %s", self.where, winner.endpoint)
                        self._abandon_all()
                        return winner
        except BaseException:
            # A KeyboardInterrupt may come at any point.
            self._abandon_all()
            if winner is not None:
                winner.close()
            raise

    def _abandon_all(self) -> None:
        for attempt in self._attempts:
            attempt.abandon()

    def _start(self, endpoint: Endpoint) -> None:
        attempt = _Attempt(self, endpoint, self.clock())
        self._attempts.append(attempt)
        if start_daemon(attempt.run, f"ssh-dial-{endpoint}") is None:
            attempt.run()

    def _next_may_start(self, stagger: float) -> bool:
        if not self._attempts:
            return True
        last = self._attempts[-1]
        return last.error is not None or (not last.responded and self.clock() >= last.started + stagger)

    def _wait_time(self, stagger: float) -> float:
        """Seconds until the next deadline, or until the next endpoint may start."""
        now = self.clock()
        last = self._attempts[-1]
        ends = [
            attempt.deadline
            for attempt in self._attempts
            if attempt.error is None and not attempt.authenticated
        ]
        if not last.responded and last.error is None:
            ends.append(last.started + stagger)
        return max(0.0, min([MAX_WAIT, *(end - now for end in ends)]))

    def _settle(self, attempt: _Attempt[T]) -> None:
        if attempt.error is None and not attempt.authenticated and self.clock() >= attempt.deadline:
            attempt.abandon()
            attempt.error = StorageTimeoutError(
                f"no connection within {attempt.deadline - attempt.started:g} s"
            )
        if attempt.error is None or attempt.logged:
            return
        attempt.logged = True
        if not isinstance(attempt.error, Exception):
            raise attempt.error
        level = logging.WARNING if self._several else logging.DEBUG
        logger.log(level, "%s: %s does not work: %s", self.where, attempt.endpoint, attempt.error)

    def _failed(self) -> NoEndpointError:
        reasons = "; ".join(f"{attempt.endpoint}: {attempt.error}" for attempt in self._attempts)
        refused = all(isinstance(attempt.error, AuthenticationError) for attempt in self._attempts)
        kind = RefusedEverywhereError if refused and self._attempts else NoEndpointError
        error = kind(f"{self.where}: no endpoint works: {reasons or 'there are none'}", backend=self.where)
        error.__cause__ = self._attempts[0].error if self._attempts else None
        return error


class _Attempt(Generic[T]):
    """An attempt to connect to one endpoint, in its own thread.

    Attributes:
        responded: whether the server has sent anything.
        authenticated: whether authentication succeeded.
        dialed: the connection, once it works.
        error: why the attempt failed.
        logged: whether the failure was logged.
    """

    def __init__(self, race: _Race[T], endpoint: Endpoint, now: float) -> None:
        self.endpoint = endpoint
        self.started = now
        self.deadline = now + (race.limits.whole + SLACK) * (1 + len(endpoint.jumps))
        self.responded = False
        self.authenticated = False
        self.dialed: Dialed[T] | None = None
        self.error: BaseException | None = None
        self.logged = False
        self._race = race
        self._lock = threading.Lock()
        self._abandoned = False
        self._chain = ClientChain(race.settings, race.limits, race.make, self._on_response)

    def run(self) -> None:
        race = self._race
        try:
            client = self._chain.connect(self.endpoint)
            self.authenticated = True
            found = race.check(client, self.endpoint)
        except BaseException as error:  # noqa: BLE001 - raised or logged by the thread that dials
            self._chain.close()
            with self._lock:
                if not self._abandoned:
                    self.error = translate_dial_error(error, race.limits.connect)
        else:
            with self._lock:
                if not self._abandoned:
                    self.dialed = Dialed(client, self.endpoint, found, self._chain)
            if self.dialed is None:
                self._chain.close()
        race._wakeups.put(None)

    def take(self) -> Dialed[T]:
        """The connection; the caller closes it."""
        assert self.dialed is not None
        with self._lock:
            taken, self.dialed = self.dialed, None
            self._abandoned = True
            self._chain.release()
        return taken

    def abandon(self) -> None:
        """Close the connection, now or as soon as it is made. Idempotent."""
        with self._lock:
            if self._abandoned:
                return
            self._abandoned = True
            done = self.dialed
        if done is not None:
            done.close()
        else:
            self._chain.interrupt()

    def _on_response(self) -> None:
        self.responded = True
