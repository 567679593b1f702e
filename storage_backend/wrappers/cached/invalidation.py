"""Invalidation: drops and publishes entries around a write in the backend.

The engine drops the entries before the backend is called, so that nobody reads the old content while the outcome is unknown. After
the call it raises their generations, so that no earlier fetch is published, and publishes the content written, unless
another write came in between. If the engine fails, the entries are distrusted: this instance does not use them until a
later write or fetch of the same object succeeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from storage_backend.errors import InvalidIdentifierError
from storage_backend.info import ObjectInfo
from storage_backend.wrappers.cached.cache import ObjectCache
from storage_backend.wrappers.cached.engine import PendingWrite
from storage_backend.wrappers.cached.entry import CacheKey
from storage_backend.wrappers.cached.freshness import BackendRequest
from storage_backend.wrappers.cached.publishing import PublishingBatch
from storage_backend.wrappers.cached.staged import Publication, stage_content


@dataclass
class WrittenContents:
    """The contents that a write has stored in the backend, for publication.

    Attributes:
        request: when the write began.
        contents: identifier -> content and info of the object; filled by the body.
    """

    request: BackendRequest
    contents: dict[str, tuple[bytes, ObjectInfo | None]] = field(default_factory=dict)


@contextmanager
def writing(cache: ObjectCache, identifiers: Sequence[str]) -> Iterator[WrittenContents]:
    """Wraps a write in the backend: afterwards nothing older is returned or published."""
    keys = {}
    for identifier in identifiers:
        # An invalid identifier was never cached, and the backend raises the error.
        with suppress(InvalidIdentifierError, TypeError):
            keys[identifier] = cache.key(identifier)
    # First, since a clock of the user's may raise: nothing is pending yet.
    written = WrittenContents(cache.freshness.ask())
    pending = cache.safely(cache.engine.begin, list(keys.values()))
    if pending is None:
        # Their entries may still exist.
        cache.distrusted.update(key.name for key in keys.values())
    try:
        yield written
    except BaseException:
        _end(cache, pending, keys.values())
        raise
    if pending is not None and len(written.contents) == len(keys) == 1:
        _end_and_publish(cache, pending, written, *keys.popitem())
        return
    generations = _end(cache, pending, keys.values())
    batch = PublishingBatch(cache.engine, cache.warn)
    for name, (content, info) in written.contents.items():
        key = keys.get(name)
        if key is not None and key in generations:
            batch.add(cache.new_entry(key, content, written.request, info, generations[key]))
    batch.flush()


def _end_and_publish(
    cache: ObjectCache, pending: PendingWrite, written: WrittenContents, identifier: str, key: CacheKey
) -> None:
    """End a write of one object, and publish it in the same transaction."""
    content, info = written.contents[identifier]
    staged = cache.safely(stage_content, cache.engine, content, key)
    if staged is None:
        _end(cache, pending, [key])
        return
    try:
        entry = cache.freshness.entry(key, staged.size, written.request, info)
        _end(cache, pending, [key], Publication(key, staged, entry))
    finally:
        if staged.pending:
            cache.safely(staged.discard)


def _end(
    cache: ObjectCache,
    pending: PendingWrite | None,
    keys: Iterable[CacheKey],
    publication: Publication | None = None,
) -> dict[CacheKey, int]:
    """End a write; return the new generations of the keys without another write in the meantime."""
    if pending is None:
        return {}
    generations = cache.safely(cache.engine.end, pending, publication)
    if generations is None:
        cache.distrusted.update(key.name for key in keys)
        return {}
    if cache.distrusted:
        cache.distrusted.difference_update([key.name for key in keys])
    return generations
