"""EncryptedStorage: a backend whose objects are stored encrypted.

Read in this order:

    keys      the master keys, by their ids
    chunks    the format of an encrypted object: a header, and chunks, each authenticated
    storage   EncryptedStorage: the public methods that differ from those of wrappers.recoding
"""

from storage_backend.wrappers.encrypted.storage import EncryptedStorage

__all__ = ["EncryptedStorage"]
