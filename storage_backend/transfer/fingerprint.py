"""Fingerprint: size, time and etag, which show without a read that an object has not changed; JournalRecord: two of them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Self

from storage_backend.info import ObjectInfo

# Kernels round file times to a clock tick, SFTP to seconds: a second write within this may leave size and time
# unchanged (git, Documentation/technical/racy-git).
RACY_SECONDS = 2.0


class Fingerprint(NamedTuple):
    """Size, time and etag of an object at some moment.

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
        """Whether the same fingerprint later on proves "unchanged". *looked* is the `time.time()` when it was taken."""
        if self.etag is not None:
            return True
        return self.size is not None and self.modified is not None and not is_racy(self.modified, looked)

    def shown_by(self, info: ObjectInfo) -> bool:
        """Whether *info* is the same: by the etags if both have one, else by size and time."""
        if self.size != info.size:
            return False
        if self.etag is not None and info.etag is not None:
            return self.etag == info.etag
        if self.size is None or self.modified is None or info.modified is None:
            return False
        return same_time(self.modified, microseconds(info.modified))


class JournalRecord(NamedTuple):
    """What the journal knows of an object that was verified.

    Attributes:
        identifier: the object.
        source: the fingerprint of what was read.
        source_proves: whether the source is unchanged if it shows that fingerprint again.
        target: the fingerprint of what was stored.
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
            and self.source.shown_by(source)
            and self.target.shown_by(target)
        )


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """Microseconds since the epoch, exactly (a float has not enough digits)."""
    return (moment - _EPOCH) // _MICROSECOND


def is_racy(modified: int, looked: float) -> bool:
    """Whether an object of that time, seen at *looked*, may be written again without a change of its time."""
    return modified > (looked - RACY_SECONDS) * 1_000_000


def is_kept_everywhere(moment: int) -> bool:
    """Whether every store can keep this time: FAT begins in 1980, and many formats end with 31 bits of seconds, in 2038."""
    return 315_619_200 * 1_000_000 <= moment < (1 << 31) * 1_000_000


def same_time(one: int, other: int) -> bool:
    """Whether two times in microseconds agree within the coarser precision of the two."""
    return one == other or abs(one - other) < max(_precision(one), _precision(other))


def _precision(moment: int) -> int:
    """The precision of a time by its digits, in microseconds: a second, a millisecond, or a microsecond."""
    return 1_000_000 if moment % 1_000_000 == 0 else 1_000 if moment % 1_000 == 0 else 1
