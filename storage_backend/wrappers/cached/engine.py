"""CacheEngine: what keeps the bytes of a cache. `blobs` is ours, `diskcache` stands over python-diskcache."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from typing_extensions import Buffer

from storage_backend.wrappers.cached.entry import CacheEntry, OpenEntry
from storage_backend.wrappers.cached.users import CacheCounters

HELD = 256 << 10  # bytes of one content that may be in memory until it is published
_NAME = re.compile("[0-9a-f]{32}")


class CacheKey(NamedTuple):
    """What an entry is found by.

    Attributes:
        label: what it is the content of; stored with it, and compared.
        name: the label's digest in hex, which files and rows are called.
    """

    label: bytes
    name: str


def key_of(label: bytes) -> CacheKey:
    """The key of a label."""
    return CacheKey(label, hashlib.blake2b(label, digest_size=16).hexdigest())


def is_name(text: str) -> bool:
    """Whether a key may have that name."""
    return _NAME.fullmatch(text) is not None


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
        damaged: entries that were removed, since their bytes are not what was stored.
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
        """Whether nothing had to be mended."""
        return not (self.damaged or self.strays or self.missing)


class StagedContent(Protocol):
    """Content on its way into the cache."""

    size: int

    def write(self, data: Buffer, /) -> object:
        """Append all of *data*."""

    def fetch(self, download: Callable[[str], object]) -> None:
        """Take in all of the content at once: *download* makes a file of it at the path that it is given."""

    def found(self, entry: CacheEntry) -> OpenEntry:
        """What was written, to be read although it is not published: *entry* is its."""

    def discard(self) -> None:
        """Drop it, unless it was published."""


class OverCacheLimitError(Exception):
    """The content is more than the cache may hold."""


class PendingWrite(NamedTuple):
    """A change of objects in the backend, under way.

    Attributes:
        mark: tells this one from others.
        generations: key -> a generation: no other change has ended since if the key is of no later one.
    """

    mark: str
    generations: dict[CacheKey, int]


class Publication(NamedTuple):
    """What may be published.

    Attributes:
        key: of the entry.
        staged: its content.
        entry: what is known of it.
    """

    key: CacheKey
    staged: StagedContent
    entry: CacheEntry


class CacheEngine(Protocol):
    """Keeps entries, finds them again, and never one that a change has overtaken.

    Every key has a generation. A fill takes it before it reads the backend. A change tells all that it is under way and drops the
    entry before it calls the backend, and raises the generation after, as whoever finds does that it was killed. Only what was
    begun in the key's generation is published, while no change of the object is under way.

    Every method may raise OSError or the errors of its database; `find`, `touch` and `count` only OSError.
    """

    trusted_since: float
    """Entries fetched before this moment are as good as expired, in seconds since the epoch."""

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
            replacing: whose entry need not be kept until then.
        """

    def publish(self, offers: Sequence[tuple[Publication, int]]) -> None:
        """Make the entries found, each if the generation beside it is still good for its key. Others are evicted to make room."""

    def begin(self, keys: Sequence[CacheKey]) -> PendingWrite:
        """Drop the entries: a change of their objects begins."""

    def end(self, change: PendingWrite, offer: Publication | None = None) -> dict[CacheKey, int]:
        """The change is over, whatever came of it.

        Args:
            change: from `begin`.
            offer: what it has stored, to be published at once if nothing speaks against it.

        Returns:
            The new generations of those keys that no other change has touched in the meantime: what the change has
            stored may be published with them.
        """

    def drop(self, key: CacheKey, stamp: int | None = None) -> None:
        """Forget the entry; with *stamp* only if it is that publication."""

    def renew(self, key: CacheKey, found: OpenEntry, fetched: float) -> None:
        """Have the entry that was found be as if it had been fetched at *fetched*, if it is still there."""

    def clear(self, *, patient: bool = False) -> None:
        """Forget all entries; what is being fetched now is not published either.

        Args:
            patient: return when nothing of them is left. Else in bounded time.
        """

    def stats(self) -> CacheStats:
        """What there is, and what all users have counted."""

    def check(self) -> CheckReport:
        """Read everything, compare it with its checksum, and mend what is not right."""

    def close(self) -> None:
        """Let go of files. Used again, it opens them again."""
