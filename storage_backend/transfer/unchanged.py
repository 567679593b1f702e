"""Decides from two listings and the journal whether an object is unchanged on the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias, cast

from storage_backend.info import RACY_SECONDS, ObjectInfo, is_racy
from storage_backend.transfer.fingerprint import JournalRecord, is_kept_everywhere, microseconds, same_time

ActionKind: TypeAlias = Literal["copy", "skip", "compare", "delete"]


@dataclass(frozen=True, slots=True)
class ComparisonRules:
    """The rules for what counts as unchanged.

    Attributes:
        prove: size and time are not sufficient (migrate): only the journal or equal digests are.
        keeps_time: the target stores the source's time, so a different time means a different object.
        keeps: whether the target can store a given time, which may be out of its range.
        timed: the source has times, so nothing is known of an object without one.
        content: always compare content, regardless of times and the journal.
        stored_time: the target's times are those of its writes; equality with the source's is a coincidence.
    """

    prove: bool = False
    keeps_time: bool = False
    keeps: Callable[[datetime], bool] = bool
    timed: bool = False
    content: bool = False
    stored_time: bool = False

    @property
    def time_suffices(self) -> bool:
        """Whether equal sizes and equal times prove "unchanged", unless they are racy."""
        return not (self.prove or self.content or self.stored_time)


def decide(
    source: ObjectInfo,
    target: ObjectInfo,
    rules: ComparisonRules,
    record: JournalRecord | None,
    looked: float,
) -> tuple[ActionKind, str]:
    """The action for an object that both sides have, and its reason.

    Args:
        source: as listed.
        target: as listed.
        rules: what counts as unchanged.
        record: the journal's, if it has one.
        looked: `time.time()` when both were listed.
    """
    if source.size is not None and target.size is not None and source.size != target.size:
        return "copy", "size"
    if rules.content:
        return "compare", "asked"
    if record is not None and record.holds(source, target):
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
    # Different times mean different content only if the target could have stored this time, and it is not in the future.
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
        return ("compare", "recent") if is_racy(changed / 1e6, looked) else ("skip", "same-size-and-time")
    if rules.keeps_time:
        return ("copy", "time") if tells else ("compare", "unproven")
    return "compare", "not-newer"


def settled(looked: float) -> datetime:
    """The upper bound of times that are not racy when seen at *looked*: no later write can have the same one."""
    return datetime.fromtimestamp(looked - RACY_SECONDS, UTC)
