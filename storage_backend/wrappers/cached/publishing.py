"""PublishingBatch: contents that go into the cache together, since a transaction takes longer than to store what is small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from storage_backend.wrappers.cached.engine import (
    HELD,
    CacheEngine,
    CacheKey,
    OverCacheLimitError,
    Publication,
    StagedContent,
)
from storage_backend.wrappers.cached.entry import CacheEntry

MOST = 64  # contents that go in together: others' changes wait meanwhile
MOST_BYTES = 4 << 20
LONGEST = 0.05  # seconds that one waits for those after it: where the backend is slow, others find it soon


class NewEntry(NamedTuple):
    """What goes into the cache.

    Attributes:
        key: of the entry.
        content: of it.
        entry: what else is known of it.
        generation: of the key, from before the backend was asked.
    """

    key: CacheKey
    content: bytes
    entry: CacheEntry
    generation: int


def publish(engine: CacheEngine, pieces: Sequence[NewEntry]) -> None:
    """Put them into the cache, but for those that it does not take.

    Raises:
        OSError, or an error of the engine's database: none of them is in it.
    """
    offers: list[tuple[Publication, int]] = []
    try:
        for key, content, entry, generation in pieces:
            staged = _staged(engine, content)
            if staged is not None:
                offers.append((Publication(key, staged, entry), generation))
        if offers:
            engine.publish(offers)
    finally:
        for offer, _ in offers:
            offer.staged.discard()


def _staged(engine: CacheEngine, content: bytes) -> StagedContent | None:
    """The content, taken in; None if the cache has no room for it."""
    try:
        staged = engine.stage(len(content))
    except OverCacheLimitError:
        return None
    if staged is None:
        return None
    try:
        staged.write(content)
    except OverCacheLimitError:
        staged.discard()
        return None
    except BaseException:
        staged.discard()
        raise
    return staged


class PublishingBatch:
    """Contents of a batch that comes from the backend, or went to it, on their way into the cache.

    What is not flushed is dropped with it, which loses nothing.

    Args:
        engine: of the cache.
        warn: is told why nothing of a group could be published.
    """

    def __init__(self, engine: CacheEngine, warn: Callable[[Exception], object]) -> None:
        self._engine = engine
        self._warn = warn
        self._pieces: list[NewEntry] = []
        self._size = 0
        self._begun = 0.0

    def add(self, piece: NewEntry | None) -> None:
        """Put one into the cache, now or with those that follow; None is passed over."""
        if piece is None:
            return
        size = len(piece.content)
        if size > HELD:
            # For it, room is made before it is written.
            self.flush()
        now = monotonic()
        if not self._pieces:
            self._begun = now
        self._pieces.append(piece)
        self._size += size
        if (
            size > HELD
            or len(self._pieces) >= MOST
            or self._size >= MOST_BYTES
            or now - self._begun >= LONGEST
        ):
            self.flush()

    def flush(self) -> None:
        """Put what has been added into the cache; nothing is raised."""
        pieces, self._pieces, self._size = self._pieces, [], 0
        if not pieces:
            return
        try:
            publish(self._engine, pieces)
        except Exception as error:  # noqa: BLE001 - of the cache, and logged
            self._warn(error)
