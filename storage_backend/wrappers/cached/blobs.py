"""Blobs: one file an entry, found by its name alone; beside them the index, which only changes go to.

In the directory are:

    format.1            this layout, whose version is in the name: an unknown one is refused
    blobs/ab/cd...      the entries (see `entry`), named by the digest of their labels
    index.db            see `index`
    queue               the lock that transactions queue for
    intent              the entry that the transaction under way is about to name, see `_Intent`
    members/            see `members`
    staging/            content that is coming in, named after the member that brings it
    trash/              what was cleared, until it is removed
    changed             the machine's boot in which objects were last changed through this cache
"""

from __future__ import annotations

import functools
import os
import shutil
import sqlite3
import stat
import struct
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from typing_extensions import Buffer

from storage_backend.forks import guard
from storage_backend.streams import CHUNK
from storage_backend.wrappers.cached import members
from storage_backend.wrappers.cached.engine import (
    Change,
    Findings,
    Key,
    Staged,
    Stats,
    TooLargeError,
    key_of,
)
from storage_backend.wrappers.cached.entry import Entry, Found, entry_of, found_in, packed, renewed
from storage_backend.wrappers.cached.formats import mark_format, prepare
from storage_backend.wrappers.cached.index import DamagedIndexError, GoneError, Index, Transaction, queued
from storage_backend.wrappers.cached.members import EVICTIONS, HITS, SAVED, Counters, Member

FORMAT = "1"
_TOUCHES = 10_000  # uses that are remembered before the index hears of them
_STEPS = 256  # what is coming in is counted in steps of this part of the limit
_KNOWN = 10_000  # entries whose records need not be read again while their files are the same
_TRASH = 1_000  # files removed at an opening, and a few at each publication, so that neither takes long
_TRASH_MORE = 16
_TRASH_CLEARED = 10_000  # files that whoever clears removes
_RETRY = 1.0  # seconds after which a directory that could not be opened is tried again
_BOOT = "/proc/sys/kernel/random/boot_id"


class Blobs:
    """The engine of our own (see `engine.Engine`).

    Args:
        directory: of the cache; it is created, for this user alone.
        limit: content bytes that the cache may hold; None for any number.
        clock: seconds since the epoch.
        warn: is told of troubles that do not keep entries from being found.

    Attributes:
        trusted_since: entries fetched before this moment are as good as expired.

    Raises:
        ConfigurationError: the directory has another format.
        OSError: it cannot be created.
    """

    _process: int
    _lock: threading.Lock  # of the open files, and of transactions
    _counting: threading.Lock  # of the counts, which hits must not wait for transactions for
    _counts: list[int]
    _touched: dict[str, None]
    _known: dict[str, tuple[int, float, int, Entry]]  # name -> inode, time, length, entry
    _open: _Open | None
    _trouble: Exception | None
    _retry_at: float
    _noted: bool
    _trash: bool  # whether something is left of it

    def __init__(
        self,
        directory: str,
        limit: int | None,
        clock: Callable[[], float],
        warn: Callable[[Exception], object],
    ) -> None:
        self.directory = directory
        self.limit = limit
        self.trusted_since = 0.0
        self._clock = clock
        self._warn = warn
        self._blobs = f"{directory}/blobs"
        self._renewing: dict[int, threading.Lock] = {}
        self._renew()
        self._process = os.getpid()
        prepare(directory, FORMAT, warn)
        guard().add(self)

    # What every hit does.

    def find(self, key: Key) -> Found | None:
        """The entry, held open; None if there is none, or it is damaged."""
        if self._open is None:
            self._try_to_open()
        name = key.name
        try:
            fd = os.open(f"{self._blobs}/{name[:2]}/{name[2:]}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            facts = os.fstat(fd)
        except OSError:
            os.close(fd)
            raise
        known = self._known.get(name)
        if (
            known is not None
            and known[0] == facts.st_ino
            and known[1] == facts.st_mtime
            and known[2] == facts.st_size
            and known[3].label == key.label
        ):
            return Found(fd, known[3])
        found = found_in(fd, key.label, facts.st_size)
        if found is not None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[name] = (facts.st_ino, facts.st_mtime, facts.st_size, found.entry)
        return found

    def hit(self, key: Key, size: int) -> None:
        """Count a hit of *size* bytes, and note that the entry was used."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._counting:
            counts = self._counts
            counts[HITS] += 1
            counts[SAVED] += size
            if self._open is not None:
                self._open.member.save(counts)
        touched = self._touched
        touched.pop(key.name, None)
        touched[key.name] = None
        if len(touched) > _TOUCHES:
            self._flush_touches()

    def touch(self, key: Key) -> None:
        """Note that the entry was used."""
        touched = self._touched
        touched.pop(key.name, None)
        touched[key.name] = None
        if len(touched) > _TOUCHES:
            self._flush_touches()

    def count(self, counter: int, size: int = 0) -> None:
        """Add one to a counter (see `members`), and *size* to the bytes saved."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._counting:
            self._counts[counter] += 1
            self._counts[SAVED] += size
            if self._open is not None:
                self._open.member.save(self._counts)

    # What fills and changes do.

    def generations(self, keys: Sequence[Key]) -> list[int]:
        """The keys' generations."""
        if self._process != os.getpid():
            self._begin_in_child()
        names = [key.name for key in keys]
        with self._lock:
            for again in (True, False):
                opened = self._opened()
                try:
                    with queued(opened.queue):
                        return self._indexed(opened).generations(names)
                except (GoneError, DamagedIndexError) as error:
                    self._lose(opened, error)
                    if not again:
                        raise OSError(self._lost(error)) from error
        raise AssertionError("the second try returns or raises")

    def stage(self, size: int | None = None) -> Blob | None:
        """Begin to take in content, of *size* bytes if that is known. None if it is more than the cache may hold."""
        if self.limit is not None and (self.limit == 0 or (size is not None and size > self.limit)):
            return None
        return Blob(self, size)

    def publish(self, key: Key, staged: Staged, entry: Entry, generation: int) -> bool:
        """Make the entry found, if *generation* is still the key's. Others are evicted to make room."""
        assert isinstance(staged, Blob)
        staged.finish(entry)
        with self._transaction() as transaction:
            if transaction.is_changing(key.name) or transaction.generation(key.name) != generation:
                return False
            transaction.reserve(-staged.reserved)
            if not self._make_room(transaction, entry.size, replacing=key.name):
                transaction.reserve(staged.reserved)
                return False
            self._intent.write(transaction.state.counter + 1, key.name)
            transaction.store(key.name, entry.size, generation)
            path = self._path(key.name)
            try:
                staged.rename(path)
            except (FileNotFoundError, IsADirectoryError):
                _remove(path)
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                staged.rename(path)
        staged.reserved = 0
        self.touch(key)  # later than what has been used so far, of which the index has not heard
        if self._trash:
            self._empty_trash(_TRASH_MORE)
        return True

    def begin(self, keys: Sequence[Key]) -> Change:
        """Drop the entries: a change of their objects begins."""
        with self._transaction() as transaction:
            self._note_change()
            number = transaction.state.next()
            generations = {}
            for key in keys:
                self._unlink(key.name)
                generations[key] = transaction.begin_change(key.name, number)
        return Change(number, generations)

    def end(self, change: Change) -> dict[Key, int]:
        """The change is over; see `engine.Engine`."""
        alone = {}
        with self._transaction() as transaction:
            for key, generation in change.generations.items():
                name = key.name
                self._unlink(name)
                transaction.end_change(name, change.number)
                overlapped = transaction.is_changing(name) or transaction.generation(name) != generation
                now = transaction.raise_generation(name)
                if not overlapped:
                    alone[key] = now
        return alone

    def drop(self, key: Key, stamp: int | None = None) -> None:
        """Forget the entry; with *stamp* only if it is that publication."""
        with self._transaction() as transaction:
            if stamp is not None:
                found = self.find(key)
                if found is not None:
                    found.close()
                    if found.entry.stamp != stamp:
                        return
            self._unlink(key.name)
            if stamp is None:
                transaction.raise_generation(key.name)
            else:
                transaction.forget(key.name)

    def renew(self, key: Key, found: Found, fetched: float) -> None:
        """Have the entry that was found be as if it had been fetched at *fetched*, if it is still there."""
        offset, data = renewed(found.entry, fetched)
        try:
            fd = os.open(self._path(key.name), os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            if os.path.samestat(os.fstat(fd), os.fstat(found.fileno())):
                os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    # What is done to all of it.

    def clear(self, *, patient: bool = False) -> None:
        """Forget all entries; what is being fetched now is not published either.

        Args:
            patient: return when all files are removed. Else some are, and the rest bit by bit by whoever uses the cache.
        """
        with self._transaction() as transaction:
            with suppress(FileNotFoundError):
                os.rename(self._blobs, f"{self.directory}/trash/{transaction.state.next()}")
            transaction.clear()
            self._touched = {}
        self._empty_trash(None if patient else _TRASH_CLEARED)

    def stats(self) -> Stats:
        """What there is, and what all users have counted."""
        with self._transaction() as transaction:
            state = transaction.state
            counters = Counters(state.hits, state.misses, state.expired, state.evictions, state.bytes_saved)
            with self._counting:
                counters = counters.plus(Counters(*self._counts))
            for other in members.others(self._members, self._opened().member.token):
                counters = counters.plus(other)
            return Stats(state.size - transaction.reserved(), state.count, counters)

    def check(self) -> Findings:
        """Read everything, compare it with its checksum, and mend what is not right."""
        entries = size = damaged = strays = missing = 0
        self._empty_trash(None)
        for path, name in self._files():
            whole = _whole(path, name)
            if whole is None:
                continue  # evicted meanwhile
            with self._transaction() as transaction:
                if whole and transaction.has(name):
                    entries += 1
                    size += whole.size
                    continue
                # Published anew since it was read?
                again = _whole(path, name)
                if again is None or (again and transaction.has(name)):
                    continue
                _remove(path)
                if transaction.forget(name):
                    damaged += 1
                else:
                    strays += 1
        after = ""
        while True:
            with self._transaction() as transaction:
                names = transaction.names(after, 1000)
                for name in names:
                    if not os.path.exists(self._path(name)):
                        transaction.forget(name)
                        missing += 1
            if not names:
                return Findings(entries, size, damaged, strays, missing)
            after = names[-1]

    def close(self) -> None:
        """Let go of files. Used again, it opens them again."""
        if self._process != os.getpid():
            self._begin_in_child()
        if self._open is None:
            return
        try:
            with self._transaction() as transaction:
                self._apply_touches(transaction)
                with self._counting:
                    transaction.bury(self._opened().member.token, Counters(*self._counts))
                    self._counts[:] = [0] * len(self._counts)
                    self._opened().member.save(self._counts)
        finally:
            with self._lock:
                self._leave()

    # Opening.

    @property
    def _members(self) -> str:
        return f"{self.directory}/members"

    @property
    def _staging(self) -> str:
        return f"{self.directory}/staging"

    @property
    def _intent(self) -> _Intent:
        return self._opened().intent

    def _path(self, name: str) -> str:
        return f"{self._blobs}/{name[:2]}/{name[2:]}"

    def _try_to_open(self) -> None:
        """Open, if that can be: what is there can be found in any case."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._lock:
            try:
                self._opened()
            except (OSError, sqlite3.Error, DamagedIndexError, GoneError) as error:
                trouble = error
            else:
                return
        self._warn(trouble)

    def _leave(self) -> None:
        with self._counting:
            opened, self._open = self._open, None
            if opened is not None:
                opened.leave()

    def _opened(self) -> _Open:
        """The open files; the lock is held."""
        if self._open is None:
            if self._trouble is not None and time.monotonic() < self._retry_at:
                raise self._trouble
            try:
                opened = self._opening()
                with self._counting:
                    self._open = opened
                self._trouble = None
            except Exception as error:
                self._trouble = error.with_traceback(None)
                self._retry_at = time.monotonic() + _RETRY
                raise
        return self._open

    def _opening(self) -> _Open:
        Path(self.directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        mark_format(self.directory, FORMAT)
        for folder in (self._blobs, self._members, self._staging, f"{self.directory}/trash"):
            Path(folder).mkdir(exist_ok=True)
        opened = _Open(self.directory)
        try:
            with queued(opened.queue):
                opened.join(self._members)
                with self._counting:
                    opened.member.save(self._counts)
                try:
                    self._settle(opened, self._indexed(opened))
                except DamagedIndexError:
                    opened.remove_index()
                    self._settle(opened, self._indexed(opened))
        except BaseException:
            opened.leave()
            raise
        weakref.finalize(self, opened.shut)
        return opened

    def _indexed(self, opened: _Open) -> Index:
        """The open index; the lock and the queue's are held."""
        if opened.index is None:
            opened.index = Index(opened.index_path, self._members, self._rebuild)
        return opened.index

    def _settle(self, opened: _Open, index: Index) -> None:
        """Clear up after those that are gone; the queue's lock is held."""
        with index.transaction(opened.member.token) as transaction:
            self._mend_intent(transaction, opened.intent)
            gone = list(members.dead(self._members))
            for token, counters in gone:
                transaction.bury(token, counters)
            boot = _boot()
            if boot != transaction.state.boot:
                if transaction.state.boot:
                    transaction.recount()
                    # What was unlinked may be back, although its object has been changed since.
                    if self._changed() not in {"", boot}:
                        transaction.state.trusted_since = self._clock()
                transaction.state.boot = boot
            self._make_room(transaction, 0)
            self.trusted_since = transaction.state.trusted_since
        for token, _ in gone:
            members.bury(self._members, token)
        alive = set(os.listdir(self._members))
        for name in os.listdir(self._staging):
            if name.partition("-")[0] not in alive:
                with suppress(FileNotFoundError):
                    os.unlink(f"{self._staging}/{name}")
        self._empty_trash(_TRASH)

    def _rebuild(self, transaction: Transaction) -> None:
        """Fill a new index with what blobs there are, the newest as the last used."""
        found = []
        for path, name in self._files():
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                entry = None if stat.S_ISDIR(os.fstat(fd).st_mode) else entry_of(fd)
            finally:
                os.close(fd)
            if entry is None or key_of(entry.label).name != name:
                _remove(path)
            else:
                found.append((entry.fetched, name, entry.size))
        for _, name, size in sorted(found):
            transaction.store(name, size, transaction.state.floor)
        transaction.state.boot = _boot()

    def _files(self) -> Iterator[tuple[str, str]]:
        """The blobs' paths and names."""
        try:
            folders = sorted(os.listdir(self._blobs))
        except FileNotFoundError:
            return
        for folder in folders:
            with suppress(FileNotFoundError):
                for name in os.listdir(f"{self._blobs}/{folder}"):
                    yield f"{self._blobs}/{folder}/{name}", folder + name

    def _changed(self) -> str:
        try:
            return Path(f"{self.directory}/changed").read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return ""

    def _note_change(self) -> None:
        """See to it that after a loss of power it is known that objects were changed: what was unlinked may be back then."""
        if self._noted:
            return
        boot = _boot()
        if self._changed() != boot:
            fd = os.open(
                f"{self.directory}/changed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666
            )
            try:
                os.write(fd, boot.encode())
                os.fsync(fd)
            finally:
                os.close(fd)
            directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        self._noted = True

    # Transactions.

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        """A transaction, alone in this directory; opened anew if the index was removed or is damaged."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._lock:
            for again in (True, False):
                began = False
                opened = self._opened()
                try:
                    with (
                        queued(opened.queue),
                        self._indexed(opened).transaction(opened.member.token) as transaction,
                    ):
                        self._mend_intent(transaction, opened.intent)
                        began = True
                        yield transaction
                except (GoneError, DamagedIndexError) as error:
                    self._lose(opened, error)
                    if began or not again:
                        raise OSError(self._lost(error)) from error
                else:
                    return

    def _lose(self, opened: _Open, error: Exception) -> None:
        """Let go of an index that is damaged, or another one now."""
        if isinstance(error, DamagedIndexError):
            with suppress(OSError), queued(opened.queue):
                opened.remove_index()
        self._leave()
        self._noted = False

    def _lost(self, error: Exception) -> str:
        return f"the index of the cache in {self.directory} was lost: {error}"

    def _mend_intent(self, transaction: Transaction, intent: _Intent) -> None:
        """If the last transaction ended between naming an entry and its commit, nobody knows of the entry: remove it."""
        counter, name = intent.read()
        if counter > transaction.state.counter:
            self._unlink(name)
            transaction.forget(name)
            transaction.state.counter = counter

    def _make_room(self, transaction: Transaction, size: int, replacing: str | None = None) -> bool:
        """Evict until *size* bytes more are within the limit.

        Returns:
            Whether they are.
        """
        state = transaction.state
        if self.limit is None or state.size + size <= self.limit:
            return True
        if transaction.reserved() + size > self.limit:
            return False  # whatever were evicted
        self._apply_touches(transaction)
        if replacing is not None and transaction.has(replacing):
            self._unlink(replacing)
            transaction.forget(replacing)
        evicted = 0
        while state.size + size > self.limit and (names := transaction.oldest()):
            for name in names:
                self._unlink(name)
                transaction.forget(name)
                evicted += 1
                if state.size + size <= self.limit:
                    break
        if evicted:
            with self._counting:
                self._counts[EVICTIONS] += evicted
        return state.size + size <= self.limit

    def reserve(self, size: int) -> None:
        """Make room for *size* bytes that are coming in.

        Raises:
            TooLargeError: there is none.
        """
        with self._transaction() as transaction:
            if not self._make_room(transaction, size):
                raise TooLargeError(f"{size:,} bytes more are not to be had in {self.directory}")
            transaction.reserve(size)

    def release(self, size: int) -> None:
        """Give back what was reserved."""
        with self._transaction() as transaction:
            transaction.reserve(-size)

    def staging_path(self) -> str:
        """A path of this member's for content that is coming in."""
        with self._lock:
            token = self._opened().member.token
        return f"{self._staging}/{token}-{os.urandom(8).hex()}"

    def _apply_touches(self, transaction: Transaction) -> None:
        touched, self._touched = self._touched, {}
        if touched:
            transaction.use(list(touched))

    def _flush_touches(self) -> None:
        with self._transaction() as transaction:
            self._apply_touches(transaction)

    def _unlink(self, name: str) -> None:
        _remove(self._path(name))

    def _empty_trash(self, most: int | None) -> None:
        """Remove some of what was cleared."""
        trash = f"{self.directory}/trash"
        with suppress(FileNotFoundError):
            for cleared in os.listdir(trash):
                if most is None:
                    shutil.rmtree(f"{trash}/{cleared}", ignore_errors=True)
                    continue
                most -= _remove_some(f"{trash}/{cleared}", most)
                if most <= 0:
                    self._trash = True
                    return
        self._trash = False

    # Forks.

    def before_fork(self) -> None:
        """Let nobody begin, and close the index: SQLite counts its locks for the whole process (see `forks`)."""
        self._lock.acquire()
        if self._open is not None and self._process == os.getpid():
            self._open.close_index()

    def after_fork(self) -> None:
        """Go on, in the parent."""
        self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._counts = [0] * len(Counters())
        self._touched = {}
        self._known = {}
        self._open = None
        self._trouble = None
        self._retry_at = 0.0
        self._noted = False
        self._trash = False

    def _begin_in_child(self) -> None:
        """What was inherited is the parent's: its counts, its files, its locks."""
        # A lock that was held when this process was forked would be held for ever: each process has its own.
        with self._renewing.setdefault(os.getpid(), threading.Lock()):
            if self._process == os.getpid():
                return
            inherited = self._open
            self._renew()
            if inherited is not None:
                inherited.abandon()
            guard().add(self)
            self._process = os.getpid()


class Blob:
    """Content on its way into the cache (see `engine.Staged`): a file of its own until it is named.

    Attributes:
        size: bytes so far.
        reserved: bytes that count as the cache's already.

    Raises:
        TooLargeError: from `write` too: it is more than the cache may hold.
    """

    def __init__(self, cache: Blobs, size: int | None) -> None:
        self.size = 0
        self._crc = 0
        self.reserved = 0
        self._cache = cache
        # So much is not counted before it is published.
        self._step = None if cache.limit is None else cache.limit // _STEPS
        self._path: str | None = cache.staging_path()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o666)
        if size is not None:
            try:
                self._count(size)
            except BaseException:
                self.discard()
                raise

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*.

        Raises:
            TooLargeError: it is more than the cache may hold.
        """
        view = memoryview(data).cast("B")
        self._count(self.size + len(view))
        self._crc = zlib.crc32(view, self._crc)
        self.size += len(view)
        self._append(view)

    def finish(self, entry: Entry) -> None:
        """Append what makes it an entry."""
        self._append(memoryview(packed(entry._replace(crc=self._crc))))

    def rename(self, path: str) -> None:
        """Give it its name."""
        assert self._path is not None
        os.rename(self._path, path)
        self._path = None

    def found(self, entry: Entry) -> Found:
        """What was written, to be read although it is not published."""
        return Found(os.dup(self._fd), entry)

    def discard(self) -> None:
        """Drop it, unless it was published."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        path, self._path = self._path, None
        if path is not None:
            with suppress(FileNotFoundError):
                os.unlink(path)
        reserved, self.reserved = self.reserved, 0
        if reserved:
            self._cache.release(reserved)

    def _append(self, view: memoryview) -> None:
        while view:
            view = view[os.write(self._fd, view) :]

    def _count(self, size: int) -> None:
        """See to it that *size* bytes in all are within the limit."""
        if self._step is None or size <= self.reserved + self._step:
            return
        more = max(size - self.reserved, self._step)
        self._cache.reserve(more)
        self.reserved += more


class _Open:
    """The open files of a cache."""

    def __init__(self, directory: str) -> None:
        self.index_path = f"{directory}/index.db"
        self.index: Index | None = None
        self._process = os.getpid()
        self._member: Member | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.queue = os.open(f"{directory}/queue", flags, 0o666)
        try:
            self.intent = _Intent(os.open(f"{directory}/intent", flags, 0o666))
        except BaseException:
            os.close(self.queue)
            raise

    @property
    def member(self) -> Member:
        """This user of the cache."""
        assert self._member is not None
        return self._member

    def join(self, folder: str) -> None:
        """Become a member; the queue's lock is held."""
        self._member = Member(folder)

    def remove_index(self) -> None:
        """Remove the index, if it is still the one that is open; the queue's lock is held."""
        ours = self.index is None or self.index.in_place()
        self.close_index()
        if not ours:
            return
        for ending in ("", "-journal"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.index_path}{ending}")

    def close_index(self) -> None:
        """Close the index; it is opened again when it is needed."""
        index, self.index = self.index, None
        if index is not None:
            index.close()

    def leave(self) -> None:
        """Close all files, and remove the member's."""
        self.close_index()
        if self._member is not None:
            self._member.leave()
        self.abandon()

    def shut(self) -> None:
        """Close all files; the member's is left for others to find. In a forked child, nothing."""
        if self._process == os.getpid():
            self.close_index()
            self.abandon()

    def abandon(self) -> None:
        """Close the descriptors, and nothing else."""
        if self._member is not None:
            self._member.abandon()
        queue, self.queue = self.queue, -1
        if queue >= 0:
            os.close(queue)
        self.intent.close()


class _Intent:
    """What a transaction is about to name: if it never commits, the next one finds out here.

    Of a file: a number above all that were committed before, the entry's name, and the CRC-32 of both.
    """

    _FORM = struct.Struct("<Q32sI")

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> tuple[int, str]:
        """The number and the name; 0 where there is none."""
        data = os.pread(self._fd, self._FORM.size, 0)
        if len(data) < self._FORM.size:
            return 0, ""
        counter, name, crc = self._FORM.unpack(data)
        return (counter, name.decode("ascii")) if crc == zlib.crc32(data[:-4]) else (0, "")

    def write(self, counter: int, name: str) -> None:
        """Say that *name* is about to be named."""
        data = self._FORM.pack(counter, name.encode(), 0)[:-4]
        os.pwrite(self._fd, data + zlib.crc32(data).to_bytes(4, "little"), 0)

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _whole(path: str, name: str) -> Entry | Literal[False] | None:
    """The entry in a file, all of it read and compared; False if it is damaged, None if there is no file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        entry = None if stat.S_ISDIR(os.fstat(fd).st_mode) else entry_of(fd)
        if entry is None or key_of(entry.label).name != name:
            return False
        crc = at = 0
        while at < entry.size:
            piece = os.pread(fd, min(CHUNK, entry.size - at), at)
            if not piece:
                return False
            crc = zlib.crc32(piece, crc)
            at += len(piece)
        return entry if crc == entry.crc else False
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    """Remove what is at an entry's place, whatever somebody has put there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        shutil.rmtree(path)


@functools.cache
def _boot() -> str:
    """Tells this running of the machine from others; "" where it cannot."""
    try:
        return Path(_BOOT).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _remove_some(folder: str, most: int) -> int:
    """Remove at most *most* files of a folder of folders, and what is empty then.

    Returns:
        How many files that were.
    """
    removed = 0
    for name in os.listdir(folder):
        path = f"{folder}/{name}"
        for blob in os.listdir(path):
            if removed >= most:
                return removed
            with suppress(FileNotFoundError):
                os.unlink(f"{path}/{blob}")
            removed += 1
        with suppress(OSError):
            os.rmdir(path)
    with suppress(OSError):
        os.rmdir(folder)
    return removed
