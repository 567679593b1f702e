"""Fingerprint: size, time and etag, which prove without a read that an object is unchanged; JournalRecord: one of each side."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Self

from storage_backend.info import ObjectInfo, is_racy


class Fingerprint(NamedTuple):
    """Size, time and etag of an object at one moment.

    Attributes:
        size: bytes, or None where unknown.
        modified: microseconds since the epoch, or None where unknown.
        etag: opaque, or None where there is none.
    """

    size: int | None
    modified: int | None
    etag: str | None

    @classmethod
    def of(cls, info: ObjectInfo) -> Self:
        """The fingerprint of an ObjectInfo."""
        return cls(info.size, None if info.modified is None else microseconds(info.modified), info.etag)

    def proves(self, looked: float) -> bool:
        """Whether the same fingerprint, seen later, proves "unchanged". *looked* is the `time.time()` when it was taken."""
        if self.etag is not None:
            return True
        return (
            self.size is not None and self.modified is not None and not is_racy(self.modified / 1e6, looked)
        )

    def matches(self, info: ObjectInfo) -> bool:
        """Whether *info* is the same: by the etags if both have one, else by size and time."""
        if self.size != info.size:
            return False
        if self.etag is not None and info.etag is not None:
            return self.etag == info.etag
        if self.size is None or self.modified is None or info.modified is None:
            return False
        return same_time(self.modified, microseconds(info.modified))


class JournalRecord(NamedTuple):
    """The journal's record of a verified object.

    Attributes:
        identifier: the object.
        source: the fingerprint of the object read.
        source_proves: whether the same fingerprint, seen again, proves the source unchanged.
        target: the fingerprint of the object stored.
        target_proves: the same for the target.
        sha256: of both.
    """

    identifier: str
    source: Fingerprint
    source_proves: bool
    target: Fingerprint
    target_proves: bool
    sha256: str

    @classmethod
    def verified(
        cls, source: ObjectInfo, target: ObjectInfo, *, size: int | None, sha256: str, looked: float
    ) -> Self:
        """The record of an object whose digest is the same on both sides.

        Args:
            source: as it was read.
            target: as it was stored.
            size: bytes read.
            sha256: of both.
            looked: `time.time()` before the source was read.
        """
        one, other = Fingerprint.of(source)._replace(size=size), Fingerprint.of(target)
        return cls(source.identifier, one, one.proves(looked), other, other.proves(time.time()), sha256)

    def holds(self, source: ObjectInfo, target: ObjectInfo) -> bool:
        """Whether the listings prove that both sides are unchanged."""
        return (
            self.source_proves
            and self.target_proves
            and self.source.matches(source)
            and self.target.matches(target)
        )


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """Microseconds since the epoch, exactly (a float has not enough digits)."""
    return (moment - _EPOCH) // _MICROSECOND


def is_kept_everywhere(moment: int) -> bool:
    """Whether every store can keep this time: FAT starts in 1980, and many formats have 31 bits of seconds, until 2038."""
    return 315_619_200 * 1_000_000 <= moment < (1 << 31) * 1_000_000


def same_time(one: int, other: int) -> bool:
    """Whether two times in microseconds agree within the coarser precision of the two."""
    return one == other or abs(one - other) < max(_precision(one), _precision(other))


def _precision(moment: int) -> int:
    """The precision of a time by its digits, in microseconds: a second, a millisecond, or a microsecond."""
    return 1_000_000 if moment % 1_000_000 == 0 else 1_000 if moment % 1_000 == 0 else 1
