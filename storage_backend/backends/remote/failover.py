"""Failover: the connection in use: dialled when needed, kept through failures, given back to the preferred endpoint."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TypeVar

from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.dialing import dial
from storage_backend.backends.remote.errors import ConnectionLostError, unreachable
from storage_backend.backends.remote.settings import Endpoint, SSHSettings
from storage_backend.errors import BaseDirectoryNotFoundError, StorageError
from storage_backend.threads import beside

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOSSES = 4  # how many connections one operation may lose before it gives up
MOST_LEFT = 100_000  # paths that are remembered; a server may tell of names without end
FIRST_LOOK, LONGEST_LOOK = 1.0, 30.0  # seconds between looks whether a preferred endpoint is back


class Failover:
    """The way to the server.

    Args:
        settings: of the backend.
        base_dir: the base directory as configured.
        where: the backend's location, for errors.
        must_exist: whether a base directory that is missing is an error, at the first connection.
        clock: seconds, monotonic.

    Attributes:
        left: paths, beneath the base directory, of files with temporary names that a listing has shown.
        lost: what the temporary names of connections began with that were lost.
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
        self._where = where
        self._clock = clock
        self.left: set[bytes] = set()
        self.lost: set[bytes] = set()
        self._renew()
        _links().add(self)

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint in use; None while there is none."""
        return self._open.current.endpoint if self._open.current is not None else None

    def connection(self) -> SSHConnection:
        """A live connection.

        Raises:
            NoEndpointError: no endpoint works.
        """
        current = self._open.current
        if current is None or not current.alive:
            current = self._connected()
        if current.endpoint is not self._settings.endpoints[0]:
            self._look_for_better(current)
        return current if self._settings.max_connections == 1 else self._least_busy(current)

    def run(
        self, identifier: str | None, operation: Callable[[SSHConnection], T], *, again: bool = True
    ) -> T:
        """Do *operation* on a live connection; if that fails meanwhile, on the next one.

        Args:
            identifier: for errors.
            operation: may be done again from its beginning, if *again*.
            again: otherwise a lost connection is an error.

        Raises:
            NoEndpointError: no endpoint works.
            UnavailableError: the connection was lost, and the operation may not be done again, or was often enough.
        """
        losses = 0
        while True:
            connection = self.connection()
            connection.hold()
            try:
                return operation(connection)
            except ConnectionLostError as error:
                losses += 1
                self.give_up(connection, error, losses, LOSSES if again else 1, identifier)
            except BaseException:
                # What is to be removed is not to wait for the next operation.
                connection.session.flush()
                raise
            finally:
                connection.release()

    def note_left(self, path: bytes) -> None:
        """Remember a file with a temporary name."""
        if len(self.left) < MOST_LEFT:
            self.left.add(path)

    def lose(self, connection: SSHConnection, error: ConnectionLostError) -> None:
        """Take note that *connection* has failed."""
        logger.warning("%s: lost the connection to %s: %s", self._where, connection.endpoint, error)
        self.lost.add(connection.operations.temporary)
        with self._open.lock:
            if self._open.current is connection:
                self._open.current = None
            if connection in self._open.more:
                self._open.more.remove(connection)
        connection.close()

    def give_up(
        self,
        connection: SSHConnection,
        error: ConnectionLostError,
        losses: int,
        most: int,
        identifier: str | None = None,
    ) -> None:
        """Take note that *connection* has failed, and raise if that was often enough.

        Raises:
            UnavailableError: it has happened *most* times; a StorageTimeoutError if the server fell silent.
        """
        self.lose(connection, error)
        if losses >= most:
            raise unreachable(error, identifier, self._where, losses) from error

    def prefer(self) -> SSHConnection:
        """A live connection, to the first endpoint that works now, whichever was in use before."""
        current = self.connection()
        if current.endpoint is not self._settings.endpoints[0]:
            self._return(current)
        return self.connection()

    def close(self) -> None:
        """Let go of the connection; the next use dials again."""
        self._open.close()

    def after_fork(self) -> None:
        """In a child: leave the parent's connection alone, and begin anew."""
        for connection in list(self._made):
            # Kept for ever: its destructors would write to the parent's connection.
            _links().abandoned.append(connection)
            connection.abandon()
        self._finalizer.detach()
        self._renew()

    def _renew(self) -> None:
        # Those that were left for another one too: what was opened on them may still be read.
        self._made: weakref.WeakSet[SSHConnection] = weakref.WeakSet()
        self._open = _OpenConnections()
        # Readers and writers have this link, too: the connections go with the last of all.
        self._finalizer = weakref.finalize(self, self._open.close)
        self._dialling = threading.Lock()
        self._growing = False
        self._looking = False
        self._pause = FIRST_LOOK
        self._next_look = 0.0

    def _connected(self) -> SSHConnection:
        with self._dialling:
            current = self._open.current
            if current is not None and current.alive:
                return current
            if current is not None:
                self.lose(current, current.session.failure or ConnectionLostError("the server closed it"))
            dialled = self._dial(None)
            if self._must_exist and not dialled.base_exists:
                dialled.close()
                raise BaseDirectoryNotFoundError(
                    f"base directory {self._base_dir!r} does not exist at {dialled.endpoint}",
                    backend=self._where,
                )
            self._must_exist = False
            with self._open.lock:
                self._open.current = dialled
                self._next_look = self._clock() + self._pause
            return dialled

    def _dial(self, endpoints: tuple[Endpoint, ...] | None) -> SSHConnection:
        # Not to have this link: the transport's thread has what is called here for as long as it runs.
        settings, base_dir, where = self._settings, self._base_dir, self._where
        dialled = dial(
            settings,
            lambda client, endpoint: SSHConnection(client, endpoint, settings, base_dir, where),
            endpoints=endpoints,
            where=where,
        )
        # The client alone would leave hosts on the way and proxy commands behind.
        dialled.found.on_close(dialled.close)
        self._made.add(dialled.found)
        return dialled.found

    def _least_busy(self, current: SSHConnection) -> SSHConnection:
        """Of the connections to the endpoint in use, the one with the least to do; if none is idle another is made beside it."""
        with self._open.lock:
            found = [
                current,
                *(one for one in self._open.more if one.alive and one.endpoint is current.endpoint),
            ]
            best = min(found, key=lambda connection: connection.users)
            if not best.users or len(found) >= self._settings.max_connections or self._growing:
                return best
            self._growing = True

        def grow() -> None:
            try:
                another = self._dial((current.endpoint,))
                with self._open.lock:
                    wanted = self._open.current is current
                    if wanted:
                        self._open.more.append(another)
                if not wanted:
                    another.close()
            except StorageError as error:
                logger.debug("%s: no further connection: %s", self._where, error)
            finally:
                self._growing = False

        if beside(grow, "storage-backend-grow") is None:
            self._growing = False
        return best

    def _look_for_better(self, current: SSHConnection) -> None:
        """From time to time, and beside what goes on, see whether an endpoint that is listed earlier is back."""
        with self._open.lock:
            if self._looking or self._clock() < self._next_look:
                return
            self._looking = True

        def look() -> None:
            returned = False
            try:
                returned = self._return(current)
            finally:
                with self._open.lock:
                    self._looking = False
                    self._pause = FIRST_LOOK if returned else min(self._pause * 2, LONGEST_LOOK)
                    self._next_look = self._clock() + self._pause

        if beside(look, "storage-backend-look") is None:
            self._looking = False

    def _return(self, current: SSHConnection) -> bool:
        """Go back to an endpoint listed before *current*'s, if one works. What is under way ends on the old connection."""
        endpoints = self._settings.endpoints
        earlier = endpoints[: endpoints.index(current.endpoint)]
        try:
            better = self._dial(earlier)
        except StorageError as error:
            logger.debug("%s: still on %s: %s", self._where, current.endpoint, error)
            return False
        with self._open.lock:
            if self._open.current is not current:
                unused, replaced = better, None
            else:
                unused, replaced = None, current
                self._open.current = better
                self._pause = FIRST_LOOK
                old, self._open.more = self._open.more, []
                for connection in old:
                    connection.retire()
        if unused is not None:
            unused.close()
        if replaced is not None:
            logger.warning("%s: back on %s", self._where, better.endpoint)
            replaced.retire()
        return replaced is not None


class _OpenConnections:
    """The connections of a link in one process.

    Attributes:
        lock: of the others.
        current: the one in use.
        more: others to the same endpoint.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.current: SSHConnection | None = None
        self.more: list[SSHConnection] = []

    def close(self) -> None:
        """Close them all."""
        with self.lock:
            found, self.more = self.more, []
            if self.current is not None:
                found.insert(0, self.current)
            self.current = None
        for connection in found:
            connection.close()


class _FailoverRegistry:
    """The links of this process, for a forked child to begin anew; and what it must never collect."""

    def __init__(self) -> None:
        self._members: weakref.WeakSet[Failover] = weakref.WeakSet()
        self.abandoned: list[SSHConnection] = []
        os.register_at_fork(after_in_child=self._after_in_child)

    def add(self, link: Failover) -> None:
        """Have *link* begin anew in children."""
        self._members.add(link)

    def _after_in_child(self) -> None:
        for link in list(self._members):
            link.after_fork()


@functools.cache
def _links() -> _FailoverRegistry:
    """This process's. Made when first needed, since a hook of `os` cannot be taken back."""
    return _FailoverRegistry()
