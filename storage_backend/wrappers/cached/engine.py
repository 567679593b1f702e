"""CacheEngine: the interface of storage engines for entries. `blobs` is ours, `diskcache` uses python-diskcache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from storage_backend.wrappers.cached.entry import CacheKey, OpenEntry
from storage_backend.wrappers.cached.staged import Publication, StagedContent
from storage_backend.wrappers.cached.users import CacheCounters


@dataclass(frozen=True)
class CacheStats:
    """The contents of an engine, and the counters of all its users.

    Attributes:
        size: content bytes.
        count: entries.
        counters: of all users so far.
    """

    size: int
    count: int
    counters: CacheCounters


@dataclass(frozen=True)
class CheckReport:
    """The result of a check.

    Attributes:
        entries: the number of intact entries.
        size: their content bytes.
        damaged: entries that were removed because their content does not match its checksum.
        strays: files that belonged to no entry, and were removed.
        missing: entries of the index that had no file, and were removed.
    """

    entries: int
    size: int
    damaged: int
    strays: int
    missing: int

    @property
    def clean(self) -> bool:
        """Whether nothing had to be repaired."""
        return not (self.damaged or self.strays or self.missing)


class PendingWrite(NamedTuple):
    """A write in the backend in progress.

    Attributes:
        mark: identifies it.
        generations: key -> a generation: if the key has no later one at the end, no other write has ended meanwhile.
    """

    mark: str
    generations: dict[CacheKey, int]


class CacheEngine(Protocol):
    """Stores entries, and never returns one older than the last write.

    Every key has a generation. A fetch notes it before it reads the backend. A write marks the object and drops the entry before
    it calls the backend, and raises the generation afterwards; whoever finds the mark of a dead user raises it, too. An entry is
    published only if its fetch began in the key's present generation, and no write of the object is in progress.

    Every method may raise OSError or the errors of its database; `find`, `touch` and `count` only OSError.
    """

    trusted_since: float
    """Entries fetched before this moment count as expired, in seconds since the epoch."""

    def find(self, key: CacheKey) -> OpenEntry | None:
        """The entry, held open; None if there is none, or it is damaged."""

    def hit(self, key: CacheKey, size: int) -> None:
        """`count` and `touch` in one, for a read of *size* bytes."""

    def touch(self, key: CacheKey) -> None:
        """Note that the entry was used."""

    def count(self, counter: int, size: int = 0) -> None:
        """Add one to a counter (see `users`), and *size* to the bytes saved."""

    def generations(self, keys: Sequence[CacheKey]) -> list[int]:
        """The keys' generations, or an upper bound of them."""

    def stage(self, size: int | None = None, replacing: CacheKey | None = None) -> StagedContent | None:
        """Start staging content; None if it exceeds the limit of the cache.

        Args:
            size: in bytes, if that is known.
            replacing: the key of an entry that may be evicted first.
        """

    def publish(self, publications: Sequence[tuple[Publication, int]]) -> None:
        """Publish entries, each if the given generation still is its key's. Evicts others to make room."""

    def begin(self, keys: Sequence[CacheKey]) -> PendingWrite:
        """Drop the entries, because their objects are about to be written."""

    def end(self, write: PendingWrite, publication: Publication | None = None) -> dict[CacheKey, int]:
        """End a write, whether it succeeded or not.

        Args:
            write: from `begin`.
            publication: the content stored, published at once unless another write came in between.

        Returns:
            The new generations of the keys without another write in the meantime: the content written
            may be published with them.
        """

    def drop(self, key: CacheKey, stamp: int | None = None) -> None:
        """Drop the entry; with *stamp* only if it is that publication."""

    def renew(self, key: CacheKey, found: OpenEntry, fetched: float) -> None:
        """Set the fetch time of the entry that was found, if it still exists."""

    def clear(self, *, patient: bool = False) -> None:
        """Drop all entries, and refuse the fetches in progress.

        Args:
            patient: return once all files are removed; else in bounded time.
        """

    def stats(self) -> CacheStats:
        """Size, count, and the counters of all users."""

    def check(self) -> CheckReport:
        """Verify the checksums of all entries, and repair the cache."""

    def close(self) -> None:
        """Close the files. The next use reopens them."""
