"""BlobEngine: each entry is a file, found by its name alone; publications and writes are also recorded in an index."""

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
_TOUCHES = 10_000  # uses remembered before they are written to the index
_TRASH_MORE = 16  # files removed by each publication, which must be quick
_TRASH_CLEARED = 10_000  # files removed by whoever clears the cache
_RETRY = 1.0  # seconds after which a directory that could not be opened is tried again


class BlobEngine:
    """Our own engine (see `engine.CacheEngine`).

    Args:
        directory: of the cache; it is created, for this user alone.
        limit: of the content, in bytes; None for no limit.
        clock: seconds since the epoch.
        warn: called with errors that do not prevent lookups.

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
        """Set up the state of this process, at first and in a forked child."""
        self._lock = threading.Lock()  # of the open files, and of transactions
        self._layout = BlobLayout(self.directory)
        self._user = CacheUser(self._layout.members)
        self._pending = PendingWrites(self._layout)
        self._recovery = BlobRecovery(self._layout, self._pending, self._clock)
        self._eviction = Eviction(self.limit, self._layout, self._user)
        self._blobs = self._layout.blobs
        self._known: dict[str, RememberedFile] = {}  # by names
        self._files: IndexFiles | None = None
        # Why they could not be opened; not the error itself, whose traceback refers to this object.
        self._trouble = ""
        self._retry_at = 0.0
        self._recorded = False  # whether a write in this boot is recorded

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
        """An upper bound of all generations, once for each key."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._lock:
            latest = self._checked()[1]
        return [self._new_latest() if latest is None else latest] * len(keys)

    def _new_latest(self) -> int:
        with self._transaction() as transaction:  # which stores it
            return transaction.state.counter

    def stage(self, size: int | None = None, replacing: CacheKey | None = None) -> StagedContent | None:
        """Start staging content."""
        if self.limit is not None and (self.limit == 0 or (size is not None and size > self.limit)):
            return None
        with self._lock:
            self._opened()
            path = f"{self._layout.staging}/{self._user.token}-{os.urandom(8).hex()}"
        return StagedContent(self, path, size, None if replacing is None else replacing.name)

    def publish(self, publications: Sequence[tuple[Publication, int]]) -> None:
        """Publish entries, each unless its key has a later generation than the one given. Evicts others to make room."""
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
                    metadata = publication.entry.packed(publication.staged.crc)
                    publication.staged.publish(f"{self._blobs}/{name[:2]}/{name[2:]}", metadata)
                    transaction.store(name, publication.entry.size)
                    published.append(publication)
        self._published(published)

    def begin(self, keys: Sequence[CacheKey]) -> PendingWrite:
        """Drop the entries, because their objects are about to be written. The index is updated at the end."""
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
            # No publication can come in between.
            with (
                queued(files.queue) as alone,
                nullcontext() if alone else files.transaction(self._user.token),
            ):
                mark = ""  # without it, only a kill before the end of this write goes unnoticed
                try:
                    mark = self._pending.begin(self._user.token, names)
                except OSError as error:
                    self._warn(error)
                for name in names:
                    self._layout.unlink(name)
                latest = files.latest()
        return PendingWrite(mark, dict.fromkeys(keys, self._new_latest() if latest is None else latest))

    def end(self, write: PendingWrite, publication: Publication | None = None) -> dict[CacheKey, int]:
        """End a write, whether it succeeded or not."""
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
                    metadata = publication.entry.packed(publication.staged.crc)
                    publication.staged.publish(f"{self._blobs}/{name[:2]}/{name[2:]}", metadata)
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
        """Make room for an entry, and release its reservation; False if there is no room."""
        staged, size, name = publication.staged, publication.entry.size, publication.key.name
        if staged.reserved:
            transaction.reserve(-staged.reserved)
        if self._eviction.make_room(transaction, size, replacing=name):
            return True
        transaction.reserve(staged.reserved)
        return False

    def _published(self, publications: Sequence[Publication]) -> None:
        """After the commit: forget the remembered files that were replaced, and note the use."""
        for publication in publications:
            publication.staged.reserved = 0
            publication.staged.pending = False
            # The new file may have the old one's inode number, length and time.
            self._known.pop(publication.key.name, None)
            self.touch(publication.key)  # later than the uses that are not yet in the index
            if self._layout.trash_left:
                self._layout.empty_trash(_TRASH_MORE)

    def drop(self, key: CacheKey, stamp: int | None = None) -> None:
        """Drop the entry; with *stamp* only if it is that publication."""
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
        """Set the fetch time of the entry that was found, if it still exists."""
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
        """Reserve room for *size* bytes; the entry *replacing* is evicted first.

        Raises:
            OverCacheLimitError: there is none.
        """
        with self._transaction() as transaction:
            if not self._eviction.make_room(transaction, size, replacing):
                raise OverCacheLimitError(f"no room for {size:,} more bytes in {self.directory}")
            transaction.reserve(size)

    def release(self, size: int) -> None:
        """Release a reservation."""
        with self._transaction() as transaction:
            transaction.reserve(-size)

    def _tell_touches(self) -> None:
        with self._transaction() as transaction:
            self._eviction.tell(transaction)

    # The whole cache.

    def clear(self, *, patient: bool = False) -> None:
        """Drop all entries. If not *patient*, most files of a large cache are removed gradually later."""
        with self._transaction() as transaction:
            transaction.intend([EVERYTHING])
            self._layout.discard_all()
            transaction.clear()
            self._eviction.touched = {}
        self._layout.empty_trash(None if patient else _TRASH_CLEARED)

    def stats(self) -> CacheStats:
        """Size, count, and the counters of all users."""
        with self._transaction() as transaction:
            self._pending.end_dead(transaction)
            state = transaction.state
            counters = state.counters().plus(self._user.counters())
            return CacheStats(state.size - transaction.reserved(), state.count, counters)

    def check(self) -> CheckReport:
        """Verify the checksums of all entries, and repair the cache."""
        return self._recovery.check(self._transaction)

    def close(self) -> None:
        """Close the files. The next use reopens them."""
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
        """Open the index, if possible: entries are found even without it."""
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
        """A transaction, with the lock of the queue; an index that was replaced or is damaged is reopened."""
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
        """The open files, whose index is checked to be the one at its path, and the latest generation; the lock is held."""
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
        """Block new transactions, and close the index: SQLite counts its locks for the whole process (see `forks`)."""
        self._lock.acquire()
        if self._files is not None and self._process == os.getpid():
            self._files.close_index()

    def after_fork(self) -> None:
        """Go on, in the parent."""
        self._lock.release()

    def _begin_in_child(self) -> None:
        """Replace the inherited state in a forked child: counts, files and locks are the parent's."""
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
    """Close the files of a collected engine; the user's file stays, so that others take over its counters."""
    files.close()
    user.abandon()
