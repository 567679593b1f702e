"""DiskCacheEngine: the engine interface over python-diskcache.

    format.diskcache.1  this layout
    values/             a diskcache.Cache: each value is a file with the content, its tag the rest of an entry (see `entry`)
    generations/        another, with JSON values: the writes in progress, and the generations that they began
    counters            the sums of the counters of dead users
    members/ queue staging/  as in `layout`

Nothing is unpickled: python-diskcache unpickles what it finds in its directory (CVE-2025-69872), so its `Disk` is replaced by
one that refuses.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage_backend.errors import MissingClientError
from storage_backend.forks import inherited
from storage_backend.wrappers.cached.engine import CacheStats, CheckReport, PendingWrite
from storage_backend.wrappers.cached.entry import (
    CacheKey,
    OpenEntry,
    TruncatedEntryError,
    Verification,
    crc_of,
    key_of,
    unpacked,
)
from storage_backend.wrappers.cached.formats import mark_format, prepare
from storage_backend.wrappers.cached.index import queued
from storage_backend.wrappers.cached.staged import Publication, StagedContent
from storage_backend.wrappers.cached.users import (
    EVICTIONS,
    HITS,
    CacheCounters,
    CacheUser,
    bury_dead,
    counters_in,
    is_alive,
    remove_dead,
)

if TYPE_CHECKING:
    import diskcache

FORMAT = "diskcache.1"
_TIMEOUT = 60.0  # seconds that SQLite waits for another's transaction
_REMEMBERED = 86_400.0  # seconds that a generation is kept; a fetch that takes longer might not be refused
_NO_LIMIT = 1 << 62  # bytes
_KNOWN = 10_000  # entries whose verifications are remembered


class DiskCacheEngine:
    """See `engine.CacheEngine`. python-diskcache decides when to evict, so the cache may exceed *limit* for a while.

    It is disabled in a forked child, because python-diskcache's connections, one per thread, cannot be closed before a fork (see
    `forks`): the child reads the backend, and others see its writes once their entries expire.

    Args:
        directory: of the cache; it is created, for this user alone.
        limit: of the content, in bytes; None for no limit.
        warn: called with errors.

    Attributes:
        trusted_since: always 0.0: writes undone by a loss of power are not detected.

    Raises:
        ConfigurationError: the directory has another format.
        MissingClientError: python-diskcache is not installed.
        OSError: it cannot be created.
    """

    _process: int
    _lock: threading.Lock  # of the open files
    _changing: threading.Lock  # of the queue
    _user: CacheUser
    _open: DiskCacheFiles | None
    _finalizer: weakref.finalize[..., DiskCacheEngine]  # of the open files
    _torn: bool  # whether this is a forked child
    _verified: dict[
        str, tuple[tuple[int, int, int, float], Verification]
    ]  # of files that were found, by names

    def __init__(self, directory: str, limit: int | None, warn: Callable[[Exception], object]) -> None:
        self.directory = directory
        self.limit = limit
        self.trusted_since = 0.0
        self._members = f"{directory}/members"
        self._staging = f"{directory}/staging"
        _library()  # before anything is created
        self._begin(torn=False)
        prepare(directory, FORMAT, warn)

    def find(self, key: CacheKey) -> OpenEntry | None:
        """The entry, held open; None if there is none, or it is damaged."""
        found: Any = self._opened().values.get(key.name, read=True, tag=True, retry=True)
        reader, tag = found
        if reader is None:
            return None
        with reader:
            status = os.fstat(reader.fileno())
            entry = unpacked(tag, status.st_size + len(tag)) if isinstance(tag, bytes) else None
            if entry is None or entry.label != key.label:
                return None
            file = (entry.stamp, entry.crc, status.st_ino, status.st_ctime)
            known = self._verified.get(key.name)
            if known is None or known[0] != file:
                if len(self._verified) >= _KNOWN:
                    self._verified.clear()
                known = self._verified[key.name] = file, Verification(status.st_ctime)
            return OpenEntry(os.dup(reader.fileno()), entry, b"", known[1])

    def hit(self, key: CacheKey, size: int) -> None:
        """Count a hit; python-diskcache records the use itself."""
        del key
        self.count(HITS, size)

    def touch(self, key: CacheKey) -> None:
        """Do nothing: python-diskcache counts each lookup as a use."""

    def count(self, counter: int, size: int = 0) -> None:
        """Add one to a counter (see `users`), and *size* to the bytes saved."""
        if self._process != os.getpid():
            self._begin_in_child()
        if not self._torn:
            self._opened()
            self._user.count(counter, size)

    def generations(self, keys: Sequence[CacheKey]) -> list[int]:
        """The keys' generations."""
        with self._generations() as rows:
            return [rows.load(key.name)[0] for key in keys]

    def stage(self, size: int | None = None, replacing: CacheKey | None = None) -> StagedContent | None:
        """See `engine.CacheEngine`."""
        del replacing
        if self.limit is not None and (self.limit == 0 or (size is not None and size > self.limit)):
            return None
        self._opened()
        return StagedContent(self, f"{self._staging}/{self._user.token}-{os.urandom(8).hex()}", size)

    def reserve(self, size: int, replacing: str | None = None) -> None:
        """Do nothing: python-diskcache evicts after storing."""

    def release(self, size: int) -> None:
        """Do nothing: nothing was reserved."""

    def publish(self, publications: Sequence[tuple[Publication, int]]) -> None:
        """Publish entries, each if the given generation still is its key's. Evicts others to make room."""
        for publication, generation in publications:
            self._publish(publication, generation)

    def _publish(self, publication: Publication, generation: int) -> None:
        name, staged = publication.key.name, publication.staged
        values = self._opened().values
        tag = publication.entry.packed(staged.crc)
        with self._generations() as rows:
            now, writes = rows.load(name)
            if writes or now != generation:
                return
            before = len(values) + (name not in values)
            with staged.reader() as reader:
                values.set(name, reader, read=True, tag=tag, retry=True)
            evicted = before - len(values)
        if evicted > 0:
            self._user.count(EVICTIONS, times=evicted)

    def begin(self, keys: Sequence[CacheKey]) -> PendingWrite:
        """Drop the entries, because their objects are about to be written."""
        values = self._opened().values
        with self._generations() as rows:
            mark = str(rows.next())
            generations = {}
            for key in keys:
                _, writes = rows.load(key.name)
                generations[key] = rows.next()
                rows.store(key.name, generations[key], [*writes, [self._user.token, mark]])
                values.delete(key.name, retry=True)
        return PendingWrite(mark, generations)

    def end(self, write: PendingWrite, publication: Publication | None = None) -> dict[CacheKey, int]:
        """End a write; see `engine.CacheEngine`."""
        generations = {}
        values = self._opened().values
        with self._generations() as rows:
            for key, generation in write.generations.items():
                values.delete(key.name, retry=True)
                now, writes = rows.load(key.name)
                others = [found for found in writes if found[1] != write.mark]
                overlapped = others or now != generation
                now = rows.next()
                rows.store(key.name, now, others)
                if not overlapped:
                    generations[key] = now
        if publication is not None and publication.key in generations:
            self._publish(publication, generations[publication.key])
        return generations

    def drop(self, key: CacheKey, stamp: int | None = None) -> None:
        """Drop the entry; with *stamp* only if it is that publication."""
        with self._generations() as rows:
            if stamp is None:
                rows.store(key.name, rows.next(), rows.load(key.name)[1])
            else:
                found = self.find(key)
                if found is not None:
                    found.close()
                    if found.entry.stamp != stamp:
                        return
            self._opened().values.delete(key.name, retry=True)

    def renew(self, key: CacheKey, found: OpenEntry, fetched: float) -> None:
        """Set the fetch time of the entry that was found, if it still exists."""
        values = self._opened().values
        with self._generations():
            now = self.find(key)
            if now is None:
                return
            with now.reader() as reader:
                if now.entry.stamp == found.entry.stamp:
                    tag = found.entry._replace(fetched=fetched).packed(found.entry.crc)
                    values.set(key.name, reader, read=True, tag=tag, retry=True)

    def clear(self, *, patient: bool = False) -> None:
        """Drop all entries, and refuse the fetches in progress. Always as with *patient*."""
        del patient
        with self._generations() as rows:
            rows.raise_floor()
            self._opened().values.clear(retry=True)

    def stats(self) -> CacheStats:
        """Size, count, and the counters of all users."""
        opened = self._opened()
        with self._changing, queued(opened.queue):
            counters = self._bequeathed().plus(self._user.counters())
        return CacheStats(int(opened.values.reset("size")), len(opened.values), counters)

    def check(self) -> CheckReport:
        """Verify the checksums of all entries, and repair the cache."""
        values = self._opened().values
        entries = size = damaged = 0
        for name in list(values):
            with self._generations():
                reader, tag = values.get(name, read=True, tag=True, retry=True)
                if reader is not None:
                    with reader:
                        found = _size_if_whole(reader.fileno(), tag, name)
                if reader is None or found is None:
                    damaged += values.delete(name, retry=True)
                else:
                    entries += 1
                    size += found
        warnings = values.check(fix=True, retry=True)
        return CheckReport(entries, size, damaged, len(warnings), 0)

    def close(self) -> None:
        """Close the files. The next use reopens them."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._lock:
            opened, self._open = self._open, None
            if opened is None:
                return
            with self._changing, queued(opened.queue):
                self._user.hand_over(self._bequeath)
                self._user.leave()
            self._finalizer()

    def _opened(self) -> DiskCacheFiles:
        if self._process != os.getpid():
            self._begin_in_child()
        if self._torn:
            raise OSError("python-diskcache cannot be used in a forked child; start it by 'spawn'")
        opened = self._open
        if opened is None:
            with self._lock:
                opened = self._open
                if opened is None:
                    opened = self._open = self._opening()
        return opened

    def _opening(self) -> DiskCacheFiles:
        Path(self.directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        mark_format(self.directory, FORMAT)
        for folder in (self._members, self._staging):
            Path(folder).mkdir(exist_ok=True)
        opened = DiskCacheFiles(self.directory, self.limit, self._user)
        self._finalizer = weakref.finalize(self, opened.close)
        try:
            with queued(opened.queue):
                self._user.join()
                dead = bury_dead(self._members, self._bequeath)
                remove_dead(self._members, self._staging, dead)
        except BaseException:
            self._finalizer()
            raise
        return opened

    @contextmanager
    def _generations(self) -> Iterator[GenerationRows]:
        """A transaction over the generations, with the lock of the queue."""
        opened = self._opened()
        # With a queue, because SQLite polls for its own locks.
        with self._changing, queued(opened.queue), opened.generations.transact(retry=True):
            yield GenerationRows(opened.generations, self._members)

    def _bequeathed(self) -> CacheCounters:
        try:
            return counters_in(Path(f"{self.directory}/counters").read_bytes())
        except FileNotFoundError:
            return CacheCounters()

    def _bequeath(self, _token: str, counters: CacheCounters) -> None:
        """Add to the counters of dead users; the caller holds the queue's lock."""
        Path(f"{self.directory}/counters").write_bytes(self._bequeathed().plus(counters).packed())

    def _begin(self, *, torn: bool) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._changing = threading.Lock()
        self._user = CacheUser(self._members)
        self._open = None
        self._torn = torn
        self._verified = {}

    def _begin_in_child(self) -> None:
        opened = self._open
        self._begin(torn=self._torn or opened is not None)
        if opened is not None:
            self._finalizer()  # in this process, it closes no database


class GenerationRows:
    """The keys' generations and the writes in progress, each as [token, mark]; within a transaction."""

    def __init__(self, cache: diskcache.Cache, members: str) -> None:
        self._cache = cache
        self._members = members

    def next(self) -> int:
        """A number higher than all before."""
        last = self._cache.get("counter", default=0)
        number = max(time.time_ns(), int(last) + 1 if isinstance(last, int) else 0)
        self._cache.set("counter", number)
        return number

    def load(self, name: str) -> tuple[int, list[list[str]]]:
        """The key's generation, and the writes of live users."""
        floor = self._cache.get("floor", default=0)
        text = self._cache.get(name)
        generation, writes = json.loads(text) if isinstance(text, str) else (0, [])
        return (
            max(generation, floor if isinstance(floor, int) else 0),
            [write for write in writes if is_alive(self._members, write[0])],
        )

    def store(self, name: str, generation: int, writes: list[list[str]]) -> None:
        """Keep the row, for a day after its last change."""
        self._cache.set(name, json.dumps([generation, writes]), expire=_REMEMBERED)

    def raise_floor(self) -> None:
        """Begin another generation of all keys."""
        self._cache.set("floor", self.next())


class DiskCacheFiles:
    """The open files; when they are closed, the user's file stays, so that others take over its counters."""

    def __init__(self, directory: str, limit: int | None, user: CacheUser) -> None:
        self._process = os.getpid()
        self._user = user
        cache = functools.partial(_library().Cache, timeout=_TIMEOUT, disk=_disk())
        # Measured: of the LRU settings, these stay closest to the limit.
        self.values: diskcache.Cache = cache(
            f"{directory}/values",
            eviction_policy="least-recently-used",
            size_limit=_NO_LIMIT if limit is None else limit,
            disk_min_file_size=0,
            cull_limit=10,
        )
        self.generations: diskcache.Cache = cache(
            f"{directory}/generations",
            eviction_policy="none",
            size_limit=_NO_LIMIT,
            disk_min_file_size=1 << 20,
        )
        self.queue = os.open(f"{directory}/queue", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def close(self) -> None:
        """Close all files; in a forked child only the descriptors."""
        if self._process == os.getpid():
            # This thread's connections. Only other threads may close theirs: they are released with these objects.
            self.values.close()
            self.generations.close()
        else:
            inherited().append(self)
        self._user.abandon()
        queue, self.queue = self.queue, -1
        if queue >= 0:
            os.close(queue)


def _library() -> Any:
    try:
        import diskcache
    except ModuleNotFoundError as error:
        raise MissingClientError(
            f'CachedStorage\'s engine="diskcache" needs python-diskcache ({error}): pip install diskcache'
        ) from error
    return diskcache


@functools.cache
def _disk() -> Any:
    """The class of a `diskcache.Disk` that neither pickles nor leaves its directory."""
    library = _library()

    class PlainDisk(library.Disk):  # type: ignore[misc, name-defined]  # the library has no types
        def put(self, key: object) -> tuple[object, bool]:
            if not isinstance(key, str):
                raise TypeError(f"a key is a str, not {type(key).__name__}")
            return key, True

        def get(self, key: object, raw: bool) -> object:
            if not raw:
                raise ValueError("a pickled key is not loaded")
            return key

        def store(self, value: object, read: bool, key: object = None) -> Any:
            if not read and not isinstance(value, bytes | str | int):
                raise TypeError(f"a value is bytes, a str or an int, not {type(value).__name__}")
            return super().store(value, read, key)

        def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> Any:
            if mode == library.core.MODE_PICKLE:
                raise ValueError("a pickled value is not loaded")
            if filename is not None and (filename.startswith("/") or ".." in filename.split("/")):
                raise ValueError(f"a value's file is outside the cache: {filename!r}")
            if filename is not None and not os.path.isfile(f"{self._directory}/{filename}"):
                # Not opened: opening a pipe in its place would block.
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), filename)
            return super().fetch(mode, filename, value, read)

    return PlainDisk


def _size_if_whole(fd: int, tag: object, name: str) -> int | None:
    """The size of a value whose content matches its checksum; None if it is damaged."""
    entry = unpacked(tag, os.fstat(fd).st_size + len(tag)) if isinstance(tag, bytes) else None
    if entry is None or key_of(entry.label).name != name:
        return None
    try:
        return entry.size if crc_of(fd, entry.size) == entry.crc else None
    except TruncatedEntryError:
        return None
