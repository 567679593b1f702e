"""ObjectCache: finds the entries of one backend's objects, and fetches missing ones."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar, overload

from storage_backend import identifiers as names
from storage_backend.base import StorageBackend
from storage_backend.defensive import capabilities_of, location_of
from storage_backend.errors import ConfigurationError, IntegrityError, StorageError
from storage_backend.info import Capability, ObjectInfo
from storage_backend.streams import chunks
from storage_backend.wrappers.cached.engine import CacheEngine
from storage_backend.wrappers.cached.entry import CacheEntry, CacheKey, OpenEntry, key_of
from storage_backend.wrappers.cached.freshness import BackendRequest, CachePolicy, Freshness
from storage_backend.wrappers.cached.namespaces import namespace_of
from storage_backend.wrappers.cached.single_flight import SingleFlight
from storage_backend.wrappers.cached.staged import (
    NewEntry,
    OverCacheLimitError,
    Publication,
    StagedContent,
    publish,
)
from storage_backend.wrappers.cached.users import EXPIRED, MISSES

logger = logging.getLogger(__name__)

T = TypeVar("T")
Take: TypeAlias = Callable[[OpenEntry], T]
Fetch: TypeAlias = Callable[[str, CacheKey], T]

DOWNLOADED_FROM = 32 << 20  # bytes; a smaller object arrives sooner than a second request pays off
_MAX_KEYS = 10_000  # remembered


class ObjectCache:
    """The cache of one backend. It raises the backend's errors only; those of the cache are logged.

    Args:
        backend: what is cached.
        directory: of the cache.
        engine: the name of an engine.
        policy: the arguments.

    Attributes:
        backend: as given.
        engine: keeps the entries.
        freshness: decides whether they may be used.
        flights: the fetches in progress.
        distrusted: names of keys whose stale entries could not be dropped: they are not used.
        warn: logs that the cache does not work.

    Raises:
        ConfigurationError: see the engines.
    """

    def __init__(self, backend: StorageBackend, directory: Path, engine: str, policy: CachePolicy) -> None:
        self.backend = backend
        self.distrusted: set[str] = set()
        self.flights = SingleFlight(str(directory / "flights"))
        self._limit = policy.limit
        self._location = location_of(backend)
        self.warn = CacheWarnings(directory, self._location).log
        namespace = namespace_of(backend, str(directory), policy.namespace, policy.token)
        self._namespace = f"{namespace}\0".encode("utf-8", "surrogateescape")
        self._keys: dict[str, CacheKey] = {}  # making a key takes as long as opening a file
        # No reference from the engine to this object: in a cycle, its files would stay open until a garbage collection.
        self.engine = _engine(engine, directory, policy, self.warn)
        self.freshness = Freshness(backend, policy, self.engine)

    # Lookup.

    def key(self, identifier: str) -> CacheKey:
        """The key of an object.

        Raises:
            InvalidIdentifierError, TypeError: the identifier is invalid.
        """
        try:
            return self._keys[identifier]
        except (KeyError, TypeError):
            names.check(identifier, surrogates=True)
        if len(self._keys) >= _MAX_KEYS:
            self._keys.clear()
        key = key_of(self._namespace + identifier.encode("utf-8", "surrogateescape"))
        self._keys[identifier] = key
        return key

    def block_key(self, identifier: str, version: bytes, number: int) -> CacheKey:
        """The key of a block of one version of an object."""
        label = names.encode(identifier) + b"\0" + version + b"\0%d" % number
        return key_of(self._namespace + b"\0" + label)  # an identifier has no NUL

    def find(self, key: CacheKey, *, note: bool = False) -> OpenEntry | None:
        """The entry, fresh or not, held open; with *note* only a version note, else only an object's content."""
        if self.distrusted and key.name in self.distrusted:
            return None
        try:
            found = self.engine.find(key)
        except Exception as error:  # noqa: BLE001 - of the cache, and logged
            self.warn(error)
            return None
        if found is not None and found.entry.note is not note:
            found.close()
            return None
        return found

    def take(self, key: CacheKey, found: OpenEntry, take: Take[T]) -> T | None:
        """The result of *take* on an entry, counted as a hit. None if it cannot be read; it is then dropped."""
        try:
            taken = take(found)
        except OSError as error:
            self.lose(found, error)
            return None
        try:  # `hit` inlined: this is the hot path of every read
            self.engine.hit(key, found.entry.size)
        except Exception as error:  # noqa: BLE001 - of the cache, and logged
            self.warn(error)
        return taken

    def piece(self, key: CacheKey, found: OpenEntry, start: int, end: int | None) -> bytes | None:
        """The bytes of [start, end) of an entry, counted as a hit; None as in `take`. The entry stays open."""
        try:
            piece = found.piece(start, end)
        except OSError as error:
            self.lose(found, error)
            return None
        self.hit(key, len(piece))
        return piece

    def has_fresh(self, key: CacheKey) -> bool:
        """Whether there is a fresh entry."""
        found = self.find(key)
        if found is None:
            return False
        found.close()
        return self.freshness.is_fresh(found.entry)

    def content(self, found: OpenEntry) -> bytes | None:
        """The content of an entry, without counting a hit; None as in `take`."""
        try:
            return found.content()
        except OSError as error:
            self.lose(found, error)
            return None

    def lose(self, found: OpenEntry, error: OSError) -> None:
        """Log why an entry cannot be used, and drop it, so that the backend is read."""
        self.warn(error)
        self.safely(self.engine.drop, key_of(found.entry.label), found.entry.stamp)

    def revalidated(self, identifier: str, key: CacheKey, found: OpenEntry) -> bool:
        """Whether a stale entry may be used: it is revalidated, or the backend is unavailable and `stale_if_error` allows it."""
        try:
            request = self.freshness.revalidate(identifier, found.entry)
        except Exception as error:
            if isinstance(error, FileNotFoundError):
                self.safely(self.engine.drop, key, found.entry.stamp)
            if self.freshness.serves_stale(identifier, error, found.entry):
                return True
            raise
        if request is None:
            return False
        self.safely(self.engine.renew, key, found, request.at)
        return True

    # Counting.

    def count(self, counter: int, size: int = 0) -> None:
        """Add one to a counter, and *size* to the bytes saved."""
        self.safely(self.engine.count, counter, size)

    def touch(self, key: CacheKey) -> None:
        """Note that the entry was used."""
        self.safely(self.engine.touch, key)

    def hit(self, key: CacheKey, size: int) -> None:
        """Count a read of *size* bytes answered from the cache."""
        try:
            self.engine.hit(key, size)
        except Exception as error:  # noqa: BLE001 - of the cache, and logged
            self.warn(error)

    # Fetching.

    @overload
    def get(self, identifier: str, take: Take[T], fetch: Fetch[T]) -> T: ...

    @overload
    def get(self, identifier: str, take: Take[T], fetch: None) -> T | None: ...

    def get(self, identifier: str, take: Take[T], fetch: Fetch[T] | None) -> T | None:
        """An object: from a fresh entry, or from the backend.

        Args:
            identifier: the object.
            take: reads an entry: a method of OpenEntry that closes it or hands it over, or raises an OSError.
            fetch: reads the backend and publishes: `read` or `stream`. If None, the result is None without a fresh entry.
        """
        try:
            key = self._keys[identifier]
        except (KeyError, TypeError):
            key = self.key(identifier)
        stamp = None
        found = self.find(key)
        if found is not None:
            entry = found.entry
            stamp = entry.stamp
            if self.freshness.is_fresh(entry):
                taken = self.take(key, found, take)
                if taken is not None:
                    return taken
            else:
                found.close()
        return None if fetch is None else self.missed(identifier, key, stamp, take, fetch)

    def missed(
        self,
        identifier: str,
        key: CacheKey,
        stamp: int | None,
        take: Take[T],
        fetch: Fetch[T],
    ) -> T:
        """Handle a miss: take the entry that another reader has published meanwhile, or fetch.

        Args:
            identifier: the object.
            key: its key.
            take: see `get`.
            fetch: see `get`.
            stamp: of the stale entry, if there is one.
        """
        began = self.freshness.ask()
        with self.flights.alone(key.name):
            found = self.find(key)
            if found is None:
                self.count(MISSES)
                return self._fetch(identifier, key, fetch)
            entry = found.entry
            # An entry fetched after this read began is fresh, however short its time to live.
            fresh = self.freshness.is_fresh(entry) or (entry.stamp != stamp and entry.fetched >= began.at)
            try:
                if not fresh:
                    self.count(EXPIRED)
                    fresh = self.revalidated(identifier, key, found)
                if not fresh:
                    fetched = self._fetch(identifier, key, fetch)
                    self.count(MISSES)
                    found.close()
                    return fetched
            except Exception as error:
                if not self.freshness.serves_stale(identifier, error, entry):
                    self.count(MISSES)
                    found.close()
                    raise
            taken = self.take(key, found, take)
            if taken is not None:
                return taken
            self.count(MISSES)
            return self._fetch(identifier, key, fetch)

    def _fetch(self, identifier: str, key: CacheKey, fetch: Fetch[T]) -> T:
        try:
            return fetch(identifier, key)
        except FileNotFoundError:
            self.safely(self.engine.drop, key)
            raise

    def generation(self, key: CacheKey) -> int | None:
        """The key's generation, before the backend is read; None if the cache fails: then it must not be filled."""
        found = self.safely(self.engine.generations, [key])
        return None if found is None else found[0]

    def read(self, identifier: str, key: CacheKey) -> bytes:
        """Read the object from the backend, and publish it."""
        generation = self.generation(key)
        request = self.freshness.ask(identifier)
        content = self.backend.read(identifier)
        entry = self.freshness.entry_read(identifier, key, len(content), request)
        self.store(key, content, entry, generation)
        return content

    def stream(self, identifier: str, key: CacheKey) -> OpenEntry | BinaryIO:
        """Stream or download the object into the cache; the backend's own reader if the cache has no room."""
        generation = self.generation(key)
        request = self.freshness.ask(identifier)
        reader = self.backend.open(identifier)
        found = None
        try:
            info = self.freshness.seen(identifier)  # which the reader is pinned to
            size = _size_of(reader)
            if generation is not None and size is not None and self._is_downloaded(size):
                found = self._downloaded(identifier, key, size, request, generation)
            if found is None:
                staged = None if generation is None else self.safely(self.engine.stage, size)
                if staged is None or generation is None:
                    self._outgrown(key)
                    return reader
                try:
                    if not self._filled(staged, reader):
                        self._outgrown(key)
                        reader.seek(0)
                        return reader
                    if size is not None and staged.size != size:
                        raise IntegrityError(
                            f"{identifier!r} in {self._location}: {staged.size:,} of {size:,} bytes arrived",
                            identifier=identifier,
                            backend=self._location,
                        )
                    info = info or self.freshness.unchanged(identifier, request)
                    found = self._published(key, staged, request, info, generation)
                finally:
                    self.safely(staged.discard)
            if found is None:
                reader.seek(0)
                return reader
        except BaseException:
            reader.close()
            raise
        reader.close()
        return found

    def _is_downloaded(self, size: int) -> bool:
        """Whether an object of *size* bytes is worth another request: a download may use many connections at once."""
        return (
            size >= DOWNLOADED_FROM
            and Capability.RANGES in capabilities_of(self.backend)
            and self.limit_allows(size)
        )

    def _downloaded(
        self, identifier: str, key: CacheKey, size: int, request: BackendRequest, generation: int
    ) -> OpenEntry | None:
        """Fetch an object with the backend's `download` into the cache; None if it has no room."""
        staged = self.safely(self.engine.stage, size)
        if staged is None:
            return None
        try:
            before = self.freshness.ask(identifier).before
            try:
                staged.fetch(partial(self.backend.download, identifier))
            except StorageError:
                raise
            except Exception as error:  # noqa: BLE001 - of the cache's disk, and logged; if not, it comes again from the reader
                if not isinstance(error, OverCacheLimitError):
                    self.warn(error)
                return None
            request = request._replace(before=before)
            info = self.freshness.seen(identifier) or self.freshness.unchanged(identifier, request)
            return self._published(key, staged, request, info, generation)
        finally:
            self.safely(staged.discard)

    def _published(
        self,
        key: CacheKey,
        staged: StagedContent,
        request: BackendRequest,
        info: ObjectInfo | None,
        generation: int,
    ) -> OpenEntry | None:
        """Staged content as an open entry, whether or not the cache could publish it."""
        entry = self.freshness.entry(key, staged.size, request, info)
        found = self.safely(staged.found, entry)
        self.safely(self.engine.publish, [(Publication(key, staged, entry), generation)])
        return found

    def _filled(self, staged: StagedContent, reader: BinaryIO) -> bool:
        """Copy all of *reader* into the cache, and return whether that worked; the reader's errors are raised."""
        for chunk in chunks(reader):
            try:
                staged.write(chunk)
            except OverCacheLimitError:
                return False
            except Exception as error:  # noqa: BLE001 - of the cache, and logged
                self.warn(error)
                return False
        return True

    def _outgrown(self, key: CacheKey) -> None:
        """Drop the entry of an object whose present content is too large, so that no older content is returned."""
        found = self.safely(self.engine.find, key)
        if found is not None:
            found.close()
            self.safely(self.engine.drop, key)

    def store(self, key: CacheKey, content: bytes, entry: CacheEntry, generation: int | None) -> None:
        """Put an entry into the cache, if there is room; raises nothing."""
        if generation is not None and self._takes(key, len(content)):
            self.safely(publish, self.engine, [NewEntry(key, content, entry, generation)])

    def new_entry(
        self, key: CacheKey, content: bytes, request: BackendRequest, info: ObjectInfo | None, generation: int
    ) -> NewEntry | None:
        """An object's content to be published in the cache; None if there is no room."""
        if not self._takes(key, len(content)):
            return None
        return NewEntry(key, content, self.freshness.entry(key, len(content), request, info), generation)

    def _takes(self, key: CacheKey, size: int) -> bool:
        if key.name in self.distrusted:
            return False
        if self.limit_allows(size):
            return True
        self._outgrown(key)
        return False

    def limit_allows(self, size: int) -> bool:
        """Whether the cache may hold content of *size* bytes."""
        return self._limit is None or (self._limit > 0 and size <= self._limit)

    def safely(self, call: Callable[..., T], *arguments: Any) -> T | None:
        """The result of a call to the engine; None if it fails, which is logged."""
        try:
            return call(*arguments)
        except OverCacheLimitError:
            return None
        except Exception as error:  # noqa: BLE001 - of the cache, and logged
            self.warn(error)
            return None


class CacheWarnings:
    """Logs failures of a cache, the first as a WARNING. Engines refer to it, so it must not refer to the cache.

    Args:
        directory: of the cache.
        location: of the backend, without secrets.
    """

    def __init__(self, directory: Path, location: str) -> None:
        self._directory = directory
        self._location = location
        self._warned = False

    def log(self, error: Exception) -> None:
        """Log one error, as a WARNING if it is the first."""
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        logger.log(
            level,
            "the cache in %s does not work (%s: %s); %s is read and written without it where needed",
            *(self._directory, type(error).__name__, error, self._location),
        )


def _size_of(reader: BinaryIO) -> int | None:
    """The size of a reader's content in bytes; None if it cannot seek."""
    try:
        size = reader.seek(0, io.SEEK_END)
        reader.seek(0)
    except (OSError, AttributeError):
        return None
    return size


def _engine(
    kind: str, directory: Path, policy: CachePolicy, warn: Callable[[Exception], object]
) -> CacheEngine:
    if kind == "blobs":
        from storage_backend.wrappers.cached.blobs import BlobEngine

        return BlobEngine(str(directory), policy.limit, policy.now, warn)
    if kind == "diskcache":
        from storage_backend.wrappers.cached.diskcache import DiskCacheEngine

        return DiskCacheEngine(str(directory), policy.limit, warn)
    raise ConfigurationError(f'engine: {kind!r} is not "blobs" or "diskcache"', parameter="engine")
