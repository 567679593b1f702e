"""Two sorted scans -> actions with reasons. Pure: no I/O of its own, and nothing is held per object."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple, TypeAlias, cast

from storage_backend import identifiers
from storage_backend.errors import StorageError
from storage_backend.info import ObjectInfo
from storage_backend.transfer.fingerprint import (
    RACY_SECONDS,
    Fingerprint,
    is_kept_everywhere,
    is_racy,
    microseconds,
    same_time,
)

ActionKind: TypeAlias = Literal["copy", "skip", "compare", "delete"]


class Action(NamedTuple):
    """What to do with one object, and why.

    Attributes:
        identifier: the object.
        kind: "copy", "skip", "delete", or "compare": read both sides, then skip or copy.
        reason: copy: missing, size, newer, time, checksum; skip: same-size-and-time, same-size-only, journal, checksum; compare:
            recent (it may have changed within the clock's tick), not-newer (the target shows when it was stored, which is
            later: the content may be another all the same), unproven (nothing shows it), asked (by `checksum`); delete: extra.
        source: what the source's scan shows, if it has the object.
        target: what the target's scan shows, if it has the object.
        looked: `time.time()` when the scans showed it; 0 for what is skipped.
    """

    identifier: str
    kind: ActionKind
    reason: str
    source: ObjectInfo | None
    target: ObjectInfo | None
    looked: float

    def __str__(self) -> str:
        return f"{self.kind}/{self.reason}"


@dataclass(frozen=True, slots=True)
class ComparisonRules:
    """What counts as the same.

    Attributes:
        prove: nothing is skipped on the word of size and time alone (migrate, verify): the journal has its digest, or
            the digests are compared.
        keeps_time: the target stores the source's time, so that another time there means another object.
        keeps: whether it stores a certain time; some are beyond what a store has.
        timed: the source tells times, so that one that it cannot tell may be any.
        content: nothing is skipped by size, time or journal: content is compared always.
        stored_time: the times that the target shows are those of the writes there: one that is the source's is so by chance.
    """

    prove: bool = False
    keeps_time: bool = False
    keeps: Callable[[datetime], bool] = bool
    timed: bool = False
    content: bool = False
    stored_time: bool = False


class JournalRecord(NamedTuple):
    """What the journal knows of an object that was verified.

    Attributes:
        identifier: the object.
        source: the fingerprint of what was read.
        source_proves: whether the source showing it again means "unchanged".
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


def merge(
    source: Iterable[ObjectInfo], target: Iterable[ObjectInfo]
) -> Iterator[tuple[ObjectInfo | None, ObjectInfo | None]]:
    """Pairs of what both sides show under one identifier, ascending.

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
        pairs: as `merge` gives them, with the sizes completed.
        rules: what counts as the same.
        records: the journal's, ascending by identifier as the pairs are.
        clock: gives the time of looking.
    """
    journal = _JournalLookup(iter(()) if records is None else records)
    settled = _settled(clock())
    for one, other in pairs:
        if one is not None and other is not None:
            record = journal.find(one.identifier)
            # What most objects of most runs are, decided without arithmetic on their times.
            if (
                record is None
                and not (rules.prove or rules.content or rules.stored_time)
                and one.sha256 is None
                and one.modified is not None
                and one.modified == other.modified
            ):
                if one.modified >= settled:
                    settled = _settled(clock())
                if one.size is not None and one.size == other.size and one.modified < settled:
                    yield Action(one.identifier, "skip", "same-size-and-time", one, other, 0.0)
                    continue
            looked = clock()
            kind, reason = decide(one, other, rules, record, looked)
            yield Action(one.identifier, kind, reason, one, other, looked)
        elif one is not None:
            yield Action(one.identifier, "copy", "missing", one, None, clock())
        elif other is not None:
            yield Action(other.identifier, "delete", "extra", None, other, clock())


def decide(
    source: ObjectInfo,
    target: ObjectInfo,
    rules: ComparisonRules,
    record: JournalRecord | None,
    looked: float,
) -> tuple[ActionKind, str]:
    """Whether the target's object is the source's, and how that is known."""
    if source.size is not None and target.size is not None and source.size != target.size:
        return "copy", "size"
    if rules.content:
        return "compare", "asked"
    if record is not None and _journal_holds(record, source, target):
        return "skip", "journal"
    if source.sha256 is not None and target.sha256 is not None and not rules.prove:
        return ("skip" if source.sha256 == target.sha256 else "copy"), "checksum"
    if source.modified is not None and target.modified is not None:
        return _decide_by_time(source, target, rules, looked)
    unproven = rules.prove or rules.timed or source.modified is not None
    if unproven or source.size is None or target.size is None:
        return "compare", "unproven"
    return "skip", "same-size-only"


def _decide_by_time(
    source: ObjectInfo, target: ObjectInfo, rules: ComparisonRules, looked: float
) -> tuple[ActionKind, str]:
    changed, stored = (
        microseconds(cast(datetime, source.modified)),
        microseconds(cast(datetime, target.modified)),
    )
    near = same_time(changed, stored)
    same = near and not rules.stored_time
    # Another time tells of another content only where the target could have shown this one, and it is none of the future.
    tells = (
        is_kept_everywhere(changed)
        and changed <= (looked + RACY_SECONDS) * 1_000_000
        and (not rules.keeps_time or rules.keeps(cast(datetime, source.modified)))
    )
    if changed > stored and not near:
        return ("copy", "newer") if tells else ("compare", "unproven")
    if rules.prove or source.size is None or target.size is None:
        return "compare", "unproven"
    if same:
        return ("compare", "recent") if is_racy(changed, looked) else ("skip", "same-size-and-time")
    if rules.keeps_time:
        return ("copy", "time") if tells else ("compare", "unproven")
    return "compare", "not-newer"


def _settled(looked: float) -> datetime:
    """Before this, a time that is seen at *looked* hides no later write."""
    return datetime.fromtimestamp(looked - RACY_SECONDS, UTC)


def _journal_holds(record: JournalRecord, source: ObjectInfo, target: ObjectInfo) -> bool:
    return (
        record.source_proves
        and record.target_proves
        and record.source.shown_by(source)
        and record.target.shown_by(target)
    )


def comes_before(one: str, other: str) -> bool:
    """Whether *one* comes first by its encoded bytes."""
    if one.isascii() and other.isascii():
        return one < other
    return identifiers.encode(one) < identifiers.encode(other)


class _JournalLookup:
    """Finds records for identifiers that are asked for in ascending order."""

    def __init__(self, records: Iterator[JournalRecord]) -> None:
        self._records = records
        self._next = next(records, None)

    def find(self, identifier: str) -> JournalRecord | None:
        while self._next is not None and self._next.identifier != identifier:
            if not comes_before(self._next.identifier, identifier):
                return None
            self._next = next(self._records, None)
        return self._next
