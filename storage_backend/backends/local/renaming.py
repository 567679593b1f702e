"""Renaming within the directory tree, while others may remove or create directories in the way."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from storage_backend.backends.local.containment import LIST, ContainedRoot
from storage_backend.backends.local.syncing import sync_beneath, sync_directory
from storage_backend.file_rights import entry_facts
from storage_backend.owners import temporary_name

# Other processes may remove a directory, or create one in the way, again and again. Each attempt has whether one more is left.
ATTEMPTS = (*[True] * 99, False)


def rename(root: ContainedRoot, directory: int, name: bytes, path: bytes, *, durable: bool) -> None:
    """Rename the entry *name* of *directory* to *path*, replacing what was there, even another hard link to the same file.

    Raises:
        OSError: with ENOENT, there is no such entry; with EEXIST or ENOTEMPTY, something is in the way; with EXDEV, the
            place is on another file system.
    """
    for more in ATTEMPTS:
        to, to_name, grown = root.make_parent(path)
        try:
            there = entry_facts(to, to_name)  # devices are not replaced
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
            check_entry(directory, name)  # it is there: so the other directory is not
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
    """Whether two entries are hard links to one file, with the status *there*: then rename(2) does nothing."""
    here = entry_facts(directory, name)
    if here is None or stat.S_ISDIR(here.st_mode) or not os.path.samestat(here, there):
        return False
    if not os.path.samestat(os.fstat(directory), os.fstat(to)):
        return True
    # Where case makes no difference, two names may be one entry.
    listed = os.open(".", LIST, dir_fd=to)
    try:
        with os.scandir(listed) as entries:
            names = {os.fsencode(entry.name) for entry in entries}
    finally:
        os.close(listed)
    return name in names and to_name in names


def _remove_name(there: os.stat_result, directory: int, name: bytes, to: int, to_name: bytes) -> None:
    """Remove one of two hard links to the file *there*; if the name was replaced meanwhile, rename the new file."""
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
    """Whether *name* is a directory, or was removed meanwhile: the caller may try again either way."""
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True


def clear_way(directory: int, name: bytes | str) -> None:
    """Remove the directory *name*, and the directories in it, if there is nothing else in any of them.

    Objects are flat, so directories that are left over from deleted ones must not keep a name taken.

    Raises:
        OSError: with ENOTEMPTY, there is something else.
    """
    with suppress(FileNotFoundError, NotADirectoryError):  # someone else was faster; the caller tries again
        _descend_bare(directory, name, remove=False)  # all of it first: nothing is removed in vain
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
        OSError: with ENOENT, there is none; with EISDIR or ENXIO, it is something else.
    """
    facts = entry_facts(directory, name)
    if facts is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    return facts
