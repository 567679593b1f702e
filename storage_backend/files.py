"""StagedFile: a local file that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from typing_extensions import Buffer

from storage_backend.identifiers import RESERVED

# Answers of a file system or kernel without O_TMPFILE (open(2)).
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
# Answers of a pair of files that the kernel does not copy by itself (copy_file_range(2)); EPERM is a seccomp filter's.
_NO_KERNEL_COPY = {
    errno.EXDEV,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EBADF,
    errno.ETXTBSY,
}
_COPY_STEP = 1 << 30  # bytes a call; a signal is seen between two
_CHUNK = 256 << 10  # bytes, where the kernel does not copy


def temporary_name() -> str:
    """A name that no object can have and no other process will choose."""
    return f"{RESERVED}{os.urandom(12).hex()}"


class StagedFile:
    """A new file beside its place, written first and given its name last.

    Where the file system can, it has no name until then, so that a crash leaves nothing; elsewhere it has a reserved
    temporary one. A file that it replaces passes on its permission bits. Used by one thread.

    Args:
        directory: descriptor of the directory that the file will be in; it is closed by `discard`.
        name: the file's name there.
        anonymous: try a file without a name first.

    Raises:
        OSError: with ENXIO, the name is a device's, a pipe's or a socket's: these are never replaced.
    """

    def __init__(self, directory: int, name: str | bytes, *, anonymous: bool = True) -> None:
        self.name = name
        self._descriptors = [directory]
        self._temporary: list[str] = []  # at most one name
        # Lists, so that the finaliser sees changes. The process, since a forked child must not undo its parent's work.
        self._finalizer = weakref.finalize(self, _discard, self._descriptors, self._temporary, os.getpid())
        try:
            mode = entry_mode(directory, name)
            self._taken = mode is not None
            kept = None if mode is None or not stat.S_ISREG(mode) else mode & 0o777
            self.fd = self._open(0o666 if kept is None else kept, anonymous)
            self._descriptors.append(self.fd)
            if kept is not None:
                os.fchmod(self.fd, kept)  # the umask has taken bits away
        except BaseException:
            self.discard()
            raise

    @property
    def directory(self) -> int:
        """Descriptor of the directory that the file will be in."""
        return self._descriptors[0]

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
            IsADirectoryError: the name is a directory's. This may be tried again.
            FileNotFoundError: the directory has been removed. This may be tried again after `move_to`.
        """
        # NFS and FUSE tell only at a close that a write has failed (close(2)), and after this it would be too late.
        os.close(os.dup(self.fd))
        if not overwrite:
            self._link(self.name)
            return
        if not self._temporary:
            if not self._taken:
                with suppress(FileExistsError):
                    self._link(self.name)
                    return
            # linkat(2) never overwrites, rename(2) does.
            name = temporary_name()
            self._temporary.append(name)
            try:
                self._link_descriptor(name)
            except OSError:
                self._temporary.clear()
                raise
        os.rename(self._temporary[0], self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        self._temporary.clear()

    def move_to(self, directory: int) -> None:
        """Have the file appear in *directory* instead, which must be on the same file system."""
        old, self._descriptors[0] = self._descriptors[0], directory
        os.close(old)

    def discard(self) -> None:
        """Close the file, and remove it if it was not published."""
        self._finalizer()

    def _open(self, mode: int, anonymous: bool) -> int:
        if anonymous and _can_name_descriptors():
            try:
                return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=self.directory)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
        name = temporary_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(name, flags, mode, dir_fd=self.directory)
        self._temporary.append(name)
        return fd

    def _link(self, name: str | bytes) -> None:
        if not self._temporary:
            self._link_descriptor(name)
            return
        # The temporary name stays until `discard`, so that nothing is left to fail once the object is there.
        os.link(
            self._temporary[0],
            name,
            src_dir_fd=self.directory,
            dst_dir_fd=self.directory,
            follow_symlinks=False,
        )

    def _link_descriptor(self, name: str | bytes) -> None:
        # With a dir_fd, Python calls linkat with AT_SYMLINK_FOLLOW, which /proc/self/fd needs (open(2), O_TMPFILE).
        os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self.directory, follow_symlinks=True)


@cache
def _can_name_descriptors() -> bool:
    """Whether a file opened without a name can be given one."""
    return hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir()


def entry_mode(directory: int, name: str | bytes) -> int | None:
    """Type and permissions of a directory's entry, None if there is none.

    Raises:
        OSError: with ENXIO, it is a device, a pipe or a socket.
    """
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode):
        return mode
    raise OSError(errno.ENXIO, "not a regular file", os.fsdecode(name))


def _discard(descriptors: list[int], temporary: list[str], process: int) -> None:
    if process == os.getpid():
        for name in temporary:
            with suppress(OSError):
                os.unlink(name, dir_fd=descriptors[0])
    for fd in reversed(descriptors):
        os.close(fd)


def copy_descriptor(source: int, target: int) -> int:
    """Append everything from the position of *source* to its end to *target*, inside the kernel where it can.

    Returns:
        How many bytes that was.
    """
    copied = 0
    if hasattr(os, "copy_file_range"):
        try:
            while moved := os.copy_file_range(source, target, _COPY_STEP):
                copied += moved
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
    # Some file systems answer 0 where a read gives bytes, so only a read proves the end.
    while chunk := os.read(source, _CHUNK):
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]
        copied += len(chunk)
    return copied


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
