"""write_file: writes a local file atomically, also through a symbolic link, or into a pipe or a device."""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage_backend.errors import QuotaExceededError, StorageError
from storage_backend.files import StagedFile
from storage_backend.owners import temporary_name
from storage_backend.paths import expanded

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MOST_LINKS = 40  # followed one after the other, as by Linux (path_resolution(7))
_CHUNK = 256 << 10  # bytes
READER_PATIENCE = 60.0  # seconds to wait for a reader of a pipe


def write_file(path: str | os.PathLike[str], fill: Callable[[StagedFile], object]) -> None:
    """Write the file at *path* whole or not at all; its directories are created, and an old file is replaced.

    A symbolic link stays, and its target is written. A pipe, a device or an open descriptor such as /dev/stdout is not replaced:
    the complete content is copied into it from a temporary file.

    Args:
        path: of the file.
        fill: writes the content.

    Raises:
        QuotaExceededError: there is no space left for the file.
        OSError: of the path, or with ENXIO for a pipe without a reader; errors of *fill* pass unchanged.
    """
    place = destination(path)
    if place is None:
        _write_through(path, fill)
        return
    with errors_naming(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        directory = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        staged = StagedFile(directory, place.name)
    try:
        with errors_naming(place, full_only=True):
            fill(staged)
        with errors_naming(place):
            staged.publish()
    finally:
        staged.discard()


def destination(path: str | os.PathLike[str]) -> Path | None:
    """The path of the file that *path* names, with all symbolic links resolved; None if it exists and is not a regular file.

    Raises:
        OSError: a link may not be followed, or is part of a cycle.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        # The kernel decides: it follows no link of another user in /tmp (proc_sys_fs(5), protected_symlinks).
        os.stat(expanded(path))  # noqa: PTH116 - a str
    place, descriptor = _followed(expanded(path))
    if descriptor is not None:
        return None
    try:
        mode = os.stat(place).st_mode  # noqa: PTH116 - a str
    except OSError:  # it does not exist, or writing it will raise the error
        return Path(place)
    return Path(place) if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None


def _followed(path: str) -> tuple[str, int | None]:
    """Resolve the symbolic links at *path*; also the number of a descriptor of this process, if the path names one."""
    descriptors = {"/dev/fd", f"/proc/{os.getpid()}/fd"}
    for _ in range(_MOST_LINKS):
        above, name = os.path.split(Path(path))
        above = os.path.realpath(above or ".")
        path = os.path.join(above, name)  # noqa: PTH118 - a Path would resolve nothing, and costs more
        if above in descriptors and name.isdecimal():
            return path, int(name)
        try:
            path = os.path.join(above, os.readlink(path))  # noqa: PTH115, PTH118
        except OSError:  # not a link, or absent
            return path, None
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _write_through(path: str | os.PathLike[str], fill: Callable[[StagedFile], object]) -> None:
    """Write the content into the pipe or device at *path*, after *fill* has succeeded."""
    import tempfile

    waiting = tempfile.gettempdir()
    with errors_naming(waiting):
        staged = StagedFile(os.open(waiting, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), temporary_name())
    try:
        with errors_naming(waiting, full_only=True):
            fill(staged)
        with errors_naming(path):
            place, descriptor = _followed(expanded(path))
            out = _opened(place) if descriptor is None else os.dup(descriptor)
            try:
                os.lseek(staged.fd, 0, os.SEEK_SET)
                while chunk := os.read(staged.fd, _CHUNK):
                    _write_patiently(out, chunk)
            finally:
                os.close(out)
    finally:
        staged.discard()


def _opened(path: str) -> int:
    """Open a pipe or device for writing; wait for a pipe's reader, as `cp` does, but with a time limit."""
    late = time.monotonic() + READER_PATIENCE
    while True:
        try:
            # Without O_NONBLOCK, opening a pipe without a reader would block without limit.
            return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116 - a str
                raise
            if time.monotonic() > late:
                raise OSError(
                    errno.ENXIO, f"nobody has read this pipe for {READER_PATIENCE:g} s", path
                ) from None
        time.sleep(0.02)


def _write_patiently(fd: int, data: bytes) -> None:
    """Write all of *data*, also if another process has made the pipe or terminal non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            ready = select.poll()
            ready.register(fd, select.POLLOUT)
            ready.poll()


@contextmanager
def errors_naming(path: str | os.PathLike[str], *, full_only: bool = False) -> Iterator[None]:
    """Make OSErrors name *path*, a local file; else they would look like errors of a backend.

    Args:
        path: the file that the body writes.
        full_only: the body does other things too, so only errors about space are attributed to the file.

    Raises:
        QuotaExceededError: there is no space left.
        OSError: any other.
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
        if full_only or (named and os.fspath(path).startswith(named)):  # the file, or a parent directory
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
