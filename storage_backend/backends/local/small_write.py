"""SmallWriter: writes content that is in memory, with as few system calls as an atomic write takes.

A file without a name (O_TMPFILE) needs one directory operation where nothing is replaced, and three where something is, since
linkat(2) never overwrites: there, a reserved temporary name and rename(2) take half the time. What a kill leaves is
removed by the next write to that directory.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from storage_backend.backends.local.containment import ContainedRoot
from storage_backend.backends.local.leftovers import Leftovers
from storage_backend.backends.local.renaming import ATTEMPTS, clear_way
from storage_backend.file_rights import entry_facts, give_rights, look_at
from storage_backend.files import link_descriptor, open_unnamed
from storage_backend.owners import temporary_name

SMALL = 1 << 20  # bytes; a larger object is staged without a name, so that a kill leaves nothing

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


class SmallWriter:
    """Writes objects of up to SMALL bytes. Safe to use from many threads.

    Args:
        root: the base directory.
        leftovers: of killed writes.
        anonymous: use files without a name where that is faster and the file system has them.
    """

    def __init__(self, root: ContainedRoot, leftovers: Leftovers, *, anonymous: bool) -> None:
        self._root = root
        self._leftovers = leftovers
        self._anonymous = anonymous
        # What the last write found; the next one tries that way first. Only the time depends on it.
        self._expects_new = False

    def write(self, path: bytes, content: bytes) -> None:
        """Make *content* the object at *path*, replacing what was there. Missing directories are created.

        Raises:
            OSError: with EEXIST or ENOTEMPTY, something is in the way; with ENXIO, it is a device, a pipe or a socket.
        """
        for more in ATTEMPTS:
            directory, name, _ = self._root.make_parent(path)
            try:
                self._leftovers.sweep(directory, path[: -len(name)])
                self._write_in(directory, name, content)
            except IsADirectoryError:
                if not more:
                    raise
                clear_way(directory, name)
            except FileExistsError:  # another process has just created it
                if not more:
                    raise
            except FileNotFoundError as error:  # the directory has been removed
                if not more:
                    raise OSError(errno.EAGAIN, "removed as often as it was created", path) from error
            else:
                return
            finally:
                os.close(directory)

    def _write_in(self, directory: int, name: bytes, content: bytes) -> None:
        if self._expects_new:
            try:
                if _write_new(directory, name, content):
                    return
            except FileExistsError:
                self._expects_new = False
        old, attributes = look_at(directory, name)
        if old is None and self._anonymous and _write_new(directory, name, content):
            self._expects_new = True
            return
        _replace(directory, name, old, attributes, content)


def _write_new(directory: int, name: bytes, content: bytes) -> bool:
    """Create *name* from a file that has no name until it is whole; False where the file system has no such files."""
    fd = open_unnamed(directory)
    if fd < 0:
        return False
    try:
        _append(fd, content)
        link_descriptor(fd, directory, name)
    finally:
        os.close(fd)
    return True


def _replace(
    directory: int,
    name: bytes,
    old: os.stat_result | None,
    attributes: dict[str, bytes] | None,
    content: bytes,
) -> None:
    """Write a file with a temporary name and rename it; it gets the rights and *attributes* of the *old* one."""
    regular = old is not None and stat.S_ISREG(old.st_mode)
    mode = 0o666
    if old is not None and regular:
        # Nobody may open more than before, not for a moment, and whose group the new file has is not known yet.
        mode = old.st_mode & 0o777
        if attributes or mode >> 3 & 7 != mode & 7:
            mode &= 0o700
    temporary = temporary_name()
    fd = os.open(temporary, _CREATE, mode, dir_fd=directory)
    try:
        try:
            if old is not None and regular:
                give_rights(fd, old, attributes)
            _append(fd, content)
        finally:
            os.close(fd)  # not later: NFS and FUSE tell only here that a write has failed (close(2))
        if old is None and entry_facts(directory, name) is not None:
            raise FileExistsError(
                errno.EEXIST, os.strerror(errno.EEXIST), name
            )  # with rights that are to be kept
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def _append(fd: int, content: bytes) -> None:
    written = os.write(fd, content)
    while written < len(content):
        written += os.write(fd, memoryview(content)[written:])
