"""DiskCacheEngine: the engine interface over python-diskcache.

    format.diskcache.1  this layout
    values/             a diskcache.Cache: each value is a file with the content, its tag the rest of an entry (see `entry`)
    generations/        another, whose values are JSON: what changes are under way, and the generations they have begun
    counters            what users that are gone have counted
    members/ queue staging/  as in `blobs`

Nothing is unpickled: python-diskcache does so with what it finds in its directory (CVE-2025-69872), so its `Disk` is replaced
by one that refuses.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import struct
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from typing_extensions import Buffer

from storage_backend.errors import MissingClientError
from storage_backend.forks import inherited
from storage_backend.streams import CHUNK
from storage_backend.wrappers.cached import users
from storage_backend.wrappers.cached.blob_files import fetched, remove
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
    packed,
    renewed_tail,
    unpacked,
)
from storage_backend.wrappers.cached.formats import mark_format, prepare
from storage_backend.wrappers.cached.index import queued
from storage_backend.wrappers.cached.users import EVICTIONS, HITS, SAVED, CacheCounters, CacheUser

if TYPE_CHECKING:
    import diskcache

FORMAT = "diskcache.1"
_TIMEOUT = 60.0  # seconds that SQLite waits for another's transaction
_REMEMBERED = 86_400.0  # seconds that a generation is kept; a fetch that takes longer might not be refused
_NO_LIMIT = 1 << 62  # bytes
_KNOWN = 10_000  # entries whose comparisons are remembered
_COUNTERS = struct.Struct("<5Q")


class DiskCacheEngine:
    """See `engine.CacheEngine`. It makes room when and as far as python-diskcache does, so it may hold more than *limit* for a while.

    A forked child of a process that uses it does without it, since python-diskcache's connections, which are each a thread's own,
    cannot be closed before a fork (see `forks`): it reads the backend, and what it writes others see when their entries expire.

    Args:
        directory: of the cache; it is created, for this user alone.
        limit: content bytes that the cache is to hold; None for any number.
        warn: is told of troubles.

    Attributes:
        trusted_since: always 0.0: what a loss of power undoes is not noticed.

    Raises:
        ConfigurationError: the directory has another format.
        MissingClientError: python-diskcache is not installed.
        OSError: it cannot be created.
    """

    _process: int
    _lock: threading.Lock
    _changing: threading.Lock  # of the queue
    _counting: threading.Lock
    _counts: list[int]
    _open: DiskCacheFiles | None
    _finalizer: weakref.finalize[..., DiskCacheEngine]  # of the open files
    _torn: bool
    _checks: dict[str, tuple[tuple[int, int, int, float], Verification]]  # of files that were found, by names

    def __init__(self, directory: str, limit: int | None, warn: Callable[[Exception], object]) -> None:
        self.directory = directory
        self.limit = limit
        self.trusted_since = 0.0
        _library()  # before anything is created
        self._begin()
        prepare(directory, FORMAT, warn)

    def find(self, key: CacheKey) -> OpenEntry | None:
        """The entry, held open; None if there is none, or it is damaged."""
        found: Any = self._opened().values.get(key.name, read=True, tag=True, retry=True)
        reader, tag = found
        if reader is None:
            return None
        with reader:
            facts = os.fstat(reader.fileno())
            entry = unpacked(tag, facts.st_size + len(tag)) if isinstance(tag, bytes) else None
            if entry is None or entry.label != key.label:
                return None
            file = (entry.stamp, entry.crc, facts.st_ino, facts.st_ctime)
            known = self._checks.get(key.name)
            if known is None or known[0] != file:
                if len(self._checks) >= _KNOWN:
                    self._checks.clear()
                known = self._checks[key.name] = file, Verification(facts.st_ctime)
            return OpenEntry(os.dup(reader.fileno()), entry, b"", known[1])

    def hit(self, key: CacheKey, size: int) -> None:
        """Count a hit; python-diskcache notes the use by itself."""
        del key
        self.count(HITS, size)

    def touch(self, key: CacheKey) -> None:
        """Nothing: to find is to use."""

    def count(self, counter: int, size: int = 0) -> None:
        """Add one to a counter (see `users`), and *size* to the bytes saved."""
        if self._process != os.getpid():
            self._begin_in_child()
        if self._torn:
            return
        opened = self._opened()
        with self._counting:
            self._counts[counter] += 1
            self._counts[SAVED] += size
            opened.member.save(self._counts)

    def generations(self, keys: Sequence[CacheKey]) -> list[int]:
        """The keys' generations."""
        with self._generations() as rows:
            return [rows.load(key.name).generation for key in keys]

    def stage(self, size: int | None = None, replacing: CacheKey | None = None) -> StagedValue | None:
        """Begin to take in content; see `engine.CacheEngine`."""
        del replacing
        if self.limit is not None and (self.limit == 0 or (size is not None and size > self.limit)):
            return None
        token = self._opened().member.token
        return StagedValue(f"{self.directory}/staging/{token}-{os.urandom(8).hex()}", self.limit)

    def publish(self, offers: Sequence[tuple[Publication, int]]) -> None:
        """Make the entries found, each if the generation beside it is still its key's. Others are evicted to make room."""
        for offer, generation in offers:
            self._publish(offer, generation)

    def _publish(self, offer: Publication, generation: int) -> None:
        key, staged, entry = offer
        assert isinstance(staged, StagedValue)
        values = self._opened().values
        tag = packed(entry._replace(crc=staged.crc))
        with self._generations() as rows:
            row = rows.load(key.name)
            if rows.changing(row) or row.generation != generation:
                return
            before = len(values) + (key.name not in values)
            with staged.reader() as reader:
                values.set(key.name, reader, read=True, tag=tag, retry=True)
            evicted = before - len(values)
        if evicted > 0:
            with self._counting:
                self._counts[EVICTIONS] += evicted

    def begin(self, keys: Sequence[CacheKey]) -> PendingWrite:
        """Drop the entries: a change of their objects begins."""
        values = self._opened().values
        with self._generations() as rows:
            mark = str(rows.next())
            generations = {}
            for key in keys:
                row = rows.load(key.name)
                rows.changing(row)
                row.changes.append([self._opened().member.token, mark])
                generations[key] = row.generation = rows.next()
                rows.store(key.name, row)
                values.delete(key.name, retry=True)
        return PendingWrite(mark, generations)

    def end(self, change: PendingWrite, offer: Publication | None = None) -> dict[CacheKey, int]:
        """The change is over; see `engine.CacheEngine`."""
        alone = {}
        values = self._opened().values
        with self._generations() as rows:
            for key, generation in change.generations.items():
                values.delete(key.name, retry=True)
                row = rows.load(key.name)
                row.changes = [found for found in row.changes if found[1] != change.mark]
                overlapped = rows.changing(row) or row.generation != generation
                row.generation = rows.next()
                rows.store(key.name, row)
                if not overlapped:
                    alone[key] = row.generation
        if offer is not None and offer.key in alone:
            self._publish(offer, alone[offer.key])
        return alone

    def drop(self, key: CacheKey, stamp: int | None = None) -> None:
        """Forget the entry; with *stamp* only if it is that publication."""
        with self._generations() as rows:
            if stamp is None:
                row = rows.load(key.name)
                row.generation = rows.next()
                rows.store(key.name, row)
            else:
                found = self.find(key)
                if found is not None:
                    found.close()
                    if found.entry.stamp != stamp:
                        return
            self._opened().values.delete(key.name, retry=True)

    def renew(self, key: CacheKey, found: OpenEntry, fetched: float) -> None:
        """Have the entry that was found be as if it had been fetched at *fetched*, if it is still there."""
        values = self._opened().values
        with self._generations():
            now = self.find(key)
            if now is None:
                return
            with now.reader() as reader:
                if now.entry.stamp == found.entry.stamp:
                    values.set(
                        key.name, reader, read=True, tag=renewed_tail(found.entry, fetched), retry=True
                    )

    def clear(self, *, patient: bool = False) -> None:
        """Forget all entries; what is being fetched now is not published either. It always takes as long as it takes."""
        del patient
        with self._generations() as rows:
            rows.raise_floor()
            self._opened().values.clear(retry=True)

    def stats(self) -> CacheStats:
        """What there is, and what all users have counted."""
        opened = self._opened()
        with self._changing, queued(opened.queue):
            counters = self._bequeathed()
            with self._counting:
                counters = counters.plus(CacheCounters(*self._counts))
            for other in users.others(self._members, opened.member.token):
                counters = counters.plus(other)
        return CacheStats(int(opened.values.reset("size")), len(opened.values), counters)

    def check(self) -> CheckReport:
        """Read everything, compare it with its checksum, and mend what is not right."""
        values = self._opened().values
        entries = size = damaged = 0
        for name in list(values):
            with self._generations():
                reader, tag = values.get(name, read=True, tag=True, retry=True)
                whole = None
                if reader is not None:
                    with reader:
                        whole = _whole(reader, tag, name)
                if whole is None:
                    damaged += values.delete(name, retry=True)
                else:
                    entries += 1
                    size += whole.size
        warnings = values.check(fix=True, retry=True)
        return CheckReport(entries, size, damaged, len(warnings), 0)

    def close(self) -> None:
        """Let go of files. Used again, it opens them again."""
        if self._process != os.getpid():
            self._begin_in_child()
        with self._lock:
            opened, self._open = self._open, None
            if opened is None:
                return
            with self._changing, queued(opened.queue), self._counting:
                self._bequeath(CacheCounters(*self._counts))
                self._counts[:] = [0] * len(self._counts)
                opened.leave()
            self._finalizer()

    @property
    def _members(self) -> str:
        return f"{self.directory}/members"

    def _opened(self) -> DiskCacheFiles:
        if self._process != os.getpid():
            self._begin_in_child()
        if self._torn:
            raise OSError("python-diskcache is not used in a forked child; start it by 'spawn'")
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
        for folder in ("members", "staging"):
            Path(f"{self.directory}/{folder}").mkdir(exist_ok=True)
        opened = DiskCacheFiles(self.directory, self.limit)
        self._finalizer = weakref.finalize(self, opened.shut)
        try:
            with queued(opened.queue):
                opened.join(self._members)
                self._settle()
        except BaseException:
            self._finalizer()
            raise
        return opened

    def _settle(self) -> None:
        """Clear up after those that are gone; the queue's lock is held."""
        for token, counters in list(users.dead(self._members)):
            self._bequeath(counters)
            users.bury(self._members, token)
        alive = set(os.listdir(self._members))
        for name in os.listdir(f"{self.directory}/staging"):
            if name.partition("-")[0] not in alive:
                remove(f"{self.directory}/staging/{name}")

    @contextmanager
    def _generations(self) -> Iterator[GenerationRows]:
        """All rows of generations, for this one alone."""
        opened = self._opened()
        # Queued for, since SQLite's own locks are polled.
        with self._changing, queued(opened.queue), opened.generations.transact(retry=True):
            yield GenerationRows(opened.generations, self._members)

    def _bequeathed(self) -> CacheCounters:
        try:
            data = Path(f"{self.directory}/counters").read_bytes()
        except FileNotFoundError:
            return CacheCounters()
        return CacheCounters(*_COUNTERS.unpack(data)) if len(data) == _COUNTERS.size else CacheCounters()

    def _bequeath(self, counters: CacheCounters) -> None:
        """Add to what those that are gone have counted; the queue's lock is held."""
        Path(f"{self.directory}/counters").write_bytes(_COUNTERS.pack(*self._bequeathed().plus(counters)))

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._changing = threading.Lock()
        self._counting = threading.Lock()
        self._counts = [0] * len(CacheCounters())
        self._open = None
        self._torn = False
        self._checks = {}

    def _begin_in_child(self) -> None:
        opened, torn = self._open, self._torn
        self._begin()
        self._torn = torn or opened is not None
        if opened is not None:
            self._finalizer()  # in this process, it closes no database


class StagedValue:
    """Content on its way into the cache (see `engine.StagedContent`).

    Attributes:
        size: bytes so far.
        crc: CRC-32 of them.
    """

    def __init__(self, path: str, limit: int | None) -> None:
        self.size = 0
        self.crc = 0
        self._limit = limit
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o666)

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*.

        Raises:
            OverCacheLimitError: it is more than the cache may hold.
        """
        view = memoryview(data).cast("B")
        if self._limit is not None and self.size + len(view) > self._limit:
            raise OverCacheLimitError(f"more than {self._limit:,} bytes")
        self.crc = zlib.crc32(view, self.crc)
        self.size += len(view)
        while view:
            view = view[os.write(self._fd, view) :]

    def fetch(self, download: Callable[[str], object]) -> None:
        """Take in all of the content at once: *download* makes a file of it at the path that it is given."""
        fd, self.size, self.crc = fetched(self._path, download)
        os.close(self._fd)
        self._fd = fd
        if self._limit is not None and self.size > self._limit:
            raise OverCacheLimitError(f"more than {self._limit:,} bytes")

    def reader(self) -> BinaryIO:
        """What was written."""
        return open(self._path, "rb")

    def found(self, entry: CacheEntry) -> OpenEntry:
        """What was written, to be read although it is not published."""
        return OpenEntry(os.dup(self._fd), entry)

    def discard(self) -> None:
        """Drop it; what is published has been copied."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(self._path)


class GenerationRow:
    """A key's generation, and the changes under way: [token, mark] of each."""

    def __init__(self, generation: int, changes: list[Any]) -> None:
        self.generation = generation
        self.changes = changes


class GenerationRows:
    """The rows of generations, in a transaction."""

    def __init__(self, cache: diskcache.Cache, folder: str) -> None:
        self._cache = cache
        self._folder = folder

    def next(self) -> int:
        """A number above all before."""
        last = self._cache.get("counter", default=0)
        number = max(time.time_ns(), int(last) + 1 if isinstance(last, int) else 0)
        self._cache.set("counter", number)
        return number

    def load(self, name: str) -> GenerationRow:
        """The key's row."""
        floor = self._cache.get("floor", default=0)
        text = self._cache.get(name)
        generation, changes = json.loads(text) if isinstance(text, str) else (0, [])
        return GenerationRow(max(generation, floor if isinstance(floor, int) else 0), changes)

    def store(self, name: str, row: GenerationRow) -> None:
        """Keep the row, for a day after its last change."""
        self._cache.set(name, json.dumps([row.generation, row.changes]), expire=_REMEMBERED)

    def changing(self, row: GenerationRow) -> bool:
        """Whether somebody changes the object; those that are gone do not any more."""
        row.changes = [found for found in row.changes if users.is_alive(self._folder, found[0])]
        return bool(row.changes)

    def raise_floor(self) -> None:
        """Begin another generation of all keys."""
        self._cache.set("floor", self.next())


class DiskCacheFiles:
    """The open files of a cache."""

    def __init__(self, directory: str, limit: int | None) -> None:
        library = _library()
        disk = _disk()
        self._process = os.getpid()
        self._member: CacheUser | None = None
        # As measured for an LRU that holds its limit best (design, "Cache").
        self.values: diskcache.Cache = library.Cache(
            f"{directory}/values",
            timeout=_TIMEOUT,
            disk=disk,
            eviction_policy="least-recently-used",
            size_limit=_NO_LIMIT if limit is None else limit,
            disk_min_file_size=0,
            cull_limit=10,
        )
        self.generations: diskcache.Cache = library.Cache(
            f"{directory}/generations",
            timeout=_TIMEOUT,
            disk=disk,
            eviction_policy="none",
            size_limit=_NO_LIMIT,
            disk_min_file_size=1 << 20,
        )
        self.queue = os.open(f"{directory}/queue", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    @property
    def member(self) -> CacheUser:
        """This user of the cache."""
        assert self._member is not None
        return self._member

    def join(self, folder: str) -> None:
        """Become a member; the queue's lock is held."""
        self._member = CacheUser(folder)

    def leave(self) -> None:
        """Remove the member's file; the queue's lock is held."""
        self.member.leave()

    def shut(self) -> None:
        """Close all files; the member's is left for others to find. In a forked child only its descriptors."""
        if self._process == os.getpid():
            # This thread's connections. Those of others, which only they may close, go with these objects.
            self.values.close()
            self.generations.close()
        else:
            inherited().append(self)
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptors, and nothing else."""
        if self._member is not None:
            self._member.abandon()
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
                raise ValueError(f"a value's file is outside of the cache: {filename!r}")
            if filename is not None and not os.path.isfile(f"{self._directory}/{filename}"):
                # Not opened: a pipe in its place would be waited for.
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), filename)
            return super().fetch(mode, filename, value, read)

    return PlainDisk


def _whole(reader: BinaryIO, tag: object, name: str) -> CacheEntry | None:
    """The entry, all of whose content was read and compared; None if it is damaged."""
    size = os.fstat(reader.fileno()).st_size
    entry = unpacked(tag, size + len(tag)) if isinstance(tag, bytes) else None
    if entry is None or key_of(entry.label).name != name:
        return None
    crc = 0
    while piece := reader.read(CHUNK):
        crc = zlib.crc32(piece, crc)
    return entry if crc == entry.crc else None
