"""Database: runs functions in transactions, retries them, translates errors, and deletes garbage."""

from __future__ import annotations

import logging
import math
import os
import random
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from storage_backend import owners
from storage_backend.backends.sql import drivers, schema
from storage_backend.backends.sql.address import Address, DatabaseSettings
from storage_backend.backends.sql.connection_pool import DatabasePool, inherited
from storage_backend.backends.sql.drivers import is_pooled, lock_timeout, synchronous
from storage_backend.backends.sql.errors import translate
from storage_backend.backends.sql.heartbeat import Heartbeat
from storage_backend.backends.sql.object_row import tag_of
from storage_backend.backends.sql.statements import Statements
from storage_backend.errors import QuotaExceededError, StorageError, UnsupportedOperationError
from storage_backend.forks import guard
from storage_backend.threads import grace, run_within_grace

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

CONFLICT_ATTEMPTS = 8  # of a transaction that conflicts with others
LONGEST_PAUSE = 0.2  # seconds between two of them
ROOM = (
    512 << 10
)  # bytes of an SQLite file's disk that are reserved for deleting, which writes some pages at a time
CONNECTION_ATTEMPTS = 2  # when a connection is dead; the whole pool is then dropped

# Serialization failure, deadlock, and a name that another transaction inserted meanwhile ("PostgreSQL Error Codes").
_CONFLICTS = {"40001", "40P01", "23505"}


class Database:
    """One database, for use by all threads and after forks."""

    def __init__(self, address: Address, settings: DatabaseSettings) -> None:
        self.address = address
        self.settings = settings
        self.statements = Statements(address.dialect)
        # By process. A child keeps what it inherits: garbage collection would close the parent's connections.
        self._pools: dict[int, DatabasePool] = {}
        self._heartbeats: dict[int, Heartbeat] = {}
        self._swept = float("-inf")
        self._undiscarded: deque[bytes] = deque()
        weakref.finalize(self, _close, self._pools, self._heartbeats)

    def run(self, work: Callable[[Connection], Result], identifier: str | None = None) -> Result:
        """Run read-only *work*; each of its statements is a transaction. It may be run more than once."""
        return self._attempt(work, None, identifier, reads=True)

    def snapshot(self, work: Callable[[Connection], Result], identifier: str | None = None) -> Result:
        """Run read-only *work* in one snapshot of the database."""
        begin = {"sqlite": "BEGIN", "postgresql": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"}
        return self._attempt(work, begin[self.address.dialect], identifier, reads=True)

    def transact(
        self, work: Callable[[Connection], Result], identifier: str | None = None, *, size: int = 0
    ) -> Result:
        """Run *work* in a transaction that writes.

        It is repeated after a conflict with another transaction and after a lost connection. If only the acknowledgement of the
        commit was lost, the repetition must recognise what the first run did.

        Args:
            work: the function.
            identifier: the object concerned, if any.
            size: bytes of content that it stores.

        Raises:
            QuotaExceededError: the disk would have no room left for deleting.
        """
        begin = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "BEGIN ISOLATION LEVEL READ COMMITTED"}
        with self._pool().write_lock():
            if self.address.dialect == "sqlite":
                self._pool().reopen_if_immutable()
                self._keep_room(size, identifier)
            return self._attempt(work, begin[self.address.dialect], identifier)

    def flush(self) -> None:
        """Return once every commit so far survives power loss: a synchronous commit makes all earlier ones durable."""
        if self.address.dialect == "postgresql":

            def wait(connection: Connection) -> None:
                # "on" is the server's default, but a role or database may override it.
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

        with self._pool().write_lock():
            self._attempt(sync, None, None)

    def compact(self) -> None:
        """Return the space of deleted objects to the disk.

        Raises:
            UnsupportedOperationError: PostgreSQL reuses that space by itself.
        """
        if self.address.dialect != "sqlite":
            raise UnsupportedOperationError(
                f"{self.address.location}: the server reuses the space of deleted objects by itself (autovacuum); the owner of the "
                "tables can return it to the disk with VACUUM FULL",
                backend=self.address.location,
            )

        def work(connection: Connection) -> None:
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

        self.sweep(self.settings.stale_seconds)
        with self._pool().write_lock():
            self._attempt(work, None, None)

    @cached_property
    def _real_path(self) -> str:
        """The path of the SQLite file without symlinks: its write-ahead log is in that directory."""
        return os.path.realpath(self.address.path)

    def _keep_room(self, size: int, identifier: str | None) -> None:
        """Refuse a write that would fill the disk: deleting must remain possible, and is written to SQLite's log, too."""
        path = self._real_path
        try:
            free, log = drivers.free_bytes(path), drivers.size_of(f"{path}-wal")
        except OSError:  # SQLite's own error says what is wrong
            return
        if free is None or free >= 2 * size + log + ROOM:
            return

        def empty_log(connection: Connection) -> int:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            return int(connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()) * schema.PAGE_SIZE

        try:
            reusable = self._attempt(empty_log, None, identifier)
        except StorageError as error:
            logger.debug("the write-ahead log was not emptied: %s", error)
            reusable = 0
        if size and (drivers.free_bytes(path) or 0) < size + max(0, size - reusable) + ROOM:
            raise QuotaExceededError(
                f"{self.address.location}: the disk is full, except for the space that deleting needs; nothing was changed",
                identifier=identifier,
                backend=self.address.location,
            )

    @property
    def heartbeat(self) -> Heartbeat:
        """The heartbeat of this process's uploads."""
        pid = os.getpid()
        return self._heartbeats.get(pid) or self._heartbeats.setdefault(
            pid, Heartbeat(self.beat, self.discard, self.settings.stale_seconds / 10)
        )

    def beat(self, versions: Sequence[bytes]) -> None:
        """Record a heartbeat of uploads. Errors are logged."""
        try:
            self.transact(lambda connection: self.statements.beat(connection, versions))
        except StorageError as error:
            logger.warning("no heartbeat was recorded for running uploads: %s", error)

    def sweep(self, age: float) -> int:
        """Delete the chunks of versions that no object points to, in short transactions.

        Args:
            age: seconds since the last heartbeat of an upload; with 0, all uploads are swept.

        Returns:
            The number of those versions.
        """
        # Heartbeats are whole seconds: a difference of n proves that more than n - 1 have passed.
        seconds = math.ceil(age) + 1 if age > 0 else 0
        return self._clear(self.run(lambda connection: self.statements.stale(connection, seconds)), seconds)

    def sweep_abandoned(self) -> int:
        """Delete the chunks of uploads whose process on this machine has ended. Returns the number of uploads."""
        versions = self.run(lambda connection: self.statements.stale(connection, 0))
        living = owners.living() if versions else frozenset()
        return self._clear([each for each in versions if owners.is_abandoned_tag(tag_of(each), living)], 0)

    def _clear(self, versions: Iterable[bytes], seconds: int) -> int:
        condemned = [
            version
            for version in versions
            if self.transact(partial(self.statements.condemn, version=version, age=seconds))
        ]
        for version in condemned:
            self._prune(version)
        return len(condemned)

    def sweep_now_and_then(self) -> None:
        """Before a write: retry failed discards, and sweep unless this process did so recently. Errors are logged."""
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
        """Delete an upload that will not be published. If that fails, a later write tries again.

        After an interrupt, it waits only for the grace period.
        """
        if grace() is None or self.address.dialect == "sqlite":
            self._discard(version)
        else:
            run_within_grace(partial(self._discard, version), "storage-backend-discard")

    def _discard(self, version: bytes) -> None:
        try:
            self.transact(lambda connection: self.statements.discard(connection, [version]))
            self._prune(version)
        except StorageError as error:
            logger.warning("an unfinished upload will be deleted later: %s", error)
            self._undiscarded.append(version)

    def collect(self) -> None:
        """Delete the garbage that a transaction left. After an error, which is logged, a later sweep tries again."""
        try:
            self.sweep(float(1 << 60))
        except StorageError as error:
            logger.warning("superseded bytes will be deleted by a later sweep: %s", error)

    def close(self) -> None:
        """Close this process's connections."""
        _close(self._pools, self._heartbeats)

    def _prune(self, version: bytes) -> None:
        while self.transact(partial(self.statements.prune, version=version)):
            pass

    def _pool(self) -> DatabasePool:
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is not None:
            return pool
        for old in list(self._pools.values()):
            if old.torn and self.address.dialect == "sqlite":
                raise inherited(old)
            old.abandon()
        pool = self._pools.setdefault(pid, DatabasePool(self.address, self.settings))
        if self.address.dialect == "sqlite":
            guard().add(pool)
        return pool

    def _in_transaction(
        self, connection: Connection, begin: str | None, work: Callable[[Connection], Result]
    ) -> Result:
        if begin is None:
            return work(connection)
        # The drivers are in autocommit mode, so this is the only BEGIN; releasing the connection rolls back.
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
            pool = self._pool()
            try:
                if reads and pool.is_missing():
                    with pool.empty() as connection:
                        return work(connection)
                with pool.connection() as connection:
                    return self._in_transaction(connection, begin, work)
            except SQLAlchemyError as error:
                if attempt < _attempts_after(error):
                    if not _is_dead(error):
                        # Random, or the same transactions would conflict again.
                        time.sleep(random.uniform(0, min(0.002 * 2**attempt, LONGEST_PAUSE)))  # noqa: S311 - not for secrecy
                    attempt += 1
                    continue
                failure = translate(error, self.address, identifier)
                failure.attempts = attempt
                raise failure from error


def _attempts_after(error: SQLAlchemyError) -> int:
    """How often a transaction that failed with *error* is tried."""
    if _is_dead(error):
        return CONNECTION_ATTEMPTS
    orig = error.orig if isinstance(error, DBAPIError) else None
    return CONFLICT_ATTEMPTS if getattr(orig, "sqlstate", None) in _CONFLICTS else 1


def _is_dead(error: SQLAlchemyError) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _close(pools: dict[int, DatabasePool], heartbeats: dict[int, Heartbeat]) -> None:
    pid = os.getpid()
    if (pool := pools.get(pid)) is not None:
        pool.close()
    if (heartbeat := heartbeats.get(pid)) is not None:
        heartbeat.rest()
