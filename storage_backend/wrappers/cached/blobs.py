"""BlobEngine: one file an entry, found by its name alone; beside them the index, which only writes go to."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from storage_backend.forks import guard
from storage_backend.wrappers.cached.engine import CacheStats, CheckReport, PendingWrite
from storage_backend.wrappers.cached.entry import (
    READING,
    CacheKey,
    OpenEntry,
    RememberedFile,
    Verification,
    open_entry,
)
from storage_backend.wrappers.cached.eviction import Eviction
from storage_backend.wrappers.cached.formats import mark_format, prepare
from storage_backend.wrappers.cached.index import (
    EVERYTHING,
    CorruptIndexError,
    IndexFiles,
    IndexReplacedError,
    IndexTransaction,
    queued,
)
from storage_backend.wrappers.cached.layout import BlobLayout
from storage_backend.wrappers.cached.pending_writes import PendingWrites
from storage_backend.wrappers.cached.recovery import BlobRecovery
from storage_backend.wrappers.cached.staged import OverCacheLimitError, Publication, StagedContent
from storage_backend.wrappers.cached.users import HITS, CacheUser

FORMAT = "1"
_KNOWN = 10_000  # files whose records are remembered
_TOUCHES = 10_000  # uses that are remembered before the index is told
_TRASH_MORE = 16  # files removed at each publication, which must not take long
_TRASH_CLEARED = 10_000  # files removed by whoever clears the cache
_RETRY = 1.0  # seconds after which a directory that could not be opened is tried again


class BlobEngine:
    """The engine of our own (see `engine.CacheEngine`).

    Args:
        directory: of the cache; it is created, for this user alone.
        limit: content bytes that the cache may hold; None for any number.
        clock: seconds since the epoch.
        warn: is told of troubles that do not keep entries from being found.

    Attributes:
        trusted_since: entries fetched before this moment count as expired.

    Raises:
        ConfigurationError: the directory has another format.
        OSError: it cannot be created.
    """

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
        self._renewing: dict[int, threading.Lock] = {}
        self._renew()
        self._process = os.getpid()
        prepare(directory, FORMAT, warn)
        guard().add(self)

    def _renew(self) -> None:
        """Begin without open files and counts, as at first and in a forked child."""
        self._lock = threading.Lock()  # of the open files, and of transactions
        self._layout = BlobLayout(self.directory)
        self._user = CacheUser(self._layout.members)
        self._pending = PendingWrites(self._layout)
        self._recovery = BlobRecovery(self._layout, self._pending, self._clock)
        self._eviction = Eviction(self.limit, self._layout, self._user)
        self._blobs = self._layout.blobs
        self._known: dict[str, RememberedFile] = {}  # by names
        self._files: IndexFiles | None = None
        # Why they could not be opened; not the error itself, whose traceback leads back here.
        self._trouble = ""
        self._retry_at = 0.0
        self._recorded = False  # whether it is on record that objects were written in this boot

    def find(self, key: CacheKey) -> OpenEntry | None:
        """The entry, held open; None if there is none, or it is damaged."""
        if self._files is None:
            self._try_to_open()
        name = key.name
        known = self._known.get(name)
        path = f"{self._blobs}/{name[:2]}/{name[2:]}" if known is None else known.path
        try:
            fd = os.open(path, READING)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
        except OSError:
            os.close(fd)
            raise
        if (
            known is not None
            and known.inode == status.st_ino
            and known.time == status.st_ctime
            and known.length == status.st_size
            and known.entry.label == key.label
        ):
            return OpenEntry(fd, known.entry, b"", known.verified)
        verified = Verification(status.st_ctime)
        found = open_entry(fd, key.label, status.st_size, verified)
        if found is not None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[name] = RememberedFile(
                path, status.st_ino, status.st_ctime, status.st_size, found.entry, verified
            )
        return found

    def hit(self, key: CacheKey, size: int) -> None:
        """Count a hit of *size* bytes, and note that the entry was used."""
        if self._process != os.getpid():
            self._begin_in_child()
        self._user.count(HITS, size)
        touched = self._eviction.touched
        touched.pop(key.name, None)
        touched[key.name] = None
        if len(touched) > _TOUCHES:
            self._tell_touches()

    def touch(self, key: CacheKey) -> None:
        """Note that the entry was used."""
        touched = self._eviction.touched
        touched.pop(key.name, None)
        touched[key.name] = None
        if len(touched) > _TOUCHES:
            self._tell_touches()

    def count(self, counter: int, size: int = 0) -> None:
        """Add one to a counter (see `users`), and *size* to the bytes saved."""
        if self._process != os.getpid():
            self._begin_in_child()
        self._user.count(counter, size)

    def generations(self, keys: Sequence[CacheKey]) -> list[int]:
        """An upper bound of all generations, for each key."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._lock:
            latest = self._checked()[1]
        return [self._new_latest() if latest is None else latest] * len(keys)

    def _new_latest(self) -> int:
        with self._transaction() as transaction:  # which stores it
            return transaction.state.counter

    def stage(self, size: int | None = None, replacing: CacheKey | None = None) -> StagedContent | None:
        """Begin to take in content."""
        if self.limit is not None and (self.limit == 0 or (size is not None and size > self.limit)):
            return None
        with self._lock:
            self._opened()
            path = f"{self._layout.staging}/{self._user.token}-{os.urandom(8).hex()}"
        return StagedContent(self, path, size, None if replacing is None else replacing.name)

    def publish(self, publications: Sequence[tuple[Publication, int]]) -> None:
        """Make entries found, each if no generation of its key has begun after the one beside it. Others are evicted to make room."""
        names = [publication.key.name for publication, _ in publications]
        published = []
        with self._transaction() as transaction:
            pending = self._pending.of(transaction, names)
            good = {}
            for publication, generation in publications:
                name = publication.key.name
                if name not in pending and transaction.generation(name) <= generation:
                    good[name] = publication
            transaction.intend(good)
            for name, publication in good.items():
                if self.limit is None or self._has_room(transaction, publication):
                    publication.staged.publish(f"{self._blobs}/{name[:2]}/{name[2:]}", publication.entry)
                    transaction.store(name, publication.entry.size)
                    published.append(publication)
        self._published(published)

    def begin(self, keys: Sequence[CacheKey]) -> PendingWrite:
        """Drop the entries, since their objects are about to be written. The index is told at the end."""
        if not keys:
            return PendingWrite("", {})
        if self._process != os.getpid():
            self._begin_in_child()
        names = [key.name for key in keys]
        with self._lock:
            files, _ = self._checked()
            if not self._recorded:
                self._layout.record_boot_of_write()
                self._recorded = True
            # Nothing is published meanwhile.
            with (
                queued(files.queue) as alone,
                nullcontext() if alone else files.transaction(self._user.token),
            ):
                mark = self._mark(names)
                for name in names:
                    self._layout.unlink(name)
                latest = files.latest()
        return PendingWrite(mark, dict.fromkeys(keys, self._new_latest() if latest is None else latest))

    def _mark(self, names: Sequence[str]) -> str:
        """The mark of a write that begins; "" if it cannot be made: then only a kill before its end goes unnoticed."""
        try:
            return self._pending.begin(self._user.token, names)
        except OSError as error:
            self._warn(error)
            return ""

    def end(self, write: PendingWrite, publication: Publication | None = None) -> dict[CacheKey, int]:
        """The write is over, whether it succeeded or not."""
        if not write.generations:
            return {}
        if publication is not None:
            try:
                return self._ended(write, publication)
            except Exception as error:  # noqa: BLE001 - logged; that the write is over counts more than what it has stored
                self._warn(error)
        try:
            return self._ended(write, None)
        except BaseException:
            self._pending.unended.add(write.mark)
            raise

    def _ended(self, write: PendingWrite, publication: Publication | None) -> dict[CacheKey, int]:
        generations: dict[CacheKey, int] = {}
        published = []
        names = [key.name for key in write.generations]
        with self._transaction() as transaction:
            transaction.intend(names)
            pending = self._pending.of(transaction, names, but=write.mark)
            for key, generation in write.generations.items():
                name = key.name
                overlapped = name in pending or transaction.generation(name) > generation
                if (
                    publication is not None
                    and key == publication.key
                    and not overlapped
                    and (self.limit is None or self._has_room(transaction, publication))
                ):
                    publication.staged.publish(f"{self._blobs}/{name[:2]}/{name[2:]}", publication.entry)
                    published.append(publication)
                    now = transaction.state.next()
                    transaction.store(name, publication.entry.size, now)
                else:
                    self._layout.unlink(name)
                    now = transaction.raise_generation(name)
                if not overlapped:
                    generations[key] = now
            if write.mark:
                transaction.after_commit.append(partial(self._pending.end, write.mark))
        self._published(published)
        return generations

    def _has_room(self, transaction: IndexTransaction, publication: Publication) -> bool:
        """Whether there is room for an entry, which is no longer reserved then."""
        staged, size, name = publication.staged, publication.entry.size, publication.key.name
        if staged.reserved:
            transaction.reserve(-staged.reserved)
        if self._eviction.make_room(transaction, size, replacing=name):
            return True
        transaction.reserve(staged.reserved)
        return False

    def _published(self, publications: Sequence[Publication]) -> None:
        """What follows the commit."""
        for publication in publications:
            publication.staged.reserved = 0
            # The new file may have the old one's inode number, length and time.
            self._known.pop(publication.key.name, None)
            self.touch(publication.key)  # later than the uses that the index has not been told of
            if self._layout.trash_left:
                self._layout.empty_trash(_TRASH_MORE)

    def drop(self, key: CacheKey, stamp: int | None = None) -> None:
        """Forget the entry; with *stamp* only if it is that publication."""
        with self._transaction() as transaction:
            if stamp is not None:
                found = self.find(key)
                if found is not None:
                    found.close()
                    if found.entry.stamp != stamp:
                        return
            transaction.intend([key.name])
            self._layout.unlink(key.name)
            if stamp is None:
                transaction.raise_generation(key.name)
            else:
                transaction.forget(key.name)

    def renew(self, key: CacheKey, found: OpenEntry, fetched: float) -> None:
        """Set the time of fetching of the entry that was found, if it still is there."""
        try:
            fd = os.open(self._layout.path(key.name), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            if os.path.samestat(os.fstat(fd), os.fstat(found.fileno())):
                found.entry.overwrite(fd, fetched)
        finally:
            os.close(fd)

    def reserve(self, size: int, replacing: str | None = None) -> None:
        """Reserve room for *size* bytes that are coming in, first that of the entry *replacing*.

        Raises:
            OverCacheLimitError: there is none.
        """
        with self._transaction() as transaction:
            if not self._eviction.make_room(transaction, size, replacing):
                raise OverCacheLimitError(f"no room for {size:,} bytes more in {self.directory}")
            transaction.reserve(size)

    def release(self, size: int) -> None:
        """Give back what was reserved."""
        with self._transaction() as transaction:
            transaction.reserve(-size)

    def _tell_touches(self) -> None:
        with self._transaction() as transaction:
            self._eviction.tell(transaction)

    # The whole cache.

    def clear(self, *, patient: bool = False) -> None:
        """Forget all entries. If not *patient*, most files of a large cache are removed later, bit by bit."""
        with self._transaction() as transaction:
            transaction.intend([EVERYTHING])
            self._layout.discard_all()
            transaction.clear()
            self._eviction.touched = {}
        self._layout.empty_trash(None if patient else _TRASH_CLEARED)

    def stats(self) -> CacheStats:
        """What there is, and what all users have counted."""
        with self._transaction() as transaction:
            self._pending.end_dead(transaction)
            state = transaction.state
            counters = state.counters().plus(self._user.counters())
            return CacheStats(state.size - transaction.reserved(), state.count, counters)

    def check(self) -> CheckReport:
        """Read everything, verify its checksum, and repair what is not right."""
        return self._recovery.check(self._transaction)

    def close(self) -> None:
        """Close the files. Used again, it opens them again."""
        if self._process != os.getpid():
            self._begin_in_child()
        if self._files is None:
            return
        try:
            with self._transaction() as transaction:
                self._eviction.tell(transaction)
                self._user.hand_over(transaction.bury)
        finally:
            with self._lock:
                self._leave()

    def _try_to_open(self) -> None:
        """Open the index, if that can be: entries are found in any case."""
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

    def _opened(self) -> IndexFiles:
        """The open files; the lock is held."""
        if self._files is None:
            if self._trouble and time.monotonic() < self._retry_at:
                raise OSError(self._trouble)
            try:
                self._files = self._opening()
                self._trouble = ""
            except Exception as error:
                self._trouble = str(error) or type(error).__name__
                self._retry_at = time.monotonic() + _RETRY
                raise
        return self._files

    def _opening(self) -> IndexFiles:
        Path(self.directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        mark_format(self.directory, FORMAT)
        self._layout.make_folders()
        files = IndexFiles(self.directory, self._recovery)
        user = self._user
        try:
            with queued(files.queue):
                user.join()
                self.trusted_since = self._recovery.settle(files, user, self._eviction)
        except BaseException:
            files.close()
            user.leave()
            raise
        self._finalizer = weakref.finalize(self, _close, files, user)
        return files

    @contextmanager
    def _transaction(self) -> Iterator[IndexTransaction]:
        """A transaction, alone in this directory; the index is opened again if it was replaced or is damaged."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._lock:
            for again in (True, False):
                began = False
                files = self._opened()
                try:
                    with queued(files.queue), files.transaction(self._user.token) as transaction:
                        began = True
                        yield transaction
                except (IndexReplacedError, CorruptIndexError) as error:
                    self._lose(files, error)
                    if began or not again:
                        raise OSError(
                            f"the index of the cache in {self.directory} was lost: {error}"
                        ) from error
                else:
                    return

    def _checked(self) -> tuple[IndexFiles, int | None]:
        """The open files, of which the index is the one at its path, and the latest generation; the lock is held."""
        files = self._opened()
        try:
            return files, files.check()
        except (IndexReplacedError, CorruptIndexError) as error:
            self._lose(files, error)
            files = self._opened()
            return files, files.latest()

    def _lose(self, files: IndexFiles, error: Exception) -> None:
        """Close an index that is damaged, or was replaced."""
        if isinstance(error, CorruptIndexError):
            with suppress(OSError), queued(files.queue):
                files.remove_index()
        self._leave()
        self._recorded = False

    def _leave(self) -> None:
        files, self._files = self._files, None
        if files is not None:
            files.close()
            self._user.leave()
            self._finalizer.detach()

    def before_fork(self) -> None:
        """Let nobody begin, and close the index: SQLite counts its locks for the whole process (see `forks`)."""
        self._lock.acquire()
        if self._files is not None and self._process == os.getpid():
            self._files.close_index()

    def after_fork(self) -> None:
        """Go on, in the parent."""
        self._lock.release()

    def _begin_in_child(self) -> None:
        """What was inherited is the parent's: its counts, its files, its locks."""
        # A lock that was held when this process was forked would be held for ever: each process has its own.
        with self._renewing.setdefault(os.getpid(), threading.Lock()):
            if self._process == os.getpid():
                return
            files, user = self._files, self._user
            self._renew()
            if files is not None:
                files.abandon()
                user.abandon()
                self._finalizer.detach()
            guard().add(self)
            self._process = os.getpid()


def _close(files: IndexFiles, user: CacheUser) -> None:
    """Close the files of an engine that is gone; the user's file is left for others to find."""
    files.close()
    user.abandon()
