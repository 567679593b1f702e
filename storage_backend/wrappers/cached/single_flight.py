"""SingleFlight: of many readers that miss the same object at once, in all threads and processes, one fetches it.

This only saves work: a reader that has waited too long fetches too, and so do all if locks do not work.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

PATIENCE = 60.0  # seconds to wait for another's fetch
_FIRST_PAUSE = 0.001  # seconds between two attempts to lock; doubled up to the longest
_LONGEST_PAUSE = 0.02
# struct flock of Linux on 64 bits: type, whence, start, length, pid, which must be 0 (fcntl(2), "Open file description locks").
_FLOCK = struct.Struct("@hhqqi4x")


class _Flight:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.failed = False


class _LockFile:
    """The open lock file; separate from its user, so that a finaliser can close it."""

    def __init__(self) -> None:
        self.fd = -1

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class SingleFlight:
    """The fetches in progress.

    Args:
        path: of the lock file that processes share; each name locks one byte of it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._begin()

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Run the body while nobody else does so for *name*. The body first checks what another reader has just published.

        Args:
            name: at least 15 hexadecimal digits.
        """
        if self._process != os.getpid():
            self._forget_parent()
        with self._guard:
            flight = self._flights.setdefault(name, _Flight())
            flight.users += 1
        locked = flight.lock.acquire(timeout=PATIENCE)
        try:
            if flight.failed:
                # A reader that has waited for a failed fetch does not wait for the next one.
                if locked:
                    flight.lock.release()
                    locked = False
                yield
                return
            unlock = self._lock_byte(int(name[:15], 16))
            try:
                yield
            except BaseException:
                flight.failed = True
                raise
            finally:
                unlock()
        finally:
            if locked:
                flight.lock.release()
            with self._guard:
                flight.users -= 1
                if not flight.users:
                    self._flights.pop(name, None)

    def close(self) -> None:
        """Close the lock file; the next use reopens it."""
        with self._guard:
            # This releases all locks: others may fetch the same objects now, which only costs work.
            self._file.close()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._guard = threading.Lock()
        self._flights: dict[str, _Flight] = {}
        self._file = _LockFile()
        self._finalizer = weakref.finalize(self, self._file.close)

    def _forget_parent(self) -> None:
        """Close the inherited descriptor: it shares the parent's locks (fcntl(2), "Open file description locks")."""
        self._finalizer()
        self._begin()

    def _lock_byte(self, offset: int) -> Callable[[], object]:
        """Wait for the lock of one byte of the file; return a function that releases it."""
        if not hasattr(fcntl, "F_OFD_SETLK"):
            return _nothing
        limit = time.monotonic() + PATIENCE
        pause = _FIRST_PAUSE
        while True:
            try:
                with self._guard:
                    if self._file.fd < 0:
                        self._file.fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                    fd = self._file.fd
                    _set(fd, fcntl.F_WRLCK, offset)
            except BlockingIOError:
                if time.monotonic() > limit:
                    return _nothing
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except OSError:
                return _nothing
            else:
                return lambda: self._unlock(fd, offset)

    def _unlock(self, fd: int, offset: int) -> None:
        with self._guard, suppress(OSError):
            if fd == self._file.fd:
                _set(fd, fcntl.F_UNLCK, offset)


def _set(fd: int, kind: int, offset: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))


def _nothing() -> None:
    pass
