"""Eviction: keeps the content of a blob cache within its limit; the least recently used entry goes first."""

from __future__ import annotations

from storage_backend.wrappers.cached.index import IndexTransaction
from storage_backend.wrappers.cached.layout import BlobLayout
from storage_backend.wrappers.cached.users import EVICTIONS, CacheUser


class Eviction:
    """Evicts entries when room is needed.

    Args:
        limit: of the content, in bytes; None for no limit.
        layout: of the directory.
        user: counts evictions.

    Attributes:
        touched: names of used entries, in order of use, that are not yet in the index.
    """

    def __init__(self, limit: int | None, layout: BlobLayout, user: CacheUser) -> None:
        self.touched: dict[str, None] = {}
        self._limit = limit
        self._layout = layout
        self._user = user

    def make_room(self, transaction: IndexTransaction, size: int, replacing: str | None = None) -> bool:
        """Evict, first the entry *replacing*, until there is room for *size* more bytes; False if that is impossible."""
        state = transaction.state
        if self._limit is None or state.size + size <= self._limit:
            return True
        if transaction.reserved() + size > self._limit:
            return False  # even without any entry
        self.tell(transaction)
        if replacing is not None and transaction.has(replacing):
            self._evict(transaction, [replacing])
        evicted = 0
        while state.size + size > self._limit and (names := transaction.oldest()):
            transaction.intend(names)
            for name in names:
                self._evict(transaction, [name])
                evicted += 1
                if state.size + size <= self._limit:
                    break
        if evicted:
            self._user.count(EVICTIONS, times=evicted)
        return state.size + size <= self._limit

    def tell(self, transaction: IndexTransaction) -> None:
        """Write the uses to the index."""
        touched, self.touched = self.touched, {}
        if touched:
            transaction.use(list(touched))

    def _evict(self, transaction: IndexTransaction, names: list[str]) -> None:
        transaction.intend(names)
        for name in names:
            self._layout.unlink(name)
            transaction.forget(name)
