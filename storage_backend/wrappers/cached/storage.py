"""CachedStorage: the public methods of a backend behind a cache on the local disk."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from typing_extensions import override

from storage_backend.base import Item, StorageBackend
from storage_backend.counted import Progress, ProgressCount, delete_counted, read_counted, write_counted
from storage_backend.defensive import capabilities_of, store
from storage_backend.destinations import write_file
from storage_backend.errors import BatchError, ConfigurationError, Failures, StorageError, UnavailableError
from storage_backend.files import StagedFile, copy_descriptor
from storage_backend.hooks import Hooks, download_from
from storage_backend.info import Capability, ObjectInfo
from storage_backend.paths import expanded
from storage_backend.streams import Content, Writer, check_mode, check_range, plain
from storage_backend.wrappers.base import Wrapper, WrapperHooks, WriterSink
from storage_backend.wrappers.cached import ranges
from storage_backend.wrappers.cached.cache import ObjectCache
from storage_backend.wrappers.cached.engine import CheckReport
from storage_backend.wrappers.cached.entry import CacheKey, OpenEntry, TruncatedEntryError
from storage_backend.wrappers.cached.freshness import CachePolicy
from storage_backend.wrappers.cached.invalidation import WrittenContents, writing
from storage_backend.wrappers.cached.prefetch import fetch_many
from storage_backend.wrappers.sources import grouped, name_of, sliced

BATCH = 1000  # objects that are fetched, or deleted, together


class CachedStorage(Wrapper):
    """A backend behind a cache on the local disk, which threads and processes share.

    A hit costs what reading a file costs, and asks the backend nothing. After a write through any CachedStorage over the
    same directory, none of them gives older bytes. What others change in the backend is seen when the entry has
    expired. `exists`, `list`, `size`, `stat`, `scan`, `checksum` and all else that gives no content ask the backend.

    `read_many` fetches many small objects in batches, as does `prefetch` ahead of the reads, which takes less time than threads
    that call `read`.

    Whatever goes wrong with the cache itself, the backend is read, and a warning is logged once.

    Args:
        backend: what is cached.
        cache_dir: a directory on a local disk, created when first used. Several backends may share one, if their locations are URLs,
            or each has a *namespace*.
        max_cache_size_mb: content kept at most, in MiB; None for any amount, 0 for nothing. The least recently used goes
            first, and what is larger than the limit is not kept.
        ttl_seconds: how long an entry is fresh, from its fetch; None for ever, 0 never without asking.
        engine: "blobs", or "diskcache" over python-diskcache.
        revalidate: whether the backend is asked if an expired entry still is right, instead of being read again. None: where
            a read tells which version it gave (S3, SSH and databases do). True: everywhere, with a `stat` before and after
            each fetch where a read does not tell. False: never.
        stale_if_error: for how many seconds after its expiry an entry is given while the backend is unavailable.
        clock: gives seconds since the epoch; None for `time.time`.
        namespace: tells this backend from others in the directory. Without it, its location does, if that is a URL; if not, its
            class and what its `get_path` gives, and a second object that agrees in both is refused.

    Attributes:
        backend: as given.
        cache_dir: as a Path, with "~" expanded.
        max_cache_size_mb: as given.
        ttl_seconds: as given.
        namespace: as given.

    Raises:
        ConfigurationError: a parameter is wrong, or the directory is of another format.
    """

    def __init__(
        self,
        backend: StorageBackend,
        cache_dir: str | os.PathLike[str],
        max_cache_size_mb: float | None = None,
        ttl_seconds: float | None = None,
        *,
        engine: Literal["blobs", "diskcache"] = "blobs",
        revalidate: bool | None = None,
        stale_if_error: float | None = None,
        clock: Callable[[], float] | None = None,
        namespace: str | None = None,
    ) -> None:
        super().__init__(backend)
        self.cache_dir = _expanded(cache_dir)
        self.max_cache_size_mb = _checked("max_cache_size_mb", max_cache_size_mb)
        self.ttl_seconds = _checked("ttl_seconds", ttl_seconds)
        self.engine = engine
        self.revalidate = _checked_choice("revalidate", revalidate)
        self.stale_if_error = _checked("stale_if_error", stale_if_error)
        if clock is not None and not callable(clock):
            raise ConfigurationError(f"clock: {clock!r} cannot be called", parameter="clock")
        if namespace is not None and not isinstance(namespace, str):
            raise ConfigurationError(f"namespace: {namespace!r} is no text", parameter="namespace")
        self.namespace = namespace
        self._policy = CachePolicy(
            limit=_in_bytes(self.max_cache_size_mb),
            ttl=self.ttl_seconds,
            revalidate=self.revalidate,
            stale_if_error=self.stale_if_error,
            clock=clock,
            namespace=namespace,
            token=os.urandom(8).hex(),
        )
        self._cache = ObjectCache(backend, self.cache_dir, engine, self._policy)

    @override
    def read(self, identifier: str) -> bytes:
        return self._cache.get(identifier, OpenEntry.content, self._cache.read)

    @override
    def write(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        with self._writing([identifier]) as written:
            store(self.backend, identifier, content)
            written.add(identifier, content, self._cache.freshness.written(identifier))
        return True

    @override
    def delete(self, identifier: str) -> bool:
        with self._writing([identifier]):
            return self.backend.delete(identifier) is not False

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        with self._writing([dest_id]):
            return self.backend.copy(source_id, dest_id)

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        with self._writing([source_id, dest_id]):
            return self.backend.move(source_id, dest_id)

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        with self._writing([identifier]):
            return self.backend.write_stream(identifier, reader, info=info, verify=verify)

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        if mode == "wb":
            self._cache.key(identifier)  # refuses what is no identifier
            inner = self.backend.open(identifier, mode)
            return cast(BinaryIO, Writer(WriterSink(inner, publishing=lambda: self._writing([identifier]))))
        found = self._cache.get(identifier, OpenEntry.whole, self._cache.stream)
        return found.reader() if isinstance(found, OpenEntry) else found

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        check_range(start, end)
        cache = self._cache
        key = cache.key(identifier)
        found = cache.find(key)
        try:
            if found is not None and (
                cache.freshness.is_fresh(found.entry)
                or (self._fetches_ranges() and cache.revalidated(identifier, key, found))
            ):
                piece = cache.piece(key, found, start, end)
                if piece is not None:
                    return piece
        finally:
            if found is not None:
                found.close()
        if not self._fetches_ranges():
            return self.read(identifier)[start:end]
        stamp = None if found is None else found.entry.stamp
        return ranges.read(cache, identifier, key, start, end, stamp=stamp)

    def _fetches_ranges(self) -> bool:
        return Capability.RANGES in capabilities_of(self.backend) and self._cache.limit_allows(1)

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        if progress is not None:
            yield from read_counted(self.read_many(identifiers), progress)
            return
        failures = Failures()
        missing: list[tuple[str, CacheKey]] = []
        for identifier in identifiers:
            content = None
            with failures.of(identifier):
                content = self._cache.get(identifier, OpenEntry.content, None)
                if content is None:
                    missing.append((identifier, self._cache.key(identifier)))
            if content is not None:
                yield identifier, content
            if len(missing) >= BATCH:
                yield from fetch_many(self._cache, missing, failures)
                missing = []
        yield from fetch_many(self._cache, missing, failures)
        failures.raise_any("read", self.location)

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        failures = Failures()
        stored = 0
        for group in grouped(items):
            contents = {name_of(key): bytes(content) for key, content in group}  # bytes are not copied
            for identifier in contents:
                failures.errors.pop(identifier, None)
            with self._writing(list(contents)) as written:
                try:
                    stored += self.backend.write_many(group, verify=verify)
                except BatchError as error:
                    failures.errors.update(error.failures)
                    stored += sum(name_of(key) not in error.failures for key, _ in group)
                else:
                    for identifier, content in contents.items():
                        written.add(identifier, content)
        failures.raise_any("write", self.location)
        return stored

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        failures = Failures()
        absent = 0
        for group in sliced(dict.fromkeys(identifiers), BATCH):
            with self._writing(group):
                try:
                    absent += self.backend.delete_many(group)
                except BatchError as error:
                    failures.errors.update(error.failures)
                    absent += len(group) - len(error.failures)
        failures.raise_any("delete", self.location)
        return absent

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        given = self._cache.get(identifier, OpenEntry.whole, self._cache.stream)
        if not isinstance(given, OpenEntry):
            with given:
                return download_from(given, path)
        try:
            write_file(path, lambda staged: _copy(given, staged))
        except TruncatedEntryError as error:
            self._cache.lose(given, error)
            return self.backend.download(identifier, path)
        finally:
            given.close()
        return True

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        with self._writing([identifier]):
            return self.backend.upload(path, identifier)

    @override
    def create(self, identifier: str, content: Content) -> bool:
        with self._writing([identifier]):
            return self.backend.create(identifier, content)

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        with self._writing([identifier]):
            return self.backend.replace(identifier, content, etag)

    @property
    @override
    def hooks(self) -> Hooks:
        return _CachedHooks(self)

    @override
    def close(self) -> None:
        self._cache.safely(self._cache.engine.close)
        self._cache.flights.close()
        self.backend.close()

    # What only a cache has.

    def prefetch(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        """Fetch in batches what is not in the cache yet, or has expired there.

        Args:
            identifiers: the objects.
            progress: see `storage_backend.counted.Progress`; what is fetched is counted.

        Returns:
            How many objects were fetched.

        Raises:
            BatchError: at the end, if some could not be read.
        """
        failures = Failures()
        fetched = 0
        tally = ProgressCount(progress)
        for group in sliced(self._missing(identifiers, failures), BATCH):
            for _, content in fetch_many(self._cache, group, failures):
                tally.add(1, len(content))
                fetched += 1
        failures.raise_any("prefetch", self.location)
        return fetched

    def _missing(self, identifiers: Iterable[str], failures: Failures) -> Iterator[tuple[str, CacheKey]]:
        for identifier in identifiers:
            missing = None
            with failures.of(identifier):
                key = self._cache.key(identifier)
                if not self._cache.has_fresh(key):
                    missing = identifier, key
            if missing is not None:
                yield missing

    def invalidate(self, identifier: str) -> None:
        """Forget what is cached of an object, so that the next read asks the backend.

        Raises:
            StorageError: the cache cannot be changed; this instance does not use the entry any more in any case.
        """
        key = self._cache.key(identifier)
        with self._trouble("invalidate an entry"):
            try:
                self._cache.engine.drop(key)
            except Exception:
                self._cache.distrusted.add(key.name)
                raise
            self._cache.distrusted.discard(key.name)

    def clear_cache(self) -> None:
        """Forget all entries of the directory, in bounded time: of very many entries, files are removed later, bit by bit.

        Raises:
            StorageError: the cache cannot be changed.
        """
        with self._trouble("clear the cache"):
            self._cache.engine.clear()
            self._cache.distrusted.clear()

    def get_cache_stats(self) -> dict[str, Any]:
        """What is in the directory, and what all its users in all processes have counted.

        Returns:
            `size_mb` (content, in MiB), `file_count`, `max_size_mb`, `ttl_seconds`, `hits` and `misses` (reads that were
            answered without asking the backend for content, or not), `hit_rate` (0.0 without reads), `evictions`, `expired` (entries
            that were found too old), `bytes_saved` (that hits gave).

        Raises:
            StorageError: the cache cannot be read.
        """
        with self._trouble("look at the cache"):
            stats = self._cache.engine.stats()
        counters = stats.counters
        reads = counters.hits + counters.misses
        return {
            "size_mb": stats.size / 2**20,
            "file_count": stats.count,
            "max_size_mb": self.max_cache_size_mb,
            "ttl_seconds": self.ttl_seconds,
            "hit_rate": counters.hits / reads if reads else 0.0,
            **counters._asdict(),
        }

    def check_cache(self) -> CheckReport:
        """Verify the checksums of all entries, and remove entries that are damaged and files that belong to none.

        Raises:
            StorageError: the cache cannot be read.
        """
        with self._trouble("check the cache"):
            return self._cache.engine.check()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cache = ObjectCache(self.backend, self.cache_dir, self.engine, self._policy)

    def _writing(self, identifiers: Sequence[str]) -> AbstractContextManager[WrittenContents]:
        return writing(self._cache, identifiers)

    def _trouble(self, verb: str) -> AbstractContextManager[None]:
        return _reported(f"cannot {verb} in {self.cache_dir}", self.location)


@contextmanager
def _reported(what: str, where: str) -> Iterator[None]:
    """Raise the engine's errors as ours."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        raise UnavailableError(f"{what}: {error}", backend=where) from error


def _expanded(cache_dir: str | os.PathLike[str]) -> Path:
    try:
        given = os.fsdecode(cache_dir)
    except TypeError:
        raise TypeError(f"cache_dir must be a path, not {type(cache_dir).__name__}") from None
    if not given:
        raise ConfigurationError("cache_dir is empty", parameter="cache_dir")
    return Path(expanded(given)).absolute()


def _in_bytes(mebibytes: float | None) -> int | None:
    """A limit in bytes; None for one beyond all disks."""
    if mebibytes is None or mebibytes >= 2**42:
        return None
    return int(mebibytes * 2**20)


def _checked(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{name}: {value!r} is no number", parameter=name)
    if not 0 <= value < math.inf:
        raise ConfigurationError(f"{name}: {value!r} is not zero or more", parameter=name)
    return value


def _checked_choice(name: str, value: bool | None) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ConfigurationError(f"{name}: {value!r} is neither True, False nor None", parameter=name)
    return value


class _CachedHooks(WrapperHooks):
    def __init__(self, storage: CachedStorage) -> None:
        super().__init__(storage)
        self._cache_dir = storage.cache_dir

    @override
    def own_paths(self) -> Iterator[Path]:
        yield self._cache_dir
        yield from super().own_paths()


def _copy(found: OpenEntry, staged: StagedFile) -> None:
    """Fill a file with a cached content, inside the kernel where it can."""
    os.lseek(found.fileno(), 0, os.SEEK_SET)
    copied = copy_descriptor(found.fileno(), staged.fd)
    if copied < found.entry.size:
        raise TruncatedEntryError(f"a cached file ends {found.entry.size - copied:,} bytes early")
    os.ftruncate(staged.fd, found.entry.size)
