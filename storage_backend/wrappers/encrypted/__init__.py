"""EncryptedStorage: a backend whose objects are stored encrypted."""

from storage_backend.wrappers.encrypted.storage import EncryptedStorage

__all__ = ["EncryptedStorage"]
