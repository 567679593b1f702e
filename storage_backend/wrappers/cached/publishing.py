"""PublishingBatch: publishes entries in groups, because a transaction takes longer than storing a small entry."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from storage_backend.wrappers.cached.engine import CacheEngine
from storage_backend.wrappers.cached.staged import HELD, NewEntry, publish

MOST = 64  # entries per transaction; other transactions wait meanwhile
MOST_BYTES = 4 << 20
LONGEST = 0.05  # seconds that an entry waits for the next ones, so that a slow backend does not delay it


class PublishingBatch:
    """Gathers new entries, and publishes them in groups.

    Unflushed entries are dropped with it: they are only not cached.

    Args:
        engine: of the cache.
        warn: called with the error if a group could not be published.
    """

    def __init__(self, engine: CacheEngine, warn: Callable[[Exception], object]) -> None:
        self._engine = engine
        self._warn = warn
        self._entries: list[NewEntry] = []
        self._size = 0
        self._begun = 0.0

    def add(self, entry: NewEntry | None) -> None:
        """Publish an entry, now or with the next ones; None is ignored."""
        if entry is None:
            return
        size = len(entry.content)
        if size > HELD:
            # It reserves room before it is written, and the gathered entries must not wait for that.
            self.flush()
        now = monotonic()
        if not self._entries:
            self._begun = now
        self._entries.append(entry)
        self._size += size
        if (
            size > HELD
            or len(self._entries) >= MOST
            or self._size >= MOST_BYTES
            or now - self._begun >= LONGEST
        ):
            self.flush()

    def flush(self) -> None:
        """Publish the gathered entries; raises nothing."""
        entries, self._entries, self._size = self._entries, [], 0
        if not entries:
            return
        try:
            publish(self._engine, entries)
        except Exception as error:  # noqa: BLE001 - of the cache, and logged
            self._warn(error)
