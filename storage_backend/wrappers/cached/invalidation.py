"""Invalidation: what a write of objects in the backend does to their entries.

The engine drops the entries before the backend is called, so that nobody is given the old content while nobody knows which one the
object has. After the call it raises their generations, so that no fetch that began before is published, and publishes what
was written, unless another write came between. Where the engine fails, the entries are distrusted: this instance does
not use them until a later write or fetch of theirs succeeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from storage_backend.errors import InvalidIdentifierError
from storage_backend.info import ObjectInfo
from storage_backend.wrappers.cached.cache import ObjectCache
from storage_backend.wrappers.cached.engine import PendingWrite
from storage_backend.wrappers.cached.entry import CacheKey
from storage_backend.wrappers.cached.freshness import BackendRequest
from storage_backend.wrappers.cached.publishing import PublishingBatch
from storage_backend.wrappers.cached.staged import Publication, stage_content


class WrittenContents:
    """The contents that a write has stored in the backend, to be published.

    Attributes:
        request: when the write began.
        contents: by identifier, each with what is known of the object.
    """

    def __init__(self, request: BackendRequest) -> None:
        self.request = request
        self.contents: dict[str, tuple[bytes, ObjectInfo | None]] = {}

    def add(self, identifier: str, content: bytes, info: ObjectInfo | None = None) -> None:
        """The backend has the content."""
        self.contents[identifier] = content, info


@contextmanager
def writing(cache: ObjectCache, identifiers: Sequence[str]) -> Iterator[WrittenContents]:
    """The body writes objects in the backend: nothing older is given after it, nor published."""
    keys = {}
    for identifier in identifiers:
        # One that is refused was never cached, and the backend says what is wrong with it.
        with suppress(InvalidIdentifierError, TypeError):
            keys[identifier] = cache.key(identifier)
    pending = cache.safely(cache.engine.begin, list(keys.values()))
    if pending is None:
        # Their entries may still be there.
        cache.distrusted.update(key.name for key in keys.values())
    written = WrittenContents(cache.freshness.ask())
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
    """The end of a write of one object, which is published in the same transaction."""
    content, info = written.contents[identifier]
    staged = None
    if cache.limit_allows(len(content)):
        staged = cache.safely(stage_content, cache.engine, content, key)
    if staged is None:
        _end(cache, pending, [key])
        return
    try:
        entry = cache.freshness.entry(key, staged.size, written.request, info)
        _end(cache, pending, [key], Publication(key, staged, entry))
    finally:
        cache.safely(staged.discard)


def _end(
    cache: ObjectCache,
    pending: PendingWrite | None,
    keys: Iterable[CacheKey],
    publication: Publication | None = None,
) -> dict[CacheKey, int]:
    """The end of a write: the new generations of the keys that no other write has touched in the meantime."""
    if pending is None:
        return {}
    generations = cache.safely(cache.engine.end, pending, publication)
    if generations is None:
        cache.distrusted.update(key.name for key in keys)
        return {}
    if cache.distrusted:
        cache.distrusted.difference_update([key.name for key in keys])
    return generations
