"""Syncs files, directories and file systems to disk."""

from __future__ import annotations

import ctypes
import os
import sys

from storage_backend.backends.local.containment import LIST, ContainedRoot


def sync(fd: int) -> None:
    """Return once the file or directory survives power loss."""
    import fcntl  # not at the top: Windows has none, and must be able to import this module to be refused

    # On macOS, fsync leaves the data in the drive's cache (fsync(2)).
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def sync_directory(directory: int) -> None:
    """`sync` a directory. The descriptor may be opened with O_PATH."""
    _sync_and_close(os.open(".", LIST, dir_fd=directory))


def sync_path(path: str | os.PathLike[str]) -> None:
    """`sync` the directory at *path*."""
    _sync_and_close(os.open(path, LIST))


def sync_beneath(root: ContainedRoot, path: bytes) -> None:
    """`sync` the directory at *path* beneath the root."""
    _sync_and_close(root.open(path, LIST))


def _sync_and_close(fd: int) -> None:
    try:
        sync(fd)
    finally:
        os.close(fd)


def sync_file_system(fd: int) -> None:
    """Return once all writes to the file system of *fd* survive power loss."""
    if sys.platform != "linux":
        os.sync()
        sync(fd)  # outside Linux, sync(2) may return before the writes are done
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
