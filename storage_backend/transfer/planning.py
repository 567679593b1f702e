"""Merges two sorted listings into actions. Pure: no I/O of its own, and constant memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from storage_backend import identifiers
from storage_backend.errors import StorageError
from storage_backend.info import ObjectInfo
from storage_backend.transfer.fingerprint import JournalRecord
from storage_backend.transfer.unchanged import ActionKind, ComparisonRules, decide, settled


class Action(NamedTuple):
    """What to do with one object, and why.

    Attributes:
        identifier: the object.
        kind: "copy", "skip", "delete", or "compare": read both sides, then skip or copy.
        reason: copy: missing, size, newer, time, checksum; skip: same-size-and-time, same-size-only, journal, checksum; compare:
            recent (it may have changed within the clock's tick), not-newer (the target shows only when it was stored, which is
            later than the source's time), unproven (no time, etag or journal decides), asked (by `checksum`); delete: extra.
        source: the source's info, if it has the object.
        target: the target's info, if it has the object.
        looked: `time.time()` when it was listed; 0 for a skipped object.
    """

    identifier: str
    kind: ActionKind
    reason: str
    source: ObjectInfo | None
    target: ObjectInfo | None
    looked: float

    def __str__(self) -> str:
        return f"{self.kind}/{self.reason}"


def merge(
    source: Iterable[ObjectInfo], target: Iterable[ObjectInfo]
) -> Iterator[tuple[ObjectInfo | None, ObjectInfo | None]]:
    """Merge two listings into pairs with the same identifier, ascending; None for a side that lacks it.

    Raises:
        StorageError: a side is out of order, so that pairs would be missed.
    """
    left, right = iter(source), iter(target)
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if other is None or (
            one is not None
            and one.identifier != other.identifier
            and comes_before(one.identifier, other.identifier)
        ):
            assert one is not None
            yield one, None
            one = _after(one, next(left, None), "source")
        elif one is None or one.identifier != other.identifier:
            yield None, other
            other = _after(other, next(right, None), "target")
        else:
            yield one, other
            one = _after(one, next(left, None), "source")
            other = _after(other, next(right, None), "target")


def _after(last: ObjectInfo, info: ObjectInfo | None, side: str) -> ObjectInfo | None:
    """*info*, which the *side* lists after *last*."""
    if info is not None and not comes_before(last.identifier, info.identifier):
        raise StorageError(
            f"the {side} lists {info.identifier!r} after {last.identifier!r}: out of order, so the plan would be wrong",
            identifier=info.identifier,
        )
    return info


def actions(
    pairs: Iterable[tuple[ObjectInfo | None, ObjectInfo | None]],
    rules: ComparisonRules,
    *,
    records: Iterator[JournalRecord] | None = None,
    clock: Callable[[], float] = time.time,
) -> Iterator[Action]:
    """The action for each pair.

    Args:
        pairs: as from `merge`, with the sizes completed.
        rules: what counts as unchanged.
        records: the journal's, ascending by identifier.
        clock: as `time.time`.
    """
    journal = _JournalLookup(records or iter(()))
    safe_before = settled(clock())
    time_suffices = rules.time_suffices
    for one, other in pairs:
        if one is not None and other is not None:
            record = journal.find(one.identifier)
            # A fast path for most objects of most runs, without arithmetic on their times.
            if (
                record is None
                and time_suffices
                and one.sha256 is None
                and one.modified is not None
                and one.modified == other.modified
            ):
                if one.modified >= safe_before:
                    safe_before = settled(clock())
                if one.size is not None and one.size == other.size and one.modified < safe_before:
                    yield Action(one.identifier, "skip", "same-size-and-time", one, other, 0.0)
                    continue
            looked = clock()
            kind, reason = decide(one, other, rules, record, looked)
            yield Action(one.identifier, kind, reason, one, other, looked)
        elif one is not None:
            yield Action(one.identifier, "copy", "missing", one, None, clock())
        elif other is not None:
            yield Action(other.identifier, "delete", "extra", None, other, clock())


def comes_before(one: str, other: str) -> bool:
    """Whether *one* comes first by its encoded bytes."""
    if one.isascii() and other.isascii():
        return one < other
    return identifiers.encode(one) < identifiers.encode(other)


class _JournalLookup:
    """Finds records for identifiers that are looked up in ascending order."""

    def __init__(self, records: Iterator[JournalRecord]) -> None:
        self._records = records
        self._next = next(records, None)

    def find(self, identifier: str) -> JournalRecord | None:
        while self._next is not None and self._next.identifier != identifier:
            if not comes_before(self._next.identifier, identifier):
                return None
            self._next = next(self._records, None)
        return self._next
