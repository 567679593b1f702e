"""Translates errors of SQLAlchemy, sqlite3 and psycopg into StorageErrors."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from storage_backend.errors import (
    AccessDeniedError,
    AuthenticationError,
    BaseDirectoryNotFoundError,
    ConfigurationError,
    IntegrityError,
    QuotaExceededError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
)

if TYPE_CHECKING:
    from storage_backend.backends.sql.address import Address

# Primary result codes ("Result and Error Codes", SQLite documentation), with advice to add to SQLite's own message.
_SQLITE: dict[int, tuple[type[StorageError], str]] = {
    sqlite3.SQLITE_BUSY: (
        StorageTimeoutError,
        "another process held the write lock until the timeout; try again",
    ),
    sqlite3.SQLITE_LOCKED: (StorageTimeoutError, "try again"),
    sqlite3.SQLITE_PROTOCOL: (UnavailableError, "try again"),
    sqlite3.SQLITE_SCHEMA: (UnavailableError, "its tables were changed meanwhile; try again"),
    sqlite3.SQLITE_INTERRUPT: (UnavailableError, "try again"),
    sqlite3.SQLITE_FULL: (QuotaExceededError, "the disk is full; nothing was changed"),
    sqlite3.SQLITE_CORRUPT: (IntegrityError, "the file is damaged; restore it from a copy"),
    sqlite3.SQLITE_NOTADB: (ConfigurationError, "it was left as it is"),
    sqlite3.SQLITE_READONLY: (AccessDeniedError, "the file or its directory is not writable"),
    sqlite3.SQLITE_PERM: (AccessDeniedError, "permission to open the file was denied"),
    sqlite3.SQLITE_AUTH: (AccessDeniedError, "the statement was not authorized"),
    sqlite3.SQLITE_CANTOPEN: (
        AccessDeniedError,
        "the file or its directory (where SQLite keeps -wal and -shm files) is not accessible",
    ),
}
# A read past the end of the file or of a bad sector (extended codes of SQLITE_IOERR).
_SQLITE_DAMAGE = {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS}

# SQLSTATE, or its first two characters, its class ("PostgreSQL Error Codes").
_SQLSTATE: dict[str, tuple[type[StorageError], str]] = {
    "08": (UnavailableError, "the connection failed; try again"),
    "25006": (AccessDeniedError, "the server or this session is read-only"),
    "28": (AuthenticationError, "check user and password (PGPASSWORD, .pgpass or password=)"),
    "3D000": (BaseDirectoryNotFoundError, "create it first"),
    "40": (UnavailableError, "it conflicted with other transactions; try again"),
    "42501": (AccessDeniedError, "ask the owner of the database for the privilege"),
    "42P01": (UnavailableError, "its tables were dropped meanwhile; try again"),
    "53": (UnavailableError, "the server lacks resources; try again"),
    "53100": (QuotaExceededError, "the server's disk is full; nothing was changed"),
    "55P03": (StorageTimeoutError, "another transaction holds the lock; try again"),
    "57014": (StorageTimeoutError, "the server's time limit passed; try again"),
    "57P": (UnavailableError, "the server is shutting down or starting; try again"),
    "58030": (StorageError, "the server cannot read or write its disk"),
    "XX001": (IntegrityError, "the server's data is damaged; restore it from a copy"),
    "XX002": (IntegrityError, "the server's index is damaged; REINDEX it"),
}
# libpq gives no SQLSTATE when a connection is refused, only the server's message.
_PHRASES: dict[str, str] = {
    "authentication failed": "28",
    "no password supplied": "28",
    "no pg_hba.conf entry": "28",
    "not permitted to log in": "28",
    "permission denied for database": "42501",
}


def translate(error: Exception, address: Address, identifier: str | None = None) -> StorageError:
    """The StorageError for an error of SQLAlchemy, sqlite3 or psycopg. Its message is one line, without secrets."""
    cause = getattr(error, "orig", None) or error
    words = _plain(str(cause), address)
    code = getattr(cause, "sqlite_errorcode", None)
    if code is not None:
        kind, advice = _of_sqlite(code, address.path)
    elif isinstance(cause, sqlite3.Error):
        kind, advice = StorageError, ""
    elif type(cause).__name__ in {"QueuePoolTimeout", "TimeoutError", "ConnectionTimeout"}:
        kind, advice = StorageTimeoutError, "try again"
    else:
        kind, advice = _of_postgresql(getattr(cause, "sqlstate", None), words, type(cause).__name__)
    where = address.location
    message = f"{where}: {words}" + (f": {advice}" if advice else "")
    return kind(message, identifier=identifier, backend=where)


def _plain(words: str, address: Address) -> str:
    line = " ".join(words.split())
    password = address.password
    if password is not None and password.literal and password.text:
        line = line.replace(password.text, "***")
    return line


def _of_sqlite(code: int, path: str) -> tuple[type[StorageError], str]:
    if code in _SQLITE_DAMAGE:
        return _SQLITE[sqlite3.SQLITE_CORRUPT]
    primary = code & 0xFF
    if primary == sqlite3.SQLITE_IOERR:
        # On a full disk or past a quota, the -shm file cannot grow. sqlite3 does not report the errno.
        if _is_full(path):
            return _SQLITE[sqlite3.SQLITE_FULL]
        return StorageError, "the disk cannot be read or written"
    if primary == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK) and _is_full(path):
        return _SQLITE[sqlite3.SQLITE_FULL]  # SQLite opened it read-only because the disk was full
    if primary == sqlite3.SQLITE_CANTOPEN:
        return _of_path(path)
    return _SQLITE.get(primary, (StorageError, ""))


def _of_path(path: str) -> tuple[type[StorageError], str]:
    """Why a file cannot be opened. It is not opened here: closing a descriptor would release SQLite's locks (fcntl(2))."""
    directory = Path(path).parent
    if not directory.is_dir():
        return BaseDirectoryNotFoundError, f"there is no directory {str(directory)!r}; create it first"
    if not Path(path).exists() and os.access(directory, os.W_OK | os.X_OK):
        return BaseDirectoryNotFoundError, "there is no such file"
    if Path(path).is_dir():
        return ConfigurationError, "that is a directory, not a file"
    if os.access(path, os.R_OK | os.W_OK) and os.access(directory, os.W_OK | os.X_OK):
        return UnavailableError, "this process may have too many open files; try again"
    return _SQLITE[sqlite3.SQLITE_CANTOPEN]


def _is_full(path: str) -> bool:
    try:
        return shutil.disk_usage(Path(path).parent).free < 1 << 20
    except OSError:
        return False


def _of_postgresql(state: str | None, words: str, name: str) -> tuple[type[StorageError], str]:
    if state is None:
        if name == "ProgrammingError":
            return ConfigurationError, ""
        if name not in {"OperationalError", "InterfaceError"}:
            return StorageError, ""
        lowered = words.lower()
        state = next((found for phrase, found in _PHRASES.items() if phrase in lowered), "08")
        # 'FATAL: role "x" does not exist', 'FATAL: database "x" does not exist'
        if state == "08" and lowered.endswith("does not exist"):
            state = "28" if ' role "' in lowered else "3D000"
    for length in (5, 3, 2):
        if (found := _SQLSTATE.get(state[:length])) is not None:
            return found
    return StorageError, ""
