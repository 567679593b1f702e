"""BlobIndex: the SQLite file beside the blobs: sizes, order of use, and generations.

SQLite's own locks are polled; so each transaction is first queued for by a lock on another file, and finds the database
free. Where such locks do not work, SQLite's do.

The row of an evicted entry is kept (without a size) if its generation is above the floor, since a fill that began before the
last change must still be refused. When too many such rows have gathered, they are dropped and the floor, which is the
generation of all keys without a row, is raised above them.

The journal is an ordinary one, not a write-ahead log: that log's index is mapped into memory, and whoever cuts that file short
(a cleaner of caches, say) would end every process that uses it. Nothing is synced: after a kill the kernel has all of it,
and after a loss of power the totals are counted anew, or the index is built anew.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import TypeAlias

from storage_backend.wrappers.cached.latest import HighestGeneration
from storage_backend.wrappers.cached.users import CacheCounters

BUSY = 60.0  # seconds that SQLite waits for another's transaction where the queue does not work
_GRAVES = 10_000  # rows without an entry before they are dropped; each has some 50 bytes
_VICTIMS = 16  # rows looked at a time when room is made
# What a file that is no database, or half of one, makes SQLite say (sqlite3.h).
_DAMAGED = ("malformed", "not a database", "no such table", "no such column", "corrupt")
_SCHEMA = """
CREATE TABLE entries (
    name TEXT PRIMARY KEY, size INTEGER NOT NULL, generation INTEGER NOT NULL, used INTEGER
) WITHOUT ROWID;
CREATE INDEX by_use ON entries (used) WHERE used IS NOT NULL;
CREATE TABLE staged (token TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE state (
    counter INTEGER NOT NULL, floor INTEGER NOT NULL, size INTEGER NOT NULL, count INTEGER NOT NULL,
    graves INTEGER NOT NULL, hits INTEGER NOT NULL, misses INTEGER NOT NULL, expired INTEGER NOT NULL,
    evictions INTEGER NOT NULL, bytes_saved INTEGER NOT NULL, boot TEXT NOT NULL, trusted_since REAL NOT NULL
);
"""


class CorruptIndexError(Exception):
    """The file is no index, or half of one: to be made anew from the blobs."""


class IndexReplacedError(Exception):
    """The file is another one now, or none: to be opened again."""


@dataclass
class IndexState:
    """The one row of the table `state`.

    Attributes:
        counter: gives generations and the order of use; it only grows.
        floor: the generation of every key without a row.
        size: content bytes of all entries, and of what is reserved.
        count: entries.
        graves: rows without an entry.
        hits, misses, expired, evictions, bytes_saved: of users that are gone.
        boot: of the machine, in which this was last opened; "" where it cannot be told.
        trusted_since: see `CacheEngine`.
    """

    counter: int
    floor: int
    size: int
    count: int
    graves: int
    hits: int
    misses: int
    expired: int
    evictions: int
    bytes_saved: int
    boot: str
    trusted_since: float

    def next(self) -> int:
        """The next number."""
        self.counter += 1
        return self.counter

    def bequeath(self, counters: CacheCounters) -> None:
        """Add what one that is gone has counted."""
        self.hits += counters.hits
        self.misses += counters.misses
        self.expired += counters.expired
        self.evictions += counters.evictions
        self.bytes_saved += counters.bytes_saved


_COLUMNS = ", ".join(field.name for field in fields(IndexState))
_UPDATE = f"UPDATE state SET {', '.join(f'{field.name} = ?' for field in fields(IndexState))}"  # noqa: S608 - of our own names


_ROW = "SELECT size, used, generation FROM entries WHERE name = ?"
# One statement, since a statement takes longer than a row.
_STORE = (
    "INSERT INTO entries (name, size, generation, used) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (name) DO UPDATE SET size = excluded.size, generation = excluded.generation, used = excluded.used"
)

IndexRow: TypeAlias = tuple[int, int | None, int]  # size, used, generation


class IndexTransaction:
    """One transaction.

    Attributes:
        state: as it is in it.
        token: whose it is.
        committed: the counter of the last transaction that was committed.
    """

    def __init__(self, connection: sqlite3.Connection, state: IndexState, token: str) -> None:
        self._connection = connection
        self.state = state
        self.token = token
        self.committed = state.counter
        self._rows: dict[str, IndexRow | None] = {}  # that were looked at, and not changed since

    def generation(self, name: str) -> int:
        """The key's generation."""
        row = self._row(name)
        return self.state.floor if row is None else row[2]

    def raise_generation(self, name: str) -> int:
        """Begin another generation; the key has no entry in it yet.

        Returns:
            It.
        """
        generation = self.state.next()
        self._take_out(name)
        self.state.graves += 1
        self._connection.execute(_STORE, (name, 0, generation, None))
        return generation

    def store(self, name: str, size: int) -> None:
        """Put the key's entry in."""
        self._store(name, size, self.generation(name))

    def store_anew(self, name: str, size: int) -> int:
        """Begin another generation, and put the key's entry in.

        Returns:
            The generation.
        """
        generation = self.state.next()
        self._store(name, size, generation)
        return generation

    def forget(self, name: str) -> bool:
        """Take the key's entry out; its generation stays what it is.

        Returns:
            Whether there was one.
        """
        row = self._row(name)
        if row is None:
            return False
        self._take_out(name)
        if row[2] <= self.state.floor:
            self._connection.execute("DELETE FROM entries WHERE name = ?", (name,))
        else:
            self._connection.execute(_STORE, (name, 0, row[2], None))
            self.state.graves += 1
        return row[1] is not None

    def _store(self, name: str, size: int, generation: int) -> None:
        self._take_out(name)
        self._connection.execute(_STORE, (name, size, generation, self.state.next()))
        self.state.size += size
        self.state.count += 1

    def _row(self, name: str) -> IndexRow | None:
        try:
            return self._rows[name]
        except KeyError:
            row: IndexRow | None = self._connection.execute(_ROW, (name,)).fetchone()
            self._rows[name] = row
            return row

    def _take_out(self, name: str) -> None:
        """Take the key's row out of the totals: it is about to be another one."""
        row = self._row(name)
        del self._rows[name]
        if row is None:
            return
        if row[1] is None:
            self.state.graves -= 1
        else:
            self.state.size -= row[0]
            self.state.count -= 1

    def oldest(self) -> list[str]:
        """Some of the entries, the least recently used first."""
        rows = self._connection.execute(
            "SELECT name FROM entries WHERE used IS NOT NULL ORDER BY used LIMIT ?", (_VICTIMS,)
        )
        return [name for (name,) in rows]

    def use(self, names: Iterable[str]) -> None:
        """The entries were used, in this order."""
        next_number = self.state.next
        self._connection.executemany(
            "UPDATE entries SET used = ? WHERE name = ? AND used IS NOT NULL",
            [(next_number(), name) for name in names],
        )
        self._rows = {}

    def reserve(self, size: int) -> None:
        """Count *size* bytes more (or fewer) that this user is about to store."""
        if not size:
            return
        self._connection.execute(
            "INSERT INTO staged (token, size) VALUES (?, ?) "
            "ON CONFLICT (token) DO UPDATE SET size = size + excluded.size",
            (self.token, size),
        )
        self.state.size += size

    def reserved(self) -> int:
        """How many bytes all users are about to store."""
        row = self._connection.execute("SELECT coalesce(sum(size), 0) FROM staged").fetchone()
        return int(row[0])

    def bury(self, token: str, counters: CacheCounters) -> None:
        """Take over what one that is gone has left: counts and reservations."""
        self.state.bequeath(counters)
        row = self._connection.execute("SELECT size FROM staged WHERE token = ?", (token,)).fetchone()
        if row is not None:
            self.state.size -= row[0]
            self._connection.execute("DELETE FROM staged WHERE token = ?", (token,))

    def clear(self) -> None:
        """Forget all entries, and refuse what is being fetched now."""
        self._connection.execute("DELETE FROM entries")
        self._rows = {}
        self.state.floor = self.state.next()
        self.state.size = self.reserved()
        self.state.count = self.state.graves = 0

    def names(self, after: str, limit: int) -> list[str]:
        """The next entries in the order of their names."""
        rows = self._connection.execute(
            "SELECT name FROM entries WHERE name > ? AND used IS NOT NULL ORDER BY name LIMIT ?",
            (after, limit),
        )
        return [name for (name,) in rows]

    def has(self, name: str) -> bool:
        """Whether there is such an entry."""
        row = self._row(name)
        return row is not None and row[1] is not None

    def recount(self) -> None:
        """Take the totals from the entries: the machine has been off, and nothing is reserved or under way."""
        self._connection.execute("DELETE FROM staged")
        self.state.counter = max(self.state.counter, time.time_ns())
        self.state.size, self.state.count, self.state.graves = self._connection.execute(
            "SELECT coalesce(sum(size), 0), count(used), count(*) - count(used) FROM entries"
        ).fetchone()

    def finish(self) -> None:
        """Store the state, which has changed, and drop graves if there are too many."""
        if self.state.graves > _GRAVES and self.state.graves > self.state.count // 4:
            self.state.floor = self.state.next()
            self._connection.execute("DELETE FROM entries WHERE used IS NULL")
            self.state.graves = 0
        self._connection.execute(_UPDATE, [getattr(self.state, name) for name in _NAMES])


_NAMES = tuple(field.name for field in fields(IndexState))


class BlobIndex:
    """The open file. Used by one thread at a time.

    Args:
        path: of the file; the queue's is beside it.
        build: fills a new file, given its first transaction: with what blobs there are.

    Raises:
        CorruptIndexError: it is no index.
        OSError, sqlite3.Error: it cannot be opened.
    """

    def __init__(self, path: str, build: Callable[[IndexTransaction], object]) -> None:
        self.path = path
        self._connection = sqlite3.connect(
            path, timeout=BUSY, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            self._connection.execute("PRAGMA journal_mode = PERSIST")
            self._connection.execute("PRAGMA synchronous = OFF")
            if not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'state'").fetchone():
                self._create(build)
            found = os.stat(path)
            self._identity = (found.st_dev, found.st_ino)
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.DatabaseError):
                check_damage(error)
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def transaction(self, token: str, latest: HighestGeneration) -> Iterator[IndexTransaction]:
        """A transaction that nothing else of this cache runs beside; whoever calls has the queue's lock (see `queued`).

        Args:
            token: of whoever calls.
            latest: is told of generations that begin, before the commit.

        Raises:
            IndexReplacedError: the file is not the one at its path any more.
            CorruptIndexError: it is no index.
        """
        self.check_place()
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            try:
                row = execute(f"SELECT {_COLUMNS} FROM state").fetchone()  # noqa: S608 - our own names
                if row is None:
                    raise CorruptIndexError("it has no state")
                state = IndexState(*row)
                transaction = IndexTransaction(self._connection, state, token)
                told = latest.read()
                if told is not None and told > state.counter:
                    state.counter = told  # by a transaction that was never committed
                yield transaction
                if state != IndexState(*row):
                    transaction.finish()
                if told != state.counter:
                    latest.write(state.counter)
                execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:
            check_damage(error)
            raise

    def in_place(self) -> bool:
        """Whether the file is still the one at its path."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def check_place(self) -> None:
        """Raise an IndexReplacedError unless it is."""
        if not self.in_place():
            raise IndexReplacedError(self.path)

    def _create(self, build: Callable[[IndexTransaction], object]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in _SCHEMA.split(";"):
                self._connection.execute(statement)
            # Above every number that an older index of this directory can have given.
            start = time.time_ns()
            state = IndexState(start, start, 0, 0, 0, 0, 0, 0, 0, 0, "", 0.0)
            self._connection.execute(
                f"INSERT INTO state ({_COLUMNS}) VALUES ({', '.join('?' * len(_NAMES))})",  # noqa: S608 - our own names
                [getattr(state, name) for name in _NAMES],
            )
            transaction = IndexTransaction(self._connection, state, "")
            build(transaction)
            transaction.finish()
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise


def check_damage(error: sqlite3.DatabaseError) -> None:
    """Raise a CorruptIndexError if that is what the error tells."""
    text = str(error)
    if any(word in text for word in _DAMAGED):
        raise CorruptIndexError(text) from error


@contextmanager
def queued(fd: int) -> Iterator[bool]:
    """Hold the queue's lock; whether the file system has such."""
    locked = False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        locked = True
    except OSError:
        pass  # SQLite's locks are there in any case
    try:
        yield locked
    finally:
        if locked:
            fcntl.flock(fd, fcntl.LOCK_UN)
