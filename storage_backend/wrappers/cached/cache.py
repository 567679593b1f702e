"""ObjectCache: when an entry is good, how one comes to be, and what a change does to it."""

from __future__ import annotations

import io
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from storage_backend import identifiers as names
from storage_backend.base import StorageBackend
from storage_backend.defensive import capabilities_of, info_of, location_of
from storage_backend.errors import (
    BatchError,
    ConfigurationError,
    Failures,
    IntegrityError,
    InvalidIdentifierError,
    StorageError,
    is_retryable,
)
from storage_backend.hooks import hooks_of
from storage_backend.info import Capability, ObjectInfo
from storage_backend.streams import chunks
from storage_backend.wrappers.cached.cache_warnings import CacheWarnings
from storage_backend.wrappers.cached.engine import (
    CacheEngine,
    CacheKey,
    OverCacheLimitError,
    PendingWrite,
    Publication,
    StagedContent,
    key_of,
)
from storage_backend.wrappers.cached.entry import CacheEntry, OpenEntry
from storage_backend.wrappers.cached.namespaces import namespace_of
from storage_backend.wrappers.cached.publishing import NewEntry, PublishingBatch, publish
from storage_backend.wrappers.cached.single_flight import SingleFlight
from storage_backend.wrappers.cached.users import EXPIRED, MISSES

logger = logging.getLogger(__name__)

T = TypeVar("T")

RACY = (
    2.0  # seconds; an object changed so shortly before it was looked at may change again unseen (contract.md)
)
DOWNLOADED_FROM = 32 << 20  # bytes; what is smaller has come before a second request pays
_KEYS = 10_000  # that are kept


@dataclass(frozen=True)
class CachePolicy:
    """What a CachedStorage was asked for.

    Attributes:
        limit: content bytes at most; None for any number.
        ttl: seconds that an entry is good; None for ever.
        revalidate: see CachedStorage.
        stale_if_error: seconds after its expiry that an entry may stand in.
        clock: seconds since the epoch; None for `time.time`.
        namespace: tells the backend from others; None where its location does.
        token: of the CachedStorage and its pickled copies.
    """

    limit: int | None
    ttl: float | None
    revalidate: bool | None
    stale_if_error: float | None
    clock: Callable[[], float] | None
    namespace: str | None
    token: str


class RequestTime(NamedTuple):
    """When something was asked for.

    Attributes:
        at: by the clock that entries are timed by.
        wall: by the machine's, which the times of objects compare with.
    """

    at: float
    wall: float


class ObjectCache:
    """The cache of one backend. Only the backend's errors come out of it, but where an engine is asked directly.

    Args:
        backend: what is cached.
        directory: of the cache.
        engine: the name of one.
        policy: what was asked for.

    Attributes:
        backend: as given.
        engine: what keeps the bytes.
        flights: the fetches under way.
        distrusted: names of keys whose entries could not be dropped when they had to be.
        warn: logs that the cache does not work.

    Raises:
        ConfigurationError: see the engines.
    """

    def __init__(self, backend: StorageBackend, directory: Path, engine: str, policy: CachePolicy) -> None:
        self.backend = backend
        self.distrusted: set[str] = set()
        self.flights = SingleFlight(str(directory / "flights"))
        self._policy = policy
        self._stamps = itertools.count(int.from_bytes(os.urandom(5)) << 24)
        self._location = location_of(backend)
        self.warn = CacheWarnings(directory, self._location).log
        namespace = namespace_of(backend, str(directory), policy.namespace, policy.token)
        self._namespace = f"{namespace}\0".encode("utf-8", "surrogateescape")
        self._keys: dict[
            str, CacheKey
        ] = {}  # of identifiers, since to make one takes as long as to open a file
        self._compares = policy.revalidate is not False
        # A local file is read as fast as it is looked at.
        self._reads_again = policy.revalidate is None and self._location.startswith("file:")
        self._clock = _machine_time if policy.clock is None else policy.clock
        # The engine is given nothing of this object's own: in a cycle, its files would stay open until the collector comes.
        self.engine = _engine(engine, directory, policy.limit, self._clock, self.warn)

    # Time and trust.

    def now(self) -> float:
        """Seconds since the epoch, as far as entries are concerned."""
        return self._clock()

    def begin(self) -> RequestTime:
        """The moment before the backend is asked."""
        return RequestTime(self.now(), time.time())

    def is_fresh(self, entry: CacheEntry) -> bool:
        """Whether an entry is good without asking."""
        if entry.fetched < self.engine.trusted_since:
            return False
        ttl = self._policy.ttl
        return ttl is None or 0 <= self.now() - entry.fetched < ttl

    def renewed(self, identifier: str, key: CacheKey, found: OpenEntry) -> bool:
        """Whether the backend says that an expired entry is still right; then it is as if just fetched.

        Raises:
            StorageError: the backend cannot say.
        """
        entry = found.entry
        if not self._compares or (entry.etag is None and entry.modified is None):
            return False
        began = self.begin()
        try:
            info = info_of(self.backend.stat(identifier), identifier)
        except FileNotFoundError:
            self.safely(self.engine.drop, key, entry.stamp)
            raise
        if entry.etag is not None:
            same = info.etag == entry.etag
        else:
            same = info.size == entry.size and _seconds(info) == entry.modified
        if same:
            self.safely(self.engine.renew, key, found, began.at)
        return same

    def proof(self, info: ObjectInfo | None, looked: RequestTime) -> tuple[str | None, float | None]:
        """The etag, or the time where it proves something, by which what was read is known again.

        Args:
            info: what is known of it.
            looked: when.
        """
        if info is None or not self._compares:
            return None, None
        if info.etag is not None:
            return info.etag, None
        modified = _seconds(info)
        if self._reads_again or modified is None or looked.wall - modified <= RACY:
            return None, None
        return None, modified

    # Looking.

    def key(self, identifier: str) -> CacheKey:
        """The key of an object.

        Raises:
            InvalidIdentifierError, TypeError: it is none.
        """
        try:
            return self._keys[identifier]
        except (KeyError, TypeError):
            names.check(identifier, surrogates=True)
        if len(self._keys) >= _KEYS:
            self._keys.clear()
        key = key_of(self._namespace + identifier.encode("utf-8", "surrogateescape"))
        self._keys[identifier] = key
        return key

    def part_key(self, identifier: str, version: bytes, number: int) -> CacheKey:
        """The key of a part of one version of an object."""
        label = names.encode(identifier) + b"\0" + version + b"\0%d" % number
        return key_of(self._namespace + b"\0" + label)  # an identifier has no NUL

    def stamp(self) -> int:
        """Tells one publication from all others."""
        return next(self._stamps)

    def find(self, key: CacheKey) -> OpenEntry | None:
        """The entry, good or not, held open."""
        if self.distrusted and key.name in self.distrusted:
            return None
        try:
            return self.engine.find(key)
        except Exception as error:  # noqa: BLE001 - of the cache, and logged
            self.warn(error)
            return None

    def content(self, found: OpenEntry) -> bytes | None:
        """The content, and the entry is closed; None if it cannot be read, or is damaged: then it is dropped."""
        try:
            return found.content()
        except OSError as error:
            self.lose(found, error)
            return None
        finally:
            found.close()

    def piece(self, found: OpenEntry, start: int, end: int | None) -> bytes | None:
        """The bytes of [start, end); None as of `content`."""
        try:
            return found.piece(start, end)
        except OSError as error:
            self.lose(found, error)
            return None

    def whole(self, found: OpenEntry) -> OpenEntry | None:
        """The entry itself; None, and closed, as of `content`."""
        try:
            found.check()
        except OSError as error:
            self.lose(found, error)
            found.close()
            return None
        return found

    def lose(self, found: OpenEntry, error: OSError) -> None:
        """Log why an entry cannot be given, and drop it, so that the backend is read."""
        self.warn(error)
        self.safely(self.engine.drop, key_of(found.entry.label), found.entry.stamp)

    def cached(self, key: CacheKey) -> bytes | None:
        """The content, if it is there and fresh: a hit."""
        found = self.find(key)
        if found is None:
            return None
        if found.entry.note or not self.is_fresh(found.entry):
            found.close()
            return None
        content = self.content(found)
        if content is not None:
            self.hit(key, len(content))
        return content

    def cached_piece(self, key: CacheKey) -> bytes | None:
        """The content of an entry that never goes bad; not counted."""
        found = self.find(key)
        if found is None:
            return None
        self.touch(key)
        return self.content(found)

    def count(self, counter: int, size: int = 0) -> None:
        """Add one to a counter, and *size* to the bytes saved."""
        self.safely(self.engine.count, counter, size)

    def touch(self, key: CacheKey) -> None:
        """Note that the entry was used."""
        self.safely(self.engine.touch, key)

    def hit(self, key: CacheKey, size: int) -> None:
        """Count a read that *size* bytes of the cache answered."""
        try:
            self.engine.hit(key, size)
        except Exception as error:  # noqa: BLE001 - of the cache, and logged
            self.warn(error)

    # Fetching.

    def generation(self, key: CacheKey) -> int | None:
        """The key's generation, before the backend is asked; None if the cache does not tell, and is not to be filled."""
        found = self.safely(self.engine.generations, [key])
        return None if found is None else found[0]

    def missed(
        self,
        identifier: str,
        key: CacheKey,
        seen: OpenEntry | None,
        take: Callable[[OpenEntry], T | None],
        fetch: Callable[[str, CacheKey], T],
    ) -> T:
        """What a read gives that found nothing good: what another has brought meanwhile, or what it fetches itself.

        Args:
            identifier: the object.
            key: its.
            seen: what it found, closed.
            take: takes what is wanted out of an entry, and closes it unless it is given on; None if it cannot be read.
            fetch: asks the backend, and stores.
        """
        began = self.begin()
        old = None if seen is None else seen.entry.stamp
        with self.flights.alone(key.name):
            found = self.find(key)
            if found is None or found.entry.note:
                if found is not None:
                    found.close()
                self.count(MISSES)
                return self._fetching(identifier, key, fetch)
            entry = found.entry
            # What was fetched after this read began is good, however short its time is.
            fresh = self.is_fresh(entry) or (entry.stamp != old and entry.fetched >= began.at)
            try:
                if not fresh:
                    self.count(EXPIRED)
                    fresh = self.renewed(identifier, key, found)
                if not fresh:
                    given = self._fetching(identifier, key, fetch)
                    self.count(MISSES)
                    found.close()
                    return given
            except Exception as error:
                if not self.serves_stale(identifier, error, entry):
                    self.count(MISSES)
                    found.close()
                    raise
            size = entry.size
            taken = take(found)
            if taken is None:
                self.count(MISSES)
                return self._fetching(identifier, key, fetch)
            self.hit(key, size)
            return taken

    def _fetching(self, identifier: str, key: CacheKey, fetch: Callable[[str, CacheKey], T]) -> T:
        try:
            return fetch(identifier, key)
        except FileNotFoundError:
            self.safely(self.engine.drop, key)
            raise

    def serves_stale(self, identifier: str, error: Exception, entry: CacheEntry) -> bool:
        """Whether an expired entry stands in for a backend that failed, which is logged then."""
        if self._policy.stale_if_error is None or self._policy.ttl is None:
            return False
        if isinstance(error, FileNotFoundError) or entry.fetched < self.engine.trusted_since:
            return False
        if not (is_retryable(error) or isinstance(error, ConnectionError | TimeoutError)):
            return False
        age = self.now() - entry.fetched
        if not 0 <= age < self._policy.ttl + self._policy.stale_if_error:
            return False
        logger.warning(
            "%s is unavailable (%s); %r is given as it was %.0f s ago", self._location, error, identifier, age
        )
        return True

    def _stale(self, identifier: str, key: CacheKey, error: Exception) -> bytes | None:
        """The content of an expired entry that stands in for a backend that failed."""
        found = self.find(key)
        if found is None:
            return None
        if found.entry.note or not self.serves_stale(identifier, error, found.entry):
            found.close()
            return None
        content = self.content(found)
        if content is not None:
            self.hit(key, len(content))
        return content

    def fetched(self, identifier: str, key: CacheKey) -> bytes:
        """The content, from the backend, by one read; and into the cache."""
        generation = self.generation(key)
        before = self._looked(identifier)
        began = self.begin()
        content = self.backend.read(identifier)
        info = self.seen(identifier) or self._unchanged(identifier, before)
        if generation is not None:
            self.store(key, content, began, info, generation)
        return content

    def streamed(self, identifier: str, key: CacheKey) -> OpenEntry | BinaryIO:
        """As `fetched`, by a stream or a download into the cache; the backend's own reader if it does not go in."""
        generation = self.generation(key)
        before = self._looked(identifier)
        began = self.begin()
        reader = self.backend.open(identifier)
        try:
            info = self.seen(identifier)  # which the reader is pinned to
            size = _size_of(reader)
            if generation is not None and size is not None and self._is_downloaded(size):
                found = self._downloaded(identifier, key, size, began, generation)
                if found is not None:
                    reader.close()
                    return found
            staged = None if generation is None else self.safely(self.engine.stage, size)
            if staged is None or generation is None:
                self._outgrown(key)
                return reader
            try:
                if not self._taken_in(reader, staged):
                    self._outgrown(key)
                    reader.seek(0)
                    return reader
                if size is not None and staged.size != size:
                    raise IntegrityError(
                        f"{identifier!r} in {self._location}: {staged.size:,} bytes of {size:,} came",
                        identifier=identifier,
                        backend=self._location,
                    )
                info = info or self._unchanged(identifier, before)
                entry = self._entry(key, staged.size, began, info)
                self.safely(self.engine.publish, [(Publication(key, staged, entry), generation)])
                found = self.safely(staged.found, entry)
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
        self, identifier: str, key: CacheKey, size: int, began: RequestTime, generation: int
    ) -> OpenEntry | None:
        """An object by the backend's `download` into the cache; None if that does not take it."""
        staged = self.safely(self.engine.stage, size)
        if staged is None:
            return None
        try:
            before = self._looked(identifier)
            try:
                staged.fetch(partial(self.backend.download, identifier))
            except StorageError:
                raise
            except Exception as error:  # noqa: BLE001 - of the cache's disk, and logged; if not, it comes again from the reader
                if not isinstance(error, OverCacheLimitError):
                    self.warn(error)
                return None
            info = self.seen(identifier) or self._unchanged(identifier, before)
            entry = self._entry(key, staged.size, began, info)
            self.safely(self.engine.publish, [(Publication(key, staged, entry), generation)])
            return self.safely(staged.found, entry)
        finally:
            self.safely(staged.discard)

    def _outgrown(self, key: CacheKey) -> None:
        """Forget what is known of an object whose present content does not go in: nothing older is given after it."""
        found = self.find(key)
        if found is not None:
            found.close()
            self.safely(self.engine.drop, key)

    def _taken_in(self, reader: BinaryIO, staged: StagedContent) -> bool:
        """Whether the cache has taken all that the reader gave."""
        return all(self._takes(staged, chunk) for chunk in chunks(reader))

    def _takes(self, staged: StagedContent, content: bytes) -> bool:
        try:
            staged.write(content)
        except OverCacheLimitError:
            return False
        except Exception as error:  # noqa: BLE001 - of the cache, and logged
            self.warn(error)
            return False
        return True

    def fetch_many(
        self, missing: list[tuple[str, CacheKey]], failures: Failures
    ) -> Iterator[tuple[str, bytes]]:
        """Read what is missing as one batch, and store it; failures are noted."""
        if not missing:
            return
        keys = dict(missing)
        times = Counter(identifier for identifier, _ in missing)
        found = self.safely(self.engine.generations, list(keys.values()))
        generations = {} if found is None else dict(zip(keys.values(), found, strict=True))
        began = self.begin()
        batch = PublishingBatch(self.engine, self.warn)
        try:
            for identifier, content in self.backend.read_many(list(keys)):
                self.count(MISSES)
                key = keys[identifier]
                generation = generations.get(key)
                if generation is not None:
                    batch.add(self._piece(key, content, began, None, generation))
                yield identifier, content
                for _ in range(times.pop(identifier) - 1):
                    self.hit(key, len(content))
                    yield identifier, content
            batch.flush()
        except BatchError as error:
            batch.flush()
            for identifier, failure in error.failures.items():
                if identifier not in keys:
                    failures.note(identifier, failure)
                    continue
                stale = self._stale(identifier, keys[identifier], failure)
                if stale is not None:
                    yield from [(identifier, stale)] * times[identifier]
                    continue
                if isinstance(failure, FileNotFoundError):
                    self.safely(self.engine.drop, keys[identifier])
                failures.note(identifier, failure)
        except Exception as error:
            batch.flush()
            # All of the batch: what has not come yet may be given as it was, if every object can.
            stood_in = {name: self._stale(name, keys[name], error) for name in times}
            if not all(content is not None for content in stood_in.values()):
                raise
            for identifier, stale in stood_in.items():
                assert stale is not None
                yield from [(identifier, stale)] * times[identifier]

    def store_piece(self, key: CacheKey, content: bytes, entry: CacheEntry, generation: int | None) -> None:
        """Put bytes into the cache under a key of their own, if it takes them; nothing is raised."""
        if generation is None or not self.limit_allows(len(content)):
            return
        self.safely(publish, self.engine, [NewEntry(key, content, entry, generation)])

    def store(
        self, key: CacheKey, content: bytes, began: RequestTime, info: ObjectInfo | None, generation: int
    ) -> None:
        """Put an object's content into the cache, if it takes it; nothing is raised."""
        piece = self._piece(key, content, began, info, generation)
        if piece is not None:
            self.safely(publish, self.engine, [piece])

    def _piece(
        self, key: CacheKey, content: bytes, began: RequestTime, info: ObjectInfo | None, generation: int
    ) -> NewEntry | None:
        """An object's content on its way into the cache; None if that does not take it."""
        if key.name in self.distrusted:
            return None
        if not self.limit_allows(len(content)):
            self._outgrown(key)
            return None
        return NewEntry(key, content, self._entry(key, len(content), began, info), generation)

    def _entry(self, key: CacheKey, size: int, began: RequestTime, info: ObjectInfo | None) -> CacheEntry:
        etag, modified = self.proof(info, began)
        return CacheEntry(key.label, size, began.at, etag, modified, self.stamp())

    def limit_allows(self, size: int) -> bool:
        """Whether the cache may hold content of *size* bytes."""
        return self._policy.limit is None or (self._policy.limit > 0 and size <= self._policy.limit)

    # What the backend tells of what it gave.

    def seen(self, identifier: str) -> ObjectInfo | None:
        """What the backend saw of the object that this thread has just read."""
        return hooks_of(self.backend).last_read(identifier)

    def written(self, identifier: str) -> ObjectInfo | None:
        """What the backend tells of the object that was just written."""
        if not self._compares or self._policy.ttl is None:
            return None
        return hooks_of(self.backend).last_written(identifier)

    def _looked(self, identifier: str) -> ObjectInfo | None:
        """What the object is before it is read; only where that was asked for."""
        return info_of(self.backend.stat(identifier), identifier) if self._policy.revalidate else None

    def _unchanged(self, identifier: str, before: ObjectInfo | None) -> ObjectInfo | None:
        """*before*, if it is so still."""
        if before is None:
            return None
        try:
            after = info_of(self.backend.stat(identifier), identifier)
        except OSError:
            return None
        return before if after == before else None

    # Changing.

    @contextmanager
    def changing(self, identifiers: list[str]) -> Iterator[StoredContents]:
        """Objects are changed in the backend by the body: nothing older is given after it, nor published."""
        keys = {}
        for identifier in identifiers:
            # One that is refused was never cached, and the backend says what is wrong with it.
            with suppress(InvalidIdentifierError, TypeError):
                keys[identifier] = self.key(identifier)
        change = StoredContents()
        begun = self.safely(self.engine.begin, list(keys.values()))
        if begun is None:
            # Their entries may still be there, and found by others; not by us.
            self.distrusted.update(key.name for key in keys.values())
        try:
            yield change
        except BaseException:
            self._end(begun, keys.values())
            raise
        stored = [
            (keys[identifier], *facts) for identifier, facts in change.stored.items() if identifier in keys
        ]
        if begun is not None and len(stored) == 1:
            self._end_and_store(begun, *stored[0])
            return
        alone = self._end(begun, keys.values())
        batch = PublishingBatch(self.engine, self.warn)
        for key, content, began, info in stored:
            if key in alone:
                batch.add(self._piece(key, content, began, info, alone[key]))
        batch.flush()

    def _end_and_store(
        self, begun: PendingWrite, key: CacheKey, content: bytes, began: RequestTime, info: ObjectInfo | None
    ) -> None:
        """The end of a change that has stored one object."""
        staged = None
        if self.limit_allows(len(content)):
            staged = self.safely(self.engine.stage, len(content), key)
        try:
            offer = None
            if staged is not None and self._takes(staged, content):
                offer = Publication(key, staged, self._entry(key, staged.size, began, info))
            self._end(begun, [key], offer)
        finally:
            if staged is not None:
                self.safely(staged.discard)

    def _end(
        self, begun: PendingWrite | None, keys: Iterable[CacheKey], offer: Publication | None = None
    ) -> dict[CacheKey, int]:
        """The end of a change: what the keys' generations are where no other change came between."""
        names = [key.name for key in keys]
        if begun is None:
            return {}
        alone = self.safely(self.engine.end, begun, offer)
        if alone is None:
            self.distrusted.update(names)
            return {}
        self.distrusted.difference_update(names)
        return alone

    # Trouble.

    def safely(self, call: Callable[..., T], *arguments: Any) -> T | None:
        """What a call of the engine gives; None if it fails, which is logged and nothing else."""
        try:
            return call(*arguments)
        except OverCacheLimitError:
            return None
        except Exception as error:  # noqa: BLE001 - of the cache, and logged
            self.warn(error)
            return None


class StoredContents:
    """What a change has stored, for the cache."""

    def __init__(self) -> None:
        self.stored: dict[str, tuple[bytes, RequestTime, ObjectInfo | None]] = {}

    def done(self, identifier: str, content: bytes, began: RequestTime, info: ObjectInfo | None) -> None:
        """The backend has the content."""
        self.stored[identifier] = (content, began, info)


def _machine_time() -> float:
    """Looked up at each use, so that a clock that is put in its place for a while counts."""
    return time.time()


def _seconds(info: ObjectInfo) -> float | None:
    return None if info.modified is None else info.modified.timestamp()


def _size_of(reader: BinaryIO) -> int | None:
    """The bytes from the start of a reader to its end; None if it cannot tell."""
    try:
        size = reader.seek(0, io.SEEK_END)
        reader.seek(0)
    except (OSError, AttributeError):
        return None
    return size


def _engine(
    kind: str,
    directory: Path,
    limit: int | None,
    clock: Callable[[], float],
    warn: Callable[[Exception], object],
) -> CacheEngine:
    if kind == "blobs":
        from storage_backend.wrappers.cached.blobs import BlobEngine

        return BlobEngine(str(directory), limit, clock, warn)
    if kind == "diskcache":
        from storage_backend.wrappers.cached.diskcache import DiskCacheEngine

        return DiskCacheEngine(str(directory), limit, warn)
    raise ConfigurationError(f'engine: {kind!r} is neither "blobs" nor "diskcache"', parameter="engine")
