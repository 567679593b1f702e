"""Moves a symlink so that it leads to the same file from its new path."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from storage_backend.backends.local.containment import ContainedRoot
from storage_backend.backends.local.renaming import rename
from storage_backend.owners import temporary_name


def move_symlink(root: ContainedRoot, base: bytes, source: bytes, dest: bytes, *, durable: bool) -> bool:
    """Move the symlink *source* to *dest*, if it leads to a file beneath the base directory from both paths.

    Args:
        root: the base directory.
        base: its path.
        source: a path beneath it.
        dest: the new path beneath it.
        durable: as in `rename`.

    Returns:
        Whether it was moved; if not, it is dangling, or the caller must copy the file.
    """
    try:
        facts = root.stat(source)
    except OSError:
        return False
    if not stat.S_ISREG(facts.st_mode):
        return False
    directory, name = root.parent(source)
    try:
        if not _is_file(root, dest, facts):
            # Link to the file itself: a symlink on the way to it may be the one that this move replaces.
            file = os.path.realpath(os.path.join(base, source))
            above = os.path.realpath(os.path.join(base, os.path.dirname(dest)))
            text = os.readlink(name, dir_fd=directory)
            if not _leads(base, source, dest, text, facts):
                text = os.path.relpath(file, above)
            aside = os.fsencode(temporary_name())
            os.symlink(text, aside, dir_fd=directory)
            try:
                rename(root, directory, aside, dest, durable=durable)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(aside, dir_fd=directory)
            try:
                if not os.path.samestat(root.stat(dest), facts):
                    return False
            except OSError:
                return False
        os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)
    return True


def _is_file(root: ContainedRoot, path: bytes, facts: os.stat_result) -> bool:
    """Whether *path* is a hard link to the file with the status *facts*, not a symlink to it."""
    try:
        directory, name = root.parent(path)
    except OSError:
        return False
    try:
        return os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), facts)
    except OSError:
        return False
    finally:
        os.close(directory)


def _leads(base: bytes, source: bytes, dest: bytes, text: bytes, facts: os.stat_result) -> bool:
    """Whether a symlink with this text resolves to the file from both paths, without a second symlink at its end."""
    if not text.startswith(b"/") and os.path.dirname(source) != os.path.dirname(dest):
        return False
    try:
        return os.path.samestat(os.lstat(os.path.join(base, os.path.dirname(source), text)), facts)
    except OSError:
        return False
