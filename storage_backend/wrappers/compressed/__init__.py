"""CompressedStorage: a backend whose objects are stored compressed."""

from storage_backend.wrappers.compressed.storage import CompressedStorage

__all__ = ["CompressedStorage"]
