"""FallbackStorage: what is in either side is there, and what was written is what is read."""

import inspect
import io
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from typing_extensions import override

from storage_backend import (
    AccessDeniedError,
    BatchError,
    BucketNotFoundError,
    Capability,
    ConfigurationError,
    FallbackStorage,
    IntegrityError,
    InvalidIdentifierError,
    LocalStorage,
    MemoryStorage,
    NotAFileError,
    NotFoundError,
    ObjectInfo,
    PreconditionFailedError,
    PrefixedStorage,
    QuotaExceededError,
    ReadOnlyStorage,
    SourceChangedError,
    StorageBackend,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
    UnsupportedOperationError,
)
from storage_backend.base import Item
from storage_backend.scanning import OnSkip
from storage_backend.streams import HashingReader, sha256
from storage_backend.testing import ConformanceSuite, FaultyStorage, Source, Subject
from storage_backend.wrappers.fallback import RepairReport
from tests.seven import Careless
from tests.tiers import few
from tests.topics import ObjectTopics
from tests.wrappers.test_conformance import LACKS

MISSING = {"missing delete": "delete returns False for what is nowhere, as old programs expect"}
NO_TYPES = {"content_type": "a file has no place for one"}
MODES = ["primary", "secondary", "both"]


class TestOverMemory(ObjectTopics):
    @pytest.fixture
    def subject(self) -> Subject:
        storage = FallbackStorage(MemoryStorage(), MemoryStorage())
        return Subject(make=lambda: storage, lacks={**MISSING, **LACKS})


class TestOverMemoryToBoth(ObjectTopics):
    @pytest.fixture
    def subject(self) -> Subject:
        storage = FallbackStorage(MemoryStorage(), MemoryStorage(), "both")
        return Subject(make=lambda: storage, lacks={**MISSING, **LACKS})


class TestLocalOverMemoryToSecondary(ObjectTopics):
    """The side that is written to has other abilities than the one that is read first."""

    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        storage = FallbackStorage(LocalStorage(tmp_path / "base"), MemoryStorage(), "secondary")
        return Subject(make=lambda: storage, lacks={**MISSING, **LACKS})


class TestOverLocalToBothFallingBack(ConformanceSuite):
    """Over a store that other processes share."""

    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        def make() -> StorageBackend:
            primary, secondary = LocalStorage(tmp_path / "one"), LocalStorage(tmp_path / "two")
            return FallbackStorage(primary, secondary, "both", on_error="fallback")

        return Subject(make, lacks={**MISSING, **NO_TYPES})


class TestOverSevenMethodsToBoth(ObjectTopics):
    @pytest.fixture
    def subject(self) -> Subject:
        primary, secondary = (PrefixedStorage(Careless(), "p") for _ in range(2))
        storage = FallbackStorage(primary, secondary, "both", on_error="fallback")
        lacks = {
            "content_type": "it has no place for one",
            "errors": "it raises built-in errors",
            "modified": "it has no place for one",
        }
        return Subject(make=lambda: storage, lacks={**MISSING, **LACKS, **lacks})


# Every public method is overridden: each for a reason of its own, for which the tests below stand.
PUBLIC = {name for name in vars(StorageBackend) if not name.startswith("_")}
FIRST = {
    "exists",
    "read",
    "size",
    "stat",
    "read_range",
    "download",
    "checksum",
}  # of the first side that has it
BY_SIDE = {"get_path", "get_url", "copy", "move"}  # on the side that has it
WRITTEN = {"write", "write_stream", "write_many", "upload"}  # to `write_to`
UNION = {"list", "stat_many", "scan", "scan_level", "read_many", "delete", "delete_many"}
OWN = {"open", "create", "replace", "flush", "capabilities", "keeps_modified", "location", "hooks", "close"}


def test_every_public_method_is_overridden_deliberately() -> None:
    groups = [FIRST, BY_SIDE, WRITTEN, UNION, OWN]
    assert set().union(*groups) == PUBLIC
    assert sum(map(len, groups)) == len(PUBLIC)
    assert set(vars(FallbackStorage)) >= PUBLIC
    for method in PUBLIC:
        theirs, ours = vars(StorageBackend)[method], vars(FallbackStorage)[method]
        if not isinstance(theirs, property):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)


@pytest.fixture
def one() -> FaultyStorage:
    return FaultyStorage(MemoryStorage())


@pytest.fixture
def two() -> FaultyStorage:
    return FaultyStorage(MemoryStorage())


def content(backend: FaultyStorage) -> dict[str, bytes]:
    """What is there, by no faulty call."""
    inner = backend.backend
    return {name: inner.read(name) for name in inner.list()}


def down(backend: FaultyStorage, *but: str, error: type[BaseException] = UnavailableError) -> None:
    for method in PUBLIC - {"capabilities", "location", "keeps_modified", "hooks", "close", "get_path", *but}:
        backend.fail(method, error=error("the line is dead"), times=None)


# Construction


@pytest.mark.parametrize("word", ["", "PRIMARY", "none", None, 3, ["both"], "primary "])
def test_other_words_are_refused(word: Any) -> None:
    with pytest.raises(ValueError, match=r"^write_to must be") as caught:
        FallbackStorage(MemoryStorage(), MemoryStorage(), word)
    assert isinstance(caught.value, ConfigurationError)
    assert caught.value.parameter == "write_to"
    with pytest.raises(ConfigurationError, match=r"^on_error must be") as caught:
        FallbackStorage(MemoryStorage(), MemoryStorage(), on_error=word)
    assert caught.value.parameter == "on_error"


def test_what_is_no_backend_is_refused() -> None:
    for arguments in (("/data", MemoryStorage()), (MemoryStorage(), None), (MemoryStorage, MemoryStorage())):
        with pytest.raises(TypeError, match="must be a StorageBackend"):
            FallbackStorage(*cast(Any, arguments))


def test_the_same_backend_twice_is_refused() -> None:
    same = MemoryStorage()
    with pytest.raises(ConfigurationError):
        FallbackStorage(same, same)


def test_attributes_and_location(tmp_path: Path) -> None:
    primary, secondary = LocalStorage(tmp_path / "a"), MemoryStorage()
    storage = FallbackStorage(primary, secondary, "both")
    assert storage.primary is primary
    assert storage.secondary is secondary
    assert storage.write_to == "both"
    assert storage.location == f"fallback({primary.location}|MemoryStorage)"


def test_closing_closes_both() -> None:
    closed = []

    class Closing(MemoryStorage):
        @override
        def close(self) -> None:
            closed.append(self)
            raise UnavailableError("could not say goodbye")

    primary, secondary = Closing(), Closing()
    with pytest.raises(UnavailableError):
        FallbackStorage(primary, secondary).close()
    assert closed == [primary, secondary]


# Reading

READS: dict[str, Callable[[StorageBackend, str], Any]] = {
    "read": lambda s, name: s.read(name),
    "size": lambda s, name: s.size(name),
    "stat": lambda s, name: s.stat(name).size,
    "open": lambda s, name: s.open(name).read(),
    "read_range": lambda s, name: s.read_range(name, 1, 3),
    "checksum": lambda s, name: s.checksum(name),
    "exists": lambda s, name: s.exists(name),
}


@pytest.mark.parametrize("method", sorted(READS))
@pytest.mark.parametrize("write_to", MODES)
def test_reads_ask_one_side_and_then_the_other(
    method: str, write_to: str, one: FaultyStorage, two: FaultyStorage
) -> None:
    storage = FallbackStorage(one, two, write_to)
    read = READS[method]
    one.backend.write("only one", b"abcd")
    two.backend.write("only two", b"efghij")
    one.backend.write("both", b"primary")
    two.backend.write("both", b"secondary")
    assert read(storage, "only one") == read(one.backend, "only one")
    assert read(storage, "only two") == read(two.backend, "only two")
    assert read(storage, "both") == read((two if write_to == "secondary" else one).backend, "both")
    if method == "exists":
        assert storage.exists("gone") is False
        return
    with pytest.raises(FileNotFoundError, match="not found in primary or secondary") as caught:
        read(storage, "gone")
    assert isinstance(caught.value, NotFoundError)
    assert (caught.value.identifier, caught.value.backend) == ("gone", storage.location)


@pytest.mark.parametrize("method", sorted(READS))
@pytest.mark.parametrize(
    "kind", [UnavailableError, StorageTimeoutError, AccessDeniedError, BucketNotFoundError, ConnectionError]
)
def test_a_fault_is_never_an_absence(
    method: str, kind: type[Exception], one: FaultyStorage, two: FaultyStorage
) -> None:
    storage = FallbackStorage(one, two)
    two.backend.write("a", b"abcd")
    one.fail(method, error=kind("broken"), times=None)
    with pytest.raises(kind, match="broken"):
        READS[method](storage, "a")
    one.heal()
    two.fail(method, error=kind("broken"), times=None)
    with pytest.raises(kind, match="broken"):
        READS[method](storage, "gone")


def test_the_sides_own_errors_may_be_built_in_ones() -> None:
    primary, secondary = Careless(), Careless()
    secondary.objects["a"] = b"1"
    storage = FallbackStorage(primary, secondary)
    assert storage.read("a") == b"1"
    assert storage.list() == ["a"]
    assert storage.delete("a") is True
    assert storage.delete("a") is False
    with pytest.raises(NotFoundError):
        storage.read("a")
    storage.write("b", cast(Any, bytearray(b"2")))
    assert primary.objects == {"b": b"2"}


def test_a_directory_on_one_side_does_not_hide_the_object_of_the_other(tmp_path: Path) -> None:
    local, memory = LocalStorage(tmp_path), MemoryStorage()
    local.write("d/x", b"")
    memory.write("d", b"object")
    storage = FallbackStorage(local, memory)
    assert storage.read("d") == b"object"
    memory.delete("d")
    with pytest.raises(NotAFileError):
        storage.read("d")


def test_a_name_that_one_side_cannot_have_is_read_from_the_other(tmp_path: Path) -> None:
    local, memory = LocalStorage(tmp_path), MemoryStorage()
    name = "n" * 300
    memory.write(name, b"1")
    storage = FallbackStorage(local, memory)
    assert storage.read(name) == b"1"
    assert storage.delete_many([name]) == 1
    with pytest.raises(InvalidIdentifierError):
        storage.write(name, b"")
    other = FallbackStorage(memory, local)
    with pytest.raises(NotFoundError):
        other.read(name)
    assert other.write(name, b"2")
    assert other.delete(name) is True


def test_paths_and_urls_are_those_of_the_side_that_has_the_object(tmp_path: Path) -> None:
    primary, secondary = LocalStorage(tmp_path / "one"), LocalStorage(tmp_path / "two")
    primary.write("a", b"1")
    secondary.write("b", b"2")
    for write_to in ("primary", "secondary", "both"):
        storage = FallbackStorage(primary, secondary, write_to)
        assert storage.get_path("a") == primary.get_path("a")
        assert storage.get_path("b") == secondary.get_path("b")
        for pair in (storage, PrefixedStorage(FallbackStorage(MemoryStorage(), storage), "d")):
            with pytest.raises(NotFoundError, match="not found in primary or secondary") as caught:
                pair.get_path("none")
            assert caught.value.identifier == "none"
        with pytest.raises(InvalidIdentifierError):
            storage.get_path("../a")
        assert storage.get_url("b") == secondary.get_url("b")
    with pytest.raises(UnsupportedOperationError):
        FallbackStorage(primary, MemoryStorage()).get_url("a")


def test_misses_are_read_as_one_batch(one: FaultyStorage, two: FaultyStorage) -> None:
    storage = FallbackStorage(one, two)
    for number in range(10):
        (one if number % 2 else two).backend.write(f"{number}", b"%d" % number)
    asked: list[list[str]] = []

    class Counting(MemoryStorage):
        @override
        def read_many(self, identifiers: Iterable[str], **_: Any) -> Iterator[tuple[str, bytes]]:
            asked.append(list(identifiers))
            return two.read_many(asked[-1])

    storage = FallbackStorage(one, Counting())
    found: list[tuple[str, bytes]] = []
    with pytest.raises(BatchError) as caught:
        found.extend(storage.read_many([*map(str, range(10)), "gone", "../bad", "4"]))
    assert sorted(found) == sorted([*((f"{n}", b"%d" % n) for n in range(10)), ("4", b"4")])
    assert asked == [["0", "2", "4", "4", "6", "8", "gone", "../bad"]]
    failures = caught.value.failures
    assert set(failures) == {"gone", "../bad"}
    assert isinstance(failures["../bad"], InvalidIdentifierError)
    assert "not found in primary or secondary" in str(failures["gone"])


class DeniedStorage(MemoryStorage):
    """Objects cannot be read or written."""

    @override
    def read(self, identifier: str) -> bytes:
        raise AccessDeniedError("no")

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        raise AccessDeniedError("no")


def test_faults_of_a_batch_are_not_asked_for_elsewhere(one: FaultyStorage, two: FaultyStorage) -> None:
    two.backend.write("a", b"old")
    with pytest.raises(BatchError) as caught:
        list(FallbackStorage(DeniedStorage(), two).read_many(["a"]))
    assert isinstance(caught.value.failures["a"], AccessDeniedError)
    assert two.calls == []


def test_listings_are_the_sorted_union(one: FaultyStorage, two: FaultyStorage) -> None:
    for name in ("a/b", "a-b", "c", "é"):
        one.backend.write(name, b"1")
    for name in ("a", "c", "a/b", "z", "😀", "\uff5e"):
        two.backend.write(name, b"22")
    for write_to, size in (("primary", 1), ("secondary", 2), ("both", 1)):
        storage = FallbackStorage(one, two, write_to)
        assert storage.list() == ["a", "a-b", "a/b", "c", "z", "é", "\uff5e", "😀"]
        assert storage.list("a*") == ["a", "a-b"]
        sizes = {info.identifier: info.size for info in storage.scan()}
        assert list(sizes) == storage.list()
        assert (sizes["c"], sizes["a/b"], sizes["é"], sizes["z"]) == (size, size, 1, 2)
        assert [i.identifier for i in storage.scan("a/")] == ["a/b"]
        level = [found if isinstance(found, str) else found.identifier for found in storage.scan_level()]
        assert level == ["a", "a-b", "a/", "c", "z", "é", "\uff5e", "😀"]
        assert {i.identifier for i in storage.stat_many(["c", "gone", "z"])} == {"c", "z"}


def test_a_failed_stat_on_one_side_does_not_hide_the_other() -> None:
    class Denying(MemoryStorage):
        @override
        def stat(self, identifier: str) -> ObjectInfo:
            if identifier == "both":
                raise AccessDeniedError("denied", identifier=identifier)
            return super().stat(identifier)

    one, two = Denying(), MemoryStorage()
    for name in ("a", "both"):
        one.write(name, b"1")
    for name in ("both", "c"):
        two.write(name, b"22")
    found = {}

    def look() -> None:
        for info in FallbackStorage(one, two).stat_many(["a", "both", "c", "gone"]):
            found[info.identifier] = info.size

    with pytest.raises(BatchError) as error:
        look()
    assert found == {"a": 1, "c": 2}
    assert [*error.value.failures] == ["both"]


def test_a_scan_is_lazy() -> None:
    class Endless(MemoryStorage):
        @override
        def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
            return (ObjectInfo(f"{number:020}") for number in itertools.count())

    found = FallbackStorage(Endless(), Endless()).scan()
    assert [info.identifier for info in itertools.islice(found, 3)] == [f"{n:020}" for n in range(3)]


@pytest.mark.parametrize("on_error", ["raise", "fallback"])
def test_a_listing_of_one_side_is_none(one: FaultyStorage, two: FaultyStorage, on_error: str) -> None:
    two.backend.write("a", b"")
    storage = FallbackStorage(one, two, on_error=on_error)
    down(one)
    for call in (storage.list, lambda: list(storage.scan()), lambda: list(storage.scan_level())):
        with pytest.raises(UnavailableError):
            call()


# Writing


def test_writes_go_where_they_should(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"5")
    for write_to, expected in (("primary", (1, 0)), ("secondary", (0, 1)), ("both", (1, 1))):
        one, two = MemoryStorage(), MemoryStorage()
        storage = FallbackStorage(one, two, write_to)
        storage.write("a", b"1")
        storage.write("b", io.BytesIO(b"2"))
        storage.write_stream("c", Source(b"3").as_binary(), info=ObjectInfo("c", 1, content_type="text/x"))
        storage.write_many([("d", b"4")])
        storage.upload(tmp_path / "file", "e")
        with storage.open("f", "wb") as writer:
            writer.write(b"6")
        for side, holds in zip((one, two), expected, strict=True):
            found = {name: side.read(name) for name in side.list()}
            assert found == ({name: b"%d" % n for n, name in enumerate("abcdef", 1)} if holds else {})
            assert not holds or side.stat("c").content_type == "text/x"


@pytest.mark.parametrize("write_to", MODES)
def test_what_was_written_is_what_is_read(write_to: str, one: FaultyStorage, two: FaultyStorage) -> None:
    for side in (one, two):
        for name in "abcd":
            side.backend.write(name, b"stale")
    storage = FallbackStorage(one, two, write_to)
    storage.write("a", b"new")
    storage.write_many([("b", b"new")])
    storage.copy("a", "c")
    storage.move("b", "d")
    assert {name: storage.read(name) for name in storage.list()} == dict.fromkeys("acd", b"new")
    assert dict(storage.read_many("acd")) == dict.fromkeys("acd", b"new")
    assert {info.identifier: info.size for info in storage.scan()} == dict.fromkeys("acd", 3)


def test_a_primary_that_cannot_be_written_does_for_writes_to_the_secondary() -> None:
    archive = MemoryStorage()
    archive.write("a", b"archived")
    storage = FallbackStorage(ReadOnlyStorage(archive), MemoryStorage(), "secondary")
    storage.write("a", b"new")
    assert storage.read("a") == b"new"
    assert archive.read("a") == b"archived"


def test_readers_see_the_old_object_when_a_write_to_both_fails(
    one: FaultyStorage, two: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    storage = FallbackStorage(one, two, "both")
    storage.write("a", b"old")
    calls: list[Callable[[], object]] = [
        lambda: storage.write("a", b"new"),
        lambda: storage.write("a", io.BytesIO(b"new")),
        lambda: storage.write("a", Source(b"new").as_binary()),
        lambda: storage.write_many([("a", b"new")]),
    ]
    for side in (two, one):
        for call in calls:
            caplog.clear()
            for method in ("write", "write_stream", "write_many"):
                side.fail(method, error=QuotaExceededError)
            with pytest.raises(QuotaExceededError):
                call()
            side.heal()
            assert storage.read("a") == b"old"
            assert content(two) == {"a": b"new" if side is one else b"old"}
            report = storage.repair()
            assert report.complete
            assert content(one) == content(two) == {"a": b"old"}


def test_an_interrupted_write_to_both_is_known(one: FaultyStorage, two: FaultyStorage) -> None:
    storage = FallbackStorage(one, two, "both")
    storage.write("a", b"old")
    one.fail("write", error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"
    assert storage.repair().to_secondary == ("a",)
    assert content(two) == {"a": b"old"}


def test_the_stricter_side_refuses_before_the_other_is_written(tmp_path: Path) -> None:
    for swap in (False, True):
        local, memory = LocalStorage(tmp_path / str(swap)), MemoryStorage()
        pair: tuple[StorageBackend, StorageBackend] = (memory, local) if swap else (local, memory)
        storage = FallbackStorage(pair[0], pair[1], "both")
        storage.write("a", b"1")
        for name in ("a/b", "n" * 300):
            with pytest.raises(OSError):
                storage.write(name, b"2")
            with pytest.raises(BatchError):
                storage.write_many([(name, b"2")])
        assert memory.list() == local.list() == ["a"]


def test_both_sides_get_the_same_bytes_of_a_source_that_changes(
    one: FaultyStorage, two: FaultyStorage
) -> None:
    class Changing(io.BytesIO):
        readings = 0

        @override
        def seek(self, offset: int, whence: int = 0, /) -> int:
            self.readings += 1
            super().seek(0)
            self.write(b"%d" % self.readings)
            return super().seek(offset, whence)

    storage = FallbackStorage(one, two, "both")
    storage.write("a", b"old")
    with pytest.raises(SourceChangedError):
        storage.write("a", Changing(b"0123"))
    assert storage.read("a") == b"old"


def test_a_batch_to_both_writes_what_both_take(one: FaultyStorage, two: FaultyStorage) -> None:
    class Picky(MemoryStorage):
        def __init__(self, denied: str) -> None:
            super().__init__()
            self.denied = denied

        @override
        def write_stream(
            self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
        ) -> bool:
            if identifier == self.denied:
                raise AccessDeniedError("no")
            return super().write_stream(identifier, reader, info=info, verify=verify)

    primary, secondary = Picky("p"), Picky("s")
    storage = FallbackStorage(primary, secondary, "both")
    with pytest.raises(BatchError) as caught:
        storage.write_many([("a", b"1"), ("p", b"2"), ("s", b"3"), ("../x", b"4"), ("a", b"5")])
    assert set(caught.value.failures) == {"p", "s", "../x"}
    assert {name: primary.read(name) for name in primary.list()} == {"a": b"5"}
    assert {name: secondary.read(name) for name in secondary.list()} == {"a": b"5", "p": b"2"}


def test_create_and_replace_are_refused(one: FaultyStorage, two: FaultyStorage) -> None:
    for write_to in MODES:
        storage = FallbackStorage(one, two, write_to)
        assert not storage.capabilities & (Capability.CREATE | Capability.REPLACE)
        with pytest.raises(UnsupportedOperationError) as caught:
            storage.create("a", b"")
        assert caught.value.identifier == "a"
        with pytest.raises(UnsupportedOperationError):
            storage.replace("a", b"", "1")
    assert one.calls == two.calls == []


def test_capabilities_are_what_is_true_of_both(tmp_path: Path) -> None:
    local, memory = LocalStorage(tmp_path), MemoryStorage()
    for primary, secondary, write_to, expected in (
        (local, memory, "primary", Capability.DIRECTORIES),
        (memory, local, "primary", Capability(0)),
        (memory, local, "secondary", Capability.DIRECTORIES),
        (memory, local, "both", Capability.DIRECTORIES),
    ):
        found = FallbackStorage(primary, secondary, write_to).capabilities
        assert found & Capability.DIRECTORIES == expected
        assert not found & (Capability.URL | Capability.FLUSH)
        assert (Capability.SERVER_COPY in found) == (write_to != "both")
    with pytest.raises(UnsupportedOperationError):
        FallbackStorage(local, memory).flush()
    assert FallbackStorage(local, LocalStorage(tmp_path / "two")).flush() is True


# Deleting, copying, moving


def test_a_move_does_not_take_the_older_object_when_the_primary_is_down_for_a_moment(
    one: FaultyStorage, two: FaultyStorage
) -> None:
    one.backend.write("a", b"new")
    two.backend.write("a", b"old")
    storage = FallbackStorage(one, two, on_error="fallback")
    one.fail("exists")
    with pytest.raises(UnavailableError):
        storage.move("a", "b")
    assert content(one) == {"a": b"new"}
    assert storage.move("a", "b") is True
    assert storage.read("b") == b"new"


def test_delete_removes_both_and_tells_of_nothing(one: FaultyStorage, two: FaultyStorage) -> None:
    storage = FallbackStorage(one, two)
    for sides in ((one,), (two,), (one, two)):
        for side in sides:
            side.backend.write("a", b"")
        assert storage.delete("a") is True
        assert not storage.exists("a")
    assert storage.delete("a") is False
    for side in (one, two):
        side.backend.write("b", b"")
    assert storage.delete_many(["a", "b", "b"]) == 2
    assert content(one) == content(two) == {}
    with pytest.raises(InvalidIdentifierError):
        storage.delete("../a")


@pytest.mark.parametrize("write_to", MODES)
def test_a_delete_that_fails_brings_no_older_object_to_light(
    write_to: str, one: FaultyStorage, two: FaultyStorage
) -> None:
    one.backend.write("a", b"one")
    two.backend.write("a", b"two")
    storage = FallbackStorage(one, two, write_to)
    seen = storage.read("a")
    for side in (one, two):
        side.fail("delete")
        with pytest.raises(UnavailableError):
            storage.delete("a")
        assert storage.read("a") == seen
        side.fail("delete_many", error=BatchError("no", failures={"a": UnavailableError("no")}))
        with pytest.raises(BatchError):
            storage.delete_many(["a"])
        assert storage.read("a") == seen
    assert storage.delete("a") is True
    assert storage.delete("a") is False


def test_copy_and_move_are_of_the_side_that_has_the_source(one: FaultyStorage, two: FaultyStorage) -> None:
    storage = FallbackStorage(one, two)
    two.backend.write("a", b"1")
    assert storage.copy("a", "b") is True
    assert content(two) == {"a": b"1", "b": b"1"}
    assert storage.move("a", "c") is True
    assert content(two) == {"b": b"1", "c": b"1"}
    assert content(one) == {}
    for call in (storage.copy, storage.move):
        for dest in ("b", "gone"):
            with pytest.raises(FileNotFoundError, match=r"^Source file not found") as caught:
                call("gone", dest)
            assert isinstance(caught.value, NotFoundError)
            assert caught.value.identifier == "gone"


def test_a_copy_is_not_hidden_behind_an_older_object(one: FaultyStorage, two: FaultyStorage) -> None:
    storage = FallbackStorage(one, two)
    one.backend.write("dest", b"old")
    two.backend.write_stream("a", io.BytesIO(b"new"), info=ObjectInfo("a", content_type="text/x"))
    storage.copy("a", "dest")
    assert storage.read("dest") == b"new"
    assert storage.stat("dest").content_type == "text/x"
    one.backend.write("dest", b"old")
    storage.move("a", "dest")
    assert storage.read("dest") == b"new"
    assert not storage.exists("a")


@pytest.mark.parametrize("write_to", MODES)
def test_a_moved_object_does_not_come_to_light_again(
    write_to: str, one: FaultyStorage, two: FaultyStorage
) -> None:
    one.backend.write("a", b"one")
    two.backend.write("a", b"two")
    storage = FallbackStorage(one, two, write_to)
    seen = storage.read("a")
    storage.move("a", "b")
    assert {name: storage.read(name) for name in storage.list()} == {"b": seen}


@pytest.mark.parametrize("method", ["exists", "stat", "open", "move", "copy", "delete", "write_stream"])
@pytest.mark.parametrize("write_to", MODES)
def test_a_move_that_fails_leaves_a_whole_copy_to_see(
    write_to: str, method: str, one: FaultyStorage, two: FaultyStorage
) -> None:
    for failing, nth in itertools.product((one, two), (1, 2)):
        for side in (one, two):
            side.heal()
            for name in list(content(side)):
                side.backend.delete(name)
            side.backend.write("a", b"hidden")
            side.backend.write("b", b"old")
        (two if write_to == "secondary" else one).backend.write("a", b"content")
        storage = FallbackStorage(one, two, write_to)
        failing.fail(method, nth=nth)
        try:
            storage.move("a", "b")
        except UnavailableError:
            failing.heal()
            assert not storage.exists("a") or storage.read("a") == b"content"
            assert b"content" in {storage.read(name) for name in storage.list()}
            if storage.exists("a"):
                storage.move("a", "b")
        assert storage.read("b") == b"content"


# A primary that is out of reach


@pytest.mark.parametrize("method", sorted(READS))
@pytest.mark.parametrize("kind", [UnavailableError, StorageTimeoutError, ConnectionResetError, TimeoutError])
def test_a_primary_that_is_down_is_read_past(
    method: str,
    kind: type[BaseException],
    one: FaultyStorage,
    two: FaultyStorage,
    caplog: pytest.LogCaptureFixture,
) -> None:
    two.backend.write("a", b"abcd")
    storage = FallbackStorage(one, two, on_error="fallback")
    down(one, error=kind)
    assert READS[method](storage, "a") == READS[method](two.backend, "a")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(kind):
        READS[method](storage, "gone")


@pytest.mark.parametrize("method", sorted(READS))
@pytest.mark.parametrize("kind", [AccessDeniedError, BucketNotFoundError, ZeroDivisionError])
def test_other_faults_of_the_primary_are_not_read_past(
    method: str, kind: type[BaseException], one: FaultyStorage, two: FaultyStorage
) -> None:
    two.backend.write("a", b"abcd")
    down(one, error=kind)
    with pytest.raises(kind):
        READS[method](FallbackStorage(one, two, on_error="fallback"), "a")


def test_a_secondary_that_is_down_is_an_error(one: FaultyStorage, two: FaultyStorage) -> None:
    down(two)
    for write_to in MODES:
        with pytest.raises(UnavailableError):
            FallbackStorage(one, two, write_to, on_error="fallback").read("a")


def test_a_batch_is_read_past_a_primary_that_is_down(one: FaultyStorage, two: FaultyStorage) -> None:
    for name in "abcd":
        one.backend.write(name, b"1")
    for name in "bcdef":
        two.backend.write(name, b"2")
    storage = FallbackStorage(one, two, on_error="fallback")
    one.cut("read_many", at=2)
    found: list[tuple[str, bytes]] = []
    with pytest.raises(BatchError) as caught:
        found.extend(storage.read_many(iter(["a", "b", "c", "d", "e", "gone", "c"])))
    assert found == [("a", b"1"), ("b", b"1"), ("c", b"2"), ("d", b"2"), ("e", b"2"), ("c", b"2")]
    assert list(caught.value.failures) == ["gone"]
    assert isinstance(caught.value.failures["gone"], UnavailableError)
    assert caught.value.retryable


def test_an_error_of_the_callers_iterable_is_the_callers(one: FaultyStorage, two: FaultyStorage) -> None:
    def names() -> Iterator[str]:
        yield "a"
        raise UnavailableError("the caller's own")

    two.backend.write("a", b"1")
    with pytest.raises(UnavailableError, match="own"):
        list(FallbackStorage(one, two, on_error="fallback").read_many(names()))
    assert two.calls == []


WRITES: dict[str, Callable[[StorageBackend], object]] = {
    "bytes": lambda s: s.write("a", b"new"),
    "seekable": lambda s: s.write_stream("a", io.BytesIO(b"new")),
    "stream": lambda s: s.write_stream("a", Source(b"new", most=1).as_binary(), verify=True),
    "digesting": lambda s: s.write_stream("a", cast(BinaryIO, HashingReader(Source(b"new").as_binary()))),
    "batch": lambda s: s.write_many([("a", b"old"), ("b", b"new"), ("a", b"new")]),
    "writer": lambda s: write_by_writer(s),  # noqa: PLW0108 - defined below
}


def write_by_writer(storage: StorageBackend) -> None:
    with storage.open("a", "wb") as writer:
        writer.write(b"new")


@pytest.mark.parametrize("how", sorted(WRITES))
@pytest.mark.parametrize("write_to", MODES)
def test_writes_go_to_the_secondary_while_the_primary_is_down(
    how: str, write_to: str, one: FaultyStorage, two: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    one.backend.write("a", b"stale")
    storage = FallbackStorage(one, two, write_to, on_error="fallback")
    down(one)
    WRITES[how](storage)
    if write_to != "secondary":
        assert any(record.levelname == "WARNING" for record in caplog.records)
    assert storage.read("a") == b"new"
    one.heal()
    # It is back, with what it had; what was written is still what is read.
    for storage_now in (storage, pickle.loads(pickle.dumps(storage))):
        assert storage_now.read("a") == b"new"
        assert dict(storage_now.read_many(["a"])) == {"a": b"new"}
        assert {info.identifier: info.size for info in storage_now.scan()}["a"] == 3
    assert content(one) == {"a": b"stale"}
    if write_to != "secondary":
        with pytest.raises(PreconditionFailedError):
            storage.migrate_to_secondary("a")
        report = storage.repair("primary")
        assert "a" in report.to_primary
        assert report.complete
        assert content(one) == content(two)
        storage.write("a", b"newer")
        assert storage.read("a") == b"newer"


def test_a_stream_that_breaks_the_primary_is_written_whole_to_the_secondary(
    one: FaultyStorage, two: FaultyStorage
) -> None:
    storage = FallbackStorage(one, two, on_error="fallback")
    one.cut("write_stream", at=3)
    storage.write_stream("a", Source(b"0123456789").as_binary())
    assert content(two) == {"a": b"0123456789"}


def test_the_primarys_error_is_raised_when_the_secondary_fails_too(
    one: FaultyStorage, two: FaultyStorage
) -> None:
    down(one)
    down(two, error=AccessDeniedError)
    storage = FallbackStorage(one, two, on_error="fallback")
    with pytest.raises(UnavailableError) as caught:
        storage.write("a", b"")
    assert isinstance(caught.value.__cause__, AccessDeniedError)
    with pytest.raises(BatchError) as batch:
        FallbackStorage(one, DeniedStorage(), on_error="fallback").write_many([("a", b"")])
    assert isinstance(batch.value.failures["a"], UnavailableError)


def test_a_written_object_that_another_removed_is_looked_for_in_the_primary(
    one: FaultyStorage, two: FaultyStorage
) -> None:
    storage = FallbackStorage(one, two, on_error="fallback")
    one.backend.write("a", b"primary")
    one.fail("write")
    storage.write("a", b"strayed")
    two.backend.delete("a")
    assert storage.read("a") == b"primary"
    assert dict(storage.read_many(["a"])) == {"a": b"primary"}


def test_deletes_and_moves_need_both(one: FaultyStorage, two: FaultyStorage) -> None:
    two.backend.write("a", b"1")
    storage = FallbackStorage(one, two, on_error="fallback")
    down(one)
    calls: list[Callable[[], object]] = [
        lambda: storage.delete("a"),
        lambda: storage.delete_many(["a"]),
        lambda: storage.move("a", "b"),
    ]
    for call in calls:
        two.backend.write("a", b"1")
        with pytest.raises(UnavailableError):
            call()
    assert content(two).get("b") is None


@pytest.mark.parametrize("write_to", MODES)
def test_a_copy_is_seen_though_the_primary_was_down(
    write_to: str, one: FaultyStorage, two: FaultyStorage
) -> None:
    one.backend.write("b", b"stale")
    two.backend.write("a", b"new")
    storage = FallbackStorage(one, two, write_to, on_error="fallback")
    down(one)
    assert storage.copy("a", "b") is True
    one.heal()
    assert storage.read("b") == b"new"


def test_the_log_has_no_text_of_a_users_error(
    one: FaultyStorage, two: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    two.backend.write("a", b"1")
    one.fail("read", error=ConnectionError("password=hunter2"))
    FallbackStorage(one, two, on_error="fallback").read("a")
    assert "ConnectionError" in caplog.text
    assert "hunter2" not in caplog.text


# Migrating and repairing


def test_migrations_copy_and_then_delete(one: FaultyStorage, two: FaultyStorage) -> None:
    storage = FallbackStorage(one, two)
    modified = datetime(2020, 1, 2, tzinfo=UTC)
    one.backend.write_stream("a", io.BytesIO(b"1"), info=ObjectInfo("a", 1, modified, content_type="text/x"))
    assert storage.migrate_to_secondary("a") is True
    assert content(one) == content(two) == {"a": b"1"}
    assert (two.backend.stat("a").modified, two.backend.stat("a").content_type) == (modified, "text/x")
    assert storage.migrate_to_secondary("a", delete_primary=True) is True
    assert (content(one), content(two)) == ({}, {"a": b"1"})
    with pytest.raises(FileNotFoundError, match="not found in primary") as caught:
        storage.migrate_to_secondary("a")
    assert isinstance(caught.value, NotFoundError)
    assert storage.migrate_to_primary("a", delete_secondary=True) is True
    assert (content(one), content(two)) == ({"a": b"1"}, {})
    with pytest.raises(FileNotFoundError, match="not found in secondary"):
        storage.migrate_to_primary("a")
    with pytest.raises(InvalidIdentifierError):
        storage.migrate_to_primary("../a")


def test_a_bad_copy_deletes_nothing() -> None:
    class Lossy(Careless):
        @override
        def write(self, identifier: str, content: bytes) -> bool:
            return super().write(identifier, content[:-1] + b"x")

    source = MemoryStorage()
    source.write("a", b"content")
    with pytest.raises(IntegrityError):
        FallbackStorage(source, Lossy()).migrate_to_secondary("a", delete_primary=True)
    assert source.read("a") == b"content"


@pytest.mark.parametrize("timeless", [False, True])
def test_an_object_that_changes_while_it_migrates_is_not_deleted(timeless: bool) -> None:
    class Timeless(MemoryStorage):
        @override
        def stat(self, identifier: str) -> ObjectInfo:
            return ObjectInfo(identifier, super().stat(identifier).size)

    source = Timeless() if timeless else MemoryStorage()
    source.write("a", b"old")
    target = FaultyStorage(MemoryStorage())
    target.before("write_stream", lambda: None)
    storage = FallbackStorage(source, target)
    reader = FaultyStorage(source)
    storage = FallbackStorage(reader, target)
    target.before("write_stream", lambda: source.write("a", b"new") and None)
    with pytest.raises(SourceChangedError):
        storage.migrate_to_secondary("a", delete_primary=True)
    assert source.read("a") == b"new"


def test_a_source_that_is_out_of_reach_is_not_missing(one: FaultyStorage, two: FaultyStorage) -> None:
    down(one)
    with pytest.raises(UnavailableError):
        FallbackStorage(one, two).migrate_to_secondary("a")


def test_repair_brings_both_together_and_deletes_nothing(one: FaultyStorage, two: FaultyStorage) -> None:
    one.backend.write_many([("only one", b"1"), ("same", b"s"), ("size", b"11"), ("bytes", b"1")])
    two.backend.write_many([("only two", b"2"), ("same", b"s"), ("size", b"2"), ("bytes", b"2")])
    storage = FallbackStorage(one, two, "both")
    report = storage.repair()
    assert report == RepairReport(1, ("only two",), ("only one",), ("bytes", "size"), {})
    assert not report.complete
    assert content(one) == {"only one": b"1", "only two": b"2", "same": b"s", "size": b"11", "bytes": b"1"}
    report = storage.repair("secondary")
    assert report == RepairReport(3, ("bytes", "size"), (), (), {})
    assert content(one) == content(two)
    assert storage.repair() == RepairReport(5)
    with pytest.raises(ConfigurationError):
        storage.repair("both")
    assert not {"delete", "delete_many", "move"} & {call.method for call in [*one.calls, *two.calls]}


def test_repair_tells_what_it_could_not_do(one: FaultyStorage, two: FaultyStorage) -> None:
    for name in "abc":
        one.backend.write(name, b"1")
    two.fail("write_stream", nth=2)
    report = FallbackStorage(one, two, "both").repair()
    assert report.to_secondary == ("a", "c")
    assert list(report.failures) == ["b"]
    assert isinstance(report.failures["b"], UnavailableError)
    assert not report.complete
    down(two)
    with pytest.raises(UnavailableError):
        FallbackStorage(one, two, "both").repair()


def test_writing_again_ends_what_a_failed_write_began(one: FaultyStorage, two: FaultyStorage) -> None:
    storage = FallbackStorage(one, two, "both")
    one.fail("write")
    with pytest.raises(UnavailableError):
        storage.write("a", b"1")
    storage.write("a", b"1")
    assert content(one) == content(two) == {"a": b"1"}
    assert storage.repair("secondary") == RepairReport(1)


def test_a_large_source_that_cannot_seek_is_written_to_both(one: FaultyStorage, two: FaultyStorage) -> None:
    data = bytes(range(256)) * (40 << 10)
    items: list[Item] = [
        (ObjectInfo(f"{n}", 1 << 20, sha256=sha256(bytes(1 << 20))), bytes(1 << 20)) for n in range(40)
    ]
    storage = FallbackStorage(one, two, "both")
    storage.write_stream(
        "a", Source(data, most=100_000).as_binary(), info=ObjectInfo("a", len(data)), verify=True
    )
    assert storage.write_many(iter(items), verify=True) == 40
    assert content(one) == content(two)
    with pytest.raises(IntegrityError):
        storage.write_stream("a", Source(b"short").as_binary(), info=ObjectInfo("a", 6))
    assert storage.read("a") == data


def test_nothing_is_logged_when_nothing_is_wrong(
    one: FaultyStorage, two: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    storage = FallbackStorage(one, two, "both", on_error="fallback")
    with caplog.at_level(logging.WARNING):
        storage.write("a", b"1")
        storage.read("a")
        storage.delete("a")
        assert storage.exists("a") is False
    assert not caplog.records


def test_errors_are_ours(one: FaultyStorage, two: FaultyStorage) -> None:
    with pytest.raises(StorageError) as caught:
        FallbackStorage(one, two).read("gone")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.identifier, copy.backend) == (
        str(caught.value),
        "gone",
        "fallback(MemoryStorage|MemoryStorage)",
    )


FAULTS = ["write", "write_stream", "write_many", "delete", "copy", "move", "open", "stat", "exists"]


@pytest.mark.parametrize("seed", few(range(20), 4))
@pytest.mark.parametrize("on_error", ["raise", "fallback"])
@pytest.mark.parametrize("write_to", MODES)
def test_no_acknowledged_change_is_ever_lost(write_to: str, on_error: str, seed: int) -> None:
    chance = random.Random(f"{write_to}/{on_error}/{seed}")
    one, two = FaultyStorage(MemoryStorage()), FaultyStorage(MemoryStorage())
    storage = FallbackStorage(one, two, write_to, on_error=on_error)
    names = ["a", "b", "c"]
    # What may be there: one value after a change that was acknowledged, the old or the new after one that failed.
    may: dict[str, set[bytes | None]] = {name: {None} for name in names}
    done = failed = 0
    for number in range(300):
        if chance.random() < 0.5:
            side = chance.choice((one, two))
            for method in chance.sample(FAULTS, 3):
                chance.choice((side.fail, side.lose))(method, nth=chance.choice((1, 1, 2)))
        name, other = chance.sample(names, 2)
        value = b"%d" % number
        verb = chance.choice(["write", "stream", "batch", "delete", "copy", "move", "there", "repair"])
        old = {key: set(values) for key, values in may.items()}
        # Past a primary that is out of reach, the secondary's older one is read, and so it is copied.
        copied = (old[name] | ({content(two).get(name)} if on_error == "fallback" else set())) - {None}
        calls: dict[str, tuple[Callable[[], object], dict[str, set[bytes | None]]]] = {
            "write": (lambda: storage.write(name, value), {name: {value}}),  # noqa: B023 - called in this round
            "stream": (
                lambda: storage.write_stream(name, Source(value).as_binary()),  # noqa: B023 - as above
                {name: {value}},
            ),
            "batch": (lambda: storage.write_many([(name, value)]), {name: {value}}),  # noqa: B023 - as above
            "delete": (lambda: storage.delete(name), {name: {None}}),  # noqa: B023 - as above
            "copy": (lambda: storage.copy(name, other), {other: copied}),  # noqa: B023 - as above
            "move": (
                lambda: storage.move(name, other),  # noqa: B023 - as above
                {other: old[name] - {None}, name: {None}},
            ),
            "there": (lambda: storage.migrate_to_secondary(name), {}),  # noqa: B023 - as above
            "repair": (lambda: storage.repair(), {}),  # noqa: PLW0108 - as the others
        }
        if verb == "there" and write_to == "secondary":
            continue  # asks for what is hidden to replace what is seen
        call, becomes = calls[verb]
        try:
            call()
        except (NotFoundError, PreconditionFailedError):
            continue
        except OSError:
            failed += 1
            for key, values in becomes.items():
                may[key] = old[key] | values
        else:
            done += 1
            may.update(becomes)
        finally:
            one.heal()
            two.heal()
        found = {key: storage.read(key) if storage.exists(key) else None for key in names}
        for key in names:
            assert found[key] in may[key], (number, verb, name, other, key)
            may[key] = {found[key]} if verb not in {"write", "stream", "batch"} else may[key]
        assert storage.list() == [key for key in names if found[key] is not None]
    assert done > 50
    assert failed > 5
