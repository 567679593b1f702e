"""Publishing: contents go into the cache together, since a transaction takes longer than storing what is small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from storage_backend.wrappers.cached.engine import CacheEngine, Publication
from storage_backend.wrappers.cached.entry import CacheEntry, CacheKey
from storage_backend.wrappers.cached.staged import HELD, OverCacheLimitError, StagedContent

MOST = 64  # contents that go in together: others' transactions wait meanwhile
MOST_BYTES = 4 << 20
LONGEST = 0.05  # seconds that a content waits for those after it: with a slow backend, others find it soon


class NewEntry(NamedTuple):
    """What goes into the cache.

    Attributes:
        key: of the entry.
        content: of it.
        entry: its metadata.
        generation: of the key, from before the backend was asked.
    """

    key: CacheKey
    content: bytes
    entry: CacheEntry
    generation: int


def publish(engine: CacheEngine, entries: Sequence[NewEntry]) -> None:
    """Put entries into the cache, but for those that it has no room for.

    Raises:
        OSError, or an error of the engine's database: none of them is in it.
    """
    publications: list[tuple[Publication, int]] = []
    try:
        for key, content, entry, generation in entries:
            staged = stage_content(engine, content)
            if staged is not None:
                publications.append((Publication(key, staged, entry), generation))
        if publications:
            engine.publish(publications)
    finally:
        for publication, _ in publications:
            publication.staged.discard()


def stage_content(
    engine: CacheEngine, content: bytes, replacing: CacheKey | None = None
) -> StagedContent | None:
    """The content, staged; None if the cache has no room for it."""
    staged = None
    try:
        staged = engine.stage(len(content), replacing)
        if staged is not None:
            staged.write(content)
    except BaseException as error:
        if staged is not None:
            staged.discard()
        if isinstance(error, OverCacheLimitError):
            return None
        raise
    return staged


class PublishingBatch:
    """Gathers entries, and publishes them in groups.

    What is not flushed is dropped with it, which loses nothing.

    Args:
        engine: of the cache.
        warn: is told why a group could not be published.
    """

    def __init__(self, engine: CacheEngine, warn: Callable[[Exception], object]) -> None:
        self._engine = engine
        self._warn = warn
        self._entries: list[NewEntry] = []
        self._size = 0
        self._begun = 0.0

    def add(self, entry: NewEntry | None) -> None:
        """Publish an entry, now or with those that follow; None is ignored."""
        if entry is None:
            return
        size = len(entry.content)
        if size > HELD:
            # Its room is made before it is written, and what is gathered must not wait for that.
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
        """Publish what has been gathered; nothing is raised."""
        entries, self._entries, self._size = self._entries, [], 0
        if not entries:
            return
        try:
            publish(self._engine, entries)
        except Exception as error:  # noqa: BLE001 - of the cache, and logged
            self._warn(error)
