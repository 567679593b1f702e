"""Walks a directory tree by descriptors, in identifier order."""

from __future__ import annotations

import errno
import os
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import TypeAlias

from storage_backend import identifiers
from storage_backend.backends.local.containment import LIST, ContainedRoot
from storage_backend.backends.local.errors import ErrorTranslation
from storage_backend.errors import BaseDirectoryNotFoundError
from storage_backend.identifiers import RESERVED

KEEP_OPEN = 32  # open ancestors; higher ones are closed and reopened on the way up

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_UTF8 = sys.getfilesystemencoding() == "utf-8"
_RESERVED = RESERVED.encode()
_AFTER_RESERVED = RESERVED[:-1] + chr(ord(RESERVED[-1]) + 1)

Note: TypeAlias = Callable[[str], object]
"""Called with the path of a temporary file."""
Step: TypeAlias = tuple[list[str], bool] | str
"""Names of consecutive entries and whether they are regular files; or the name of a directory to walk."""


class WalkedDirectory:
    """A directory on the path of the walk.

    Attributes:
        path: beneath the root, with a "/" at the end; "" for the root.
        fd: a descriptor, valid while the directory's own entries are yielded.
    """

    __slots__ = ("_steps", "fd", "path")

    def __init__(self, path: str, fd: int, first: str = "", note: Note | None = None) -> None:
        self.path = path
        self.fd = fd
        try:
            temporary: set[str] = set()
            self._steps = _steps(*_entries(fd, first, temporary))
            if note is not None:
                for name in temporary:
                    note(path + name)
        except BaseException:
            os.close(fd)
            raise

    def step(self) -> Step | None:
        """The next step; None at the end."""
        return next(self._steps, None)

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


Run: TypeAlias = tuple[WalkedDirectory, list[str], bool]
"""A directory, names of consecutive entries in it, and whether they are regular files."""


def walk(
    root: ContainedRoot, stem: str, enter: Callable[[str], bool], where: str, note: Note | None = None
) -> Iterator[Run]:
    """All entries beneath the root whose identifier begins with *stem*, except directories, ascending.

    Symlinks to directories are not followed, and at most a few dozen descriptors are open. Temporary files and what is removed
    meanwhile are left out.

    Args:
        root: the base directory.
        stem: a literal prefix.
        enter: whether to walk a directory, given its path without a "/" at the end.
        where: the base directory's location, for errors.
        note: called with the path of each temporary file.

    Raises:
        AccessDeniedError: a directory is not readable.
    """
    start, slash, first = stem.rpartition("/")
    stack: list[WalkedDirectory] = []
    try:
        with ErrorTranslation(start or None, where):
            fd = _descend(root, start) if start or not slash else None
            if fd is not None:
                stack.append(WalkedDirectory(start + slash, fd, first, note))
        while stack:
            here = stack[-1]
            if here.fd < 0:
                with ErrorTranslation(here.path, where):
                    fd = _descend(root, here.path.rstrip("/"))
                if fd is None:
                    stack.pop()
                    continue
                here.fd = fd
            found = here.step()
            if found is None:
                stack.pop().close()
            elif not isinstance(found, str):
                yield here, *found
            elif enter(path := here.path + found):
                with ErrorTranslation(path, where):
                    fd = _inner(here.fd, identifiers.encode(found))
                    if fd is not None:
                        stack.append(WalkedDirectory(path + "/", fd, note=note))
                if len(stack) > KEEP_OPEN:
                    stack[-KEEP_OPEN - 1].close()
    finally:
        for directory in stack:
            directory.close()


def _descend(root: ContainedRoot, path: str) -> int | None:
    """A descriptor of the directory at *path*; None if it is missing or is reached through a symlink."""
    try:
        names = identifiers.encode(path).split(b"/") if path else []
    except UnicodeEncodeError:
        return None
    if any(name in {b"", b".", b".."} or b"\0" in name or name.startswith(_RESERVED) for name in names):
        return None
    try:
        fd: int | None = root.root(LIST)
    except BaseDirectoryNotFoundError:
        raise
    except FileNotFoundError:  # not created yet
        return None
    for name in names:
        assert fd is not None
        outer = fd
        try:
            fd = _inner(outer, name)
        finally:
            os.close(outer)
        if fd is None:
            return None
    return fd


def _inner(directory: int, name: bytes) -> int | None:
    """A descriptor of a subdirectory; None if it is missing or a symlink."""
    try:
        return os.open(name, LIST | _NOFOLLOW, dir_fd=directory)
    except OSError as error:
        # macOS returns ELOOP for a symlink, Linux ENOTDIR.
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}:
            return None
        raise


def _entries(fd: int, first: str, temporary: set[str]) -> tuple[list[str], set[str]]:
    """The names in a directory that begin with *first*, in identifier order. A directory's name ends in "/".

    Returns:
        The names; and those that are neither regular files nor directories. Temporary files are added to *temporary* instead.
    """
    names: list[str] = []
    odd: set[str] = set()
    with os.scandir(fd) as entries:
        for entry in entries:
            name = _name(entry)
            if entry.is_file(follow_symlinks=False):
                names.append(name)
            elif entry.is_dir(follow_symlinks=False):
                # Identifiers sort by "name/", and "/" sorts after "-" and ".".
                names.append(name + "/")
            else:
                names.append(name)
                odd.add(name)
    if first:
        names = [name for name in names if name.startswith(first)]
    # Surrogates, which stand for bytes that are not UTF-8, sort differently by code point than by byte.
    names.sort(key=None if "".join(names).isascii() else identifiers.encode)
    # Temporary names are adjacent.
    low = bisect_left(names, RESERVED)
    high = bisect_left(names, _AFTER_RESERVED)
    if low < high:
        temporary.update(name for name in names[low:high] if name[-1] != "/")
        del names[low:high]
    return names, odd


def _name(entry: os.DirEntry[str]) -> str:
    """The entry's name as a segment of an identifier, whatever the locale."""
    return entry.name if _UTF8 else identifiers.decode(os.fsencode(entry.name))


def _steps(names: list[str], odd: set[str]) -> Iterator[Step]:
    """Runs of regular files, single entries of other kinds, and names of directories, in order."""
    start = 0
    for index, name in enumerate(names):
        if name[-1] == "/" or name in odd:
            if start < index:
                yield names[start:index], True
            yield name[:-1] if name[-1] == "/" else ([name], False)
            start = index + 1
    if start < len(names):
        yield names[start:], True
