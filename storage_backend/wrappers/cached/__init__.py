"""CachedStorage: a local disk cache before any backend."""

from storage_backend.wrappers.cached.storage import CachedStorage

__all__ = ["CachedStorage"]
