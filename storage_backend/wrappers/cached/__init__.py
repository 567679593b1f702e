"""CachedStorage: a cache on the local disk in front of any backend.

Read in this order:

    storage         CachedStorage: the public methods, each a lookup, or a write that invalidates
    cache           ObjectCache: finds an entry, or has one reader fetch the object, and publishes it
    freshness       when an entry is stale, how it is revalidated, what a new one records for that
    invalidation    drops and publishes entries around a write in the backend
    single_flight   of many readers that miss the same object, one fetches it
    ranges          blocks of large objects; prefetch: many small objects; publishing: many entries in one transaction
    namespaces      keeps the entries of several backends apart
    engine          the interface of storage engines; diskcache: the engine over python-diskcache
    blobs           our engine: one file an entry (entry, staged, layout), and index, an SQLite database for writers
    eviction        keeps a blob cache within its limit, least recently used first
    pending_writes  shows other processes the writes in progress; users: liveness and counters; formats: the version
    recovery        repairs the cache after a kill, a loss of power, or damage
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from storage_backend.errors import NotFoundError
from storage_backend.paths import expanded
from storage_backend.wrappers.cached import diskcache
from storage_backend.wrappers.cached.blobs import BlobEngine
from storage_backend.wrappers.cached.engine import CacheEngine
from storage_backend.wrappers.cached.formats import formats_in
from storage_backend.wrappers.cached.storage import CachedStorage

logger = logging.getLogger(__name__)

__all__ = ["CachedStorage", "open_cache"]


def open_cache(directory: str | os.PathLike[str]) -> CacheEngine:
    """Open the cache in a directory, to inspect and repair it without its backend.

    Raises:
        NotFoundError: there is none.
        ConfigurationError: it has another format.
    """
    path = Path(expanded(directory)).absolute()
    try:
        found = formats_in(str(path))
    except (FileNotFoundError, NotADirectoryError):
        found = []
    if not found:
        raise NotFoundError(f"no cache in {path}", backend=str(path))
    if found == [diskcache.FORMAT]:
        return diskcache.DiskCacheEngine(str(path), None, logger.warning)
    return BlobEngine(str(path), None, time.time, logger.warning)
