"""Prefetch: reads missing objects from the backend as one batch, and publishes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from storage_backend.errors import BatchError, Failures
from storage_backend.wrappers.cached.cache import ObjectCache
from storage_backend.wrappers.cached.entry import CacheKey, OpenEntry
from storage_backend.wrappers.cached.publishing import PublishingBatch
from storage_backend.wrappers.cached.users import MISSES


def fetch_many(
    cache: ObjectCache, missing: list[tuple[str, CacheKey]], failures: Failures
) -> Iterator[tuple[str, bytes]]:
    """Read objects as one batch, and publish them; note failures. A repeated identifier yields its object as often."""
    if not missing:
        return
    keys = dict(missing)
    times = Counter(identifier for identifier, _ in missing)
    found = cache.safely(cache.engine.generations, list(keys.values()))
    generations = {} if found is None else dict(zip(keys.values(), found, strict=True))
    request = cache.freshness.ask()
    batch = PublishingBatch(cache.engine, cache.warn)
    try:
        for identifier, content in cache.backend.read_many(list(keys)):
            cache.count(MISSES)
            key = keys[identifier]
            if key in generations:
                batch.add(cache.new_entry(key, content, request, None, generations[key]))
            yield identifier, content
            for _ in range(times.pop(identifier) - 1):
                cache.hit(key, len(content))
                yield identifier, content
        batch.flush()
    except BatchError as error:
        batch.flush()
        for identifier, failure in error.failures.items():
            if identifier not in keys:
                failures.note(identifier, failure)
                continue
            stale = _stale(cache, identifier, keys[identifier], failure)
            if stale is not None:
                yield from [(identifier, stale)] * times[identifier]
                continue
            if isinstance(failure, FileNotFoundError):
                cache.safely(cache.engine.drop, keys[identifier])
            failures.note(identifier, failure)
    except Exception as error:
        batch.flush()
        # The whole batch failed: stale entries are used only if all missing objects have one.
        stood_in: list[tuple[str, bytes]] = []
        for identifier, count in times.items():
            stale = _stale(cache, identifier, keys[identifier], error)
            if stale is None:
                raise
            stood_in += [(identifier, stale)] * count
        yield from stood_in


def _stale(cache: ObjectCache, identifier: str, key: CacheKey, error: Exception) -> bytes | None:
    """The content of a stale entry that may be used after the backend failed."""
    found = cache.find(key)
    if found is None:
        return None
    if not cache.freshness.serves_stale(identifier, error, found.entry):
        found.close()
        return None
    return cache.take(key, found, OpenEntry.content)
