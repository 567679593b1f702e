"""Journal: a SQLite database of verified objects, so that a rerun continues where the last run stopped."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from storage_backend import identifiers
from storage_backend.destinations import write_file
from storage_backend.errors import (
    AccessDeniedError,
    ConfigurationError,
    QuotaExceededError,
    StorageError,
    UnavailableError,
)
from storage_backend.files import StagedFile
from storage_backend.paths import expanded, state_directory
from storage_backend.transfer.fingerprint import Fingerprint, JournalRecord

FORMAT = "1"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """
CREATE TABLE IF NOT EXISTS objects (
    identifier BLOB PRIMARY KEY, state TEXT NOT NULL, run INTEGER NOT NULL,
    source_size INTEGER, source_modified INTEGER, source_etag TEXT, source_proves INTEGER,
    target_size INTEGER, target_modified INTEGER, target_etag TEXT, target_proves INTEGER,
    sha256 TEXT, attempts INTEGER NOT NULL DEFAULT 0, error TEXT
) WITHOUT ROWID
""",
)
_TABLES = {
    "meta": ["key", "value"],
    "objects": [
        "identifier", "state", "run", "source_size", "source_modified", "source_etag", "source_proves", "target_size",
        "target_modified", "target_etag", "target_proves", "sha256", "attempts", "error",
    ],
}  # fmt: skip
_VERIFIED = """
INSERT INTO objects VALUES (?, 'verified', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, NULL)
ON CONFLICT (identifier) DO UPDATE SET state = 'verified', run = excluded.run,
    source_size = excluded.source_size, source_modified = excluded.source_modified,
    source_etag = excluded.source_etag, source_proves = excluded.source_proves,
    target_size = excluded.target_size, target_modified = excluded.target_modified,
    target_etag = excluded.target_etag, target_proves = excluded.target_proves,
    sha256 = excluded.sha256, attempts = attempts + 1, error = NULL
"""
_FAILED = """
INSERT INTO objects (identifier, state, run, attempts, error) VALUES (?, 'failed', ?, 1, ?)
ON CONFLICT (identifier) DO UPDATE SET state = 'failed', run = excluded.run, attempts = attempts + 1, error = excluded.error
"""
_COLUMNS = (
    "identifier, source_size, source_modified, source_etag, source_proves,"
    " target_size, target_modified, target_etag, target_proves, sha256"
)
_Row: TypeAlias = tuple[
    bytes, int | None, int | None, str | None, int, int | None, int | None, str | None, int, str
]


def default_path(source: str, target: str) -> Path:
    """The default path of the journal of a pair of locations, in the user's state directory.

    Raises:
        ConfigurationError: a backend has no location that a later run would recognise, or the user has no home directory.
    """
    for location in (source, target):
        if "://" not in location:
            raise ConfigurationError(
                f"{location} is not a permanent location, so its journal has no default path: give journal=PATH",
                parameter="journal",
            )
    name = hashlib.sha256(f"{source}\0{target}".encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return state_directory() / "journals" / f"{name}.db"


class Journal:
    """The verified objects of one pair of backends. One process at a time may open it.

    Args:
        path: of the SQLite file; created, with its directories, where missing.
        source: location.
        target: location.

    Raises:
        UnavailableError: another process has it open.
        ConfigurationError: it is the journal of another pair, or no journal.
    """

    def __init__(self, path: str | os.PathLike[str], source: str, target: str) -> None:
        self.path = Path(expanded(path)).absolute()
        with self._translated():
            self._refuse_foreign()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            locked_before = Path(f"{self.path}.lock").exists()
            self._lock = self._acquire()
            try:
                self._connect(source, target)
            except BaseException:
                if not locked_before:
                    Path(f"{self.path}.lock").unlink(missing_ok=True)
                os.close(self._lock)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._forget()
        self.close()

    def close(self) -> None:
        """Close the database and release the lock."""
        self._connection.close()
        os.close(self._lock)

    def _forget(self) -> None:
        """After a failed run: remove the files, if it was the first run and recorded nothing."""
        with suppress(sqlite3.Error, OSError):
            if (
                self._run == 1
                and not self._connection.execute("SELECT EXISTS (SELECT * FROM objects)").fetchone()[0]
            ):
                self._connection.close()  # removes the write-ahead log
                self.path.unlink()
                Path(f"{self.path}.lock").unlink()

    def records(self) -> Iterator[JournalRecord]:
        """The verified objects, ascending by identifier, as of the start of the iteration. Not thread-safe."""
        with self._translated():
            connection = self._opened()
            try:
                for row in connection.execute(
                    f"SELECT {_COLUMNS} FROM objects WHERE state = 'verified' ORDER BY identifier"  # noqa: S608 - a constant
                ):
                    yield _record(row)
            finally:
                connection.close()

    def confirmed(self, count: int) -> Iterator[list[JournalRecord]]:
        """The objects that this run verified or found unchanged, in batches of *count*."""
        last = b""
        while True:
            with self._translated():
                rows = self._connection.execute(
                    f"SELECT {_COLUMNS} FROM objects WHERE identifier > ? AND state = 'verified' AND run = ?"  # noqa: S608 - a constant
                    " ORDER BY identifier LIMIT ?",
                    (last, self._run, count),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield [_record(row) for row in rows]

    def write(self, verified: Iterable[JournalRecord], failed: Iterable[tuple[str, Exception]] = ()) -> None:
        """Record verified and failed objects in one transaction."""
        with self._transaction():
            self._connection.executemany(
                _VERIFIED,
                [
                    (
                        identifiers.encode(record.identifier),
                        self._run,
                        record.source.size,
                        record.source.modified,
                        record.source.etag,
                        record.source_proves,
                        record.target.size,
                        record.target.modified,
                        record.target.etag,
                        record.target_proves,
                        record.sha256,
                    )
                    for record in verified
                ],
            )
            self._connection.executemany(
                _FAILED,
                [
                    (_key(identifier), self._run, f"{type(error).__name__}: {error}")
                    for identifier, error in failed
                ],
            )

    def confirm(self, found: Iterable[str]) -> None:
        """Record that this run found these verified objects unchanged on both sides."""
        self._update(
            "UPDATE objects SET run = ? WHERE identifier = ?", ((self._run, _key(each)) for each in found)
        )

    def source_deleted(self, gone: Iterable[str]) -> None:
        """Record that these objects were deleted from the source."""
        self._update(
            "UPDATE objects SET state = 'source deleted' WHERE identifier = ?",
            ((_key(each),) for each in gone),
        )

    def harden(self) -> None:
        """Make everything written so far survive power loss."""
        with self._translated():
            # A commit with synchronous=FULL syncs the log with every earlier commit in it ("PRAGMA synchronous").
            self._connection.execute("PRAGMA synchronous = FULL")
            with self._transaction():
                self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('hardened', datetime('now'))")
            self._connection.execute("PRAGMA synchronous = NORMAL")

    def write_manifest(self, path: str | os.PathLike[str]) -> int:
        """Write identifier, size and sha256 of each verified object, one JSON object per line; return their number."""
        count = 0

        def fill(staged: StagedFile) -> None:
            nonlocal count
            for identifier, size, digest in self._verified():
                count += 1
                entry = {"identifier": identifiers.decode(identifier), "size": size, "sha256": digest}
                staged.write(json.dumps(entry).encode() + b"\n")

        write_file(path, fill)
        return count

    def _verified(self) -> Iterator[tuple[bytes, int, str]]:
        with self._translated():
            yield from self._connection.execute(
                "SELECT identifier, target_size, sha256 FROM objects"
                " WHERE state IN ('verified', 'source deleted') ORDER BY identifier"
            )

    def _acquire(self) -> int:
        while True:
            lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A run that recorded nothing deletes the lock file, possibly after we opened it.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(lock), os.stat(f"{self.path}.lock")):  # noqa: PTH116 - beside fstat
                        return lock
            except BaseException as error:
                os.close(lock)
                if not isinstance(error, BlockingIOError):
                    raise
                raise UnavailableError(
                    f"another run holds the journal {self.path}: wait for it to end, or end it",
                    backend=str(self.path),
                ) from None
            os.close(lock)

    def _refuse_foreign(self) -> None:
        """Refuse another program's file. Opened as immutable: else SQLite would create files beside it, and write into it."""
        try:
            if not self.path.stat().st_size:
                return
        except FileNotFoundError:
            return
        try:
            with closing(
                sqlite3.connect(f"{self.path.as_uri()}?mode=ro&immutable=1", uri=True)
            ) as connection:
                self._check(connection)
        except sqlite3.DatabaseError:
            # After a kill, some pages may exist only in the write-ahead log.
            if not Path(f"{self.path}-wal").exists():
                raise

    def _check(self, connection: sqlite3.Connection) -> None:
        """Refuse a database with other tables than ours."""
        tables = {
            name: [column[1] for column in connection.execute(f"PRAGMA table_info({name!r})")]
            for (name,) in connection.execute("SELECT name FROM sqlite_master").fetchall()
            if isinstance(name, str)
        }
        if tables and tables != _TABLES:
            raise ConfigurationError(
                f"{self.path} is not a usable journal (it is another database, which was not touched): give another path",
                parameter="journal",
            )

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=60, check_same_thread=False)
        try:
            self._check(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, source: str, target: str) -> None:
        self._connection = self._opened()
        try:
            with self._transaction():
                self._prepare(source, target)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, source: str, target: str) -> None:
        for statement in _SCHEMA:
            self._connection.execute(statement)
        meta = dict(self._connection.execute("SELECT key, value FROM meta"))
        if meta.get("format", FORMAT) != FORMAT:
            raise ConfigurationError(
                f"the journal {self.path} has format {meta['format']}; this version reads {FORMAT}",
                parameter="journal",
            )
        pair = (meta.get("source", source), meta.get("target", target))
        if pair != (source, target):
            raise ConfigurationError(
                f"the journal {self.path} belongs to {pair[0]} -> {pair[1]}, not to {source} -> {target}",
                parameter="journal",
            )
        self._run = int(meta.get("run", "0")) + 1
        self._connection.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)",
            [("format", FORMAT), ("source", source), ("target", target), ("run", str(self._run))],
        )

    def _update(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        with self._transaction():
            self._connection.executemany(statement, rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._translate(error) from error
        except StorageError:
            raise
        except OSError as error:
            raise AccessDeniedError(
                f"cannot use the journal {self.path}: {error.strerror}", backend=str(self.path)
            ) from error

    def _translate(self, error: sqlite3.Error) -> StorageError:
        name = getattr(error, "sqlite_errorname", "")
        where = str(self.path)
        if name.startswith("SQLITE_FULL"):
            return QuotaExceededError(f"no space left for the journal {where}", backend=where)
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_ERROR")):
            return ConfigurationError(
                f"{where} is not a usable journal ({error}): move it away, or give another",
                parameter="journal",
            )
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            return AccessDeniedError(f"cannot write the journal {where}: {error}", backend=where)
        return StorageError(f"the journal {where} failed: {error}", backend=where)


def _key(identifier: str) -> bytes:
    """The bytes of an identifier, also of an invalid one, which is recorded as failed."""
    try:
        return identifier.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return identifier.encode("utf-8", "surrogatepass")


def _record(row: _Row) -> JournalRecord:
    return JournalRecord(
        identifiers.decode(row[0]),
        Fingerprint(row[1], row[2], row[3]),
        bool(row[4]),
        Fingerprint(row[5], row[6], row[7]),
        bool(row[8]),
        row[9],
    )
