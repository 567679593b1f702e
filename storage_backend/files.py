"""Local files: sizes and times, readers, and StagedFile, a new file that appears whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

from typing_extensions import Buffer

from storage_backend.errors import NotAFileError
from storage_backend.file_rights import entry_facts, take_over
from storage_backend.owners import temporary_name
from storage_backend.paths import expanded

# Errors of a file system or kernel without O_TMPFILE (open(2)).
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
# Errors of copy_file_range(2) for files that the kernel cannot copy; EPERM comes from seccomp filters.
_NO_KERNEL_COPY = {
    errno.EXDEV,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EBADF,
    errno.ETXTBSY,
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COPY_STEP = 1 << 30  # bytes a call; signals are handled between two
_TOLD_STEP = 16 << 20  # bytes a call if progress is reported
_CHUNK = 256 << 10  # bytes, if the kernel does not copy
# Paths of pipes that are open already.
_OPENED = ("/dev/fd/", "/dev/std", "/proc/")
_AT_EMPTY_PATH = 0x1000  # linux/fcntl.h

# Kernel file systems that generate files when they are read: their sizes are 0, or a page (proc(5), sysfs(5)).
_MADE = re.compile(
    "binfmt_misc|bpf|cgroup2?|configfs|debugfs|efivarfs|fusectl|nsfs|proc|pstore|rpc_pipefs|securityfs|selinuxfs|sysfs|tracefs"
)
_ALWAYS, _UNLESS_ZERO, _NEVER = range(3)


def modified_of(facts: os.stat_result) -> datetime | None:
    """When a file was last changed; None if `datetime` cannot represent it."""
    try:
        return _EPOCH + timedelta(microseconds=facts.st_mtime_ns // 1000)
    except OverflowError:
        return None


def told_size(facts: os.stat_result) -> int | None:
    """The size of a regular file in bytes; None if only reading reveals it, or if it is not a regular file.

    A FUSE file with size 0 may be empty or of unknown size, so its size is None.
    """
    told = _how_told(facts.st_dev)
    size = facts.st_size
    if (told == _ALWAYS or (told == _UNLESS_ZERO and size)) and stat.S_ISREG(facts.st_mode):
        return size
    return None


@cache  # a mount stays what it is
def _how_told(device: int) -> int:
    if os.major(device):  # a disk
        return _ALWAYS
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not Linux
        return _ALWAYS
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == number:
            kind = rest.split()[0]
            if _MADE.fullmatch(kind):
                return _NEVER
            return _UNLESS_ZERO if kind.partition(".")[0] == "fuse" else _ALWAYS
    return _ALWAYS


def open_source(path: str | os.PathLike[str]) -> BinaryIO:
    """A reader of a local file that is to be stored.

    Pipes are read only if they are open already (`/dev/stdin`, a shell's `<(...)`): opening another would block until it
    has a writer.

    Raises:
        NotAFileError: it is a named pipe.
        OSError: it cannot be opened.
    """
    whole = expanded(path)

    def look(mode: int) -> None:
        if stat.S_ISFIFO(mode) and not whole.startswith(_OPENED):
            raise NotAFileError(
                f"Not a regular file: {whole!r} is a named pipe; open it yourself and store its content with write_stream or "
                "with the command `put` and the path /dev/stdin"
            )

    def opened(name: str, flags: int) -> int:
        look(os.stat(name).st_mode)  # noqa: PTH116 - stays text
        return os.open(name, flags | os.O_NONBLOCK)

    reader = open(whole, "rb", opener=opened)  # noqa: SIM115 - stays text; the caller closes it
    try:
        look(os.fstat(reader.fileno()).st_mode)
        os.set_blocking(reader.fileno(), True)
    except BaseException:
        reader.close()
        raise
    return reader


class StagedFile:
    """A new file in its final directory, written first and named last.

    If the file system supports it, the file has no name until then, so that a crash leaves nothing; else it has a reserved
    temporary name. It takes over the rights of a file that it replaces (`take_over`). Used by one thread. The creator must
    discard it; a forked child's copy leaves the file alone.

    Args:
        directory: descriptor of the final directory; closed by `discard`.
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
        self._taken_over: tuple[int, int, int] | None = None  # the file whose rights it has
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
        """A descriptor for reading what was written; the caller closes it.

        A named file is reopened: a FUSE file system (rclone without a cache) may return nothing through the descriptor that
        wrote, and NFS the local cache.
        """
        if self._temporary is None:
            return os.dup(self.fd)
        os.close(os.dup(self.fd))  # flushes what was written (close(2))
        return os.open(self._temporary, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.directory)

    def publish(self, *, overwrite: bool = True) -> None:
        """Give the file its name.

        Raises:
            FileExistsError: the name is taken and *overwrite* is false.
            IsADirectoryError: the name is a directory's. May be retried.
            FileNotFoundError: the directory has been removed. May be retried after `move_to`.
            OSError: with ENXIO, the name is a device's, a pipe's or a socket's: these are never replaced.
        """
        if self._temporary is not None:
            # NFS and FUSE report a failed write only at close (close(2)); after the rename it would be too late.
            os.close(os.dup(self.fd))
        if not overwrite:
            self._link()
            return
        if self._temporary is not None:
            self._take_over(entry_facts(self.directory, self.name))
        else:
            with suppress(FileExistsError):
                self._link()
                return
            self._take_over(entry_facts(self.directory, self.name))
            # linkat(2) never overwrites, rename(2) does.
            self._temporary = temporary_name()
            try:
                link_descriptor(self.fd, self.directory, self._temporary)
            except OSError:
                self._temporary = None
                raise
        os.rename(self._temporary, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        self._temporary = None

    def move_to(self, directory: int) -> None:
        """Change the final directory to *directory*, on the same file system."""
        old, self.directory = self.directory, directory
        os.close(old)

    def discard(self) -> None:
        """Close the file, and remove it if it was not published. Calling it twice is harmless."""
        temporary, self._temporary = self._temporary, None
        fd, self.fd = self.fd, -1
        directory, self.directory = self.directory, -1
        try:
            if fd >= 0:
                os.close(fd)
        finally:
            # Last: some file systems (rclone) create the name only when the file is closed.
            if temporary is not None and self._process == os.getpid():
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=directory)
            if directory >= 0:
                os.close(directory)

    def _open(self, anonymous: bool) -> None:
        if anonymous:
            self.fd = open_unnamed(self.directory)
            if self.fd >= 0:
                return
        facts = entry_facts(self.directory, self.name)
        self._temporary = temporary_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        # No more rights than the replaced file, not even briefly; none for the group, which may still change.
        mode = facts.st_mode & 0o700 if facts is not None and stat.S_ISREG(facts.st_mode) else 0o666
        self.fd = os.open(self._temporary, flags, mode, dir_fd=self.directory)
        self._take_over(facts)

    def _take_over(self, facts: os.stat_result | None) -> None:
        """Take over the rights of the file to be replaced, whose status is *facts*."""
        if facts is None or not stat.S_ISREG(facts.st_mode):
            return
        seen = (facts.st_dev, facts.st_ino, facts.st_ctime_ns)  # a change of rights changes st_ctime
        if seen != self._taken_over:
            take_over(self.fd, self.directory, self.name, facts)
            self._taken_over = seen

    def _link(self) -> None:
        if self._temporary is None:
            link_descriptor(self.fd, self.directory, self.name)
            return
        # The temporary name stays until `discard`, so that nothing can fail once the object is visible.
        os.link(
            self._temporary,
            self.name,
            src_dir_fd=self.directory,
            dst_dir_fd=self.directory,
            follow_symlinks=False,
        )


def open_unnamed(directory: int) -> int:
    """A descriptor of a new file without a name in *directory*; -1 if the file system does not support it.

    Raises:
        FileNotFoundError: the directory has been removed.
    """
    if not _can_name_descriptors():
        return -1
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.EPERM and os.fstat(directory).st_nlink == 0:
            # ext4 returns EPERM for a directory that has been removed.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        if error.errno not in _NO_TMPFILE:
            raise
    return -1


@cache
def _can_name_descriptors() -> bool:
    """Whether a file opened without a name can be linked."""
    return hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir()


def link_descriptor(fd: int, directory: int, name: str | bytes) -> None:
    """Give a file without a name a name."""
    # AT_EMPTY_PATH works for root, and since Linux 6.10 for the opener of the file (linkat(2)).
    if _linkat()(fd, b"", directory, os.fsencode(name), _AT_EMPTY_PATH) == 0:
        return
    if ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(name))
    # With a dir_fd, Python calls linkat with AT_SYMLINK_FOLLOW, which /proc/self/fd needs (open(2), O_TMPFILE).
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)


@cache
def _linkat() -> Callable[..., int]:
    return cast(Callable[..., int], ctypes.CDLL(None, use_errno=True).linkat)


def copy_descriptor(source: int, target: int, moved: Callable[[int], object] | None = None) -> int:
    """Append everything from the position of *source* to *target*, inside the kernel if possible.

    Args:
        source: a descriptor.
        target: another.
        moved: called with the number of bytes of each step.

    Returns:
        The number of bytes.
    """
    copied = 0
    step = _COPY_STEP if moved is None else _TOLD_STEP
    for hole, size in _runs(source, target):
        if hole:
            os.ftruncate(target, os.lseek(target, size, os.SEEK_CUR))
            os.lseek(source, size, os.SEEK_CUR)
            copied += size
            if moved is not None:
                moved(size)
        else:
            done = _copied_by_kernel(source, target, size, step, moved)
            copied += done
            if done < size:  # the kernel cannot copy these two, or the file was truncated
                break
    # On some file systems copy_file_range returns 0 before the end, so only a read proves the end.
    while chunk := os.read(source, _CHUNK):
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]
        copied += len(chunk)
        if moved is not None:
            moved(len(chunk))
    return copied


def _copied_by_kernel(
    source: int, target: int, most: int, step: int, moved: Callable[[int], object] | None
) -> int:
    """Copy up to *most* bytes inside the kernel; return the number copied."""
    copied = 0
    if hasattr(os, "copy_file_range"):
        try:
            while size := os.copy_file_range(source, target, min(step, most - copied)):
                copied += size
                if moved is not None:
                    moved(size)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
    return copied


def _runs(source: int, target: int) -> Iterator[tuple[bool, int]]:
    """The runs of a file from its position: whether each is a hole that the copy can have too, and its length."""
    facts = os.fstat(source)
    sparse = facts.st_blocks * 512 < facts.st_size and stat.S_ISREG(facts.st_mode)
    if not (sparse and hasattr(os, "SEEK_HOLE") and stat.S_ISREG(os.fstat(target).st_mode)):
        yield False, sys.maxsize
        return
    position = os.lseek(source, 0, os.SEEK_CUR)
    while position < facts.st_size:
        try:
            data = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = facts.st_size  # only a hole follows
        end = os.lseek(source, data, os.SEEK_HOLE) if data < facts.st_size else data
        os.lseek(source, position, os.SEEK_SET)
        if data > position:
            yield True, data - position
        if end > data:
            yield False, end - data
        position = end
