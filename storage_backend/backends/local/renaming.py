"""Renames within the directory tree, while other processes remove and create directories."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from storage_backend.backends.local.containment import LIST, ContainedRoot
from storage_backend.backends.local.syncing import sync_beneath, sync_directory
from storage_backend.file_rights import entry_facts
from storage_backend.owners import temporary_name

# Other processes may keep removing a directory or creating one in the way. Each item: whether another attempt follows.
ATTEMPTS = (*[True] * 99, False)


def rename(root: ContainedRoot, directory: int, name: bytes, path: bytes, *, durable: bool) -> None:
    """Rename the entry *name* of *directory* to *path*, replacing a file there, even another hard link to the same file.

    Raises:
        OSError: ENOENT: there is no such entry; EEXIST or ENOTEMPTY: a directory that is not empty, or a file, is in the way;
            EXDEV: *path* is on another file system.
    """
    for more in ATTEMPTS:
        to, to_name, grown = root.make_parent(path)
        try:
            there = entry_facts(to, to_name)  # raises for a device, which must not be replaced
            if (
                there is not None
                and there.st_nlink > 1
                and _is_other_name(there, directory, name, to, to_name)
            ):
                _remove_name(there, directory, name, to, to_name)
            else:
                os.rename(name, to_name, src_dir_fd=directory, dst_dir_fd=to)
        except IsADirectoryError:
            if not more:
                raise
            clear_way(to, to_name)
        except FileNotFoundError as error:
            check_entry(directory, name)  # it exists, so the target directory was removed
            if not more:
                raise OSError(errno.EAGAIN, "removed as often as it was created", path) from error
        else:
            if durable:
                sync_directory(to)
                sync_directory(directory)
                for created in grown:
                    sync_beneath(root, created)
            return
        finally:
            os.close(to)


def _is_other_name(there: os.stat_result, directory: int, name: bytes, to: int, to_name: bytes) -> bool:
    """Whether two entries are hard links to one file, whose status is *there*: rename(2) would do nothing."""
    here = entry_facts(directory, name)
    if here is None or stat.S_ISDIR(here.st_mode) or not os.path.samestat(here, there):
        return False
    if not os.path.samestat(os.fstat(directory), os.fstat(to)):
        return True
    # On a case-insensitive file system, two names may be one entry.
    listed = os.open(".", LIST, dir_fd=to)
    try:
        with os.scandir(listed) as entries:
            names = {os.fsencode(entry.name) for entry in entries}
    finally:
        os.close(listed)
    return name in names and to_name in names


def _remove_name(there: os.stat_result, directory: int, name: bytes, to: int, to_name: bytes) -> None:
    """Remove one of two hard links to the file *there*; if another process replaced it meanwhile, rename the new file."""
    aside = os.fsencode(temporary_name())
    os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
    if os.path.samestat(os.stat(aside, dir_fd=directory, follow_symlinks=False), there) and _is_there(
        there, to, to_name
    ):
        os.unlink(aside, dir_fd=directory)
    else:
        os.rename(aside, to_name, src_dir_fd=directory, dst_dir_fd=to)


def _is_there(facts: os.stat_result, directory: int, name: bytes) -> bool:
    found = entry_facts(directory, name)
    return found is not None and os.path.samestat(found, facts)


def is_directory(directory: int, name: bytes | str) -> bool:
    """Whether *name* is a directory, or was removed meanwhile: in both cases the caller may try again."""
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True


def clear_way(directory: int, name: bytes | str) -> None:
    """Remove the directory *name* if its tree contains only directories.

    Identifiers are flat, so directories left over from deleted objects must not block a name.

    Raises:
        OSError: ENOTEMPTY: the tree contains a file.
    """
    with suppress(
        FileNotFoundError, NotADirectoryError
    ):  # another process removed it; the caller tries again
        _descend_bare(directory, name, remove=False)  # check the whole tree before removing any of it
        _descend_bare(directory, name, remove=True)


def _descend_bare(directory: int, name: bytes | str, *, remove: bool) -> None:
    fd = os.open(name, LIST | os.O_NOFOLLOW, dir_fd=directory)
    try:
        with os.scandir(fd) as entries:
            inner = [entry.name if entry.is_dir(follow_symlinks=False) else None for entry in entries]
        for each in inner:
            if each is None:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), name)
            _descend_bare(fd, each, remove=remove)
    finally:
        os.close(fd)
    if remove:
        os.rmdir(name, dir_fd=directory)


def check_entry(directory: int, name: bytes) -> os.stat_result:
    """The status of a directory entry, which must be a file or a symlink.

    Raises:
        OSError: ENOENT: there is no such entry; EISDIR or ENXIO: it is something else.
    """
    facts = entry_facts(directory, name)
    if facts is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    return facts
