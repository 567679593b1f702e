"""CompressedStorage: a backend whose objects are stored compressed.

Read in this order:

    frames    the format of a compressed object: a header, zstd frames, and a seek table
    storage   CompressedStorage: the public methods that differ from those of wrappers.recoding
"""

from storage_backend.wrappers.compressed.storage import CompressedStorage

__all__ = ["CompressedStorage"]
