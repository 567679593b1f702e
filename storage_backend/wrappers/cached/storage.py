"""CachedStorage: the public methods of a backend behind a cache on the local disk."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
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
from storage_backend.wrappers.cached.invalidation import writing
from storage_backend.wrappers.cached.prefetch import fetch_many
from storage_backend.wrappers.sources import grouped, name_of, sliced

BATCH = 1000  # objects that are fetched, or deleted, together


class CachedStorage(Wrapper):
    """A backend behind a cache on the local disk, which threads and processes share.

    A hit costs as much as reading a file, and sends no request. After a write through any CachedStorage over the same
    directory, none of them returns older bytes. Changes that others make in the backend are seen once the entry has
    expired. Methods that return no content (`exists`, `list`, `size`, `stat`, `scan`, `checksum`, ...) ask the backend.

    `read_many` fetches many small objects in batches, and so does `prefetch` ahead of the reads: faster than threads that
    call `read`.

    If the cache itself fails, the backend is read, and a warning is logged once.

    Args:
        backend: what is cached.
        cache_dir: a directory on a local disk, created when first used. Several backends may share one, if their locations are URLs,
            or each has a *namespace*.
        max_cache_size_mb: limit of the cached content, in MiB; None for no limit, 0 for nothing. The least recently used
            entry is evicted first; an object larger than the limit is not cached.
        ttl_seconds: how long an entry is fresh after its fetch; None for ever, 0 for never without asking the backend.
        engine: "blobs", or "diskcache" over python-diskcache.
        revalidate: whether an expired entry is validated with a `stat` instead of being read again. None: if reads report
            the version that they returned (S3, SSH and databases do). True: always, with a `stat` before and after each
            fetch if reads do not report it. False: never.
        stale_if_error: for how many seconds after its expiry an entry is returned while the backend is unavailable.
        clock: returns seconds since the epoch; None for `time.time`.
        namespace: distinguishes this backend from others in the directory. By default its location, if that is a URL; else
            its class and `get_path`, and a second object with the same values is refused.

    Attributes:
        backend: as given.
        cache_dir: as a Path, with "~" expanded.
        max_cache_size_mb: as given.
        ttl_seconds: as given.
        namespace: as given.

    Raises:
        ConfigurationError: a parameter is wrong, or the directory has another format.
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
            raise ConfigurationError(f"clock: {clock!r} is not callable", parameter="clock")
        if namespace is not None and not isinstance(namespace, str):
            raise ConfigurationError(f"namespace: {namespace!r} is not a str", parameter="namespace")
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
        found = content if type(content) is bytes else plain(content)
        if not isinstance(found, bytes):
            return self.write_stream(identifier, found)
        with writing(self._cache, [identifier]) as written:
            store(self.backend, identifier, found)
            written.contents[identifier] = found, self._cache.freshness.written(identifier)
        return True

    @override
    def delete(self, identifier: str) -> bool:
        with writing(self._cache, [identifier]):
            return self.backend.delete(identifier) is not False

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        with writing(self._cache, [dest_id]):
            return self.backend.copy(source_id, dest_id)

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        with writing(self._cache, [source_id, dest_id]):
            return self.backend.move(source_id, dest_id)

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        with writing(self._cache, [identifier]):
            return self.backend.write_stream(identifier, reader, info=info, verify=verify)

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        if mode == "wb":
            self._cache.key(identifier)  # refuses an invalid identifier
            inner = self.backend.open(identifier, mode)
            return cast(
                BinaryIO, Writer(WriterSink(inner, publishing=lambda: writing(self._cache, [identifier])))
            )
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
            with writing(self._cache, list(contents)) as written:
                try:
                    stored += self.backend.write_many(group, verify=verify)
                except BatchError as error:
                    failures.errors.update(error.failures)
                    stored += sum(name_of(key) not in error.failures for key, _ in group)
                else:
                    written.contents.update((name, (content, None)) for name, content in contents.items())
        failures.raise_any("write", self.location)
        return stored

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        failures = Failures()
        absent = 0
        for group in sliced(dict.fromkeys(identifiers), BATCH):
            with writing(self._cache, group):
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
        with writing(self._cache, [identifier]):
            return self.backend.upload(path, identifier)

    @override
    def create(self, identifier: str, content: Content) -> bool:
        with writing(self._cache, [identifier]):
            return self.backend.create(identifier, content)

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        with writing(self._cache, [identifier]):
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

    # Methods that only a cache has.

    def prefetch(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        """Fetch, in batches, objects that are not cached or have expired.

        Args:
            identifiers: the objects.
            progress: see `storage_backend.counted.Progress`; counts fetched objects.

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
        """Remove an object from the cache, so that the next read asks the backend.

        Raises:
            StorageError: the cache cannot be changed; this instance no longer uses the entry in any case.
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
        """Remove all entries of the directory, in bounded time: files of a very large cache are removed gradually later.

        Raises:
            StorageError: the cache cannot be changed.
        """
        with self._trouble("clear the cache"):
            self._cache.engine.clear()
            self._cache.distrusted.clear()

    def get_cache_stats(self) -> dict[str, Any]:
        """The contents of the directory, and the counters of all its users in all processes.

        Returns:
            `size_mb` (content, in MiB), `file_count`, `max_size_mb`, `ttl_seconds`, `hits` and `misses` (reads that were
            answered from the cache, or not), `hit_rate` (0.0 without reads), `evictions`, `expired` (entries
            that were too old), `bytes_saved` (read from the cache).

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
        """Verify the checksums of all entries; remove damaged entries, and files that belong to no entry.

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

    def _trouble(self, verb: str) -> AbstractContextManager[None]:
        return _reported(f"cannot {verb} in {self.cache_dir}", self.location)


@contextmanager
def _reported(what: str, where: str) -> Iterator[None]:
    """Translate the engine's errors to StorageErrors."""
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
    """A limit in bytes; None if no disk is as large."""
    if mebibytes is None or mebibytes >= 2**42:
        return None
    return int(mebibytes * 2**20)


def _checked(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{name}: {value!r} is not a number", parameter=name)
    if not 0 <= value < math.inf:
        raise ConfigurationError(f"{name}: {value!r} is negative or not finite", parameter=name)
    return value


def _checked_choice(name: str, value: bool | None) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ConfigurationError(f"{name}: {value!r} is not True, False or None", parameter=name)
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
    """Copy cached content to a file, inside the kernel if possible."""
    os.lseek(found.fileno(), 0, os.SEEK_SET)
    copied = copy_descriptor(found.fileno(), staged.fd)
    if copied < found.entry.size:
        raise TruncatedEntryError(f"a cached file ends {found.entry.size - copied:,} bytes early")
    os.ftruncate(staged.fd, found.entry.size)
