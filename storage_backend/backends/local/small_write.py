"""SmallWriter: atomic writes of small content, with as few system calls as possible.

A new object is an unnamed file (O_TMPFILE) that is linked to its name: one directory operation. linkat(2) never overwrites, so an
existing object is replaced by a file with a temporary name and rename(2), in half the time. The next write to that directory removes
the temporary file of a killed process.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from storage_backend.backends.local.containment import ContainedRoot
from storage_backend.backends.local.leftovers import Leftovers
from storage_backend.backends.local.renaming import ATTEMPTS, clear_way
from storage_backend.file_rights import attributes_of, entry_facts, give_rights
from storage_backend.files import link_descriptor, open_unnamed
from storage_backend.owners import temporary_name

SMALL = 1 << 20  # bytes; larger objects are staged unnamed, so that a killed process leaves nothing
SPECULATIVE = 64 << 10  # bytes; of larger content, an attempt that fails costs more than to look first

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


class SmallWriter:
    """Writes objects of up to SMALL bytes. Safe to use from many threads.

    Args:
        root: the base directory.
        leftovers: removes temporary files of killed processes.
        anonymous: use unnamed files where that is faster and the file system supports them.
    """

    def __init__(self, root: ContainedRoot, leftovers: Leftovers, *, anonymous: bool) -> None:
        self._root = root
        self._leftovers = leftovers
        self._anonymous = anonymous
        # Whether the last write created an object; the next one then tries that first. Only its duration depends on it.
        self._expects_new = False

    def write(self, path: bytes, content: bytes) -> None:
        """Create or replace the object at *path*. Missing directories are created.

        Raises:
            OSError: EEXIST or ENOTEMPTY: a directory that is not empty, or a file, is in the way; ENXIO: *path* is a device, a pipe or
                a socket.
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
        if self._expects_new and len(content) <= SPECULATIVE:
            try:
                if _write_new(directory, name, content):
                    return
            except FileExistsError:
                self._expects_new = False
        old = entry_facts(directory, name)
        if old is not None and stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fsdecode(name))
        attributes = attributes_of(directory, name) if old is not None and stat.S_ISREG(old.st_mode) else None
        if old is None and self._anonymous and _write_new(directory, name, content):
            self._expects_new = True
            return
        _replace(directory, name, old, attributes, content)


def _write_new(directory: int, name: bytes, content: bytes) -> bool:
    """Create *name* by linking an unnamed file. Returns False if the file system does not support that."""
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
    """Write a file with a temporary name and rename it. It gets the rights and *attributes* of the *old* one."""
    regular = old is not None and stat.S_ISREG(old.st_mode)
    mode = 0o666
    if old is not None and regular:
        # The new file must never be more accessible than the old one, and its group is not known yet.
        mode = old.st_mode & 0o777
        if attributes or mode >> 3 & 7 != mode & 7:
            mode &= 0o700
    temporary = temporary_name()
    try:
        fd = os.open(temporary, _CREATE, mode, dir_fd=directory)
        try:
            if old is not None and regular:
                give_rights(fd, old, attributes)
            _append(fd, content)
        finally:
            os.close(fd)  # before the rename: NFS and FUSE may report a failed write only here (close(2))
        if old is None and entry_facts(directory, name) is not None:
            # Created meanwhile: the next attempt keeps its rights.
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def _append(fd: int, content: bytes) -> None:
    written = os.write(fd, content)
    while written < len(content):
        written += os.write(fd, memoryview(content)[written:])
