"""ContainedRoot: opens paths beneath one directory, and nothing outside it."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from storage_backend.errors import BaseDirectoryNotFoundError, ConfigurationError

T = TypeVar("T")

# macOS has no O_PATH. Windows has none of these, but must be able to import the module to be refused.
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_PATH = getattr(os, "O_PATH", 0)
# Without O_NONBLOCK, opening a pipe waits for a writer; without O_NOCTTY, a terminal may become ours.
_SAFE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | _CLOEXEC

READ = os.O_RDONLY | _SAFE | getattr(os, "O_LARGEFILE", 0)
"""Open a file for reading."""
LIST = os.O_RDONLY | _DIRECTORY | _SAFE
"""Open a directory to list or sync it."""
LOOKUP = _PATH | _DIRECTORY | _CLOEXEC
"""Open a directory for use as a dir_fd. On Linux this needs no permission to list it."""

MAX_LINKS = 40  # the kernel's limit (path_resolution(7))
_RACES = (
    16  # calls of openat2 that may fail because of a concurrent rename, before we walk the path ourselves
)
# Steps of one walk that may meet a symlink which is gone when it is read. A process that swaps a name all the time can keep in step with
# us (41 times was seen), but not for milliseconds.
_MAX_LOST_RACES = 1000
_ATTEMPTS = 100  # to create directories that another process keeps removing

# openat2(2) and linux/openat2.h. The number is the same on every architecture but Alpha.
_OPENAT2 = ctypes.c_long(437)
_NO_SYMLINKS = 0x04
_BENEATH = 0x08
_AT_FDCWD = ctypes.c_int(-100)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_LOOK = ctypes.byref(_OpenHow(_PATH | _CLOEXEC, 0, _NO_SYMLINKS))
_HOW_SIZE = ctypes.c_size_t(ctypes.sizeof(_OpenHow))


class ContainedRoot:
    """Resolves relative paths beneath a directory. No symlink, even one created meanwhile, leads outside.

    A symlink, also an absolute one, is followed if its target is beneath the directory. No descriptor is kept: the directory is
    opened by its name each time, so a replaced one is noticed.

    Three methods, each used when the one before cannot decide: an open that follows no symlink, so that the path is beneath the
    directory by its spelling; openat2 with RESOLVE_BENEATH; and a walk, one component at a time.

    Args:
        base: absolute and free of symlinks, "." and "..".
        openat2: use openat2(2) if the kernel has it.
        make: creates the missing directory; called by the first `make_parent`.

    Attributes:
        base: as given.
    """

    def __init__(
        self, base: bytes, *, openat2: bool = True, make: Callable[[], object] | None = None
    ) -> None:
        self.base = base
        self._make_base = make
        self._slashed = base.rstrip(b"/") + b"/"
        self._openat2 = openat2 and sys.platform == "linux"
        self._syscall = _syscall() if self._openat2 else None

    def __reduce__(self) -> tuple[Callable[..., ContainedRoot], tuple[object, ...]]:
        return _contained_root, (self.base, self._openat2, self._make_base)

    def root(self, flags: int = LOOKUP) -> int:
        """A descriptor of the directory itself.

        Raises:
            FileNotFoundError: it has not been created yet.
            BaseDirectoryNotFoundError: it is gone.
            ConfigurationError: it is not a directory any more.
        """
        try:
            return os.open(self.base, flags)
        except FileNotFoundError:
            if self._make_base is not None:
                raise
            raise BaseDirectoryNotFoundError(
                f"base directory {os.fsdecode(self.base)!r} does not exist any more"
            ) from None
        except NotADirectoryError:
            raise ConfigurationError(
                f"base directory {os.fsdecode(self.base)!r} is not a directory any more",
                parameter="base_dir",
            ) from None

    def open(self, path: bytes, flags: int) -> int:
        """A descriptor of what *path* names.

        Args:
            path: relative, without empty, "." or ".." components; b"" is the directory itself.
            flags: READ, LIST or LOOKUP.

        Raises:
            OSError: as open(2); EXDEV: the path leads outside; ELOOP: its symlinks loop.
        """
        if b"/" not in path:  # no directory on the way can be a symlink
            try:
                return os.open(self._slashed + path, flags | _NOFOLLOW)
            except FileNotFoundError:
                raise self._absent(path) from None
            except OSError:
                pass  # the methods below find the reason
        fd = self._openat2_fast(path, flags)
        if fd >= 0:
            return fd
        if not path:
            return self.root(flags)
        return self._walk(path, lambda directory, name: os.open(name, flags | _NOFOLLOW, dir_fd=directory))

    def stat(self, path: bytes) -> os.stat_result:
        """The status of the file at *path* (stat(2)). Needs no permission to read it.

        Raises:
            OSError: as `open`.
        """
        if b"/" not in path:
            try:
                facts = os.stat(self._slashed + path, follow_symlinks=False)  # noqa: PTH116 - stays bytes
            except FileNotFoundError:
                raise self._absent(path) from None
            except OSError:
                pass
            else:
                if not stat.S_ISLNK(facts.st_mode):
                    return facts
        syscall = self._syscall
        if syscall is None:
            return self._walk(path, _stat_unless_link)
        fd = syscall(_OPENAT2, _AT_FDCWD, self._slashed + path, _LOOK, _HOW_SIZE)
        if fd < 0 and (fd := self._openat2_beneath(path, _PATH | _CLOEXEC, ctypes.get_errno())) < 0:
            return self._walk(path, _stat_unless_link)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """A descriptor of the parent directory of *path*, and the last component.

        Raises:
            OSError: as `open`.
        """
        directory, _, name = path.rpartition(b"/")
        return self.open(directory, LOOKUP), name

    def make_parent(self, path: bytes) -> tuple[int, bytes, list[bytes]]:
        """As `parent`, but create missing directories.

        Returns:
            The descriptor, the name, and the paths of the directories in which one was created.

        Raises:
            FileExistsError: a file is where a directory is needed.
            OSError: as `open`.
        """
        directory, _, name = path.rpartition(b"/")
        make = self._make_base
        if make is not None:
            make()
            self._make_base = None  # only once: if it is missing later, its disk may have been unmounted
        grown: list[bytes] = []
        try:
            for _ in range(_ATTEMPTS):
                try:
                    return self.open(directory, LOOKUP), name, grown
                except FileNotFoundError:
                    self._make(directory, grown)
            raise OSError(errno.EAGAIN, "removed as often as it was created", directory)
        except NotADirectoryError as error:
            raise FileExistsError(errno.EEXIST, "not a directory", error.filename) from error

    def _make(self, path: bytes, grown: list[bytes]) -> None:
        """Create the directory *path* and its missing parents. Other processes may do the same concurrently."""
        fd = self.root()
        done = b""
        try:
            for name in path.split(b"/"):
                here, done = done, done + b"/" + name if done else name
                try:
                    inner = self.open(done, LOOKUP)
                except FileNotFoundError:
                    try:
                        os.mkdir(name, dir_fd=fd)
                    except FileExistsError:
                        if stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                            raise  # a dangling symlink
                    grown.append(here)
                    inner = self.open(done, LOOKUP)
                os.close(fd)
                fd = inner
        except BaseDirectoryNotFoundError:
            raise
        except FileNotFoundError:
            pass  # removed by another process; the caller tries again
        finally:
            os.close(fd)

    def _openat2_fast(self, path: bytes, flags: int) -> int:
        """A descriptor from openat2(2); a negative number if only `_walk` can decide."""
        if self._syscall is None:
            return -1
        fd: int = self._syscall(
            _OPENAT2, _AT_FDCWD, self._slashed + path, _how(flags, _NO_SYMLINKS), _HOW_SIZE
        )
        return fd if fd >= 0 else self._openat2_beneath(path, flags, ctypes.get_errno())

    def _openat2_beneath(self, path: bytes, flags: int, code: int) -> int:
        """As `_openat2_fast`, after openat2 with RESOLVE_NO_SYMLINKS failed with the error *code*."""
        if code == errno.EINTR:
            return self._openat2_fast(path, flags)
        if not path:
            return -code
        if code == errno.ENOENT:
            raise self._absent(path)
        root = self.root()
        try:
            for _ in range(_RACES):
                fd = _openat2(root, path, flags, _BENEATH)
                if fd != -errno.EAGAIN:  # a concurrent rename made ".." unsafe (openat2(2))
                    break
        finally:
            os.close(root)
        # Absolute symlinks, lost races, old kernels, seccomp filters: walk.
        if fd >= 0 or -fd in {errno.EXDEV, errno.EAGAIN, errno.ENOSYS, errno.EPERM}:
            return fd
        raise OSError(-fd, os.strerror(-fd), path)

    def _absent(self, path: bytes) -> FileNotFoundError:
        """The error for a path that does not exist.

        Raises:
            BaseDirectoryNotFoundError: nor does the directory itself.
        """
        if not os.access(self.base, os.F_OK):
            os.close(self.root())
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def _walk(self, path: bytes, act: Callable[[int, bytes], T]) -> T:
        """Walk *path* one component at a time. *act* performs the last step, and must fail on a symlink."""
        todo = path.split(b"/")[::-1]
        done: list[bytes] = []  # directories passed, none of them a symlink at that time
        links = lost = 0
        root = self.root()
        here = os.dup(root)
        try:
            while todo:
                name = todo.pop()
                if name in {b"", b"."}:
                    continue
                if name == b"..":
                    # Never open "..": if the directory was moved, its parent may be outside. Walk down again instead.
                    if not done:
                        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
                    todo += done[-2::-1]
                    here, done = _replace(here, os.dup(root)), []
                    continue
                try:
                    if not todo:
                        return act(here, name)
                    here = _replace(here, os.open(name, LOOKUP | _NOFOLLOW, dir_fd=here))
                    done.append(name)
                except OSError as error:
                    target = _link_at(here, name, error)
                    if target is None:
                        raise
                    if target is name:
                        lost += 1
                    else:
                        links += 1
                    if links > MAX_LINKS or lost > _MAX_LOST_RACES:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                    if target.startswith(b"/"):
                        target = self._relative(target, path)
                        here, done = _replace(here, os.dup(root)), []
                    todo += target.split(b"/")[::-1]
            return act(here, b".")
        finally:
            os.close(here)
            os.close(root)

    def _relative(self, target: bytes, path: bytes) -> bytes:
        """An absolute symlink's target as a path beneath the base. It is only a hint: the walk checks it like any other path."""
        real = os.path.realpath(target)
        if real == self.base:
            return b"."
        if not real.startswith(self._slashed):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
        return real[len(self._slashed) :]


def _contained_root(base: bytes, openat2: bool, make: Callable[[], object] | None) -> ContainedRoot:
    return ContainedRoot(base, openat2=openat2, make=make)


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


def _link_at(directory: int, name: bytes, error: OSError) -> bytes | None:
    """The target of the symlink that made a step fail with *error*; None if it was not a symlink.

    If the symlink was replaced meanwhile, it is the object *name* itself: the step is tried again.
    """
    if error.errno not in {errno.ELOOP, errno.ENOTDIR, errno.EMLINK}:
        return None
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        now = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        if error.errno == errno.ENOTDIR and not (stat.S_ISDIR(now) or stat.S_ISLNK(now)):
            return None
        return name


def _stat_unless_link(directory: int, name: bytes) -> os.stat_result:
    facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISLNK(facts.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    return facts


def _openat2(directory: int | ctypes.c_int, path: bytes, flags: int, resolve: int) -> int:
    """A descriptor, or a negated errno."""
    while True:
        fd: int = _syscall()(_OPENAT2, directory, path, _how(flags, resolve), _HOW_SIZE)
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code != errno.EINTR:
            return -code


@cache
def _syscall() -> Callable[..., Any]:
    return ctypes.CDLL(None, use_errno=True).syscall


@cache
def _how(flags: int, resolve: int) -> Any:
    return ctypes.byref(_OpenHow(flags, 0, resolve))
