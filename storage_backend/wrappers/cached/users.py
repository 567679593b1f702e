"""CacheUser: a process's use of a cache directory: shows other processes that it is alive, and its counters.

Each has a file in the folder `members`. Its lock, which ends with the process, shows that the user is alive; its content is the
user's counters, so that they are up to date and survive a kill. (They are not mapped into memory: writing to a page that does not
fit on a full disk kills the process.) Whoever finds an unlocked file adds its counters to the common ones and removes it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from storage_backend.wrappers.cached.layout import remove

logger = logging.getLogger(__name__)

_COUNTERS = struct.Struct("<5Q")
_pack, _pwrite = _COUNTERS.pack, os.pwrite


class CacheCounters(NamedTuple):
    """Counters of a cache.

    Attributes:
        hits: reads answered from the cache.
        misses: reads that fetched content from the backend.
        expired: entries that were found too old.
        evictions: entries removed to make room.
        bytes_saved: bytes read from the cache.
    """

    hits: int = 0
    misses: int = 0
    expired: int = 0
    evictions: int = 0
    bytes_saved: int = 0

    def plus(self, other: CacheCounters) -> CacheCounters:
        """The sums."""
        return CacheCounters(*(a + b for a, b in zip(self, other, strict=True)))

    def packed(self) -> bytes:
        """The bytes in a user's file."""
        return _pack(*self)


HITS, MISSES, EXPIRED, EVICTIONS, SAVED = range(5)


class CacheUser:
    """This process's use of a cache directory. It counts before it joins, too.

    Args:
        folder: of the users' files.

    Attributes:
        token: names the file; unique. "" before the first `join`.
    """

    def __init__(self, folder: str) -> None:
        self.token = ""
        self._folder = folder
        self._fd = -1
        self._lock = threading.Lock()  # of the counters alone: a hit must not wait for a transaction
        self._counts = [0] * len(CacheCounters())

    def count(self, counter: int, size: int = 0, times: int = 1) -> None:
        """Add to a counter, and *size* to the bytes saved. If the disk is full, the next count stores it."""
        with self._lock:
            counts = self._counts
            counts[counter] += times
            counts[SAVED] += size
            if self._fd >= 0:
                # Not suppress(), which takes half as long as the call: this is on the path of every hit.
                try:
                    _pwrite(self._fd, _pack(*counts), 0)
                except OSError as error:
                    logger.debug("counters not stored: %s", error)

    def join(self) -> None:
        """Create and lock the file; the caller holds the lock of the search for dead users."""
        self.token = os.urandom(8).hex()
        path = f"{self._folder}/{self.token}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        with suppress(OSError):  # without working locks, no user counts as dead
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with self._lock:
            self._fd = fd
        self.count(HITS, times=0)

    def counters(self) -> CacheCounters:
        """The sums of this user's and all other present users' counters."""
        with self._lock:
            found = CacheCounters(*self._counts)
        for name in os.listdir(self._folder):
            if name != self.token:
                found = found.plus(_read(f"{self._folder}/{name}"))
        return found

    def hand_over(self, take: Callable[[str, CacheCounters], object]) -> None:
        """Pass the counters to *take*, which adds them to the common ones, and reset them."""
        with self._lock:
            take(self.token, CacheCounters(*self._counts))
            self._counts[:] = [0] * len(self._counts)
        self.count(HITS, times=0)

    def leave(self) -> None:
        """Remove the file, whose counters were handed over."""
        with suppress(OSError):
            os.unlink(f"{self._folder}/{self.token}")
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """Close the file, also in a forked child, which would otherwise hold its parent's lock after the parent's end."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def is_alive(folder: str, token: str) -> bool:
    """Whether the user of *token* is alive."""
    return _is_locked(f"{folder}/{token}")


def bury_dead(folder: str, take: Callable[[str, CacheCounters], object]) -> list[str]:
    """Pass the counters of dead users to *take*; the caller holds the lock for this search.

    Returns:
        Their tokens, for `remove_dead` once the counters are stored.
    """
    dead = [name for name in os.listdir(folder) if not _is_locked(f"{folder}/{name}")]
    for name in dead:
        take(name, _read(f"{folder}/{name}"))
    return dead


def remove_dead(folder: str, staging: str, dead: list[str]) -> None:
    """Remove the files and the staged content of dead users."""
    for token in dead:
        with suppress(OSError):
            os.unlink(f"{folder}/{token}")
    alive = set(os.listdir(folder))
    for name in os.listdir(staging):
        if name.partition("-")[0] not in alive:
            remove(f"{staging}/{name}")


def counters_in(data: bytes) -> CacheCounters:
    """The counters of a file; zeros if it is damaged."""
    return CacheCounters(*_COUNTERS.unpack(data)) if len(data) == _COUNTERS.size else CacheCounters()


def _read(path: str) -> CacheCounters:
    try:
        # O_NONBLOCK: do not wait for a pipe in its place.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as reader:
            return counters_in(reader.read(_COUNTERS.size))
    except OSError:
        return CacheCounters()


def _is_locked(path: str) -> bool:
    """Whether the file is locked; also True if that is unknown."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
