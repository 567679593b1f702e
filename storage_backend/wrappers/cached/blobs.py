"""BlobEngine: one file an entry, found by its name alone; beside them the index, which only changes go to.

In the directory are:

    format.1            this layout, whose version is in the name: an unknown one is refused
    blobs/ab/cd...      the entries (see `entry`), named by the digest of their labels
    index.db            see `index`
    queue               the lock that transactions queue for
    intent              what the transaction under way is about to name or unlink, see `intent`
    latest              the latest generation, see `latest`
    changing/           the changes under way, see `pending_writes`
    members/            see `users`
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
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple, cast

from storage_backend.forks import guard
from storage_backend.wrappers.cached import pending_writes, users
from storage_backend.wrappers.cached.blob_files import remove, remove_some, whole
from storage_backend.wrappers.cached.engine import (
    CacheKey,
    CacheStats,
    CheckReport,
    OverCacheLimitError,
    PendingWrite,
    Publication,
    key_of,
)
from storage_backend.wrappers.cached.entry import (
    CacheEntry,
    OpenEntry,
    Verification,
    entry_of,
    found_in,
    renewed,
)
from storage_backend.wrappers.cached.formats import mark_format, prepare
from storage_backend.wrappers.cached.index import (
    BlobIndex,
    CorruptIndexError,
    IndexReplacedError,
    IndexTransaction,
    queued,
)
from storage_backend.wrappers.cached.intent import EVERYTHING, WriteAheadRecord
from storage_backend.wrappers.cached.opened import BlobCacheFiles
from storage_backend.wrappers.cached.staged import StagedBlob
from storage_backend.wrappers.cached.users import EVICTIONS, HITS, SAVED, CacheCounters

FORMAT = "1"
_TOUCHES = 10_000  # uses that are remembered before the index hears of them
_KNOWN = 10_000  # entries whose records need not be read again while their files are the same
_TRASH = 1_000  # files removed at an opening, and a few at each publication, so that neither takes long
_TRASH_MORE = 16
_TRASH_CLEARED = 10_000  # files that whoever clears removes
_RETRY = 1.0  # seconds after which a directory that could not be opened is tried again
# Whatever somebody has put in a file's place: a pipe is not waited for.
_READING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_BOOT = "/proc/sys/kernel/random/boot_id"


class RememberedFile(NamedTuple):
    """A file that was read before, so that its record need not be read again.

    Attributes:
        time: of its last change, which whoever writes to it cannot keep as it was.
        checked: when its content was compared with its checksum.
    """

    path: str
    inode: int
    time: float
    length: int
    entry: CacheEntry
    checked: Verification


class BlobEngine:
    """The engine of our own (see `engine.CacheEngine`).

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
    _known: dict[str, RememberedFile]  # by names
    _open: BlobCacheFiles | None
    _finalizer: weakref.finalize[..., BlobEngine]  # of the open files
    _trouble: str  # why they could not be opened; not the error itself, whose traceback leads back here
    _retry_at: float
    _noted: bool
    _intent: WriteAheadRecord | None  # of the transaction under way
    _intended: dict[str, None]  # by the transaction under way
    _over: list[str]  # marks of changes that are over when it is committed
    _unended: set[str]  # marks of changes of this process that could not be ended when they were over
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

    def find(self, key: CacheKey) -> OpenEntry | None:
        """The entry, held open; None if there is none, or it is damaged."""
        if self._open is None:
            self._try_to_open()
        name = key.name
        known = self._known.get(name)
        path = self._path(name) if known is None else known.path
        try:
            fd = os.open(path, _READING)
        except FileNotFoundError:
            return None
        try:
            facts = os.fstat(fd)
        except OSError:
            os.close(fd)
            raise
        if (
            known is not None
            and known.inode == facts.st_ino
            and known.time == facts.st_ctime
            and known.length == facts.st_size
            and known.entry.label == key.label
        ):
            return OpenEntry(fd, known.entry, b"", known.checked)
        checked = Verification(facts.st_ctime)
        found = found_in(fd, key.label, facts.st_size, checked)
        if found is not None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[name] = RememberedFile(
                path, facts.st_ino, facts.st_ctime, facts.st_size, found.entry, checked
            )
        return found

    def hit(self, key: CacheKey, size: int) -> None:
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

    def touch(self, key: CacheKey) -> None:
        """Note that the entry was used."""
        touched = self._touched
        touched.pop(key.name, None)
        touched[key.name] = None
        if len(touched) > _TOUCHES:
            self._flush_touches()

    def count(self, counter: int, size: int = 0) -> None:
        """Add one to a counter (see `users`), and *size* to the bytes saved."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._counting:
            self._counts[counter] += 1
            self._counts[SAVED] += size
            if self._open is not None:
                self._open.member.save(self._counts)

    # What fills and changes do.

    def generations(self, keys: Sequence[CacheKey]) -> list[int]:
        """The latest generation of all: no key has a later one."""
        with self._in_place() as opened:
            latest = opened.latest.read()
        if latest is None:
            with self._transaction() as transaction:  # which stores it
                latest = transaction.state.counter
        return [latest] * len(keys)

    def stage(self, size: int | None = None, replacing: CacheKey | None = None) -> StagedBlob | None:
        """Begin to take in content; see `engine.CacheEngine`."""
        if self.limit is not None and (self.limit == 0 or (size is not None and size > self.limit)):
            return None
        return StagedBlob(self, size, None if replacing is None else replacing.name)

    def publish(self, offers: Sequence[tuple[Publication, int]]) -> None:
        """Make the entries found, each if no generation of its key has begun after the one beside it. Others are evicted to make room."""
        for offer, _ in offers:
            cast(StagedBlob, offer.staged).finish(offer.entry)
        published = []
        with self._transaction() as transaction:
            changing = self._changing_of(transaction, [offer.key.name for offer, _ in offers])
            good = [
                offer
                for offer, generation in offers
                if offer.key.name not in changing and transaction.generation(offer.key.name) <= generation
            ]
            self._intend(transaction, [offer.key.name for offer in good])
            for offer in good:
                if self._named(transaction, offer):
                    transaction.store(offer.key.name, offer.entry.size)
                    published.append(offer)
        for offer in published:
            self._published(offer)

    def begin(self, keys: Sequence[CacheKey]) -> PendingWrite:
        """Drop the entries: a change of their objects begins. The index hears of it at the end."""
        if not keys:
            return PendingWrite("", {})
        names = [key.name for key in keys]
        with self._in_place() as opened:
            self._note_change()
            # Nothing is published meanwhile.
            with queued(opened.queue) as alone, nullcontext() if alone else self._transaction_in(opened):
                mark = self._marked(opened.member.token, names)
                for name in names:
                    self._unlink(name)
                latest = opened.latest.read()
        if latest is None:
            [latest, *_] = self.generations(keys)
        return PendingWrite(mark, dict.fromkeys(keys, latest))

    def _marked(self, token: str, names: Sequence[str]) -> str:
        """The mark of a change that begins; "" if it cannot be made: then only a kill before its end goes unnoticed."""
        try:
            try:
                return pending_writes.begin(self._changing, self._staging, token, names)
            except FileNotFoundError:
                Path(self._changing).mkdir(exist_ok=True)
                return pending_writes.begin(self._changing, self._staging, token, names)
        except OSError as error:
            self._warn(error)
            return ""

    def end(self, change: PendingWrite, offer: Publication | None = None) -> dict[CacheKey, int]:
        """The change is over; see `engine.CacheEngine`."""
        if offer is not None:
            assert isinstance(offer.staged, StagedBlob)
            try:
                offer.staged.finish(offer.entry)
                return self._ended(change, offer)
            except Exception as error:  # noqa: BLE001 - told; that the change is over counts more than what it has stored
                self._warn(error)
        try:
            return self._ended(change, None)
        except BaseException:
            self._unended.add(change.mark)
            raise

    def _ended(self, change: PendingWrite, offer: Publication | None) -> dict[CacheKey, int]:
        alone: dict[CacheKey, int] = {}
        if not change.generations:
            return alone
        published = False
        with self._transaction() as transaction:
            names = [key.name for key in change.generations]
            self._intend(transaction, names)
            changing = self._changing_of(transaction, names, but=change.mark)
            for key, generation in change.generations.items():
                name = key.name
                overlapped = name in changing or transaction.generation(name) > generation
                if (
                    offer is not None
                    and key == offer.key
                    and not overlapped
                    and self._named(transaction, offer)
                ):
                    published = True
                    now = transaction.store_anew(name, offer.entry.size)
                else:
                    self._unlink(name)
                    now = transaction.raise_generation(name)
                if not overlapped:
                    alone[key] = now
            if change.mark:
                self._over.append(change.mark)
        if offer is not None and published:
            self._published(offer)
        return alone

    def _named(self, transaction: IndexTransaction, offer: Publication) -> bool:
        """Give an entry its name, if there is room; its row is the caller's, as is the intent."""
        staged, name = cast(StagedBlob, offer.staged), offer.key.name
        transaction.reserve(-staged.reserved)
        if not self._make_room(transaction, offer.entry.size, replacing=name):
            transaction.reserve(staged.reserved)
            return False
        path = self._path(name)
        try:
            staged.rename(path)
        except (FileNotFoundError, IsADirectoryError):
            remove(path)
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            staged.rename(path)
        return True

    def _published(self, offer: Publication) -> None:
        """What follows the commit."""
        cast(StagedBlob, offer.staged).reserved = 0
        # The new file may have the old one's number, length and time.
        self._known.pop(offer.key.name, None)
        self.touch(offer.key)  # later than what has been used so far, of which the index has not heard
        if self._trash:
            self._empty_trash(_TRASH_MORE)

    def drop(self, key: CacheKey, stamp: int | None = None) -> None:
        """Forget the entry; with *stamp* only if it is that publication."""
        with self._transaction() as transaction:
            if stamp is not None:
                found = self.find(key)
                if found is not None:
                    found.close()
                    if found.entry.stamp != stamp:
                        return
            self._intend(transaction, [key.name])
            self._unlink(key.name)
            if stamp is None:
                transaction.raise_generation(key.name)
            else:
                transaction.forget(key.name)

    def renew(self, key: CacheKey, found: OpenEntry, fetched: float) -> None:
        """Have the entry that was found be as if it had been fetched at *fetched*, if it is still there."""
        offset, data = renewed(found.entry, fetched)
        try:
            fd = os.open(self._path(key.name), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
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
            self._intend(transaction, [EVERYTHING])
            self._set_aside(transaction)
            self._touched = {}
        self._empty_trash(None if patient else _TRASH_CLEARED)

    def stats(self) -> CacheStats:
        """What there is, and what all users have counted."""
        with self._transaction() as transaction:
            self._end_changes_of_the_gone(transaction)
            state = transaction.state
            counters = CacheCounters(
                state.hits, state.misses, state.expired, state.evictions, state.bytes_saved
            )
            with self._counting:
                counters = counters.plus(CacheCounters(*self._counts))
            for other in users.others(self._members, self._opened().member.token):
                counters = counters.plus(other)
            return CacheStats(state.size - transaction.reserved(), state.count, counters)

    def check(self) -> CheckReport:
        """Read everything, compare it with its checksum, and mend what is not right."""
        entries = size = damaged = strays = missing = 0
        self._empty_trash(None)
        for path, name in self._files():
            found = whole(path, name)
            if found is None:
                continue  # evicted meanwhile
            with self._transaction() as transaction:
                if found and transaction.has(name):
                    entries += 1
                    size += found.size
                    continue
                # Published anew since it was read?
                again = whole(path, name)
                if again is None or (again and transaction.has(name)):
                    continue
                remove(path)
                if transaction.forget(name):
                    damaged += 1
                else:
                    strays += 1
        after = ""
        while True:
            with self._transaction() as transaction:
                self._end_changes_of_the_gone(transaction)
                names = transaction.names(after, 1000)
                for name in names:
                    if not os.path.exists(self._path(name)) and not any(
                        pending_writes.of(self._changing, [name])
                    ):
                        transaction.forget(name)
                        missing += 1
            if not names:
                return CheckReport(entries, size, damaged, strays, missing)
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
                    transaction.bury(self._opened().member.token, CacheCounters(*self._counts))
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
    def _changing(self) -> str:
        return f"{self.directory}/changing"

    @property
    def _staging(self) -> str:
        return f"{self.directory}/staging"

    def _path(self, name: str) -> str:
        return f"{self._blobs}/{name[:2]}/{name[2:]}"

    def _try_to_open(self) -> None:
        """Open, if that can be: what is there can be found in any case."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._lock:
            try:
                self._opened()
            except (OSError, sqlite3.Error, CorruptIndexError, IndexReplacedError) as error:
                trouble = error
            else:
                return
        self._warn(trouble)

    def _leave(self) -> None:
        with self._counting:
            opened, self._open = self._open, None
            if opened is not None:
                opened.leave()
                self._finalizer.detach()

    def _opened(self) -> BlobCacheFiles:
        """The open files; the lock is held."""
        if self._open is None:
            if self._trouble and time.monotonic() < self._retry_at:
                raise OSError(self._trouble)
            try:
                opened = self._opening()
                with self._counting:
                    self._open = opened
                self._trouble = ""
            except Exception as error:
                self._trouble = str(error) or type(error).__name__
                self._retry_at = time.monotonic() + _RETRY
                raise
        return self._open

    def _opening(self) -> BlobCacheFiles:
        Path(self.directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        mark_format(self.directory, FORMAT)
        for folder in (self._blobs, self._members, self._changing, self._staging, f"{self.directory}/trash"):
            Path(folder).mkdir(exist_ok=True)
        opened = BlobCacheFiles(self.directory)
        try:
            with queued(opened.queue):
                opened.join(self._members)
                with self._counting:
                    opened.member.save(self._counts)
                try:
                    self._settle(opened)
                except CorruptIndexError:
                    opened.remove_index()
                    self._settle(opened)
        except BaseException:
            opened.leave()
            raise
        self._finalizer = weakref.finalize(self, opened.shut)
        return opened

    def _indexed(self, opened: BlobCacheFiles) -> BlobIndex:
        """The open index; the lock and the queue's are held."""
        if opened.index is None:
            opened.index = BlobIndex(opened.index_path, self._rebuild)
        return opened.index

    def _settle(self, opened: BlobCacheFiles) -> None:
        """Clear up after those that are gone; the queue's lock is held."""
        with self._transaction_in(opened) as transaction:
            gone = list(users.dead(self._members))
            for token, counters in gone:
                transaction.bury(token, counters)
            self._end_changes_of_the_gone(transaction)
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
            users.bury(self._members, token)
        alive = set(os.listdir(self._members))
        for name in os.listdir(self._staging):
            if name.partition("-")[0] not in alive:
                remove(f"{self._staging}/{name}")
        self._empty_trash(_TRASH)

    def _rebuild(self, transaction: IndexTransaction) -> None:
        """Fill a new index with what blobs there are, the newest as the last used."""
        found = []
        for path, name in self._files():
            try:
                fd = os.open(path, _READING)
            except OSError:
                continue
            try:
                entry = entry_of(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else None
            finally:
                os.close(fd)
            if entry is None or key_of(entry.label).name != name:
                remove(path)
            else:
                found.append((entry.fetched, name, entry.size))
        for _, name, size in sorted(found):
            transaction.store(name, size)
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
            fd = os.open(f"{self.directory}/changed", _READING)
        except FileNotFoundError:
            return ""
        with open(fd, encoding="ascii", errors="replace") as file:
            return file.read()

    def _note_change(self) -> None:
        """See to it that after a loss of power it is known that objects were changed: what was unlinked may be back then."""
        if self._noted:
            return
        boot = _boot()
        if self._changed() != boot:
            path = f"{self.directory}/changed"
            if not os.path.isfile(path):
                remove(path)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
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
    def _transaction(self) -> Iterator[IndexTransaction]:
        """A transaction, alone in this directory; opened anew if the index was removed or is damaged."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._lock:
            for again in (True, False):
                began = False
                opened = self._opened()
                try:
                    with queued(opened.queue), self._transaction_in(opened) as transaction:
                        began = True
                        yield transaction
                except (IndexReplacedError, CorruptIndexError) as error:
                    self._lose(opened, error)
                    if began or not again:
                        raise OSError(self._lost(error)) from error
                else:
                    return

    @contextmanager
    def _transaction_in(self, opened: BlobCacheFiles) -> Iterator[IndexTransaction]:
        """A transaction; the lock and the queue's are held."""
        self._over = []
        with self._indexed(opened).transaction(opened.member.token, opened.latest) as transaction:
            self._mend(transaction, opened.intent)
            yield transaction
        for mark in self._over:
            pending_writes.end(self._changing, mark)
            self._unended.discard(mark)

    @contextmanager
    def _in_place(self) -> Iterator[BlobCacheFiles]:
        """The open files, of which the index is the one of this directory, for the caller alone in this process."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._lock:
            opened = self._opened()
            try:
                if opened.index is None:
                    with queued(opened.queue):
                        self._indexed(opened)
                self._indexed(opened).check_place()
            except (IndexReplacedError, CorruptIndexError) as error:
                self._lose(opened, error)
                opened = self._opened()
            yield opened

    def _lose(self, opened: BlobCacheFiles, error: Exception) -> None:
        """Let go of an index that is damaged, or another one now."""
        if isinstance(error, CorruptIndexError):
            with suppress(OSError), queued(opened.queue):
                opened.remove_index()
        self._leave()
        self._noted = False

    def _lost(self, error: Exception) -> str:
        return f"the index of the cache in {self.directory} was lost: {error}"

    def _intend(self, transaction: IndexTransaction, names: Sequence[str]) -> None:
        """Leave word of what this transaction is about to name or unlink."""
        if all(name in self._intended for name in names):
            return
        self._intended.update(dict.fromkeys(names))
        assert self._intent is not None
        self._intent.write(transaction.state.next(), self._intended)

    def _mend(self, transaction: IndexTransaction, intent: WriteAheadRecord) -> None:
        """If the last transaction ended before its commit, its files may be there without a row, or rows without their files."""
        self._intent, self._intended = intent, {}
        counter, names = intent.read(transaction.committed)
        if not counter:
            return
        transaction.state.counter = max(transaction.state.counter, counter)
        if names == [EVERYTHING]:
            self._set_aside(transaction)
            return
        for name in names:
            self._unlink(name)
            transaction.forget(name)

    def _changing_of(self, transaction: IndexTransaction, names: Collection[str], but: str = "") -> set[str]:
        """Those of the names whose objects somebody changes, beside the change *but*. Changes of those that are gone end here."""
        changing: set[str] = set()
        for mark, found in pending_writes.of(self._changing, names, but):
            if not self._end_if_gone(transaction, mark):
                changing |= found
        return changing

    def _end_changes_of_the_gone(self, transaction: IndexTransaction) -> None:
        for mark in pending_writes.under_way(self._changing):
            self._end_if_gone(transaction, mark)

    def _end_if_gone(self, transaction: IndexTransaction, mark: str) -> bool:
        """End a change if its maker is gone, or could not end it: nobody knows what has become of it. Whether that is so."""
        token = pending_writes.owner(mark)
        alive = token == transaction.token or users.is_alive(self._members, token)
        if alive and mark not in self._unended:
            return False
        names = pending_writes.names(self._changing, mark)
        self._intend(transaction, names)
        for name in names:
            self._unlink(name)
            transaction.raise_generation(name)
        self._over.append(mark)
        return True

    def _set_aside(self, transaction: IndexTransaction) -> None:
        with suppress(FileNotFoundError):
            # The name of one that a kill left there would be taken again if it were a number of the index.
            os.rename(self._blobs, f"{self.directory}/trash/{os.urandom(8).hex()}")
        transaction.clear()

    def _make_room(self, transaction: IndexTransaction, size: int, replacing: str | None = None) -> bool:
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
            self._intend(transaction, [replacing])
            self._unlink(replacing)
            transaction.forget(replacing)
        evicted = 0
        while state.size + size > self.limit and (names := transaction.oldest()):
            self._intend(transaction, names)
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

    def reserve(self, size: int, replacing: str | None = None) -> None:
        """Make room for *size* bytes that are coming in, at first that of the entry *replacing*.

        Raises:
            OverCacheLimitError: there is none.
        """
        with self._transaction() as transaction:
            if not self._make_room(transaction, size, replacing):
                raise OverCacheLimitError(f"{size:,} bytes more are not to be had in {self.directory}")
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

    def _apply_touches(self, transaction: IndexTransaction) -> None:
        touched, self._touched = self._touched, {}
        if touched:
            transaction.use(list(touched))

    def _flush_touches(self) -> None:
        with self._transaction() as transaction:
            self._apply_touches(transaction)

    def _unlink(self, name: str) -> None:
        remove(self._path(name))

    def _empty_trash(self, most: int | None) -> None:
        """Remove some of what was cleared."""
        trash = f"{self.directory}/trash"
        with suppress(FileNotFoundError):
            for cleared in os.listdir(trash):
                if most is None:
                    shutil.rmtree(f"{trash}/{cleared}", ignore_errors=True)
                    continue
                most -= remove_some(f"{trash}/{cleared}", most)
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
        self._counts = [0] * len(CacheCounters())
        self._touched = {}
        self._known = {}
        self._open = None
        self._trouble = ""
        self._retry_at = 0.0
        self._noted = False
        self._intent = None
        self._intended = {}
        self._over = []
        self._unended = set()
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
                self._finalizer.detach()
            guard().add(self)
            self._process = os.getpid()


@functools.cache
def _boot() -> str:
    """Tells this running of the machine from others; "" where it cannot."""
    try:
        return Path(_BOOT).read_text(encoding="ascii").strip()
    except OSError:
        return ""
