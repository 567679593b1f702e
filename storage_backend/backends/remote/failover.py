"""Failover: keeps a connection to one endpoint, retries operations on the next one, and returns to a preferred endpoint."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.dialing import dial
from storage_backend.backends.remote.errors import ConnectionLostError, unreachable
from storage_backend.backends.remote.remote_path import RemotePath
from storage_backend.backends.remote.settings import Endpoint, SSHSettings
from storage_backend.backends.remote.sftp_operations import SFTPOperations
from storage_backend.backends.remote.sftp_packets import Steps
from storage_backend.errors import BaseDirectoryNotFoundError, StorageError
from storage_backend.threads import start_daemon

logger = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

MAX_LOSSES = 4  # an operation fails when it loses its fourth connection
MAX_LEFTOVERS = 100_000  # a hostile server may send names without end
FIRST_FAILBACK_DELAY, MAX_FAILBACK_DELAY = (
    1.0,
    30.0,
)  # seconds between attempts to return to a preferred endpoint


class Failover:
    """The connections to a server.

    Args:
        settings: of the backend.
        base_dir: the base directory as configured.
        where: the backend's location, for errors.
        must_exist: whether the first connection fails if the base directory is missing.
        clock: monotonic seconds.

    Attributes:
        leftover_paths: files with temporary names that a listing has shown, relative to the base directory.
        lost_prefixes: prefixes of the temporary names of lost connections.
    """

    def __init__(
        self,
        settings: SSHSettings,
        base_dir: str,
        where: str,
        *,
        must_exist: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._must_exist = must_exist
        self._settings = settings
        self._base_dir = base_dir
        self.where = where
        self._clock = clock
        self.leftover_paths: set[bytes] = set()
        self.lost_prefixes: set[bytes] = set()
        self._reset()
        _registry().add(self)

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint in use, or None."""
        return self._connections.current.endpoint if self._connections.current is not None else None

    def connection(self) -> SSHConnection:
        """A live connection; if there are several, one of the least busy.

        Raises:
            NoEndpointError: no endpoint works.
        """
        current = self._connections.current
        if current is None or not current.alive:
            current = self._connect()
        if current.endpoint is not self._settings.endpoints[0]:
            self._start_failback(current)
        return current if self._settings.max_connections == 1 else self._least_busy(current)

    def perform(
        self,
        operation: Callable[Concatenate[SFTPOperations, RemotePath, P], Steps[T]],
        path: RemotePath,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an idempotent SFTP operation on an object. Raises as `run`."""
        return self.perform_with_attempt(
            lambda operations, path, _attempt: operation(operations, path, *args, **kwargs), path
        )

    def perform_with_attempt(
        self,
        operation: Callable[Concatenate[SFTPOperations, RemotePath, int, P], Steps[T]],
        path: RemotePath,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an SFTP operation that needs the number of the attempt. Raises as `run`."""
        return self.run(
            path.identifier,
            lambda connection, attempt: connection.session.run(
                operation(connection.operations, path, attempt, *args, **kwargs)
            ),
        )

    def run(
        self,
        identifier: str | None,
        operation: Callable[[SSHConnection, int], T],
        *,
        repeatable: bool = True,
    ) -> T:
        """Call *operation* with a live connection; if the connection is lost, call it again with the next one.

        Args:
            identifier: for errors.
            operation: also gets the number of the attempt, from 0; an earlier attempt may have taken effect.
            repeatable: whether to retry; otherwise a lost connection is an error.

        Raises:
            NoEndpointError: no endpoint works.
            UnavailableError: the connection was lost, and the operation is not repeatable or was already retried the maximum
                number of times.
        """
        attempt = 0
        while True:
            connection = self.connection()
            connection.hold()
            try:
                return operation(connection, attempt)
            except ConnectionLostError as error:
                attempt += 1
                self.lose_or_raise(connection, error, attempt, MAX_LOSSES if repeatable else 1, identifier)
            except BaseException:
                # Send the removals that it posted now, not with the next operation.
                connection.session.flush()
                raise
            finally:
                connection.release()

    def note_leftover(self, path: bytes) -> None:
        """Remember the path of a file with a temporary name."""
        if len(self.leftover_paths) < MAX_LEFTOVERS:
            self.leftover_paths.add(path)

    def lose(self, connection: SSHConnection, error: ConnectionLostError) -> None:
        """Drop and close a failed connection."""
        logger.warning("%s: lost the connection to %s: %s", self.where, connection.endpoint, error)
        self.lost_prefixes.add(connection.operations.temporary)
        with self._connections.lock:
            if self._connections.current is connection:
                self._connections.current = None
            if connection in self._connections.others:
                self._connections.others.remove(connection)
        connection.close()

    def lose_or_raise(
        self,
        connection: SSHConnection,
        error: ConnectionLostError,
        losses: int,
        max_losses: int = MAX_LOSSES,
        identifier: str | None = None,
    ) -> None:
        """Drop and close a failed connection; raise if it was the last that the operation may lose.

        Raises:
            UnavailableError: *losses* has reached *max_losses*; a StorageTimeoutError if the server stopped responding.
        """
        self.lose(connection, error)
        if losses >= max_losses:
            raise unreachable(error, identifier, self.where, losses) from error

    def prefer(self) -> SSHConnection:
        """A live connection to the first endpoint that works now, whichever endpoint was in use."""
        current = self.connection()
        if current.endpoint is not self._settings.endpoints[0]:
            self._fail_back(current)
        return self.connection()

    def close(self) -> None:
        """Close the connections; the next use connects again."""
        self._connections.close()

    def after_fork(self) -> None:
        """In a forked child: abandon the parent's connections and start without any."""
        for connection in list(self._made):
            # Never collected: paramiko's destructors would write to the parent's connection.
            _registry().abandoned.append(connection)
            connection.abandon()
        self._finalizer.detach()
        self._reset()

    def _reset(self) -> None:
        # Includes connections that are no longer in use: a reader may still hold one.
        self._made: weakref.WeakSet[SSHConnection] = weakref.WeakSet()
        self._connections = _OpenConnections()
        # Readers and writers refer to this object too, so the connections close with the last of them.
        self._finalizer = weakref.finalize(self, self._connections.close)
        self._dialing = threading.Lock()
        self._growing = False
        self._failing_back = False
        self._failback_delay = FIRST_FAILBACK_DELAY
        self._next_failback = 0.0

    def _connect(self) -> SSHConnection:
        with self._dialing:
            current = self._connections.current
            if current is not None and current.alive:
                return current
            if current is not None:
                self.lose(current, current.session.failure or ConnectionLostError("the server closed it"))
            dialed = self._dial(None)
            if self._must_exist and not dialed.base_exists:
                dialed.close()
                raise BaseDirectoryNotFoundError(
                    f"base directory {self._base_dir!r} does not exist at {dialed.endpoint}",
                    backend=self.where,
                )
            self._must_exist = False
            with self._connections.lock:
                self._connections.current = dialed
                self._next_failback = self._clock() + self._failback_delay
            return dialed

    def _dial(self, endpoints: tuple[Endpoint, ...] | None) -> SSHConnection:
        # The lambda must not refer to self: paramiko's thread keeps it until it ends.
        settings, base_dir, where = self._settings, self._base_dir, self.where
        dialed = dial(
            settings,
            lambda client, endpoint: SSHConnection(client, endpoint, settings, base_dir, where),
            endpoints=endpoints,
            where=where,
        )
        # Closing the client alone would leave jump hosts and proxy commands behind.
        dialed.found.on_close(dialed.close)
        self._made.add(dialed.found)
        return dialed.found

    def _least_busy(self, current: SSHConnection) -> SSHConnection:
        """The least busy connection to the current endpoint; if none is idle, open another in the background."""
        with self._connections.lock:
            found = [
                current,
                *(one for one in self._connections.others if one.alive and one.endpoint is current.endpoint),
            ]
            best = min(found, key=lambda connection: connection.users)
            if not best.users or len(found) >= self._settings.max_connections or self._growing:
                return best
            self._growing = True

        def grow() -> None:
            try:
                another = self._dial((current.endpoint,))
                with self._connections.lock:
                    wanted = self._connections.current is current
                    if wanted:
                        self._connections.others.append(another)
                if not wanted:
                    another.close()
            except StorageError as error:
                logger.debug("%s: no additional connection: %s", self.where, error)
            finally:
                self._growing = False

        if start_daemon(grow, "storage-backend-grow") is None:
            self._growing = False
        return best

    def _start_failback(self, current: SSHConnection) -> None:
        """Try the endpoints listed before *current*'s, in the background, when the failback delay has passed."""
        with self._connections.lock:
            if self._failing_back or self._clock() < self._next_failback:
                return
            self._failing_back = True

        def fail_back() -> None:
            returned = False
            try:
                returned = self._fail_back(current)
            finally:
                with self._connections.lock:
                    self._failing_back = False
                    self._failback_delay = (
                        FIRST_FAILBACK_DELAY
                        if returned
                        else min(self._failback_delay * 2, MAX_FAILBACK_DELAY)
                    )
                    self._next_failback = self._clock() + self._failback_delay

        if start_daemon(fail_back, "storage-backend-failback") is None:
            self._failing_back = False

    def _fail_back(self, current: SSHConnection) -> bool:
        """Switch to an endpoint listed before *current*'s, if one works. Running operations finish on the old connection."""
        endpoints = self._settings.endpoints
        earlier = endpoints[: endpoints.index(current.endpoint)]
        try:
            better = self._dial(earlier)
        except StorageError as error:
            logger.debug("%s: still on %s: %s", self.where, current.endpoint, error)
            return False
        with self._connections.lock:
            replaced = self._connections.current is current
            if replaced:
                self._connections.current = better
                self._failback_delay = FIRST_FAILBACK_DELAY
                old, self._connections.others = self._connections.others, []
                for connection in old:
                    connection.retire()
        if not replaced:
            better.close()
            return False
        logger.warning("%s: back on %s", self.where, better.endpoint)
        current.retire()
        return True


class _OpenConnections:
    """The connections in use.

    Attributes:
        lock: guards the attributes below.
        current: the one whose endpoint is in use.
        others: more connections to the same endpoint.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.current: SSHConnection | None = None
        self.others: list[SSHConnection] = []

    def close(self) -> None:
        """Close all connections."""
        with self.lock:
            found, self.others = self.others, []
            if self.current is not None:
                found.insert(0, self.current)
            self.current = None
        for connection in found:
            connection.close()


class _FailoverRegistry:
    """All instances in this process, which a forked child resets, and connections that must never be collected."""

    def __init__(self) -> None:
        self._members: weakref.WeakSet[Failover] = weakref.WeakSet()
        self.abandoned: list[SSHConnection] = []
        os.register_at_fork(after_in_child=self._after_in_child)

    def add(self, failover: Failover) -> None:
        """Reset *failover* in forked children."""
        self._members.add(failover)

    def _after_in_child(self) -> None:
        for failover in list(self._members):
            failover.after_fork()


@functools.cache
def _registry() -> _FailoverRegistry:
    """The registry of this process. Created on first use: a hook of `os.register_at_fork` cannot be removed."""
    return _FailoverRegistry()
