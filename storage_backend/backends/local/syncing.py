"""Syncs files, directories and file systems to disk, so that they survive power loss."""

from __future__ import annotations

import ctypes
import os
import sys

from storage_backend.backends.local.containment import LIST, ContainedRoot


def sync(fd: int) -> None:
    """Return once the file or directory survives power loss."""
    import fcntl  # Windows has none, and must be able to import this to be refused

    # On macOS, fsync leaves the data in the drive's cache (fsync(2) there).
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def sync_directory(directory: int) -> None:
    """`sync` of a directory whose descriptor may be an O_PATH one."""
    _sync_and_close(os.open(".", LIST, dir_fd=directory))


def sync_path(path: str | os.PathLike[str]) -> None:
    """`sync` of the directory at *path*."""
    _sync_and_close(os.open(path, LIST))


def sync_beneath(root: ContainedRoot, path: bytes) -> None:
    """`sync` of the directory at *path* beneath the root."""
    _sync_and_close(root.open(path, LIST))


def _sync_and_close(fd: int) -> None:
    try:
        sync(fd)
    finally:
        os.close(fd)


def sync_file_system(fd: int) -> None:
    """Return once all that was written to the file system of *fd* survives power loss."""
    if sys.platform != "linux":
        os.sync()
        sync(fd)  # sync(2) may return early where it is not Linux's
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
