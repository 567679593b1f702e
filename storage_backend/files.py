"""StagedFile: a local file that appears whole or not at all; and where what outlives a run, or is cached, is kept."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import cast

from typing_extensions import Buffer

from storage_backend.errors import ConfigurationError, QuotaExceededError, StorageError
from storage_backend.identifiers import RESERVED
from storage_backend.paths import expanded

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
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MOST_LINKS = 40  # followed one after the other, as by Linux (path_resolution(7))
_COPY_STEP = 1 << 30  # bytes a call; a signal is seen between two
_TOLD_STEP = 16 << 20  # bytes a call where somebody wants to see it move
_CHUNK = 256 << 10  # bytes, where the kernel does not copy
_AT_EMPTY_PATH = 0x1000  # linux/fcntl.h


def state_directory() -> Path:
    """Where the user keeps what outlives a run: $XDG_STATE_HOME/storage-backend. It may not exist yet.

    Without that variable it is below ~/.local/state (XDG Base Directory Specification).

    Raises:
        ConfigurationError: this user has no home.
    """
    given = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(given) if given else Path.home() / ".local" / "state") / "storage-backend"
    except RuntimeError as error:
        raise ConfigurationError(f"nowhere to keep state: {error}; set XDG_STATE_HOME") from None


def cache_directory() -> Path:
    """Where the user keeps what can be had again: $XDG_CACHE_HOME/storage-backend. It may not exist yet.

    Without that variable it is below ~/.cache (XDG Base Directory Specification).

    Raises:
        ConfigurationError: this user has no home.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(given) if given else Path.home() / ".cache") / "storage-backend"
    except RuntimeError as error:
        raise ConfigurationError(f"nowhere to keep a cache: {error}; set XDG_CACHE_HOME") from None


def temporary_name() -> str:
    """A name that no object can have and no other process will choose."""
    return f"{RESERVED}{os.urandom(12).hex()}"


class StagedFile:
    """A new file beside its place, written first and given its name last.

    Where the file system can, it has no name until then, so that a crash leaves nothing; elsewhere it has a reserved
    temporary one. A file that it replaces passes on its permission bits. Used by one thread. Whoever makes one discards
    it; a forked child's copy leaves the file alone.

    Args:
        directory: descriptor of the directory that the file will be in; it is closed by `discard`.
        name: the file's name there.
        anonymous: try a file without a name first.

    Attributes:
        directory: as given, or as moved to.
        fd: the file's own descriptor.
        size: how many bytes `write` has appended.
    """

    def __init__(self, directory: int, name: str | bytes, *, anonymous: bool = True) -> None:
        self.directory = directory
        self.name = name
        self.size = 0
        self._temporary: str | None = None
        self._process = os.getpid()
        self.fd = -1
        try:
            self._open(anonymous)
        except BaseException:
            self.discard()
            raise

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*."""
        size = memoryview(data).nbytes
        written = os.write(self.fd, data)
        while written < size:
            written += os.write(self.fd, memoryview(data).cast("B")[written:])
        self.size += size

    def reopen(self) -> int:
        """A descriptor that gives back what was written, which its caller closes.

        A file that has a name is opened anew: a file system in user space (rclone's without a cache) may give nothing by the
        descriptor that wrote, and one of another machine (NFS) what this one remembers.
        """
        if self._temporary is None:
            return os.dup(self.fd)
        os.close(os.dup(self.fd))  # which hands on what was written (close(2))
        return os.open(self._temporary, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.directory)

    def publish(self, *, overwrite: bool = True) -> None:
        """Give the file its name.

        Raises:
            FileExistsError: the name is taken and *overwrite* is false.
            IsADirectoryError: the name is a directory's. This may be tried again.
            FileNotFoundError: the directory has been removed. This may be tried again after `move_to`.
            OSError: with ENXIO, the name is a device's, a pipe's or a socket's: these are never replaced.
        """
        if self._temporary is not None:
            # NFS and FUSE tell only at a close that a write has failed (close(2)), and after this it would be too late.
            os.close(os.dup(self.fd))
        if not overwrite:
            self._link()
            return
        if self._temporary is None:
            with suppress(FileExistsError):
                self._link()
                return
            self._keep_mode()
            # linkat(2) never overwrites, rename(2) does.
            self._temporary = temporary_name()
            try:
                _link_descriptor(self.fd, self.directory, self._temporary)
            except OSError:
                self._temporary = None
                raise
        os.rename(self._temporary, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        self._temporary = None

    def move_to(self, directory: int) -> None:
        """Have the file appear in *directory* instead, which must be on the same file system."""
        old, self.directory = self.directory, directory
        os.close(old)

    def discard(self) -> None:
        """Close the file, and remove it if it was not published. Harmless if that was done."""
        temporary, self._temporary = self._temporary, None
        fd, self.fd = self.fd, -1
        directory, self.directory = self.directory, -1
        try:
            if fd >= 0:
                os.close(fd)
        finally:
            # Last: to some file systems (rclone's) a name comes when the file is closed.
            if temporary is not None and self._process == os.getpid():
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=directory)
            if directory >= 0:
                os.close(directory)

    def _open(self, anonymous: bool) -> None:
        if anonymous and _can_name_descriptors():
            try:
                self.fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666, dir_fd=self.directory)
            except OSError as error:
                if error.errno == errno.EPERM and os.fstat(self.directory).st_nlink == 0:
                    # ext4's word for a directory that has been removed.
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
                if error.errno not in _NO_TMPFILE:
                    raise
            else:
                return
        mode = entry_mode(self.directory, self.name)
        self._temporary = temporary_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        # Never more than what it replaces allows, not for a moment.
        self.fd = os.open(
            self._temporary,
            flags,
            mode & 0o777 if mode is not None and stat.S_ISREG(mode) else 0o666,
            dir_fd=self.directory,
        )
        self._keep_mode()

    def _keep_mode(self) -> None:
        """Take over the permission bits of the file that is replaced."""
        mode = entry_mode(self.directory, self.name)
        if mode is not None and stat.S_ISREG(mode):
            os.fchmod(self.fd, mode & 0o777)

    def _link(self) -> None:
        if self._temporary is None:
            _link_descriptor(self.fd, self.directory, self.name)
            return
        # The temporary name stays until `discard`, so that nothing is left to fail once the object is there.
        os.link(
            self._temporary,
            self.name,
            src_dir_fd=self.directory,
            dst_dir_fd=self.directory,
            follow_symlinks=False,
        )


@cache
def _can_name_descriptors() -> bool:
    """Whether a file opened without a name can be given one."""
    return hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir()


def _link_descriptor(fd: int, directory: int, name: str | bytes) -> None:
    """Give a file that has none a name."""
    # The short way is for root, and since Linux 6.10 for whoever opened the file (linkat(2), AT_EMPTY_PATH).
    if _linkat()(fd, b"", directory, os.fsencode(name), _AT_EMPTY_PATH) == 0:
        return
    if ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(name))
    # With a dir_fd, Python calls linkat with AT_SYMLINK_FOLLOW, which /proc/self/fd needs (open(2), O_TMPFILE).
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)


@cache
def _linkat() -> Callable[..., int]:
    return cast(Callable[..., int], ctypes.CDLL(None, use_errno=True).linkat)


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


def copy_descriptor(source: int, target: int, moved: Callable[[int], object] | None = None) -> int:
    """Append everything from the position of *source* to its end to *target*, inside the kernel where it can.

    Args:
        source: a descriptor.
        target: another.
        moved: is told of the bytes.

    Returns:
        How many bytes that was.
    """
    copied = 0
    if hasattr(os, "copy_file_range"):
        try:
            while size := os.copy_file_range(source, target, _COPY_STEP if moved is None else _TOLD_STEP):
                copied += size
                if moved is not None:
                    moved(size)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
    # Some file systems answer 0 where a read gives bytes, so only a read proves the end.
    while chunk := os.read(source, _CHUNK):
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]
        copied += len(chunk)
        if moved is not None:
            moved(len(chunk))
    return copied


def write_file(path: str | os.PathLike[str], fill: Callable[[StagedFile], object]) -> None:
    """Write the file at *path* whole or not at all; its directories are created, and an old file is replaced.

    A symbolic link stays, and what it leads to is written. What is no regular file (a pipe, a device, an open descriptor as
    /dev/stdout) stays too: it is given the content once that is whole, from a temporary file.

    Args:
        path: of the file to be.
        fill: writes it.

    Raises:
        QuotaExceededError: there is no space left for the file.
        OSError: of the path; *fill*'s own are raised as they are.
    """
    place = destination(path)
    if place is None:
        _write_through(path, fill)
        return
    with told_of(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        directory = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        staged = StagedFile(directory, place.name)
    try:
        with told_of(place, full_only=True):
            fill(staged)
        with told_of(place):
            staged.publish()
    finally:
        staged.discard()


def destination(path: str | os.PathLike[str]) -> Path | None:
    """Where the file that *path* names is, or will be, behind all symbolic links; None if it is there and no regular file."""
    place, descriptor = _followed(expanded(path))
    if descriptor is not None:
        return None
    try:
        mode = os.stat(place).st_mode  # noqa: PTH116 - a str
    except OSError:  # it is not there, or whoever writes it will hear of it
        return Path(place)
    return Path(place) if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None


def _followed(path: str) -> tuple[str, int | None]:
    """The end of the symbolic links that begin at *path*; and which descriptor of this process it is, if it is one's name."""
    descriptors = {"/dev/fd", f"/proc/{os.getpid()}/fd"}
    for _ in range(_MOST_LINKS):
        above, name = os.path.split(Path(path))
        above = os.path.realpath(above or ".")
        path = os.path.join(above, name)  # noqa: PTH118 - a Path would resolve nothing, and costs more
        if above in descriptors and name.isdecimal():
            return path, int(name)
        try:
            path = os.path.join(above, os.readlink(path))  # noqa: PTH115, PTH118
        except OSError:  # it is no link, or not there
            return path, None
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _write_through(path: str | os.PathLike[str], fill: Callable[[StagedFile], object]) -> None:
    """Give the content to what is at *path*. An attempt that fails has given nothing."""
    import tempfile

    waiting = tempfile.gettempdir()
    with told_of(waiting):
        staged = StagedFile(os.open(waiting, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), temporary_name())
    try:
        with told_of(waiting, full_only=True):
            fill(staged)
        with told_of(path):
            place, descriptor = _followed(expanded(path))
            flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY
            out = os.open(place, flags) if descriptor is None else os.dup(descriptor)
            try:
                os.lseek(staged.fd, 0, os.SEEK_SET)
                while chunk := os.read(staged.fd, _CHUNK):
                    _write_patiently(out, chunk)
            finally:
                os.close(out)
    finally:
        staged.discard()


def _write_patiently(fd: int, data: bytes) -> None:
    """Write all of *data*, also where somebody who has the same pipe or terminal made it non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            ready = select.poll()
            ready.register(fd, select.POLLOUT)
            ready.poll()


@contextmanager
def told_of(path: str | os.PathLike[str], *, full_only: bool = False) -> Iterator[None]:
    """Has the system's errors name *path*, a file of this machine: else they would pass for those of a backend.

    Args:
        path: the file that the body writes.
        full_only: the body does other things too, so only what can come of nothing but writing is taken for the file's.

    Raises:
        QuotaExceededError: there is no space left.
        OSError: the others, as what the system's number means.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            ours = QuotaExceededError(f"no space left for this user: {os.fspath(path)}")
            ours.errno = error.errno
            raise ours from error
        named = os.fsdecode(error.filename or "")
        if full_only or (named and os.fspath(path).startswith(named)):  # it, or a directory on its way
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
