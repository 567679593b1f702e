"""Session: one process's connections to one database."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import QueuePool

from storage_backend.backends.sql import schema
from storage_backend.errors import (
    ConfigurationError,
    MissingClientError,
    StorageTimeoutError,
    UnavailableError,
)

if TYPE_CHECKING:
    from storage_backend.backends.sql.address import Address

CONNECT_TIMEOUT = 10  # seconds, for PostgreSQL; the URL's connect_timeout takes precedence
FORK_PATIENCE = 5.0  # seconds that a fork waits for statements under way

# A peer that vanished is noticed within about a minute, not two hours (libpq's own default is the kernel's).
_KEEPALIVE = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a database is used; the fields are `DatabaseStorage`'s parameters."""

    create_if_missing: bool
    durable: bool
    timeout_seconds: float
    connections: int
    stale_seconds: float


def synchronous(settings: Settings) -> str:
    """SQLite's level. In WAL mode NORMAL keeps the file whole through power loss; only the latest commits may go."""
    return "FULL" if settings.durable else "NORMAL"


class Session:
    """A pool of connections in driver autocommit, made when first used, and the order in which they are used.

    Args:
        address: of the database.
        settings: how to use it.
    """

    def __init__(self, address: Address, settings: Settings) -> None:
        self.address = address
        self.settings = settings
        self.torn = (
            False  # whether a fork had to leave connections open, which makes SQLite unsafe in the child
        )
        self._engine: Engine | None = None
        self._opening = threading.Lock()
        # SQLite has one writer at a time and lets the others poll: within a process they queue here.
        self._writing = threading.Lock()
        self._gate = threading.Condition()
        self._users = 0
        self._closed = False
        self._place: tuple[int, int] | None = None  # of SQLite's file, while it is open
        self._raw: weakref.WeakSet[Any] = weakref.WeakSet()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection of the pool."""
        with self._gate:
            while self._closed:
                self._gate.wait()
            self._users += 1
        try:
            engine = self._opened()
            self._check_place()
            pool = engine.pool
            try:
                with engine.connect() as connection:
                    yield connection
            finally:
                if engine.pool is not pool:
                    pool.dispose()  # closed meanwhile, but for this connection
        finally:
            with self._gate:
                self._users -= 1
                if self._closed:
                    self._gate.notify_all()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """This thread's turn to write, where only one may."""
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
        """Close the connections. Those in use are closed when they come back."""
        with self._opening:
            engine, self._engine = self._engine, None
        if engine is not None:
            _dispose(engine)

    def before_fork(self) -> None:
        """Let nobody begin, wait for those that have, and close all connections."""
        self._gate.acquire()
        self._closed = True
        self.torn = not self._gate.wait_for(lambda: self._users == 0, FORK_PATIENCE)
        if self._engine is not None:
            _dispose(self._engine)

    def after_fork(self) -> None:
        """Go on, in the parent."""
        self.torn = False
        self._closed = False
        self._gate.notify_all()
        self._gate.release()

    def abandon(self) -> None:
        """In a forked child: hang up inherited sockets without a byte, so that the server hears of the parent's end.

        The descriptors' numbers stay taken, since the objects that own them live on.
        """
        if self.address.dialect != "postgresql":
            return
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for raw in list(self._raw):
            if not raw.closed:
                os.dup2(nowhere, raw.fileno(), inheritable=False)
        os.close(nowhere)

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

    def _check_place(self) -> None:
        """SQLite would go on writing to a file that has been deleted, or that another has taken the place of."""
        if self._place is not None and self._place != _identity(self.address.path):
            self.close()
            where = self.address.location
            raise UnavailableError(
                f"{where}: the file was moved, replaced or deleted while it was in use; try again to open what is there",
                backend=where,
            )

    def _make(self) -> Engine:
        sqlite = self.address.dialect == "sqlite"
        dial = (
            _sqlite_dial(self.address, self.settings)
            if sqlite
            else _postgresql_dial(self.address, self.settings, self._raw)
        )
        return create_engine(
            "sqlite+pysqlite://" if sqlite else "postgresql+psycopg://",
            creator=dial,
            poolclass=QueuePool,
            pool_size=self.settings.connections,
            max_overflow=0,
            pool_timeout=self.settings.timeout_seconds,
            pool_use_lifo=True,
            hide_parameters=True,  # they are the objects' bytes
        )

    def _prepare(self, engine: Engine) -> None:
        sqlite = self.address.dialect == "sqlite"
        with engine.connect() as connection:
            if not schema.check(connection, self.address):
                if not self.settings.create_if_missing:
                    raise schema.missing(self.address)
                if sqlite:
                    _refuse_single_byte(self.address)
                    _use_wal(connection, self.settings.timeout_seconds)
                connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "BEGIN")
                schema.create(connection, self.address)
                connection.commit()
            self._place = _identity(self.address.path) if sqlite else None


def _dispose(engine: Engine) -> None:
    """Close the connections that are in the pool, and have those in use closed when they come back."""
    pool = engine.pool
    engine.dispose()
    # One that came back before the engine had another pool, and so did not notice.
    pool.dispose()


def _sqlite_dial(address: Address, settings: Settings) -> Callable[[], sqlite3.Connection]:
    mode = "rwc" if settings.create_if_missing else "rw"
    uri = f"file:{quote(os.fsencode(address.path))}?mode={mode}"

    def dial() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri,
            uri=True,
            timeout=settings.timeout_seconds,
            isolation_level=None,  # transactions begin where we say so, and as we say
            check_same_thread=False,  # the pool gives a connection to one thread at a time
        )
        try:
            connection.execute(f"PRAGMA synchronous = {synchronous(settings)}")
            connection.execute("PRAGMA secure_delete = OFF")  # Debian's default overwrites what is deleted
            connection.execute("PRAGMA cell_size_check = ON")  # notice damage before following it
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
        except BaseException:
            connection.close()
            raise
        return connection

    return dial


def _postgresql_dial(address: Address, settings: Settings, opened: weakref.WeakSet[Any]) -> Callable[[], Any]:
    try:
        import psycopg
    except ImportError as error:
        raise MissingClientError(
            f"PostgreSQL needs psycopg ({error}): pip install 'storage-backend[sql]'"
        ) from error

    class BinaryCursor(psycopg.Cursor[Any]):
        """Has bytes sent as they are: as text they are twice as many."""

        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, **keywords)
            self.format = psycopg.pq.Format.BINARY

    def dial() -> psycopg.Connection[Any]:
        parameters: dict[str, Any] = {
            "connect_timeout": str(CONNECT_TIMEOUT),
            **_KEEPALIVE,
            **address.parameters,
        }
        password = address.secret()
        if password is not None:
            parameters["password"] = password
        connection = psycopg.connect(autocommit=True, cursor_factory=BinaryCursor, **parameters)
        opened.add(connection)
        if "lock_timeout" not in address.parameters.get("options", ""):
            connection.execute(f"SET lock_timeout = {round(settings.timeout_seconds * 1000)}")
        return connection

    return dial


def _identity(path: str) -> tuple[int, int]:
    """What tells a file from another of the same name; (0, 0) if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - on the way of each call, and twice as fast as Path.stat
    except FileNotFoundError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _refuse_single_byte(address: Address) -> None:
    """SQLite takes a file of one byte for an empty one (unixFileSize in os_unix.c)."""
    if Path(address.path).stat().st_size == 1:
        raise ConfigurationError(
            f"{address.location}: file is not a database: it was left as it is", backend=address.location
        )


def _use_wal(connection: Connection, patience: float) -> None:
    """Readers then never wait for a writer. The page size can be chosen only before the first table."""
    connection.exec_driver_sql(f"PRAGMA page_size = {schema.PAGE_SIZE}")
    deadline = time.monotonic() + patience
    while True:
        try:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        except Exception as error:
            # Changing the mode does not wait for a process that is changing it, too.
            busy = getattr(error, "orig", None)
            if getattr(busy, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


def inherited(session: Session) -> UnavailableError:
    """The error for a child that was forked while statements were under way."""
    where = session.address.location
    return UnavailableError(
        f"{where}: this process was forked while statements were under way, so SQLite is not safe in it; "
        "start it by 'spawn', or fork while no other thread uses the database",
        backend=where,
        retryable=False,
    )
