"""CacheUser: one user of a cache directory, as the others see it: whether it lives, and what it has counted.

Each has a file of its own in the folder `users`, which it locks for as long as it lives (a killed process lets go of
its locks) and which holds its counters: they are right at any time, whoever looks, and outlive a kill. (They are not mapped
into memory: a store into a page that a full disk has no room for ends the process.) Whoever finds a file that nobody
holds adds its counters to the common ones and removes it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

logger = logging.getLogger(__name__)

_COUNTERS = struct.Struct("<5Q")
_pack, _pwrite = _COUNTERS.pack, os.pwrite


class CacheCounters(NamedTuple):
    """What is counted.

    Attributes:
        hits: reads that the backend was not asked for content for.
        misses: reads that it was.
        expired: entries that were found, and too old.
        evictions: entries that made room for others.
        bytes_saved: that hits gave.
    """

    hits: int = 0
    misses: int = 0
    expired: int = 0
    evictions: int = 0
    bytes_saved: int = 0

    def plus(self, other: CacheCounters) -> CacheCounters:
        """The sums."""
        return CacheCounters(*(a + b for a, b in zip(self, other, strict=True)))


HITS, MISSES, EXPIRED, EVICTIONS, SAVED = range(5)


class CacheUser:
    """This user's own file, made while nobody can look for dead ones.

    Args:
        folder: where the files are.

    Attributes:
        token: its name, which no other has.
    """

    def __init__(self, folder: str) -> None:
        self.token = os.urandom(8).hex()
        self._path = f"{folder}/{self.token}"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        try:
            with suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.save(CacheCounters())
        except BaseException:
            os.close(self._fd)
            with suppress(OSError):
                os.unlink(self._path)
            raise

    def save(self, counts: Sequence[int]) -> None:
        """Store the counters, in the order of `CacheCounters`. What the disk refuses is stored with the next."""
        # Not by suppress(), which takes half as long as the call: every hit comes here.
        try:
            _pwrite(self._fd, _pack(*counts), 0)
        except OSError as error:
            logger.debug("counters not stored: %s", error)

    def leave(self) -> None:
        """Remove the file, of which the counters have been added to the common ones."""
        with suppress(OSError):
            os.unlink(self._path)
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file; in a forked child too, which must not hold its parent's lock after its parent's end."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def is_alive(folder: str, token: str) -> bool:
    """Whether somebody holds the file of *token*."""
    return _held(f"{folder}/{token}")


def dead(folder: str) -> Iterator[tuple[str, CacheCounters]]:
    """The tokens whose owners are gone, with what they counted. Each is to be buried, under a lock that all take."""
    for name in os.listdir(folder):
        path = f"{folder}/{name}"
        if not _held(path):
            yield name, _read(path)


def bury(folder: str, token: str) -> None:
    """Remove the file of a dead one."""
    with suppress(OSError):
        os.unlink(f"{folder}/{token}")


def others(folder: str, token: str) -> Iterator[CacheCounters]:
    """The counters of all but *token*."""
    for name in os.listdir(folder):
        if name != token:
            yield _read(f"{folder}/{name}")


def _read(path: str) -> CacheCounters:
    try:
        # A pipe is not waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as reader:
            data = reader.read(_COUNTERS.size)
    except OSError:
        return CacheCounters()
    return CacheCounters(*_COUNTERS.unpack(data)) if len(data) == _COUNTERS.size else CacheCounters()


def _held(path: str) -> bool:
    """Whether somebody holds the lock of the file, as far as can be told: one that cannot be told of lives."""
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
