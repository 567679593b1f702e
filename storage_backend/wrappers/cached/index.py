"""The index of a blob cache, in SQLite, and the small files that make its transactions safe against kills.

    index.db    sizes, order of use, and generations
    queue       locked during a transaction
    intent      write-ahead record: a number above all committed ones (u64), the count of the names that follow (u32), the names
                of the entries that the present transaction will create or unlink (32 bytes each), CRC-32 (u32)
    latest      upper bound of all generations (u64), readable without a transaction; CRC-32 (u32)

All numbers are little-endian. SQLite polls for its own locks, so each transaction first waits for the lock of `queue`, and then
finds the database free. If the file system has no such locks, SQLite's are used.

An evicted entry's row is kept as a tombstone (without a size) if its generation is above the floor, because a fetch that began
before the last write must still be refused. If there are too many tombstones they are dropped, and the floor (the generation of
all keys without a row) is raised above them.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeAlias

from storage_backend.wrappers.cached.entry import is_name
from storage_backend.wrappers.cached.users import CacheCounters

if TYPE_CHECKING:
    from storage_backend.wrappers.cached.recovery import BlobRecovery

EVERYTHING = "*" * 32  # in the write-ahead record: all entries
BUSY = 60.0  # seconds that SQLite waits for another's transaction where the queue does not work
_NAME = 32  # bytes
_HEAD = struct.Struct("<QI")
_MOST_NAMES = 1 << 20  # a larger number is damage
_TOMBSTONES = 10_000  # kept; each takes about 50 bytes
_VICTIMS = 16  # rows read at a time during eviction
# SQLite's errors for a file that is not a database, or is truncated (sqlite3.h).
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
    """The file is not an index, or is truncated: it must be rebuilt from the blobs."""


class IndexReplacedError(Exception):
    """The file at the index's path was replaced or removed: it must be reopened."""


@dataclass
class IndexState:
    """The one row of the table `state`.

    Attributes:
        counter: source of generations and of the order of use; it only grows.
        floor: the generation of every key without a row.
        size: content bytes of all entries, and those reserved.
        count: entries.
        graves: tombstones: rows without an entry.
        hits, misses, expired, evictions, bytes_saved: of dead users.
        boot: of the machine, at the last opening; "" if unknown.
        trusted_since: see `CacheEngine`.
    """

    counter: int
    floor: int
    size: int = 0
    count: int = 0
    graves: int = 0
    hits: int = 0
    misses: int = 0
    expired: int = 0
    evictions: int = 0
    bytes_saved: int = 0
    boot: str = ""
    trusted_since: float = 0.0

    def next(self) -> int:
        """Increment the counter, and return it."""
        self.counter += 1
        return self.counter

    def values(self) -> tuple[object, ...]:
        """The columns of the row."""
        return tuple(self.__dict__.values())

    def counters(self) -> CacheCounters:
        """The counters of dead users."""
        return CacheCounters(self.hits, self.misses, self.expired, self.evictions, self.bytes_saved)


_NAMES = tuple(field.name for field in fields(IndexState))
_COLUMNS = ", ".join(_NAMES)
_STATE = f"SELECT {_COLUMNS} FROM state"  # noqa: S608 - our own names
_UPDATE = f"UPDATE state SET {', '.join(f'{name} = ?' for name in _NAMES)}"  # noqa: S608 - our own names
_ROW = "SELECT size, used, generation FROM entries WHERE name = ?"
# One statement: the cost is per statement, not per row.
_STORE = (
    "INSERT INTO entries (name, size, generation, used) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (name) DO UPDATE SET size = excluded.size, generation = excluded.generation, used = excluded.used"
)

IndexRow: TypeAlias = tuple[int, int | None, int]  # size, used, generation


class IndexTransaction:
    """A transaction in progress.

    Args:
        connection: of the index.
        state: as it is in it.
        token: of its user.
        intent: descriptor of the write-ahead record; None to record nothing.

    Attributes:
        state, token: as given.
        after_commit: called after the commit.
    """

    def __init__(
        self, connection: sqlite3.Connection, state: IndexState, token: str, intent: int | None
    ) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._intent = intent
        self._intended: dict[str, None] = {}
        self.state = state
        self.token = token
        self.after_commit: list[Callable[[], object]] = []
        self._rows: dict[str, IndexRow | None] = {}  # read, and not changed since

    def intend(self, names: Collection[str]) -> None:
        """Write the write-ahead record of the entries whose files this transaction will create or unlink."""
        if self._intent is None or self._intended.keys() >= set(names):
            return
        self._intended.update(dict.fromkeys(names))
        data = _HEAD.pack(self.state.next(), len(self._intended)) + "".join(self._intended).encode()
        os.pwrite(self._intent, _summed(data), 0)

    def generation(self, name: str) -> int:
        """The key's generation."""
        row = self._row(name)
        return self.state.floor if row is None else row[2]

    def raise_generation(self, name: str) -> int:
        """Begin and return a new generation, in which the key has no entry yet."""
        generation = self.state.next()
        self._take_out(name)
        self.state.graves += 1
        self._execute(_STORE, (name, 0, generation, None))
        return generation

    def store(self, name: str, size: int, generation: int | None = None) -> None:
        """Add the key's entry, in its present generation or a given one."""
        generation = self.generation(name) if generation is None else generation
        self._take_out(name)
        self._execute(_STORE, (name, size, generation, self.state.next()))
        self.state.size += size
        self.state.count += 1

    def forget(self, name: str) -> bool:
        """Remove the key's entry, keep its generation; return whether there was an entry."""
        row = self._row(name)
        if row is None:
            return False
        self._take_out(name)
        if row[2] <= self.state.floor:
            self._execute("DELETE FROM entries WHERE name = ?", (name,))
        else:
            self._execute(_STORE, (name, 0, row[2], None))
            self.state.graves += 1
        return row[1] is not None

    def has(self, name: str) -> bool:
        """Whether there is such an entry."""
        row = self._row(name)
        return row is not None and row[1] is not None

    def _row(self, name: str) -> IndexRow | None:
        try:
            return self._rows[name]
        except KeyError:
            row: IndexRow | None = self._execute(_ROW, (name,)).fetchone()
            self._rows[name] = row
            return row

    def _take_out(self, name: str) -> None:
        """Subtract the key's row, which is about to be replaced, from the totals."""
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
        statement = "SELECT name FROM entries WHERE used IS NOT NULL ORDER BY used LIMIT ?"
        return [name for (name,) in self._execute(statement, (_VICTIMS,))]

    def names(self, after: str, limit: int) -> list[str]:
        """The next entries, ordered by name."""
        statement = "SELECT name FROM entries WHERE name > ? AND used IS NOT NULL ORDER BY name LIMIT ?"
        return [name for (name,) in self._execute(statement, (after, limit))]

    def use(self, names: Iterable[str]) -> None:
        """Record uses of the entries, in this order."""
        next_number = self.state.next
        self._connection.executemany(
            "UPDATE entries SET used = ? WHERE name = ? AND used IS NOT NULL",
            [(next_number(), name) for name in names],
        )
        self._rows = {}

    def reserve(self, size: int) -> None:
        """Change this user's reservation by *size* bytes."""
        if not size:
            return
        self._execute(
            "INSERT INTO staged (token, size) VALUES (?, ?) "
            "ON CONFLICT (token) DO UPDATE SET size = size + excluded.size",
            (self.token, size),
        )
        self.state.size += size

    def reserved(self) -> int:
        """The bytes that all users have reserved."""
        return int(self._execute("SELECT coalesce(sum(size), 0) FROM staged").fetchone()[0])

    def bury(self, token: str, counters: CacheCounters) -> None:
        """Add the counters of a dead user, and drop its reservation."""
        state = self.state
        sums = state.counters().plus(counters)
        state.hits, state.misses, state.expired, state.evictions, state.bytes_saved = sums
        row = self._execute("SELECT size FROM staged WHERE token = ?", (token,)).fetchone()
        if row is not None:
            state.size -= row[0]
            self._execute("DELETE FROM staged WHERE token = ?", (token,))

    def clear(self) -> None:
        """Drop all entries, and refuse the fetches in progress."""
        self._execute("DELETE FROM entries")
        self._rows = {}
        self.state.floor = self.state.next()
        self.state.size = self.reserved()
        self.state.count = self.state.graves = 0

    def recount(self) -> None:
        """Recompute the totals after a reboot: nothing is reserved or in progress."""
        self._execute("DELETE FROM staged")
        self.state.counter = max(self.state.counter, time.time_ns())
        self.state.size, self.state.count, self.state.graves = self._execute(
            "SELECT coalesce(sum(size), 0), count(used), count(*) - count(used) FROM entries"
        ).fetchone()

    def finish(self) -> None:
        """Store the changed state, and drop tombstones if there are too many."""
        state = self.state
        if state.graves > _TOMBSTONES and state.graves > state.count // 4:
            state.floor = state.next()
            self._execute("DELETE FROM entries WHERE used IS NULL")
            state.graves = 0
        self._execute(_UPDATE, state.values())


class IndexFiles:
    """The open files of an index. Used by one thread at a time.

    Args:
        directory: of the cache.
        recovery: makes index and files consistent.

    Attributes:
        queue: descriptor of the lock file of transactions.
    """

    def __init__(self, directory: str, recovery: BlobRecovery) -> None:
        self._path = f"{directory}/index.db"
        self._recovery = recovery
        self._index: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._process = os.getpid()
        self.queue = self._intent = self._latest = -1
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            self.queue = os.open(f"{directory}/queue", flags, 0o666)
            self._intent = os.open(f"{directory}/intent", flags, 0o666)
            self._latest = os.open(f"{directory}/latest", flags, 0o666)
        except BaseException:
            self.abandon()
            raise

    def check(self) -> int | None:
        """Open the index if necessary, check that it is the file at its path, and return `latest`.

        Raises:
            IndexReplacedError, CorruptIndexError, OSError, sqlite3.Error: it cannot be used.
        """
        if self._index is None:
            with queued(self.queue):
                self._open()
        self._check_path()
        return self.latest()

    @contextmanager
    def transaction(self, token: str) -> Iterator[IndexTransaction]:
        """A transaction of the user *token*; the caller holds the lock of `queue`.

        Raises:
            IndexReplacedError, CorruptIndexError, OSError, sqlite3.Error: it cannot be used.
        """
        index = self._open()
        self._check_path()
        execute = index.execute
        try:
            execute("BEGIN IMMEDIATE")
            try:
                row = execute(_STATE).fetchone()
                if row is None:
                    raise CorruptIndexError("it has no state")
                state = IndexState(*row)
                latest = self.latest()
                counter, names = self._unfinished(state.counter)
                # Numbers used by a transaction that was never committed are not reused.
                state.counter = max(state.counter, latest or 0, counter)
                transaction = IndexTransaction(index, state, token, self._intent)
                if counter:
                    self._recovery.undo(transaction, names)
                yield transaction
                if state.values() != row:
                    transaction.finish()
                if latest != state.counter:
                    write_latest(self._latest, state.counter)
                execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:
            _check_damage(error)
            raise
        for call in transaction.after_commit:
            call()

    def latest(self) -> int | None:
        """An upper bound of all generations, so that a fetch need not read the index; None if there is none."""
        data = os.pread(self._latest, _HEAD.size, 0)
        return int.from_bytes(data[:8], "little") if data and _summed(data[:8]) == data else None

    def _unfinished(self, committed: int) -> tuple[int, list[str]]:
        """The write-ahead record, if its number is above the last committed one; else 0 and no names."""
        data = os.pread(self._intent, _HEAD.size, 0)
        if len(data) < _HEAD.size:
            return 0, []
        counter, count = _HEAD.unpack(data)
        if counter <= committed:
            return 0, []
        size = count * _NAME
        data += os.pread(self._intent, size + 4, _HEAD.size) if count <= _MOST_NAMES else b""
        if len(data) != _HEAD.size + size + 4 or _summed(data[:-4]) != data:
            return 0, []
        names = data[_HEAD.size : -4].decode("ascii", "replace")
        found = [names[at : at + _NAME] for at in range(0, size, _NAME)]
        return counter, [name for name in found if name == EVERYTHING or is_name(name)]  # they become paths

    def _open(self) -> sqlite3.Connection:
        """The open index. The caller holds the lock of `queue` if it is not open yet."""
        if self._index is not None:
            return self._index
        index = sqlite3.connect(
            self._path, timeout=BUSY, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            # Not WAL: its index is mapped into memory, and truncating that file (as cache cleaners do) kills
            # every process that uses it. Not synced: after a kill the kernel has all data, and after a loss of power
            # the totals are recomputed, or the index is rebuilt.
            index.execute("PRAGMA journal_mode = PERSIST")
            index.execute("PRAGMA synchronous = OFF")
            if not index.execute("SELECT 1 FROM sqlite_master WHERE name = 'state'").fetchone():
                self._create(index)
            found = os.stat(self._path)
        except BaseException as error:
            index.close()
            if isinstance(error, sqlite3.DatabaseError):
                _check_damage(error)
            raise
        self._identity = (found.st_dev, found.st_ino)
        self._index = index
        return index

    def _create(self, index: sqlite3.Connection) -> None:
        index.execute("BEGIN IMMEDIATE")
        try:
            for statement in _SCHEMA.split(";"):
                index.execute(statement)
            # Above every number that an older index of this directory can have used.
            start = time.time_ns()
            state = IndexState(start, start)
            values = state.values()
            index.execute(f"INSERT INTO state ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608 - our own names
            transaction = IndexTransaction(index, state, "", None)
            self._recovery.rebuild(transaction)
            transaction.finish()
            index.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                index.execute("ROLLBACK")
            raise

    def _check_path(self) -> None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            raise IndexReplacedError(self._path) from None
        if (found.st_dev, found.st_ino) != self._identity:
            raise IndexReplacedError(self._path)

    def remove_index(self) -> None:
        """Remove the index, if the open one is still at its path; the caller holds the lock of `queue`."""
        try:
            if self._index is not None:
                self._check_path()
        except IndexReplacedError:
            return
        finally:
            self.close_index()
        for ending in ("", "-journal"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self._path}{ending}")

    def close_index(self) -> None:
        """Close the index; the next use reopens it."""
        index, self._index = self._index, None
        if index is not None:
            index.close()

    def close(self) -> None:
        """Close all files; in a forked child only the descriptors, since its SQLite handle is the parent's."""
        if self._process == os.getpid():
            self.close_index()
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptors only."""
        for fd in (self.queue, self._intent, self._latest):
            if fd >= 0:
                os.close(fd)
        self.queue = self._intent = self._latest = -1


def write_latest(fd: int, number: int) -> None:
    """Store an upper bound of all generations, before the commit, so that it always holds."""
    os.pwrite(fd, _summed(number.to_bytes(8, "little")), 0)


def _summed(data: bytes) -> bytes:
    """*data* and its CRC-32."""
    return data + zlib.crc32(data).to_bytes(4, "little")


def _check_damage(error: sqlite3.DatabaseError) -> None:
    """Raise a CorruptIndexError if *error* means that."""
    text = str(error)
    if any(word in text for word in _DAMAGED):
        raise CorruptIndexError(text) from error


@contextmanager
def queued(fd: int) -> Iterator[bool]:
    """Hold the lock of the queue; False where the file system has no locks."""
    locked = False
    with suppress(OSError):  # SQLite's locks still work
        fcntl.flock(fd, fcntl.LOCK_EX)
        locked = True
    try:
        yield locked
    finally:
        if locked:
            fcntl.flock(fd, fcntl.LOCK_UN)
