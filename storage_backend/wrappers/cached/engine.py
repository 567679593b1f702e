"""CacheEngine: the interface of what keeps the entries. `blobs` is ours, `diskcache` stands over python-diskcache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from storage_backend.wrappers.cached.entry import CacheKey, OpenEntry
from storage_backend.wrappers.cached.staged import Publication, StagedContent
from storage_backend.wrappers.cached.users import CacheCounters


@dataclass(frozen=True)
class CacheStats:
    """What an engine holds, and what all its users have counted.

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
    """What a check found.

    Attributes:
        entries: how many are whole.
        size: their content bytes.
        damaged: entries that were removed, since their content does not match its checksum.
        strays: files that belonged to no entry, and were removed.
        missing: entries of the index that had no file, and were forgotten.
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
    """A write of objects in the backend that is under way.

    Attributes:
        mark: identifies it.
        generations: key -> a generation: if the key has no later one at the end, no other write has ended in between.
    """

    mark: str
    generations: dict[CacheKey, int]


class CacheEngine(Protocol):
    """Keeps entries, finds them again, and never one that is older than the last write.

    Every key has a generation. A fetch takes it before it reads the backend. A write marks the object as being written and drops
    the entry before it calls the backend, and raises the generation after, as whoever finds the mark of a dead user does.
    What is published must have been begun in the key's present generation, while no write of the object is under way.

    Every method may raise OSError or the errors of its database; `find`, `touch` and `count` only OSError.
    """

    trusted_since: float
    """Entries fetched before this moment count as expired, in seconds since the epoch."""

    def find(self, key: CacheKey) -> OpenEntry | None:
        """The entry, held open; None if there is none, or it is damaged."""

    def hit(self, key: CacheKey, size: int) -> None:
        """`count` and `touch` in one: a read was answered with *size* bytes."""

    def touch(self, key: CacheKey) -> None:
        """Note that the entry was used."""

    def count(self, counter: int, size: int = 0) -> None:
        """Add one to a counter (see `users`), and *size* to the bytes saved."""

    def generations(self, keys: Sequence[CacheKey]) -> list[int]:
        """The keys' generations, or later ones that none of them has yet."""

    def stage(self, size: int | None = None, replacing: CacheKey | None = None) -> StagedContent | None:
        """Begin to take in content; None if it is more than the cache may hold.

        Args:
            size: in bytes, if that is known.
            replacing: the key of an entry that may be evicted first.
        """

    def publish(self, publications: Sequence[tuple[Publication, int]]) -> None:
        """Make entries found, each if the generation beside it still is its key's. Others are evicted to make room."""

    def begin(self, keys: Sequence[CacheKey]) -> PendingWrite:
        """Drop the entries, since their objects are about to be written."""

    def end(self, write: PendingWrite, publication: Publication | None = None) -> dict[CacheKey, int]:
        """The write is over, whether it succeeded or not.

        Args:
            write: from `begin`.
            publication: what it has stored, which is published at once unless another write came between.

        Returns:
            The new generations of those keys that no other write has touched in the meantime: what was written
            may be published with them.
        """

    def drop(self, key: CacheKey, stamp: int | None = None) -> None:
        """Forget the entry; with *stamp* only if it is that publication."""

    def renew(self, key: CacheKey, found: OpenEntry, fetched: float) -> None:
        """Set the time of fetching of the entry that was found, if it still is there."""

    def clear(self, *, patient: bool = False) -> None:
        """Forget all entries; what is being fetched now is not published either.

        Args:
            patient: return when no file of them is left. Else in bounded time.
        """

    def stats(self) -> CacheStats:
        """What there is, and what all users have counted."""

    def check(self) -> CheckReport:
        """Read everything, verify its checksum, and repair what is not right."""

    def close(self) -> None:
        """Close the files. Used again, it opens them again."""
