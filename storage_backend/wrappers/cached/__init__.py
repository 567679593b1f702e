"""CachedStorage: a local disk cache before any backend."""

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
    """The cache that is in a directory, to be looked at and mended without its backend.

    Raises:
        NotFoundError: there is none.
        ConfigurationError: it is of another format.
    """
    place = Path(expanded(directory))
    try:
        found = formats_in(str(place))
    except (FileNotFoundError, NotADirectoryError):
        found = []
    if not found:
        raise NotFoundError(f"no cache in {place}", backend=str(place))
    if found == [diskcache.FORMAT]:
        return diskcache.DiskCacheEngine(str(place.absolute()), None, logger.warning)
    return BlobEngine(str(place.absolute()), None, time.time, logger.warning)
