"""Leftovers: temporary files of processes that were killed."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from storage_backend.backends.local.containment import LIST, ContainedRoot
from storage_backend.errors import BaseDirectoryNotFoundError
from storage_backend.identifiers import RESERVED, encode
from storage_backend.owners import is_abandoned

_SHARE = 100  # listings take at most this fraction of the time: of that of one directory, and of that of all together
_ALLOWANCE = 0.05  # seconds that all listings may take beyond that
_FIRST_SECONDS = 0.01  # of the first listing of a directory: it may be very large
_MOST_DIRECTORIES = 10_000  # remembered


class Leftovers:
    """Finds and removes temporary files whose process has ended. Safe to use from many threads. A pickle is empty."""

    def __init__(self) -> None:
        self._listed: set[str] = set()
        self._due: dict[bytes, float] = {}
        self._since = time.monotonic()
        self._spent = 0.0

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
            try:
                directory, name = root.parent(encode(path))
            except BaseDirectoryNotFoundError:
                raise
            except (FileNotFoundError, NotADirectoryError):  # the directory went, and the file with it
                continue
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

        Listings take at most a hundredth of the time, after a short allowance; a directory that was just listed is skipped. The first
        listing of a very large directory ends early. Errors are ignored.

        Args:
            directory: a descriptor of the directory.
            path: its path beneath the base directory.
        """
        now = time.monotonic()
        due = self._due.get(path)
        if now < (due or 0) or self._spent > _ALLOWANCE + (now - self._since) / _SHARE:
            return
        if len(self._due) >= _MOST_DIRECTORIES:
            self._due.clear()
        with suppress(OSError):
            _sweep(directory, now + _FIRST_SECONDS if due is None else None)
        ended = time.monotonic()
        self._spent += ended - now
        self._due[path] = ended + (ended - now) * _SHARE


def _sweep(directory: int, until: float | None) -> None:
    listed = os.open(".", LIST, dir_fd=directory)
    try:
        with os.scandir(listed) as entries:
            found = []
            for entry in entries:
                if entry.name.startswith(RESERVED):
                    found.append(entry.name)
                if until is not None and time.monotonic() > until:
                    break
        for name in filter(is_abandoned, found):
            with suppress(OSError):  # gone, or another user's in a directory with the sticky bit
                os.unlink(name, dir_fd=directory)
    finally:
        os.close(listed)
