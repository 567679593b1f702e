"""Pool: the idle connections to one origin."""

from __future__ import annotations

import os
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

from storage_backend.backends.s3.http import Connection, Payload, Response, StaleError


class Pool:
    """Idle connections to one origin, the most recently used first. Thread-safe, and fork-safe.

    There is no lock, which a fork could leave held for ever: each step on the deque is atomic, and a connection belongs to
    the process that opened it.

    Args:
        host: as for `Connection`.
        port: as for `Connection`.
        tls: as for `Connection`.
        connect_timeout: as for `Connection`.
        io_timeout: as for `Connection`.
        idle: how many connections are kept.
        idle_seconds: how long one is kept unused.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        connect_timeout: float = 5.0,
        io_timeout: float = 60.0,
        idle: int = 16,
        idle_seconds: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dial = partial(
            Connection, host, port, tls=tls, connect_timeout=connect_timeout, io_timeout=io_timeout
        )
        self._limit = idle
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._idle: deque[tuple[Connection, float]] = deque()
        self._inherited: list[Connection] = []  # no TLS object of the parent is finalised here
        self._closed = False

    def exchange(self, method: str, target: str, headers: Mapping[str, str], body: Payload = b"") -> Response:
        """Send a request over an idle connection or a new one; closing the response brings it back.

        After a StaleError no connection is left that was idle then, so the next attempt is on a fresh one.

        Raises:
            ValueError: as `Connection.exchange`, as are all others.
        """
        connection = self._take() or self._dial()
        try:
            response = connection.exchange(method, target, headers, body)
        except BaseException as error:
            # What failed before anything was sent leaves the connection as it was.
            self._take_back(connection, not connection._busy)
            if isinstance(error, StaleError):
                self._drop()
            raise
        response._give_back = self._take_back
        return response

    def close(self) -> None:
        """Close all idle connections, and the others as they come back; those of requests that come later too. Idempotent."""
        self._closed = True
        self._drop()

    def _take(self) -> Connection | None:
        while True:
            try:
                connection, since = self._idle.pop()
            except IndexError:
                return None
            usable = self._is_own(connection) and self._clock() - since <= self._idle_seconds
            if usable and not connection.idle_is_broken():
                return connection
            connection.close()

    def _take_back(self, connection: Connection, usable: bool) -> None:
        if not self._is_own(connection) or not usable:
            connection.close()
            return
        now = self._clock()
        self._idle.append((connection, now))
        try:
            while True:
                oldest, since = self._idle.popleft()
                if len(self._idle) < self._limit and now - since <= self._idle_seconds:
                    self._idle.appendleft((oldest, since))
                    break
                oldest.close()
        except IndexError:
            pass
        if self._closed:
            self._drop()

    def _drop(self) -> None:
        while True:
            try:
                connection, _ = self._idle.pop()
            except IndexError:
                return
            self._is_own(connection)
            connection.close()

    def _is_own(self, connection: Connection) -> bool:
        """Whether *connection* was opened by this process; what was not is kept from being finalised."""
        if connection._pid == os.getpid():
            return True
        self._inherited.append(connection)
        return False
