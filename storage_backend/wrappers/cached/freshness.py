"""Freshness: when an entry is stale, and what proves that it still is right."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from storage_backend.base import StorageBackend
from storage_backend.defensive import info_of, location_of
from storage_backend.errors import is_retryable
from storage_backend.hooks import Hooks, hooks_of
from storage_backend.info import ObjectInfo, is_racy
from storage_backend.wrappers.cached.engine import CacheEngine
from storage_backend.wrappers.cached.entry import CacheEntry, CacheKey

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachePolicy:
    """The arguments of a CachedStorage.

    Attributes:
        limit: content bytes at most; None for any number.
        ttl: seconds that an entry is fresh; None for ever.
        revalidate: see CachedStorage.
        stale_if_error: seconds after its expiry that an entry may stand in for a backend that is unavailable.
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

    def now(self) -> float:
        """The time by the clock; `time.time` is looked up at each call, so that one that is patched in for a while counts."""
        return time.time() if self.clock is None else self.clock()


class BackendRequest(NamedTuple):
    """A moment right before the backend is asked.

    Attributes:
        at: by the clock of the policy, which entries are timed by.
        wall: by the machine's, which the times of objects compare with.
        before: what the object was then, where that was asked for.
    """

    at: float
    wall: float
    before: ObjectInfo | None


class Freshness:
    """Decides whether entries may be given.

    Args:
        backend: what is cached.
        policy: what was asked for.
        engine: tells since when entries are trusted.
    """

    def __init__(self, backend: StorageBackend, policy: CachePolicy, engine: CacheEngine) -> None:
        self._backend = backend
        self._hooks = hooks_of(backend)
        self._reads_tell = type(self._hooks).last_read is not Hooks.last_read
        self._policy = policy
        self._ttl = policy.ttl
        self._clock = policy.now
        self._engine = engine
        self._stamps = itertools.count(int.from_bytes(os.urandom(5)) << 24)
        self._revalidates = policy.revalidate is not False
        self._location = location_of(backend)
        # A local file is read as fast as it is looked at, so its time is not asked for by default.
        self._compares_times = not (policy.revalidate is None and self._location.startswith("file:"))

    def is_fresh(self, entry: CacheEntry) -> bool:
        """Whether an entry may be given without asking the backend."""
        if entry.fetched < self._engine.trusted_since:
            return False
        return self._ttl is None or 0 <= self._clock() - entry.fetched < self._ttl

    def still_right(self, identifier: str, entry: CacheEntry) -> BackendRequest | None:
        """Revalidate a stale entry: the request that has proven it right; None if it is not, or that cannot be proven.

        Raises:
            FileNotFoundError: the object is gone.
            StorageError: the backend cannot tell.
        """
        if not self._revalidates or (entry.etag is None and entry.modified is None):
            return None
        request = self.ask()
        info = info_of(self._backend.stat(identifier), identifier)
        if entry.etag is not None:
            right = info.etag == entry.etag
        else:
            right = info.size == entry.size and _seconds(info) == entry.modified
        return request if right else None

    def serves_stale(self, identifier: str, error: Exception, entry: CacheEntry) -> bool:
        """Whether a stale entry stands in for a backend that failed with *error*, which is logged then."""
        if self._policy.stale_if_error is None or self._ttl is None:
            return False
        if isinstance(error, FileNotFoundError) or entry.fetched < self._engine.trusted_since:
            return False
        if not (is_retryable(error) or isinstance(error, ConnectionError | TimeoutError)):
            return False
        age = self._clock() - entry.fetched
        if not 0 <= age < self._ttl + self._policy.stale_if_error:
            return False
        logger.warning(
            "%s is unavailable (%s); %r is given as it was %.0f s ago", self._location, error, identifier, age
        )
        return True

    # What a new entry records, to be revalidated by.

    def ask(self, identifier: str | None = None) -> BackendRequest:
        """The moment before the backend is asked; with revalidate=True and an *identifier*, what the object is then."""
        before = None
        if identifier is not None and self._policy.revalidate:
            before = info_of(self._backend.stat(identifier), identifier)
        return BackendRequest(self._clock(), time.time(), before)

    def entry(self, key: CacheKey, size: int, request: BackendRequest, info: ObjectInfo | None) -> CacheEntry:
        """The metadata of content of *size* bytes that *request* gave, with the validators in *info*."""
        etag, modified = self.validator(request, info)
        return CacheEntry(key.label, size, request.at, etag, modified, next(self._stamps))

    def entry_read(self, identifier: str, key: CacheKey, size: int, request: BackendRequest) -> CacheEntry:
        """The metadata of content that this thread has just read."""
        return self.entry(key, size, request, self.seen(identifier) or self.unchanged(identifier, request))

    def validator(self, request: BackendRequest, info: ObjectInfo | None) -> tuple[str | None, float | None]:
        """The validator: an etag, or a modification time where that proves something (RFC 9110, 8.8)."""
        if info is None or not self._revalidates:
            return None, None
        if info.etag is not None:
            return info.etag, None
        modified = _seconds(info)
        if not self._compares_times or modified is None or is_racy(modified, request.wall):
            return None, None
        return None, modified

    def seen(self, identifier: str) -> ObjectInfo | None:
        """What the backend saw of the object that this thread has just read."""
        return self._hooks.last_read(identifier) if self._reads_tell else None

    def written(self, identifier: str) -> ObjectInfo | None:
        """What the backend tells of the object that this thread has just written."""
        if not self._revalidates or self._ttl is None:
            return None
        return self._hooks.last_written(identifier)

    def unchanged(self, identifier: str, request: BackendRequest) -> ObjectInfo | None:
        """What the object was before the request, if it is unchanged after it."""
        if request.before is None:
            return None
        try:
            after = info_of(self._backend.stat(identifier), identifier)
        except OSError:
            return None
        return after if after == request.before else None


def _seconds(info: ObjectInfo) -> float | None:
    return None if info.modified is None else info.modified.timestamp()
