"""LocalStorage: the files beneath one directory."""

from storage_backend.backends.local.storage import LocalStorage

__all__ = ["LocalStorage"]
