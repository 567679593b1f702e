from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import MagicMock

import pytest

from storage_backend import (
    AuthenticationError,
    BatchError,
    Capability,
    ConfigurationError,
    MemoryStorage,
    ObjectInfo,
    PrefixedStorage,
    QuotaExceededError,
    SourceChangedError,
    StorageBackend,
    TransferOptions,
    UnavailableError,
    migrate,
    plan,
    sync,
    verify,
)
from storage_backend.testing import FaultyStorage
from storage_backend.transfer import Event
from storage_backend.wrappers.base import Wrapper
from tests.seven import Careless
from tests.transfer.samples import OLD, contents, later, memory, put

pytestmark = pytest.mark.quick

SMALL = {f"d{number % 7}/{number}": bytes([number % 256]) * number for number in range(600)}
LARGE = {"large/one": bytes(range(256)) * 9000, "large/two": b"2" * 1_200_000}
ALL = {**SMALL, **LARGE, "empty": b""}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_everything_arrives_and_a_second_run_copies_nothing(journal: Path) -> None:
    source, target = memory(ALL), MemoryStorage()
    first = migrate(source, target, journal=journal)
    assert first.ok
    assert (first.copied, first.verified, first.bytes) == (len(ALL), len(ALL), sum(map(len, ALL.values())))
    assert contents(target) == ALL
    assert target.stat("large/one").modified == OLD
    second = migrate(source, target, journal=journal)
    assert second.ok
    assert (second.copied, second.compared, second.planned) == (0, 0, 0)
    assert second.skipped.total() == len(ALL)


def test_sync_copies_what_changed_only() -> None:
    source, target = memory(ALL), memory(ALL)
    put(source, "d1/1", b"?", later(5))
    put(source, "d2/2", b"longer", OLD)
    put(source, "brand/new", b"n")
    report = sync(source, target)
    assert (report.copied, report.ok) == (3, True)
    assert contents(target) == contents(source)


def test_sync_sees_that_the_target_was_overwritten_with_the_same_size() -> None:
    source, target = memory({"a": b"right"}), memory({"a": b"wrong"}, later(60))
    assert sync(source, target).copied == 1
    assert target.read("a") == b"right"


@pytest.mark.parametrize("verb", [sync, migrate])
def test_a_class_of_seven_methods_is_source_and_target(verb: object, journal: Path) -> None:
    keywords = {"journal": journal} if verb is migrate else {}
    one, other = Careless(), Careless()
    one.objects.update(ALL)
    first = verb(one, other, **keywords)  # type: ignore[operator]  # either of two functions
    assert first.ok
    assert first.copied == len(ALL)
    assert other.objects == ALL
    again = verb(one, other, **keywords)  # type: ignore[operator]  # as above
    assert again.ok
    assert again.copied == 0
    assert verify(one, other).ok
    other.objects["d1/1"] = b"!"
    assert verify(one, other).differences == {"d1/1": "digest"}


def test_a_mock_is_an_empty_source_and_a_target_that_takes_all() -> None:
    mock = MagicMock(spec=StorageBackend)
    assert sync(mock, memory({"a": b"1"})).ok
    report = sync(memory({"a": b"1"}), mock, verify="none")
    assert report.copied == 1


def test_verify_names_each_difference_and_changes_nothing() -> None:
    source, target = memory(ALL), memory(ALL)
    put(target, "d1/1", b"!")
    put(target, "d3/3", SMALL["d3/3"], later(-100))  # another time is no difference
    put(target, "d2/2", b"another length")
    put(target, "extra", b"")
    target.delete("large/one")
    before = contents(target)
    report = verify(source, target)
    assert report.differences == {"d1/1": "digest", "d2/2": "size", "extra": "extra", "large/one": "missing"}
    assert not report.ok
    assert not report.failed
    assert contents(target) == before
    assert "extra" not in verify(source, target, one_way=True).differences
    assert "d1/1" not in verify(source, target, verify="size").differences


def test_one_failure_does_not_stop_the_rest(journal: Path) -> None:
    source, target = FaultyStorage(memory(ALL)), MemoryStorage()

    class Denying(Wrapper):
        def write_stream(
            self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
        ) -> bool:
            if identifier == "large/two":
                raise PermissionError("not this one")
            return super().write_stream(identifier, reader, info=info, verify=verify)

    report = migrate(source, Denying(target), journal=journal)
    assert list(report.failed) == ["large/two"]
    assert "not this one" in str(report.failed["large/two"])
    assert report.copied == len(ALL) - 1
    assert not report.ok
    assert not report.retryable
    with pytest.raises(BatchError, match="large/two"):
        report.raise_for_failures()
    assert migrate(source, target, journal=journal).copied == 1


def test_what_may_succeed_later_is_tried_again_at_the_end() -> None:
    target = FaultyStorage(MemoryStorage())
    target.fail("write_stream", nth=1, error=UnavailableError("a moment, please"))
    report = sync(memory({"large/one": LARGE["large/one"], "a": b"1", "b": b"2"}), target)
    assert report.ok
    assert (report.copied, report.failed) == (3, {})


def test_a_batch_that_breaks_is_tried_again_object_by_object() -> None:
    target = FaultyStorage(MemoryStorage())
    target.fail("write_many", nth=1, error=UnavailableError("reset"))
    report = sync(memory(SMALL), target)
    assert report.ok
    assert contents(target.backend) == SMALL


def test_a_read_that_breaks_half_way_leaves_no_part_and_is_repeated() -> None:
    source = FaultyStorage(memory({"large/one": LARGE["large/one"]}))
    source.cut("open", at=1_000_000, nth=1)
    target = MemoryStorage()
    report = sync(source, target)
    assert report.ok
    assert contents(target) == {"large/one": LARGE["large/one"]}


@pytest.mark.parametrize(
    "error", [QuotaExceededError("full"), AuthenticationError("no"), ConfigurationError("bad")]
)
def test_what_every_object_would_meet_stops_at_once(error: Exception, journal: Path) -> None:
    target = FaultyStorage(MemoryStorage())
    target.fail("write_stream", nth=1, error=error)
    events: list[Event] = []
    with pytest.raises(type(error)):
        migrate(memory(ALL), target, journal=journal, on_event=events.append, batch_objects=10)
    assert events[-1].kind == "end"
    assert events[-1].fields["ok"] is False
    rest = migrate(memory(ALL), target, journal=journal)
    assert rest.ok
    assert contents(target.backend) == ALL


def test_a_corrupted_byte_is_found_before_the_object_counts(journal: Path) -> None:
    class Flipping(MemoryStorage):
        def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
            return "0" * 64

        def write_stream(
            self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
        ) -> bool:
            return StorageBackend.write_stream(self, identifier, reader, info=info, verify=verify)

    report = migrate(memory({"a": b"1", "large/one": LARGE["large/one"]}), Flipping(), journal=journal)
    assert set(report.failed) == {"a", "large/one"}
    assert (report.copied, report.verified) == (0, 0)


class Growing(Wrapper):
    """A directory of files, one of which is written to whenever it is read."""

    def __init__(self, backend: StorageBackend, identifier: str, times: int) -> None:
        super().__init__(backend)
        self.identifier = identifier
        self.times = times

    @property
    def capabilities(self) -> Capability:
        return super().capabilities | Capability.DIRECTORIES

    def _grow(self) -> None:
        if self.times > 0:
            self.times -= 1
            put(self.backend, self.identifier, self.backend.read(self.identifier) + b"+", later(self.times))

    def open(self, identifier: str, mode: str = "rb") -> BinaryIO:
        reader = super().open(identifier)
        if identifier == self.identifier:
            self._grow()
        return reader

    def read_many(self, identifiers: object, **_: Any) -> Iterator[tuple[str, bytes]]:
        for identifier, content in super().read_many(identifiers):  # type: ignore[arg-type]  # as given
            if identifier == self.identifier:
                self._grow()
            yield identifier, content


@pytest.mark.parametrize("size", [100, 1_500_000])
def test_a_source_that_goes_on_changing_is_reported_and_not_stored(size: int) -> None:
    source = Growing(memory({"log": b"x" * size, **SMALL}), "log", times=1000)
    target = MemoryStorage()
    report = sync(source, target)
    assert list(report.failed) == ["log"]
    assert isinstance(report.failed["log"], SourceChangedError)
    assert not target.exists("log")
    assert report.copied == len(SMALL)


@pytest.mark.parametrize("size", [100, 1_500_000])
def test_a_source_that_changed_once_is_copied_as_it_is_now(size: int) -> None:
    source = Growing(memory({"log": b"x" * size, **SMALL}), "log", times=1)
    target = MemoryStorage()
    report = sync(source, target)
    assert report.ok
    assert target.read("log") == b"x" * size + b"+"


def test_an_object_deleted_from_the_target_is_copied_again(journal: Path) -> None:
    source, target = memory(SMALL), MemoryStorage()
    migrate(source, target, journal=journal)
    target.delete("d1/1")
    put(target, "d2/2", b"!!", later(99))
    report = migrate(source, target, journal=journal)
    assert report.copied == 2
    assert contents(target) == SMALL


def test_extras_are_deleted_last_and_only_if_asked() -> None:
    source, target = memory(SMALL), memory({**SMALL, "extra/1": b"", "extra/2": b""})
    assert sync(source, target).deleted == 0
    report = sync(source, target, delete=True)
    assert (report.deleted, report.ok) == (2, True)
    assert contents(target) == SMALL


def test_extras_go_to_the_trash_and_stay_there() -> None:
    source, target = memory({"a": b"1"}), memory({"a": b"1", "old/b": b"2"})
    report = sync(source, target, delete=True, trash="trash/today/")
    assert report.deleted == 1
    assert contents(target) == {"a": b"1", "trash/today/old/b": b"2"}
    assert sync(source, target, delete=True, trash="trash/today").deleted == 0


@pytest.mark.parametrize(
    ("source", "extras", "options", "message"),
    [
        ({}, 5, {}, "source is empty"),
        ({"a": b"1"}, 101, {}, "more than max_delete=100"),
        ({"a": b"1"}, 5, {"max_delete": 4}, "more than max_delete=4"),
    ],
)
def test_deleting_too_much_is_refused(
    source: dict[str, bytes], extras: int, options: dict[str, int], message: str
) -> None:
    target = memory({**source, **{f"extra{number}": b"" for number in range(extras)}})
    report = sync(memory(source), target, TransferOptions(delete=True, **options))  # type: ignore[arg-type]  # max_delete
    assert report.deleted == 0
    assert len(report.refused) == 1
    assert message in report.refused[0]
    assert not report.ok
    assert len(target.list()) == len(source) + extras


def test_nothing_is_deleted_after_a_failure() -> None:
    source = FaultyStorage(memory({"a": b"1"}))
    source.fail("read_many", nth=1, error=PermissionError("no"))
    source.fail("open", nth=1, error=PermissionError("no"))
    target = memory({"extra": b""})
    report = sync(source, target, delete=True)
    assert report.failed
    assert target.exists("extra")


def test_what_is_out_of_scope_is_neither_copied_nor_deleted() -> None:
    source = memory({"a.txt": b"1", "b.log": b"2", "sub/c.txt": b"3", "sub/d.txt": b"4"})
    target = memory({"old.log": b"", "old.txt": b""})
    report = sync(source, target, include=["**/*.txt"], exclude=["sub/d.*"], delete=True)
    assert report.ok
    assert sorted(target.list()) == ["a.txt", "old.log", "sub/c.txt"]
    other = MemoryStorage()
    assert sync(source, other, pattern="sub/*").copied == 2


def test_delete_source_removes_only_what_is_proven(journal: Path) -> None:
    source, target = memory({**SMALL, "mine": b"1"}), MemoryStorage()
    hooked = FaultyStorage(source)
    touched = threading.Event()

    class Meddling(Wrapper):
        def write_many(self, items, *, verify: bool = False, **_: Any) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001 - as the base says
            stored = super().write_many(items, verify=verify)
            put(source, "mine", b"2", later(60))
            touched.set()
            return stored

    with pytest.raises(ConfigurationError, match="flush=False"):
        migrate(hooked, Meddling(target), journal=journal, delete_source=True)
    report = migrate(
        hooked, Meddling(target), journal=journal, delete_source=True, flush=False, batch_objects=10_000
    )
    assert touched.is_set()
    assert report.source_deleted == len(SMALL)
    assert list(report.failed) == ["mine"]
    assert contents(source) == {"mine": b"2"}
    assert contents(target) == {**SMALL, "mine": b"1"}
    rest = migrate(source, target, journal=journal, delete_source=True, flush=False)
    assert (rest.copied, rest.source_deleted, source.list()) == (1, 1, [])
    assert target.read("mine") == b"2"


def test_delete_source_flushes_first_and_not_at_all_without_a_digest(journal: Path) -> None:
    order: list[str] = []

    class Flushing(Wrapper):
        @property
        def capabilities(self) -> Capability:
            return super().capabilities | Capability.FLUSH

        def flush(self) -> bool:
            order.append("flush")
            return True

        def delete_many(self, identifiers: object, **_: Any) -> int:
            order.append("delete")
            return super().delete_many(identifiers)  # type: ignore[arg-type]  # as given

    source = Flushing(memory(SMALL))
    with pytest.raises(ConfigurationError, match="digest"):
        migrate(source, Flushing(MemoryStorage()), journal=journal, delete_source=True, verify="size")
    report = migrate(source, Flushing(MemoryStorage()), journal=journal, delete_source=True)
    assert report.source_deleted == len(SMALL)
    assert order == ["flush", "delete"]


def test_a_dry_run_touches_nothing_and_says_what_it_would_do(journal: Path) -> None:
    source, target = memory({"a": b"1", "b": b"2"}), memory({"b": b"2", "c": b"3"})
    report = migrate(source, target, journal=journal, dry_run=True, delete=True)
    assert report.would == {"copy/missing": 1, "compare/unproven": 1, "delete/extra": 1}
    assert contents(target) == {"b": b"2", "c": b"3"}
    assert not journal.exists()
    assert [str(action) for action in plan(source, target, delete=True)] == [
        "copy/missing",
        "skip/same-size-and-time",
        "delete/extra",
    ]


def test_entries_that_are_no_objects_are_reported_by_name() -> None:
    class Odd(Careless):
        def list(self, pattern: str | None = None) -> list[str]:
            return ["good", "//bad", "../worse"]

    source = Odd()
    source.objects["good"] = b"1"
    report = sync(source, MemoryStorage())
    assert set(report.failed) == {"//bad", "../worse"}
    assert report.copied == 1


def test_a_listing_that_breaks_is_raised_after_what_was_planned_is_done() -> None:
    class Breaking(Wrapper):
        def scan(self, prefix: str = "", *, on_skip: object = None) -> Iterator[ObjectInfo]:
            for number, info in enumerate(super().scan(prefix)):
                if number == 300:
                    raise UnavailableError("lost the server")
                yield info

    target = memory({"zzz/extra": b""})
    with pytest.raises(UnavailableError, match="lost the server"):
        sync(Breaking(memory(SMALL)), target, delete=True, retry_for=0)
    assert target.exists("zzz/extra")


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(journal: Path) -> None:
    source, target = memory(ALL), MemoryStorage()
    seen = []

    def interrupt(event: Event) -> None:
        if event.kind == "object":
            seen.append(event)
            if len(seen) == 50:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate(source, target, journal=journal, on_event=interrupt, batch_objects=10, workers=2)
    done = len(target.list())
    assert 0 < done < len(ALL)
    rest = migrate(source, target, journal=journal)
    assert rest.ok
    assert rest.copied == len(ALL) - done
    assert contents(target) == ALL


def test_a_pair_that_would_feed_on_itself_is_refused() -> None:
    class Placed(MemoryStorage):
        def __init__(self, place: str) -> None:
            super().__init__()
            self.place = place

        @property
        def location(self) -> str:
            return self.place

    one = MemoryStorage()
    with pytest.raises(ConfigurationError, match="same place"):
        sync(one, one)
    for source, target in [
        ("file:///a/b", "file:///a/b"),
        ("file:///a", "file:///a/b"),
        ("file:///a/b", "file:///a"),
        ("file:///a", "sqlite:////a/x.db"),
        ("s3://b/p", "s3://b/p/q"),
        ("s3://b#p", "s3://b/p/q"),
        ("sqlite:////a/x.db", "sqlite:////a/x.db#p"),
    ]:
        with pytest.raises(ConfigurationError, match=r"same place|lies inside"):
            sync(Placed(source), Placed(target))
    for source, target in [
        ("file:///a/b", "file:///a/bc"),
        ("s3://b/p", "s3://c/p"),
        ("ssh://u@h/a", "file:///a/b"),
        ("postgresql://h/a?host=x", "postgresql://h/a?host=y"),
    ]:
        assert sync(Placed(source), Placed(target)).ok
    assert sync(PrefixedStorage(one, "a"), PrefixedStorage(one, "b")).ok


def test_options_that_make_no_sense_are_refused() -> None:
    one, other = MemoryStorage(), MemoryStorage()
    for keywords in (
        {"workers": 0},
        {"verify": "md5"},
        {"include": "*.txt"},
        {"exclude": ["../x"]},
        {"max_delete": -1},
        {"nonsense": 1},
        {"delete_source": True},
    ):
        with pytest.raises(ValueError):
            sync(one, other, **keywords)
    with pytest.raises(ConfigurationError, match="changes nothing"):
        verify(one, other, delete=True)
    with pytest.raises(ConfigurationError, match="either"):
        sync(one, other, TransferOptions(), workers=3)
    with pytest.raises(ConfigurationError, match="journal"):
        migrate(one, other)


def test_events_tell_the_story_in_json(journal: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    report = migrate(
        memory(ALL),
        MemoryStorage(),
        journal=journal,
        manifest=tmp_path / "manifest",
        on_event=lambda event: lines.append(json.dumps(event.as_dict())),
    )
    events = [json.loads(line) for line in lines]
    assert events[0]["event"] == "start"
    assert events[-1] == {"event": "end", **json.loads(json.dumps(report.as_dict()))}
    copied = {event["identifier"]: event for event in events if event["event"] == "object"}
    assert set(copied) == set(ALL)
    assert copied["large/two"]["size"] == len(LARGE["large/two"])
    progress = [event for event in events if event["event"] == "progress"]
    assert progress[-1]["done"] == len(ALL)
    assert progress[-1]["plan_complete"] is True
    manifest = [json.loads(line) for line in (tmp_path / "manifest").read_text().splitlines()]
    assert {entry["identifier"]: entry["sha256"] for entry in manifest} == {
        name: event["sha256"] for name, event in copied.items()
    }


def test_time_of_the_source_that_is_too_fresh_is_compared_not_copied(journal: Path) -> None:
    from datetime import UTC, datetime

    source, target = memory(SMALL, datetime.now(UTC) + timedelta(days=1)), MemoryStorage()
    migrate(source, target, journal=journal)
    plain = Careless()
    sync(source, plain)
    report = sync(source, target)
    assert (report.copied, report.compared) == (0, len(SMALL))
    assert sync(source, plain).copied == 0
    assert io.BytesIO(plain.objects["d1/1"]).read() == SMALL["d1/1"]
