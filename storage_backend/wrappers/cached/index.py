"""Index: the SQLite file beside the blobs: sizes, order of use, generations, and who is changing what.

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

from storage_backend.wrappers.cached import members
from storage_backend.wrappers.cached.members import Counters

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
CREATE TABLE changes (
    name TEXT NOT NULL, token TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (name, token, number)
) WITHOUT ROWID;
CREATE TABLE staged (token TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE state (
    counter INTEGER NOT NULL, floor INTEGER NOT NULL, size INTEGER NOT NULL, count INTEGER NOT NULL,
    graves INTEGER NOT NULL, hits INTEGER NOT NULL, misses INTEGER NOT NULL, expired INTEGER NOT NULL,
    evictions INTEGER NOT NULL, bytes_saved INTEGER NOT NULL, boot TEXT NOT NULL, trusted_since REAL NOT NULL
);
"""


class DamagedIndexError(Exception):
    """The file is no index, or half of one: to be made anew from the blobs."""


class GoneError(Exception):
    """The file is another one now, or none: to be opened again."""


@dataclass
class State:
    """The one row of the table `state`.

    Attributes:
        counter: gives generations and the order of use; it only grows.
        floor: the generation of every key without a row.
        size: content bytes of all entries, and of what is reserved.
        count: entries.
        graves: rows without an entry.
        hits, misses, expired, evictions, bytes_saved: of users that are gone.
        boot: of the machine, in which this was last opened; "" where it cannot be told.
        trusted_since: see `Engine`.
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

    def bequeath(self, counters: Counters) -> None:
        """Add what one that is gone has counted."""
        self.hits += counters.hits
        self.misses += counters.misses
        self.expired += counters.expired
        self.evictions += counters.evictions
        self.bytes_saved += counters.bytes_saved


_COLUMNS = ", ".join(field.name for field in fields(State))
_UPDATE = f"UPDATE state SET {', '.join(f'{field.name} = ?' for field in fields(State))}"  # noqa: S608 - of our own names


_GENERATION = "SELECT generation FROM entries WHERE name = ?"
# One statement each, since a statement takes longer than a row.
_GENERATION_OR_FLOOR = "SELECT coalesce((SELECT generation FROM entries WHERE name = ?), floor) FROM state"
_STANDING = (
    "SELECT (SELECT generation FROM entries WHERE name = ?1), EXISTS (SELECT 1 FROM changes WHERE name = ?1), "
    "EXISTS (SELECT 1 FROM entries WHERE name = ?1)"
)


class Transaction:
    """One transaction, with the state as it is in it."""

    def __init__(self, connection: sqlite3.Connection, state: State, *, folder: str, token: str) -> None:
        self._connection = connection
        self.state = state
        self._folder = folder
        self._token = token
        self._known = 1  # whether the key may have a row

    def generation(self, name: str) -> int:
        """The key's generation."""
        row = self._connection.execute(_GENERATION, (name,)).fetchone()
        return self.state.floor if row is None else int(row[0])

    def stands(self, name: str, generation: int) -> bool:
        """Whether the key is still of that generation, and nobody changes the object."""
        found, changing, self._known = self._connection.execute(_STANDING, (name,)).fetchone()
        if changing:
            self.is_changing(name)  # one of those that are gone ends here, and with it this generation
            return False
        return generation == (self.state.floor if found is None else found)

    def is_changing(self, name: str) -> bool:
        """Whether somebody else changes the object. The changes of those that are gone end here, and raise the generation."""
        changing = False
        rows = self._connection.execute("SELECT token FROM changes WHERE name = ?", (name,)).fetchall()
        for (token,) in rows:
            if token == self._token or members.is_alive(self._folder, token):
                changing = True
                continue
            self._connection.execute("DELETE FROM changes WHERE name = ? AND token = ?", (name, token))
            self.raise_generation(name)
        return changing

    def raise_generation(self, name: str) -> int:
        """Begin another generation; the key has no entry in it yet.

        Returns:
            It.
        """
        generation = self.state.next()
        row = self._connection.execute("SELECT size, used FROM entries WHERE name = ?", (name,)).fetchone()
        if row is None:
            self.state.graves += 1
        elif row[1] is not None:
            self.state.size -= row[0]
            self.state.count -= 1
            self.state.graves += 1
        self._connection.execute(
            "INSERT INTO entries (name, size, generation, used) VALUES (?, 0, ?, NULL) "
            "ON CONFLICT (name) DO UPDATE SET size = 0, generation = excluded.generation, used = NULL",
            (name, generation),
        )
        return generation

    def begin_change(self, name: str, number: int) -> int:
        """Raise the generation, and remember that a change is under way."""
        self._connection.execute(
            "INSERT OR REPLACE INTO changes (name, token, number) VALUES (?, ?, ?)",
            (name, self._token, number),
        )
        return self.raise_generation(name)

    def end_change(self, name: str, number: int) -> None:
        """Forget the change."""
        self._connection.execute(
            "DELETE FROM changes WHERE name = ? AND token = ? AND number = ?", (name, self._token, number)
        )

    def store(self, name: str, size: int, generation: int) -> None:
        """Put the key's entry in."""
        if self._known:
            self.forget(name, keep_generation=False)
        self._connection.execute(
            "INSERT INTO entries (name, size, generation, used) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET size = excluded.size, generation = excluded.generation, "
            "used = excluded.used",
            (name, size, generation, self.state.next()),
        )
        self.state.size += size
        self.state.count += 1

    def forget(self, name: str, *, keep_generation: bool = True) -> bool:
        """Take the key's entry out; its generation stays what it is, or is seen to by the caller.

        Returns:
            Whether there was one.
        """
        row = self._connection.execute(
            "SELECT size, used, generation FROM entries WHERE name = ?", (name,)
        ).fetchone()
        if row is None:
            return False
        size, used, generation = row
        if used is not None:
            self.state.size -= size
            self.state.count -= 1
        else:
            self.state.graves -= 1
        if generation <= self.state.floor or not keep_generation:
            self._connection.execute("DELETE FROM entries WHERE name = ?", (name,))
        else:
            self._connection.execute("UPDATE entries SET size = 0, used = NULL WHERE name = ?", (name,))
            self.state.graves += 1
        return used is not None

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

    def reserve(self, size: int) -> None:
        """Count *size* bytes more (or fewer) that this user is about to store."""
        if not size:
            return
        self._connection.execute(
            "INSERT INTO staged (token, size) VALUES (?, ?) "
            "ON CONFLICT (token) DO UPDATE SET size = size + excluded.size",
            (self._token, size),
        )
        self.state.size += size

    def reserved(self) -> int:
        """How many bytes all users are about to store."""
        row = self._connection.execute("SELECT coalesce(sum(size), 0) FROM staged").fetchone()
        return int(row[0])

    def bury(self, token: str, counters: Counters) -> None:
        """Take over what one that is gone has left: counts, reservations, changes."""
        self.state.bequeath(counters)
        row = self._connection.execute("SELECT size FROM staged WHERE token = ?", (token,)).fetchone()
        if row is not None:
            self.state.size -= row[0]
            self._connection.execute("DELETE FROM staged WHERE token = ?", (token,))
        for (name,) in self._connection.execute(
            "SELECT DISTINCT name FROM changes WHERE token = ?", (token,)
        ).fetchall():
            self.raise_generation(name)
        self._connection.execute("DELETE FROM changes WHERE token = ?", (token,))

    def clear(self) -> None:
        """Forget all entries, and refuse what is being fetched now."""
        self._connection.execute("DELETE FROM entries")
        self.state.floor = self.state.next()
        self.state.size = self.reserved()
        self.state.count = self.state.graves = 0
        for (name,) in self._connection.execute("SELECT DISTINCT name FROM changes").fetchall():
            self.raise_generation(name)

    def names(self, after: str, limit: int) -> list[str]:
        """The next entries in the order of their names."""
        rows = self._connection.execute(
            "SELECT name FROM entries WHERE name > ? AND used IS NOT NULL ORDER BY name LIMIT ?",
            (after, limit),
        )
        return [name for (name,) in rows]

    def has(self, name: str) -> bool:
        """Whether there is such an entry."""
        row = self._connection.execute("SELECT used FROM entries WHERE name = ?", (name,)).fetchone()
        return row is not None and row[0] is not None

    def recount(self) -> None:
        """Take the totals from the entries: the machine has been off, and nothing is reserved or under way."""
        self._connection.execute("DELETE FROM staged")
        self._connection.execute("DELETE FROM changes")
        self.state.counter = max(self.state.counter, time.time_ns())
        self.state.size, self.state.count, self.state.graves = self._connection.execute(
            "SELECT coalesce(sum(size), 0), count(used), count(*) - count(used) FROM entries"
        ).fetchone()

    def finish(self) -> None:
        """Store the state, which has changed, and drop graves if there are too many."""
        if self.state.graves > _GRAVES and self.state.graves > self.state.count // 4:
            self.state.floor = self.state.next()
            self._connection.execute(
                "DELETE FROM entries WHERE used IS NULL AND name NOT IN (SELECT name FROM changes)"
            )
            self.state.graves = self._connection.execute(
                "SELECT count(*) FROM entries WHERE used IS NULL"
            ).fetchone()[0]
        self._connection.execute(_UPDATE, [getattr(self.state, name) for name in _NAMES])


_NAMES = tuple(field.name for field in fields(State))


class Index:
    """The open file. Used by one thread at a time.

    Args:
        path: of the file; the queue's is beside it.
        folder: of the members (see `members`).
        build: fills a new file, given its first transaction: with what blobs there are.

    Raises:
        DamagedIndexError: it is no index.
        OSError, sqlite3.Error: it cannot be opened.
    """

    def __init__(self, path: str, folder: str, build: Callable[[Transaction], object]) -> None:
        self.path = path
        self._folder = folder
        self._connection = sqlite3.connect(
            path, timeout=BUSY, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            with damage_seen():
                self._connection.execute("PRAGMA journal_mode = PERSIST")
                self._connection.execute("PRAGMA synchronous = OFF")
                if not self._connection.execute(
                    "SELECT 1 FROM sqlite_master WHERE name = 'state'"
                ).fetchone():
                    self._create(build)
            found = os.stat(path)
            self._identity = (found.st_dev, found.st_ino)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def generations(self, names: Iterable[str]) -> list[int]:
        """The keys' generations; whoever calls has the queue's lock.

        Raises:
            GoneError, DamagedIndexError: as `transaction`.
        """
        self._check_place()
        with damage_seen():
            ask = self._connection.execute
            found = [ask(_GENERATION_OR_FLOOR, (name,)).fetchone() for name in names]
        if None in found:
            raise DamagedIndexError("it has no state")
        return [int(row[0]) for row in found]

    @contextmanager
    def transaction(self, token: str) -> Iterator[Transaction]:
        """A transaction that nothing else of this cache runs beside; whoever calls has the queue's lock (see `queued`).

        Raises:
            GoneError: the file is not the one at its path any more.
            DamagedIndexError: it is no index.
        """
        self._check_place()
        with damage_seen():
            self._connection.execute("BEGIN IMMEDIATE")
        try:
            with damage_seen():
                row = self._connection.execute(f"SELECT {_COLUMNS} FROM state").fetchone()  # noqa: S608 - our own names
            if row is None:
                raise DamagedIndexError("it has no state")
            transaction = Transaction(self._connection, State(*row), folder=self._folder, token=token)
            with damage_seen():
                yield transaction
                if transaction.state != State(*row):
                    transaction.finish()
                self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    def in_place(self) -> bool:
        """Whether the file is still the one at its path."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _check_place(self) -> None:
        if not self.in_place():
            raise GoneError(self.path)

    def _create(self, build: Callable[[Transaction], object]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in _SCHEMA.split(";"):
                self._connection.execute(statement)
            # Above every number that an older index of this directory can have given.
            start = time.time_ns()
            state = State(start, start, 0, 0, 0, 0, 0, 0, 0, 0, "", 0.0)
            self._connection.execute(
                f"INSERT INTO state ({_COLUMNS}) VALUES ({', '.join('?' * len(_NAMES))})",  # noqa: S608 - our own names
                [getattr(state, name) for name in _NAMES],
            )
            transaction = Transaction(self._connection, state, folder=self._folder, token="")
            build(transaction)
            transaction.finish()
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise


@contextmanager
def damage_seen() -> Iterator[None]:
    """Tell damage from other troubles."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if any(word in text for word in _DAMAGED):
            raise DamagedIndexError(text) from error
        raise


@contextmanager
def queued(fd: int) -> Iterator[None]:
    """Hold the queue's lock, where the file system has such."""
    locked = False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        locked = True
    except OSError:
        pass  # SQLite's locks are there in any case
    try:
        yield
    finally:
        if locked:
            fcntl.flock(fd, fcntl.LOCK_UN)
