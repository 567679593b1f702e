"""Database: runs work in the right kind of transaction, again where that helps, and translates what goes wrong."""

from __future__ import annotations

import logging
import math
import os
import random
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from storage_backend import owners
from storage_backend.backends.sql import drivers, schema
from storage_backend.backends.sql.address import Address
from storage_backend.backends.sql.catalog import Catalog
from storage_backend.backends.sql.drivers import Settings, is_pooled, lock_timeout, synchronous
from storage_backend.backends.sql.entry import tag_of
from storage_backend.backends.sql.errors import translate
from storage_backend.backends.sql.heart import Heart
from storage_backend.backends.sql.session import Session, inherited
from storage_backend.errors import QuotaExceededError, StorageError, UnsupportedOperationError
from storage_backend.forks import guard
from storage_backend.threads import grace, run_within_grace

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

TRIES = 8  # of a transaction that others got in the way of
LONGEST_PAUSE = 0.2  # seconds between two of them
ROOM = 512 << 10  # bytes of an SQLite file's disk that only deleting may use; it takes some pages at a time
RECONNECTS = 2  # tries when a connection turns out to be dead; the whole pool is then dropped

# Serialisation failure, deadlock, and a name that another transaction inserted meanwhile ("PostgreSQL Error Codes").
_IN_THE_WAY = {"40001", "40P01", "23505"}


class Database:
    """One database, from any thread and after any fork.

    Args:
        address: of the database.
        settings: how to use it.
    """

    def __init__(self, address: Address, settings: Settings) -> None:
        self.address = address
        self.settings = settings
        self.catalog = Catalog(address.dialect)
        # By process. What a child inherits stays here, untouched: collected, it would be closed.
        self._sessions: dict[int, Session] = {}
        self._hearts: dict[int, Heart] = {}
        self._swept = float("-inf")
        self._undiscarded: deque[bytes] = deque()
        weakref.finalize(self, _close, self._sessions, self._hearts)

    def run(self, work: Callable[[Connection], Result], identifier: str | None = None) -> Result:
        """Run *work*, which only reads, with a connection on which each statement is a transaction. It must bear being run again."""
        return self._attempt(work, None, identifier, reads=True)

    def snapshot(self, work: Callable[[Connection], Result], identifier: str | None = None) -> Result:
        """Run *work* where all its statements see the database as it was at the first of them."""
        begin = {"sqlite": "BEGIN", "postgresql": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"}
        return self._attempt(work, begin[self.address.dialect], identifier, reads=True)

    def transact(
        self, work: Callable[[Connection], Result], identifier: str | None = None, *, size: int = 0
    ) -> Result:
        """Run *work* in a transaction that writes.

        It is run again if another transaction was in the way or the connection was dead, also when the
        acknowledgement of its commit was lost: then it finds what it did.

        Args:
            work: what to do.
            identifier: the object concerned, if any.
            size: bytes of contents that it stores.

        Raises:
            QuotaExceededError: they would leave no room on the disk for deleting anything.
        """
        begin = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "BEGIN ISOLATION LEVEL READ COMMITTED"}
        with self._session().turn():
            if self.address.dialect == "sqlite":
                self._session().forget_stillness()
                self._keep_room(size, identifier)
            return self._attempt(work, begin[self.address.dialect], identifier)

    def flush(self) -> None:
        """Return once every commit so far survives power loss: one that waits for the disk has all before it there."""
        if self.address.dialect == "postgresql":

            def wait(connection: Connection) -> None:
                # "on" is the default, but a role or database may have another.
                connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
                schema.touch(connection)

            self.transact(wait)
            return

        def sync(connection: Connection) -> None:
            connection.exec_driver_sql("PRAGMA synchronous = FULL")
            try:
                schema.touch(connection)
            finally:
                connection.exec_driver_sql(f"PRAGMA synchronous = {synchronous(self.settings)}")

        with self._session().turn():
            self._attempt(sync, None, None)

    def compact(self) -> None:
        """Give the space of what was deleted back to the disk.

        Raises:
            UnsupportedOperationError: it is a server, which does so itself.
        """
        if self.address.dialect != "sqlite":
            raise UnsupportedOperationError(
                f"{self.address.location}: the server reuses the space of what was deleted by itself (autovacuum); its owner "
                "gives it back with VACUUM FULL",
                backend=self.address.location,
            )

        def work(connection: Connection) -> None:
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

        self.sweep(self.settings.stale_seconds)
        with self._session().turn():
            self._attempt(work, None, None)

    @cached_property
    def _real_path(self) -> str:
        """Of an SQLite file: its log is beside what a link leads to."""
        return os.path.realpath(self.address.path)

    def _keep_room(self, size: int, identifier: str | None) -> None:
        """See to it that SQLite's log has room, now and for deleting later: what is deleted is written there, too."""
        place = self._real_path
        try:
            free, log = drivers.free_bytes(place), drivers.size_of(f"{place}-wal")
        except OSError:  # SQLite will say what is wrong
            return
        if free is None or free >= 2 * size + log + ROOM:
            return

        def empty_log(connection: Connection) -> int:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            return int(connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()) * schema.PAGE_SIZE

        try:
            reusable = self._attempt(empty_log, None, identifier)
        except StorageError as error:
            logger.debug("the log stays as long as it is: %s", error)
            reusable = 0
        if size and (drivers.free_bytes(place) or 0) < size + max(0, size - reusable) + ROOM:
            raise QuotaExceededError(
                f"{self.address.location}: the disk is full but for the room that deleting takes; nothing was changed",
                identifier=identifier,
                backend=self.address.location,
            )

    @property
    def heart(self) -> Heart:
        """Keeps this process's uploads alive."""
        pid = os.getpid()
        return self._hearts.get(pid) or self._hearts.setdefault(
            pid, Heart(weakref.ref(self), self.settings.stale_seconds / 10)
        )

    def sweep(self, age: float) -> int:
        """Delete the chunks of versions that no object points to, in short transactions.

        Args:
            age: seconds since an upload last showed life; none is swept before that, and with 0 all are.

        Returns:
            How many such versions there were.
        """
        # Beats are whole seconds of the database's clock: a difference of n says that more than n - 1 have passed.
        seconds = math.ceil(age) + 1 if age > 0 else 0
        return self._clear(self.run(lambda connection: self.catalog.stale(connection, seconds)), seconds)

    def sweep_abandoned(self) -> int:
        """Delete the chunks that uploads of this machine's processes left that have ended; how many uploads there were."""
        versions = self.run(lambda connection: self.catalog.stale(connection, 0))
        living = owners.living() if versions else frozenset()
        return self._clear([each for each in versions if owners.is_abandoned_tag(tag_of(each), living)], 0)

    def _clear(self, versions: Iterable[bytes], seconds: int) -> int:
        condemned = [
            version
            for version in versions
            if self.transact(partial(self.catalog.condemn, version=version, age=seconds))
        ]
        for version in condemned:
            self._prune(version)
        return len(condemned)

    def sweep_now_and_then(self) -> None:
        """Before a write: finish what could not be discarded, and sweep, if this process has not done so lately.

        What goes wrong is logged: it is not the caller's concern.
        """
        for _ in range(len(self._undiscarded)):
            self.discard(self._undiscarded.popleft())
        now = time.monotonic()
        if now - self._swept < self.settings.stale_seconds:
            return
        self._swept = now
        try:
            count = self.sweep(self.settings.stale_seconds)
        except StorageError as error:
            logger.warning("stale uploads were not swept: %s", error)
        else:
            if count:
                logger.info("swept %d stale uploads in %s", count, self.address.location)

    def discard(self, version: bytes) -> None:
        """Delete an upload that will not be published. If that cannot be done now, it is before a later write.

        After an interrupt it returns soon, however silent the server is.
        """
        if grace() is None or self.address.dialect == "sqlite":
            self._discard(version)
        else:
            run_within_grace(partial(self._discard, version), "storage-backend-discard")

    def _discard(self, version: bytes) -> None:
        try:
            self.transact(lambda connection: self.catalog.discard(connection, [version]))
            self._prune(version)
        except StorageError as error:
            logger.warning("an unfinished upload is left for later: %s", error)
            self._undiscarded.append(version)

    def collect(self) -> None:
        """Delete the garbage that a transaction has left behind, if nothing goes wrong; else a later sweep does."""
        try:
            self.sweep(float(1 << 60))
        except StorageError as error:
            logger.warning("superseded bytes are left to a later sweep: %s", error)

    def close(self) -> None:
        """Close this process's connections."""
        _close(self._sessions, self._hearts)

    def _prune(self, version: bytes) -> None:
        while self.transact(partial(self.catalog.prune, version=version)):
            pass

    def _session(self) -> Session:
        pid = os.getpid()
        session = self._sessions.get(pid)
        if session is not None:
            return session
        for old in list(self._sessions.values()):
            if old.torn and self.address.dialect == "sqlite":
                raise inherited(old)
            old.abandon()
        session = self._sessions.setdefault(pid, Session(self.address, self.settings))
        if self.address.dialect == "sqlite":
            guard().add(session)
        return session

    def _within(
        self, connection: Connection, begin: str | None, work: Callable[[Connection], Result]
    ) -> Result:
        if begin is None:
            return work(connection)
        # The drivers are in autocommit, so this is the one BEGIN; leaving the connection rolls back.
        connection.exec_driver_sql(begin)
        if is_pooled(connection) and "lock_timeout" not in self.address.parameters.get("options", ""):
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {lock_timeout(self.settings)}")
        result = work(connection)
        connection.commit()
        return result

    def _attempt(
        self,
        work: Callable[[Connection], Result],
        begin: str | None,
        identifier: str | None,
        *,
        reads: bool = False,
    ) -> Result:
        attempt = 1
        while True:
            session = self._session()
            try:
                if reads and session.is_missing():
                    with session.empty() as connection:
                        return work(connection)
                with session.connection() as connection:
                    return self._within(connection, begin, work)
            except SQLAlchemyError as error:
                if attempt < _tries(error):
                    if not _is_dead(error):
                        # At random, or those that met would meet again.
                        time.sleep(random.uniform(0, min(0.002 * 2**attempt, LONGEST_PAUSE)))  # noqa: S311 - not for secrecy
                    attempt += 1
                    continue
                failure = translate(error, self.address, identifier)
                failure.attempts = attempt
                raise failure from error


def _tries(error: SQLAlchemyError) -> int:
    """How often a transaction that failed so is tried."""
    if _is_dead(error):
        return RECONNECTS
    orig = error.orig if isinstance(error, DBAPIError) else None
    return TRIES if getattr(orig, "sqlstate", None) in _IN_THE_WAY else 1


def _is_dead(error: SQLAlchemyError) -> bool:
    """Whether the connection is."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _close(sessions: dict[int, Session], hearts: dict[int, Heart]) -> None:
    pid = os.getpid()
    if (session := sessions.get(pid)) is not None:
        session.close()
    if (heart := hearts.get(pid)) is not None:
        heart.rest()
