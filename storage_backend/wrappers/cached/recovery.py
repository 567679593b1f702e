"""BlobRecovery: makes the index and the files of a blob cache consistent after a kill, a loss of power, or damage."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

from storage_backend.wrappers.cached.engine import CheckReport
from storage_backend.wrappers.cached.entry import (
    READING,
    CacheEntry,
    TruncatedEntryError,
    crc_of,
    entry_of,
    key_of,
)
from storage_backend.wrappers.cached.eviction import Eviction
from storage_backend.wrappers.cached.index import EVERYTHING, CorruptIndexError, IndexFiles, IndexTransaction
from storage_backend.wrappers.cached.layout import BlobLayout, boot_id, remove
from storage_backend.wrappers.cached.pending_writes import PendingWrites
from storage_backend.wrappers.cached.users import CacheUser, bury_dead, remove_dead

_TRASH = 1_000  # files removed at opening, which must be quick


class BlobRecovery:
    """Repairs one cache directory.

    Args:
        layout: of the directory.
        pending: the writes in progress.
        clock: seconds since the epoch.
    """

    def __init__(self, layout: BlobLayout, pending: PendingWrites, clock: Callable[[], float]) -> None:
        self._layout = layout
        self._pending = pending
        self._clock = clock

    def undo(self, transaction: IndexTransaction, names: list[str]) -> None:
        """Remove rows and files of *names*, which an uncommitted transaction was about to create or unlink."""
        if names == [EVERYTHING]:
            self._layout.discard_all()
            transaction.clear()
            return
        for name in names:
            self._layout.unlink(name)
            transaction.forget(name)

    def rebuild(self, transaction: IndexTransaction) -> None:
        """Fill an empty index from the files, in order of their fetch times."""
        found = []
        for path, name in self._layout.files():
            try:
                entry = _entry_in(path, name)
            except OSError:
                continue
            if entry:
                found.append((entry.fetched, name, entry.size))
            else:
                remove(path)
        for _, name, size in sorted(found):
            transaction.store(name, size)
        transaction.state.boot = boot_id()

    def settle(self, files: IndexFiles, user: CacheUser, eviction: Eviction) -> float:
        """When the cache is opened: take over from dead users, and distrust entries that a loss of power may have restored.

        Args:
            files: those of the index; the lock of the queue is held.
            user: opens it.
            eviction: keeps the content within the limit, which may have changed.

        Returns:
            See `CacheEngine.trusted_since`.
        """
        try:
            with files.transaction(user.token) as transaction:
                dead = self._settle(transaction, eviction)
        except CorruptIndexError:
            files.remove_index()
            with files.transaction(user.token) as transaction:
                dead = self._settle(transaction, eviction)
        remove_dead(self._layout.members, self._layout.staging, dead)
        self._layout.empty_trash(_TRASH)
        return transaction.state.trusted_since

    def _settle(self, transaction: IndexTransaction, eviction: Eviction) -> list[str]:
        dead = bury_dead(self._layout.members, transaction.bury)
        self._pending.end_dead(transaction)
        state, boot = transaction.state, boot_id()
        if boot != state.boot:
            if state.boot:
                transaction.recount()
                # Unlinked files may be back, although their objects have been written since.
                if self._layout.boot_of_last_write() not in {"", boot}:
                    state.trusted_since = self._clock()
            state.boot = boot
        eviction.make_room(transaction, 0)
        return dead

    def check(self, transaction: Callable[[], AbstractContextManager[IndexTransaction]]) -> CheckReport:
        """Verify every entry, and repair the cache.

        Args:
            transaction: begins one; each is short, because others wait for it.
        """
        entries = size = damaged = strays = missing = 0
        self._layout.empty_trash(None)
        for path, name in self._layout.files():
            found = _whole(path, name)
            if found is None:
                continue  # evicted meanwhile
            with transaction() as now:
                if found and now.has(name):
                    entries += 1
                    size += found.size
                    continue
                # Published again since it was read?
                again = _whole(path, name)
                if again is None or (again and now.has(name)):
                    continue
                remove(path)
                if now.forget(name):
                    damaged += 1
                else:
                    strays += 1
        after: str | None = ""
        while after is not None:
            with transaction() as now:
                self._pending.end_dead(now)
                names = now.names(after, 1000)
                for name in names:
                    if not os.path.exists(self._layout.path(name)) and not self._pending.any_of(name):
                        now.forget(name)
                        missing += 1
            after = names[-1] if names else None
        return CheckReport(entries, size, damaged, strays, missing)


def _entry_in(path: str, name: str, *, verify: bool = False) -> CacheEntry | Literal[False]:
    """The entry in a file; with *verify* its checksum is verified. False if it is damaged."""
    fd = os.open(path, READING)
    try:
        entry = entry_of(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else None
        if entry is None or key_of(entry.label).name != name:
            return False
        return entry if not verify or crc_of(fd, entry.size) == entry.crc else False
    except TruncatedEntryError:
        return False
    finally:
        os.close(fd)


def _whole(path: str, name: str) -> CacheEntry | Literal[False] | None:
    """The verified entry in a file; False if it is damaged, None if there is no file."""
    try:
        return _entry_in(path, name, verify=True)
    except FileNotFoundError:
        return None
