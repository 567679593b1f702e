"""DatabasePool: one process's connections to one database."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import QueuePool

from storage_backend.backends.sql import drivers, schema
from storage_backend.errors import StorageTimeoutError, UnavailableError

if TYPE_CHECKING:
    from storage_backend.backends.sql.address import Address, DatabaseSettings

FORK_PATIENCE = 5.0  # seconds that a fork waits for statements under way


class DatabasePool:
    """A pool of connections in driver autocommit, created on first use, with a lock for SQLite's single writer.

    Args:
        address: of the database.
        settings: how to use it.
    """

    def __init__(self, address: Address, settings: DatabaseSettings) -> None:
        self.address = address
        self.settings = settings
        # Whether connections were in use during a fork: SQLite is then unsafe in the child ("How To Corrupt", SQLite documentation).
        self.torn = False
        self._engine: Engine | None = None
        self._opening = threading.Lock()
        # SQLite has one writer at a time, and the others poll. The threads of this process queue here instead.
        self._writing = threading.Lock()
        self._gate = threading.Condition()
        self._users = 0
        self._closed = False
        self._file_identity: tuple[int, int] | None = None  # of SQLite's file, while it is open
        self._immutable: drivers.FileFingerprint | None = None  # of a file that was opened as immutable
        self._raw: weakref.WeakSet[Any] = weakref.WeakSet()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection of the pool."""
        with self._gate:
            while self._closed:
                self._gate.wait()
            self._users += 1
        try:
            if not self._is_unchanged():
                self.close()
            engine = self._opened()
            self._check_file()
            pool = engine.pool
            try:
                with engine.connect() as connection:
                    yield connection
                self._check_unchanged()
            finally:
                if engine.pool is not pool:
                    pool.dispose()  # the pool was closed meanwhile, except this connection
        finally:
            with self._gate:
                self._users -= 1
                if self._closed:
                    self._gate.notify_all()

    def is_missing(self) -> bool:
        """Whether the first write has yet to create the file or the tables."""
        if self._engine is not None or not self.settings.create_if_missing:
            return False
        if self.address.dialect == "sqlite":
            # If the file cannot be created, SQLite's error says why.
            path = Path(self.address.path)
            return not path.exists() and os.access(path.parent, os.W_OK | os.X_OK)
        with self._opening:
            if self._engine is None:
                engine = self._make()
                try:
                    with engine.connect() as connection:
                        if schema.check(connection, self.address):
                            self._engine = engine
                finally:
                    if self._engine is not engine:
                        engine.dispose()
            return self._engine is None

    @contextmanager
    def empty(self) -> Iterator[Connection]:
        """A connection to an empty private database with our tables, for reads before the first write."""
        engine = create_engine("sqlite://") if self.address.dialect == "sqlite" else self._make()
        try:
            with engine.connect() as connection:
                if self.address.dialect == "postgresql":
                    connection.exec_driver_sql("BEGIN")  # never committed
                schema.create(connection, self.address)
                yield connection
        finally:
            engine.dispose()

    @contextmanager
    def write_lock(self) -> Iterator[None]:
        """Hold the write lock of SQLite. PostgreSQL needs none."""
        if self.address.dialect != "sqlite":
            yield
            return
        if not self._writing.acquire(timeout=self.settings.timeout_seconds):
            raise StorageTimeoutError(
                f"{self.address.location}: other threads have been writing for "
                f"{self.settings.timeout_seconds:g} s; try again",
                backend=self.address.location,
            )
        try:
            yield
        finally:
            self._writing.release()

    def close(self) -> None:
        """Close the connections; those in use when they are returned."""
        with self._opening:
            engine, self._engine = self._engine, None
        if engine is not None:
            _dispose(engine)

    def before_fork(self) -> None:
        """Block new statements, wait for running ones, and close all connections."""
        self._gate.acquire()
        self._closed = True
        self.torn = not self._gate.wait_for(lambda: self._users == 0, FORK_PATIENCE)
        if self._engine is not None:
            _dispose(self._engine)

    def after_fork(self) -> None:
        """In the parent: allow statements again."""
        self.torn = False
        self._closed = False
        self._gate.notify_all()
        self._gate.release()

    def abandon(self) -> None:
        """In a forked child: close inherited sockets without sending a byte, so that the server notices when the parent ends.

        /dev/null takes their descriptors, because the objects that own them still exist.
        """
        if self.address.dialect != "postgresql":
            return
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for raw in list(self._raw):
            if not raw.closed:
                os.dup2(null, raw.fileno(), inheritable=False)
        os.close(null)

    def _opened(self) -> Engine:
        engine = self._engine
        if engine is not None:
            return engine
        with self._opening:
            if self._engine is None:
                engine = self._make()
                try:
                    self._prepare(engine)
                except BaseException:
                    engine.dispose()
                    raise
                self._engine = engine
            return self._engine

    def _check_file(self) -> None:
        """Refuse a database file that was deleted or replaced: SQLite would continue to write to the old one."""
        if self._file_identity is not None and self._file_identity != drivers.file_identity(
            self.address.path
        ):
            self.close()
            where = self.address.location
            raise UnavailableError(
                f"{where}: the file was moved, replaced or deleted while it was in use; try again to open what is there",
                backend=where,
            )

    def reopen_if_immutable(self) -> None:
        """Before a write: reopen a file that was opened as immutable; it may have become writable."""
        if self._immutable is not None:
            self.close()

    def _is_unchanged(self) -> bool:
        return self._immutable is None or drivers.fingerprint(self.address.path) == self._immutable

    def _check_unchanged(self) -> None:
        """Refuse a result that was read from an immutable file while another process wrote: it may mix two states."""
        if not self._is_unchanged():
            where = self.address.location
            raise UnavailableError(
                f"{where}: another process wrote to it while it was open as read-only; try again",
                backend=where,
            )

    def _set_immutable(self, seen: drivers.FileFingerprint | None) -> None:
        self._immutable = seen

    def _make(self) -> Engine:
        sqlite = self.address.dialect == "sqlite"
        dial = (
            drivers.sqlite_dial(self.address, self.settings, self._set_immutable)
            if sqlite
            else drivers.postgresql_dial(self.address, self.settings, self._raw)
        )
        return create_engine(
            "sqlite+pysqlite://" if sqlite else "postgresql+psycopg://",
            creator=dial,
            poolclass=QueuePool,
            pool_size=self.settings.connections,
            max_overflow=0,
            pool_timeout=self.settings.timeout_seconds,
            pool_use_lifo=True,
            hide_parameters=True,  # parameters are the objects' bytes
        )

    def _prepare(self, engine: Engine) -> None:
        sqlite = self.address.dialect == "sqlite"
        with engine.connect() as connection:
            if not schema.check(connection, self.address):
                if not self.settings.create_if_missing:
                    raise schema.missing(self.address)
                if sqlite:
                    drivers.refuse_single_byte(self.address)
                    drivers.use_wal(connection, self.settings.timeout_seconds)
                connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "BEGIN")
                schema.create(connection, self.address)
                connection.commit()
            self._file_identity = drivers.file_identity(self.address.path) if sqlite else None


def _dispose(engine: Engine) -> None:
    """Close the idle connections now, and those in use when they are returned."""
    pool = engine.pool
    engine.dispose()
    # Again, for a connection that was returned while the engine was replacing the pool.
    pool.dispose()


def inherited(pool: DatabasePool) -> UnavailableError:
    """The error for a child that was forked while statements were running."""
    where = pool.address.location
    return UnavailableError(
        f"{where}: this process was forked while statements were running, so SQLite is not safe in it; "
        "start it by 'spawn', or fork while no other thread uses the database",
        backend=where,
        retryable=False,
    )
