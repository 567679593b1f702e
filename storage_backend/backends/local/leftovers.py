"""Leftovers: temporary files of processes that were killed."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from storage_backend.backends.local.containment import LIST, ContainedRoot
from storage_backend.identifiers import RESERVED, encode
from storage_backend.owners import is_abandoned

_SHARE = 100  # the pause before a directory is listed again, in durations of the last listing
_LARGE = 1 << 20  # bytes of a directory itself: tens of thousands of entries
_SECONDS_A_BYTE = 1e-8  # estimated time to list a cached directory
_MOST_DIRECTORIES = 10_000  # remembered


class Leftovers:
    """Finds and removes temporary files whose process has ended. Safe to use from many threads. A pickle is empty."""

    def __init__(self) -> None:
        self._listed: set[str] = set()
        self._due: dict[bytes, float] = {}

    def __reduce__(self) -> tuple[type[Leftovers], tuple[()]]:
        return Leftovers, ()

    def note(self, path: str) -> None:
        """Remember a temporary file that a listing found."""
        self._listed.add(path)

    def remove_listed(self, root: ContainedRoot) -> int:
        """Remove the noted files whose process has ended, and forget the others. Returns the number of removed files."""
        listed, self._listed = self._listed, set()
        removed = 0
        for path in listed:
            if not is_abandoned(path.rpartition("/")[2]):
                continue
            directory, name = root.parent(encode(path))
            try:
                os.unlink(name, dir_fd=directory)
                removed += 1
            except FileNotFoundError:
                pass
            finally:
                os.close(directory)
        return removed

    def sweep(self, directory: int, path: bytes) -> None:
        """Remove abandoned temporary files in a directory that is about to be written to.

        Listings take at most a hundredth of the time: a directory that was just listed is skipped, as is a very large one at the
        first write. Errors are ignored.

        Args:
            directory: a descriptor of the directory.
            path: its path beneath the base directory.
        """
        now = time.monotonic()
        due = self._due.get(path)
        if due is not None and now < due:
            return
        if len(self._due) >= _MOST_DIRECTORIES:
            self._due.clear()
        size = os.fstat(directory).st_size
        if due is None and size > _LARGE:
            self._due[path] = now + size * _SECONDS_A_BYTE * _SHARE
            return
        with suppress(OSError):
            _sweep(directory)
        ended = time.monotonic()
        self._due[path] = ended + (ended - now) * _SHARE


def _sweep(directory: int) -> None:
    listed = os.open(".", LIST, dir_fd=directory)
    try:
        with os.scandir(listed) as entries:
            found = [entry.name for entry in entries if entry.name.startswith(RESERVED)]
        for name in filter(is_abandoned, found):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
    finally:
        os.close(listed)
