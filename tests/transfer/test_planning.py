from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_backend import ObjectInfo, StorageError
from storage_backend.identifiers import encode
from storage_backend.transfer.fingerprint import Fingerprint, JournalRecord, microseconds, same_time
from storage_backend.transfer.planning import actions, merge
from storage_backend.transfer.unchanged import ComparisonRules, decide
from tests.transfer.samples import OLD, later

pytestmark = pytest.mark.quick

LOOKED = OLD.timestamp() + 1000
SIDE = st.dictionaries(
    st.text(st.sampled_from("ab/.-é\udc80\uffff😀"), min_size=1, max_size=4), st.integers(0, 3)
)


def info(size: int | None = 5, seconds: float | None = 0, **more: str) -> ObjectInfo:
    return ObjectInfo("x", size, None if seconds is None else later(seconds), **more)


def ordered(side: dict[str, int]) -> list[ObjectInfo]:
    return [ObjectInfo(name, side[name]) for name in sorted(side, key=encode)]


@given(SIDE, SIDE)
def test_merge_pairs_what_a_dictionary_would(one: dict[str, int], other: dict[str, int]) -> None:
    pairs = list(merge(ordered(one), ordered(other)))
    names = [shown.identifier for pair in pairs if (shown := pair[0] or pair[1])]
    assert names == sorted({*one, *other}, key=encode)
    for left, right in pairs:
        assert left is None or one[left.identifier] == left.size
        assert right is None or other[right.identifier] == right.size
    assert sum(left is not None for left, _ in pairs) == len(one)
    assert sum(right is not None for _, right in pairs) == len(other)


@pytest.mark.parametrize("names", [["b", "a"], ["a", "a"], ["a/b", "a-b"], ["😀", "\uffff"]])
def test_a_side_out_of_order_raises(names: list[str]) -> None:
    listed = [ObjectInfo(name) for name in names]
    with pytest.raises(StorageError, match="out of order"):
        list(merge(listed, []))
    with pytest.raises(StorageError, match="target lists"):
        list(merge([ObjectInfo("zz")], listed))


SYNC, MIGRATE = ComparisonRules(), ComparisonRules(prove=True)
KEEPS = ComparisonRules(keeps_time=True)
CASES = [
    ("other sizes", info(5), info(6), SYNC, "copy/size"),
    ("same size and time", info(), info(), SYNC, "skip/same-size-and-time"),
    ("migrate: the same by size and time", info(), info(), MIGRATE, "compare/unproven"),
    (
        "whole seconds on one side",
        info(seconds=0.2),
        info(seconds=-0.123456),
        SYNC,
        "skip/same-size-and-time",
    ),
    ("another whole second", info(seconds=1.2), info(seconds=-0.123456), SYNC, "copy/newer"),
    ("source newer", info(seconds=9), info(), SYNC, "copy/newer"),
    ("migrate: source newer", info(seconds=9), info(), MIGRATE, "copy/newer"),
    ("target newer, its own time", info(), info(seconds=9), SYNC, "compare/not-newer"),
    ("content is to count", info(), info(), ComparisonRules(content=True), "compare/asked"),
    ("target newer, yet it keeps times", info(), info(seconds=9), KEEPS, "copy/time"),
    ("migrate: target newer", info(), info(seconds=9), MIGRATE, "compare/unproven"),
    ("too fresh to tell", info(seconds=999), info(seconds=999), SYNC, "compare/recent"),
    ("in the future", info(seconds=5000), info(seconds=5000), SYNC, "compare/recent"),
    ("no time at the source", info(seconds=None), info(), SYNC, "skip/same-size-only"),
    (
        "no time at a source of times",
        info(seconds=None),
        info(),
        ComparisonRules(timed=True),
        "compare/unproven",
    ),
    ("migrate: no time at the source", info(seconds=None), info(), MIGRATE, "compare/unproven"),
    ("no time at the target", info(), info(seconds=None), SYNC, "compare/unproven"),
    ("no size", info(size=None), info(), SYNC, "compare/unproven"),
    ("equal digests", info(sha256="a"), info(seconds=9, sha256="a"), SYNC, "skip/checksum"),
    ("other digests", info(sha256="a"), info(sha256="b"), SYNC, "copy/checksum"),
    ("migrate: equal digests, unread", info(sha256="a"), info(sha256="a"), MIGRATE, "compare/unproven"),
]


@pytest.mark.parametrize(
    ("source", "target", "rules", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_decisions(source: ObjectInfo, target: ObjectInfo, rules: ComparisonRules, expected: str) -> None:
    kind, reason = decide(source, target, rules, None, LOOKED)
    assert f"{kind}/{reason}" == expected


def record(source: ObjectInfo, target: ObjectInfo, *, proves: bool = True) -> JournalRecord:
    return JournalRecord("x", Fingerprint.of(source), proves, Fingerprint.of(target), proves, "d" * 64)


def test_the_journal_lets_skip_only_while_both_sides_show_what_it_recorded() -> None:
    source, target = info(), info(seconds=50, etag="7")
    known = record(source, target)
    assert decide(source, target, MIGRATE, known, LOOKED) == ("skip", "journal")
    assert decide(source, target, SYNC, known, LOOKED) == ("skip", "journal")
    assert decide(info(seconds=1), target, MIGRATE, known, LOOKED) != ("skip", "journal")
    assert decide(source, info(seconds=50, etag="8"), MIGRATE, known, LOOKED) != ("skip", "journal")
    assert decide(info(6), target, MIGRATE, known, LOOKED) == ("copy", "size")
    assert decide(source, target, MIGRATE, record(source, target, proves=False), LOOKED) == (
        "compare",
        "unproven",
    )


def test_a_journal_row_of_an_object_that_the_target_lost_does_not_count() -> None:
    known = record(info(), info())
    found = list(actions(merge([info()], []), MIGRATE, records=iter([known])))
    assert [str(action) for action in found] == ["copy/missing"]


@given(SIDE, SIDE, SIDE)
def test_records_are_found_for_their_objects_only(
    one: dict[str, int], other: dict[str, int], known: dict[str, int]
) -> None:
    def shown(name: str, size: int) -> ObjectInfo:
        return ObjectInfo(name, size, OLD, etag="e")

    sides = [[shown(each.identifier, 1) for each in ordered(side)] for side in (one, other)]
    records = [
        JournalRecord(
            each.identifier, Fingerprint.of(shown("", 1)), True, Fingerprint.of(shown("", 1)), True, ""
        )
        for each in ordered(known)
    ]
    for action in actions(merge(*sides), MIGRATE, records=iter(records)):
        both = action.identifier in one and action.identifier in other
        assert (action.reason == "journal") == (both and action.identifier in known)


def test_times_are_exact_to_the_microsecond() -> None:
    assert microseconds(OLD + timedelta(microseconds=1)) == microseconds(OLD) + 1
    assert not same_time(microseconds(OLD), microseconds(OLD) + 1)
    assert same_time(1_000_000_001_000, 1_000_000_001_999)
    assert same_time(1_000_000_000_000, 1_000_000_999_999)
    assert not same_time(1_000_000_000_000, 1_000_001_000_000)


def test_what_is_fresh_proves_nothing() -> None:
    moment = microseconds(OLD)
    assert Fingerprint(1, moment, None).proves(OLD.timestamp() + 2.1)
    assert not Fingerprint(1, moment, None).proves(OLD.timestamp() + 1.9)
    assert not Fingerprint(1, None, None).proves(OLD.timestamp() + 100)
    assert Fingerprint(1, moment, "etag").proves(OLD.timestamp())
