"""RemoteStorage: the files beneath one directory of a server reached by SSH."""

from storage_backend.backends.remote.settings import SSHConfig
from storage_backend.backends.remote.storage import RemoteStorage

__all__ = ["RemoteStorage", "SSHConfig"]
