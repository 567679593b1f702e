"""Opens and configures connections of sqlite3 and psycopg."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

from storage_backend.backends.sql import schema
from storage_backend.errors import ConfigurationError, MissingClientError
from storage_backend.forks import no_fork

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from storage_backend.backends.sql.address import Address, DatabaseSettings

CONNECT_TIMEOUT = 10  # seconds, for PostgreSQL, unless the URL has connect_timeout

# SQLite's errors when it cannot create or write the files that it needs beside a database.
_UNWRITABLE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_FULL}
_UNWRITABLE_EXTENDED = {  # extended codes
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMMAP,
}

FileFingerprint: TypeAlias = tuple[int, int, int, int]  # device, inode, size, modification time

# A dead peer is noticed within about a minute; libpq's default is the kernel's two hours.
_KEEPALIVE = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}


def synchronous(settings: DatabaseSettings) -> str:
    """SQLite's `synchronous` level. In WAL mode, NORMAL keeps the file intact through power loss; the last commits may be lost."""
    return "FULL" if settings.durable else "NORMAL"


def sqlite_dial(
    address: Address, settings: DatabaseSettings, on_immutable: Callable[[FileFingerprint | None], object]
) -> Callable[[], sqlite3.Connection]:
    """A function that opens a connection to the SQLite file.

    SQLite opens a file that is not writable as read-only. If it cannot create the files that it needs beside it even then, the file is
    opened as "immutable" ("Uniform Resource Identifiers", SQLite documentation). *on_immutable* is called with its fingerprint,
    by which a later change is noticed, or with None.
    """
    uri = f"file:{quote(os.fsencode(address.path))}?mode="

    def dial() -> sqlite3.Connection:
        try:
            connection = _connected(f"{uri}{'rwc' if settings.create_if_missing else 'rw'}", settings)
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode
            if code & 0xFF not in _UNWRITABLE and code not in _UNWRITABLE_EXTENDED:
                raise
            seen = fingerprint(address.path)
            if seen is None:
                raise
            connection = _connected(f"{uri}ro&immutable=1", settings)
            on_immutable(seen)
        else:
            on_immutable(None)
        return connection

    return dial


def _connected(uri: str, settings: DatabaseSettings) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri,
        uri=True,
        timeout=settings.timeout_seconds,
        isolation_level=None,  # autocommit: we send BEGIN ourselves
        check_same_thread=False,  # the pool gives a connection to one thread at a time
    )
    try:
        connection.execute(f"PRAGMA synchronous = {synchronous(settings)}")  # the first to access the file
        connection.execute("PRAGMA secure_delete = OFF")  # Debian's default overwrites deleted content
        connection.execute("PRAGMA cell_size_check = ON")  # detect damaged pages before they are used
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
    except BaseException:
        connection.close()
        raise
    return connection


def fingerprint(path: str) -> FileFingerprint | None:
    """The fingerprint of an SQLite file; None while another process writes to it, or after an interrupted write.

    A writer has a log or journal beside the file until its changes are in the file itself.
    """
    path = os.path.realpath(path)  # the log is beside the target of a symlink
    try:
        if any(size_of(f"{path}{suffix}") for suffix in ("-wal", "-journal")):
            return None
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def postgresql_dial(
    address: Address, settings: DatabaseSettings, opened: weakref.WeakSet[Any]
) -> Callable[[], Any]:
    """A function that opens a connection to the PostgreSQL server and adds it to *opened*.

    Raises:
        MissingClientError: psycopg is not installed.
    """
    try:
        with no_fork():
            import psycopg
    except ImportError as error:
        raise MissingClientError(
            f"{address.location} needs psycopg ({error}): pip install 'storage-backend[sql]'",
            backend=address.location,
        ) from error

    class BinaryCursor(psycopg.Cursor[Any]):
        """Sends bytes in the binary format, which takes half the space of the text format."""

        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, **keywords)
            self.format = psycopg.pq.Format.BINARY

    def dial() -> psycopg.Connection[Any]:
        parameters: dict[str, Any] = {
            "connect_timeout": str(CONNECT_TIMEOUT),
            "client_encoding": "UTF8",  # psycopg returns text of an SQL_ASCII database as bytes
            **_KEEPALIVE,
            **address.parameters,
        }
        if address.password is not None:
            parameters["password"] = address.password.value()
        connection = psycopg.connect(autocommit=True, cursor_factory=BinaryCursor, **parameters)
        opened.add(connection)
        ours = "lock_timeout" not in address.parameters.get("options", "")
        limit = f"set_config('lock_timeout', '{lock_timeout(settings)}', false)" if ours else "''"
        found = connection.execute(
            f"SELECT CASE pg_backend_pid() WHEN {connection.info.backend_pid} THEN {limit} END"
        ).fetchone()
        if found == (None,):
            # A connection pooler (PgBouncer) may run each transaction in another session of the server, where a prepared statement or
            # setting of the last one is missing, and another client's may be present.
            connection.prepare_threshold = None
        return connection

    return dial


def lock_timeout(settings: DatabaseSettings) -> int:
    """PostgreSQL's lock_timeout, in milliseconds."""
    return round(settings.timeout_seconds * 1000)


def is_pooled(connection: Connection) -> bool:
    """Whether a connection pooler may run each transaction in another session of the server."""
    return getattr(connection.connection.dbapi_connection, "prepare_threshold", 0) is None


def file_identity(path: str) -> tuple[int, int]:
    """Device and inode of a file; (0, 0) if it is not accessible."""
    try:
        found = os.stat(path)  # noqa: PTH116 - in each call, and twice as fast as Path.stat
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def free_bytes(path: str) -> int | None:
    """The free bytes of the disk of an SQLite file, for this user; None if the file system does not report them."""
    found = os.statvfs(os.path.dirname(path))  # noqa: PTH120 - in each write
    if not found.f_blocks:
        return None
    return (found.f_bavail if os.geteuid() else found.f_bfree) * found.f_frsize


def size_of(path: str) -> int:
    """The size of a file in bytes; 0 if it does not exist."""
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except FileNotFoundError:
        return 0


def refuse_single_byte(address: Address) -> None:
    """Refuse a file of one byte: SQLite treats it as empty (unixFileSize in os_unix.c) and would overwrite it."""
    if Path(address.path).stat().st_size == 1:
        raise ConfigurationError(
            f"{address.location}: file is not a database: it was left as it is", backend=address.location
        )


def use_wal(connection: Connection, patience: float) -> None:
    """Switch to WAL mode, in which readers never wait for a writer, and set the page size, which the first table fixes."""
    connection.exec_driver_sql(f"PRAGMA page_size = {schema.PAGE_SIZE}")
    deadline = time.monotonic() + patience
    while True:
        try:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        except Exception as error:
            # SQLite's own timeout does not apply while another process changes the mode.
            busy = getattr(error, "orig", None)
            if getattr(busy, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return
