"""Freshness: decides when an entry is stale, and revalidates stale entries."""

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
        limit: of the content, in bytes; None for no limit.
        ttl: seconds for which an entry is fresh; None for ever.
        revalidate: see CachedStorage.
        stale_if_error: seconds after its expiry for which an entry may be used while the backend is unavailable.
        clock: seconds since the epoch; None for `time.time`.
        namespace: distinguishes the backend from others; None to use its location.
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
        """The present time. `time.time` is looked up at each call, so that tests can patch it."""
        return time.time() if self.clock is None else self.clock()


class BackendRequest(NamedTuple):
    """The moment before a request to the backend.

    Attributes:
        at: by the clock of the policy, for the age of entries.
        wall: by the machine's clock, to compare with modification times.
        before: the object's info at that moment, if it was requested.
    """

    at: float
    wall: float
    before: ObjectInfo | None


class Freshness:
    """Decides whether entries may be used.

    Args:
        backend: what is cached.
        policy: the arguments.
        engine: its `trusted_since` bounds the age of entries.
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
        # Reading a local file is as fast as a stat, so by default its time is not used as a validator.
        self._compares_times = not (policy.revalidate is None and self._location.startswith("file:"))

    def is_fresh(self, entry: CacheEntry) -> bool:
        """Whether an entry may be used without asking the backend."""
        if entry.fetched < self._engine.trusted_since:
            return False
        return self._ttl is None or 0 <= self._clock() - entry.fetched < self._ttl

    def revalidate(self, identifier: str, entry: CacheEntry) -> BackendRequest | None:
        """Revalidate a stale entry: the request that proved it valid; None if it is invalid, or cannot be validated.

        Raises:
            FileNotFoundError: the object is gone.
            StorageError: `stat` failed.
        """
        if not self._revalidates or (entry.etag is None and entry.modified is None):
            return None
        request = self.ask()
        info = info_of(self._backend.stat(identifier), identifier)
        if entry.etag is not None:
            valid = info.etag == entry.etag
        else:
            valid = info.size == entry.size and _seconds(info) == entry.modified
        return request if valid else None

    def serves_stale(self, identifier: str, error: Exception, entry: CacheEntry) -> bool:
        """Whether a stale entry may be used after the backend failed with *error*; then that is logged."""
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
            "%s is unavailable (%s); returning %r as it was %.0f s ago",
            self._location,
            error,
            identifier,
            age,
        )
        return True

    # The metadata of new entries.

    def ask(self, identifier: str | None = None) -> BackendRequest:
        """The moment before a request; with revalidate=True and an *identifier*, also the object's info."""
        before = None
        if identifier is not None and self._policy.revalidate:
            before = info_of(self._backend.stat(identifier), identifier)
        return BackendRequest(self._clock(), time.time(), before)

    def entry(self, key: CacheKey, size: int, request: BackendRequest, info: ObjectInfo | None) -> CacheEntry:
        """The metadata of content of *size* bytes from *request*, with the validators in *info*."""
        etag, modified = self.validator(request, info)
        return CacheEntry(key.label, size, request.at, etag, modified, next(self._stamps))

    def entry_read(self, identifier: str, key: CacheKey, size: int, request: BackendRequest) -> CacheEntry:
        """The metadata of content that this thread has just read."""
        return self.entry(key, size, request, self.seen(identifier) or self.unchanged(identifier, request))

    def validator(self, request: BackendRequest, info: ObjectInfo | None) -> tuple[str | None, float | None]:
        """The validator: an etag, or a modification time that is old enough to prove something (RFC 9110, 8.8)."""
        if info is None or not self._revalidates:
            return None, None
        if info.etag is not None:
            return info.etag, None
        modified = _seconds(info)
        if not self._compares_times or modified is None or is_racy(modified, request.wall):
            return None, None
        return None, modified

    def seen(self, identifier: str) -> ObjectInfo | None:
        """The backend's info of the object that this thread has just read."""
        return self._hooks.last_read(identifier) if self._reads_tell else None

    def written(self, identifier: str) -> ObjectInfo | None:
        """The backend's info of the object that this thread has just written."""
        if not self._revalidates or self._ttl is None:
            return None
        return self._hooks.last_written(identifier)

    def unchanged(self, identifier: str, request: BackendRequest) -> ObjectInfo | None:
        """The object's info before the request, if it is the same afterwards."""
        if request.before is None:
            return None
        try:
            after = info_of(self._backend.stat(identifier), identifier)
        except OSError:
            return None
        return after if after == request.before else None


def _seconds(info: ObjectInfo) -> float | None:
    return None if info.modified is None else info.modified.timestamp()
