"""StagedFile: a local file that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from typing_extensions import Buffer

from storage_backend.identifiers import RESERVED

# Answers of a file system or kernel without O_TMPFILE (open(2)).
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}


def temporary_name() -> str:
    """A name that no object can have and no other process will choose."""
    return f"{RESERVED}{secrets.token_hex(12)}"


class StagedFile:
    """A new file beside its place, written first and given its name last.

    Where the file system can, it has no name until then, so that a crash leaves nothing; elsewhere it has a reserved
    temporary one. Used by one thread.

    Args:
        directory: descriptor of the directory that the file will be in; it is closed by `discard`.
        name: the file's name there.
        mode: its permission bits, before the umask is applied.
        anonymous: try a file without a name first.
    """

    def __init__(self, directory: int, name: str, mode: int = 0o666, *, anonymous: bool = True) -> None:
        self.directory = directory
        self.name = name
        self._temporary: list[str] = []  # at most one name; a list, so that the finaliser sees changes
        try:
            self.fd = self._open(mode, anonymous)
        except BaseException:
            os.close(directory)
            raise
        self._finalizer = weakref.finalize(self, _discard, directory, self.fd, self._temporary)

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*."""
        view = memoryview(data)
        written = os.write(self.fd, view)
        while written < view.nbytes:
            written += os.write(self.fd, view.cast("B")[written:])

    def publish(self, *, overwrite: bool = True) -> None:
        """Give the file its name.

        Raises:
            FileExistsError: the name is taken and *overwrite* is false.
        """
        if not overwrite:
            self._link(self.name)
            return
        if not self._temporary:
            with suppress(FileExistsError):
                self._link(self.name)
                return
            # linkat(2) never overwrites, rename(2) does.
            name = temporary_name()
            self._link(name)
            self._temporary.append(name)
        os.rename(self._temporary[0], self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        self._temporary.clear()

    def discard(self) -> None:
        """Close the file, and remove it if it was not published."""
        self._finalizer()

    def _open(self, mode: int, anonymous: bool) -> int:
        if anonymous and (flag := getattr(os, "O_TMPFILE", 0)):
            try:
                return os.open(".", flag | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=self.directory)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
        name = temporary_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(name, flags, mode, dir_fd=self.directory)
        self._temporary.append(name)
        return fd

    def _link(self, name: str) -> None:
        if self._temporary:
            os.link(
                self._temporary[0],
                name,
                src_dir_fd=self.directory,
                dst_dir_fd=self.directory,
                follow_symlinks=False,
            )
            os.unlink(self._temporary.pop(), dir_fd=self.directory)
            return
        # With a dir_fd, Python calls linkat with AT_SYMLINK_FOLLOW, which /proc/self/fd needs (open(2), O_TMPFILE).
        os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self.directory, follow_symlinks=True)


def _discard(directory: int, fd: int, temporary: list[str]) -> None:
    for name in temporary:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)
    os.close(fd)
    os.close(directory)


def write_file(path: str | os.PathLike[str], fill: Callable[[StagedFile], object]) -> None:
    """Write the file at *path* whole or not at all; its directories are created, and an old file is replaced.

    Args:
        path: of the file to be.
        fill: writes it.
    """
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    staged = StagedFile(os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), place.name)
    try:
        fill(staged)
        staged.publish()
    finally:
        staged.discard()
