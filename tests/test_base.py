"""What follows from seven methods, for a class that has nothing else."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import itertools
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from storage_backend import (
    BatchError,
    Capability,
    ConfigurationError,
    IntegrityError,
    InvalidIdentifierError,
    ObjectInfo,
    PrefixedStorage,
    QuotaExceededError,
    ReadOnlyStorage,
    StorageBackend,
    StorageError,
    UnsupportedOperationError,
)
from storage_backend.defensive import capabilities_of, info_of, location_of, matching, overrides, store
from storage_backend.hooks import Hooks, hooks_of
from storage_backend.testing import ConformanceSuite, Subject
from storage_backend.wrappers.base import Wrapper
from tests.seven import Seven

pytestmark = pytest.mark.quick

LACKS = {
    "content": "its write takes bytes only",
    "content_type": "it has no place for one",
    "errors": "it raises built-in errors",
    "modified": "it has no place for one",
    "refusals": "it looks at no identifier",
    "shared": "the objects live in one instance, in one process",
}


class TestPlain(ConformanceSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        storage = Seven()
        return Subject(
            make=lambda: storage,
            lacks={
                **LACKS,
                "globs": "its list ignores the pattern",
                "order": "its list is in order of writing",
            },
        )


def reversed_twice(names: list[str]) -> list[str]:
    return sorted(names, reverse=True) * 2


LISTS: dict[str, Callable[[list[str]], Iterable[object]]] = {
    "unordered": lambda names: sorted(names, key=lambda name: hashlib.md5(name.encode()).digest()),
    "repeated": reversed_twice,
    "a tuple": tuple,
    "a set": set,
    "a generator": lambda names: (name for name in reversed_twice(names)),
    "dictionary keys": lambda names: dict.fromkeys(names).keys(),
    "odd company": lambda names: [*names, "../up", "", "a//b", 7, None, b"bytes", "\ud800", "/abs"],
}
ODD = 8  # of the last of these
ANSWERS = [True, None, 1, "yes"]


class Careless(Seven):
    """Answers as it likes."""

    def __init__(self, listed: Callable[[list[str]], Iterable[object]] = list, answer: object = None) -> None:
        super().__init__()
        self.listed = listed
        self.answer = answer

    def write(self, identifier: str, content: bytes) -> bool:
        super().write(identifier, content)
        return cast(bool, self.answer)

    def delete(self, identifier: str) -> bool:
        super().delete(identifier)
        return cast(bool, self.answer)

    def list(self, pattern: str | None = None) -> list[str]:
        assert pattern is None
        return cast("list[str]", self.listed([*self.objects]))


class TestCareless:
    """What the seven give back is not trusted."""

    @pytest.mark.parametrize("listed", LISTS.values(), ids=LISTS)
    @pytest.mark.filterwarnings("error")
    def test_scan_is_sorted_and_unique(self, listed: Callable[[list[str]], Iterable[object]]) -> None:
        storage = Careless(listed)
        names = ["b", "a", "a/b", "a.b", "é", "\U0001f600", "\uff5e", "a-b"]
        for name in names:
            storage.objects[name] = b"x"
        heard: list[StorageError] = []
        expected = sorted(names, key=str.encode)
        assert [info.identifier for info in storage.scan(on_skip=heard.append)] == expected
        assert all(isinstance(error, StorageError) for error in heard)
        assert len(heard) == (ODD if listed is LISTS["odd company"] else 0)
        assert [info.identifier for info in storage.scan("a", on_skip=heard.append)] == [
            "a",
            "a-b",
            "a.b",
            "a/b",
        ]
        for wrapped in (Wrapper(storage), ReadOnlyStorage(storage)):
            assert wrapped.list("a?b") == ["a-b", "a.b"]
            assert wrapped.list() == expected

    def test_what_is_skipped_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        storage = Careless(LISTS["odd company"])
        with caplog.at_level(logging.WARNING, "storage_backend"):
            assert list(storage.scan()) == []
        assert len(caplog.records) == ODD
        assert all("Careless" in record.getMessage() for record in caplog.records)

    @pytest.mark.parametrize("answer", ANSWERS)
    def test_any_answer_but_false_is_done(self, answer: object, tmp_path: Path) -> None:
        storage = Careless(answer=answer)
        assert storage.write_stream("a", io.BytesIO(b"one"), verify=True) is True
        assert storage.copy("a", "b") is True
        assert storage.move("b", "c") is True
        assert storage.write_many([("d", b"two"), (ObjectInfo("e", 3), b"six")], verify=True) == 2
        assert storage.download("a", tmp_path / "file") is True
        assert storage.upload(tmp_path / "file", "f") is True
        with storage.open("g", "wb") as writer:
            writer.write(b"seven")
        assert storage.delete_many(["f", "f", "nowhere"]) == 2
        assert storage.objects == {"a": b"one", "c": b"one", "d": b"two", "e": b"six", "g": b"seven"}
        for wrapped in (Wrapper(storage), PrefixedStorage(storage, "p")):
            assert wrapped.write("x", b"x") is True
            assert wrapped.delete("x") is True

    def test_false_from_write_is_a_failure(self, tmp_path: Path) -> None:
        storage = Careless(answer=False)
        storage.objects["a"] = b"x"
        (tmp_path / "file").write_bytes(b"x")
        calls: list[Callable[[], object]] = [
            lambda: storage.write_stream("b", io.BytesIO(b"x")),
            lambda: storage.copy("a", "b"),
            lambda: storage.upload(tmp_path / "file", "b"),
            lambda: storage.open("b", "wb").close(),
            lambda: Wrapper(storage).write("b", b"x"),
            lambda: Wrapper(storage).write("b", io.BytesIO(b"x")),
            lambda: PrefixedStorage(storage, "p").write("b", b"x"),
        ]
        for call in calls:
            with pytest.raises(StorageError, match="did not store"):
                call()
        with pytest.raises(StorageError):
            storage.move("a", "b")
        assert "a" in storage.objects
        with pytest.raises(BatchError) as caught:
            storage.write_many([("b", b"x"), ("c", b"x")])
        assert sorted(caught.value.failures) == ["b", "c"]


class TestDerived:
    """What the defaults do, and what they ask of the seven."""

    @pytest.fixture
    def storage(self) -> Seven:
        return Seven()

    def test_write_is_given_bytes_only(self, storage: Seven, tmp_path: Path) -> None:
        # Seven.write asserts it.
        for kind in (bytes, bytearray, memoryview):
            storage.write_many([("a", cast(bytes, kind(b"content")))])
            with storage.open("b", "wb") as writer:
                writer.write(kind(b"content"))

        class Raw(io.BytesIO):
            def read(self, size: int | None = -1, /) -> Any:
                return memoryview(super().read(size))

        storage.write_stream("c", Raw(b"content"))
        assert set(storage.objects.values()) == {b"content"}

    def test_stat_knows_the_size_only(self, storage: Seven) -> None:
        storage.write("a", b"abc")
        assert storage.stat("a") == ObjectInfo("a", size=3)
        assert list(storage.scan()) == [ObjectInfo("a")]

    def test_what_has_no_emulation_is_refused(self, storage: Seven) -> None:
        storage.write("a", b"abc")
        calls: dict[str, Callable[[], object]] = {
            "create": lambda: storage.create("b", b"x"),
            "replace": lambda: storage.replace("a", b"x", "etag"),
            "get_url": lambda: storage.get_url("a"),
            "flush": storage.flush,
        }
        for method, call in calls.items():
            with pytest.raises(UnsupportedOperationError, match=rf"Seven has no {method}\(\)"):
                call()
        assert storage.objects == {"a": b"abc"}
        assert storage.capabilities == Capability(0)
        assert storage.location == "Seven"
        assert storage.keeps_modified is False

    def test_new_names_are_checked_before_anything_is_read(self, storage: Seven) -> None:
        storage.write("a", b"abc")
        for name in ("../b", "", "/b", "b/", "b\0"):
            for call in (storage.copy, storage.move):
                with pytest.raises(InvalidIdentifierError):
                    call("a", name)
            with pytest.raises(InvalidIdentifierError):
                storage.open(name, "wb")
        assert storage.objects == {"a": b"abc"}

    def test_copy_that_differs_is_not_the_end_of_the_source(self) -> None:
        class Shortens(Seven):
            def write(self, identifier: str, content: bytes) -> bool:
                return super().write(identifier, content[:-1] if identifier == "b" else content)

        storage = Shortens()
        storage.write("a", b"abc")
        with pytest.raises(IntegrityError, match="nothing was deleted"):
            storage.move("a", "b")
        assert storage.read("a") == b"abc"

    def test_digests_are_compared_where_they_are_vouched_for(self) -> None:
        class Garbles(Seven):
            capabilities = Capability.CHECKSUM

            def write(self, identifier: str, content: bytes) -> bool:
                return super().write(identifier, content[::-1] if identifier == "b" else content)

        storage = Garbles()
        storage.write("a", b"abc")
        with pytest.raises(IntegrityError):
            storage.move("a", "b")
        assert storage.read("a") == b"abc"

    @pytest.mark.parametrize("broken", ["read", "write", "delete"])
    def test_failed_move_leaves_a_whole_copy(self, broken: str) -> None:
        storage = Seven()
        storage.write("a", b"abc")
        storage.write("b", b"old")

        def fail(*_: object) -> Any:
            raise ConnectionResetError

        setattr(storage, broken, fail)
        with pytest.raises(ConnectionResetError):
            storage.move("a", "b")
        assert storage.objects["a"] == b"abc"
        assert storage.objects["b"] == (b"abc" if broken == "delete" else b"old")

    def test_copy_that_returns_none_is_taken_as_done_by_move(self) -> None:
        class Copies(Seven):
            answer: object = None

            def copy(self, source_id: str, dest_id: str) -> bool:
                if self.answer is None:
                    super().copy(source_id, dest_id)
                return cast(bool, self.answer)

        storage = Copies()
        storage.write("a", b"abc")
        assert storage.move("a", "b") is True
        assert storage.objects == {"b": b"abc"}
        storage.answer = False
        with pytest.raises(StorageError, match="nothing was deleted"):
            storage.move("b", "c")
        assert storage.objects == {"b": b"abc"}

    def test_verified_write_reads_back(self) -> None:
        class Garbles(Seven):
            def write(self, identifier: str, content: bytes) -> bool:
                return super().write(identifier, content[::-1])

        storage = Garbles()
        with pytest.raises(IntegrityError, match="what was stored"):
            storage.write_stream("a", io.BytesIO(b"abc"), verify=True)
        with pytest.raises(BatchError) as caught:
            storage.write_many([("a", b"abc"), ("b", b"aba")], verify=True)
        assert list(caught.value.failures) == ["a"]

    def test_batches_go_on_after_a_failure_and_stop_at_a_fatal_one(self) -> None:
        class Fills(Seven):
            def write(self, identifier: str, content: bytes) -> bool:
                if identifier == "full":
                    raise QuotaExceededError("full")
                if identifier == "bad":
                    raise OSError("bad")
                return super().write(identifier, content)

        storage = Fills()
        asked = []

        def items() -> Iterable[tuple[str, bytes]]:
            for name in ("a", "bad", "b", "full", "c"):
                asked.append(name)
                yield name, b"x"

        with pytest.raises(QuotaExceededError):
            storage.write_many(items())
        assert asked == ["a", "bad", "b", "full"]
        assert sorted(storage.objects) == ["a", "b"]

    def test_later_success_makes_up_for_a_failure(self) -> None:
        class FailsOnce(Seven):
            tries = itertools.count()

            def write(self, identifier: str, content: bytes) -> bool:
                if next(self.tries) == 0:
                    raise ConnectionResetError
                return super().write(identifier, content)

        storage = FailsOnce()
        assert storage.write_many([("a", b"1"), ("a", b"2")]) == 1
        assert storage.objects == {"a": b"2"}

    def test_unknown_algorithm_is_told_before_anything_is_read(self, storage: Seven) -> None:
        with pytest.raises(ConfigurationError):
            storage.checksum("absent", "crc-nonsense")

    def test_nothing_is_kept_open_by_with(self, storage: Seven) -> None:
        closed = []
        storage.close = lambda: closed.append(1)  # type: ignore[method-assign] # watched
        with storage as entered:
            assert entered is storage
        assert closed == [1]

    def test_seven_methods_pickle(self, storage: Seven) -> None:
        storage.write("a", b"abc")
        assert pickle.loads(pickle.dumps(storage)).read("a") == b"abc"


class TestValuesOfWrongTypes:
    def test_info_takes_what_is_of_the_right_type(self) -> None:
        now = datetime(2020, 1, 2, tzinfo=UTC)
        good = ObjectInfo("there", 3, now, "tag", "ff", "text/csv")
        assert info_of(good, "here") == ObjectInfo("here", 3, now, "tag", "ff", "text/csv")

        class Odd:
            size = "3"
            modified = datetime(2020, 1, 2)  # noqa: DTZ001 - naive on purpose
            etag = 7
            sha256 = b"ff"
            content_type = None

        assert info_of(Odd(), "here") == ObjectInfo("here")
        for value in (None, 7, {"size": 3}, MagicMock(), ObjectInfo("x", size=cast(int, True))):
            assert info_of(value, "here") == ObjectInfo("here")

    def test_store_takes_false_alone_as_a_failure(self) -> None:
        for answer in (True, None, 0, ""):
            assert store(Careless(answer=answer), "a", b"x") is True
        with pytest.raises(StorageError) as caught:
            store(Careless(answer=False), "a", b"x")
        assert caught.value.identifier == "a"


class TestMock:
    """`MagicMock(spec=StorageBackend)` stands in for a backend."""

    @pytest.fixture
    def mock(self) -> MagicMock:
        mock = MagicMock(spec=StorageBackend)
        mock.read.return_value = b"content"
        mock.size.return_value = 7
        mock.list.return_value = ["a", "b"]
        return mock

    def test_it_is_a_backend_without_capabilities_or_location(self, mock: MagicMock) -> None:
        assert isinstance(mock, StorageBackend)
        assert capabilities_of(mock) == Capability(0)
        assert isinstance(location_of(mock), str)
        assert matching(mock, None) == ["a", "b"]

    def test_it_can_be_wrapped(self, mock: MagicMock) -> None:
        wrapper = Wrapper(mock)
        assert wrapper.read("a") == b"content"
        assert wrapper.size("a") == 7
        assert wrapper.list() == ["a", "b"]
        assert wrapper.capabilities == Capability(0)
        assert wrapper.keeps_modified is False
        assert wrapper.write("a", b"x") is True
        mock.write.assert_called_once_with("a", b"x")
        with PrefixedStorage(mock, "p") as prefixed:
            assert prefixed.read("a") == b"content"
            mock.read.assert_called_with("p/a")
            assert prefixed.write("b", b"y") is True
            mock.write.assert_called_with("p/b", b"y")
            assert prefixed.stat("a").size is None
        mock.close.assert_called_once_with()

    def test_its_hooks_are_the_defaults(self, mock: MagicMock) -> None:
        hooks = hooks_of(mock)
        assert type(hooks) is Hooks
        assert hooks.last_read("a") is hooks.last_written("a") is None
        assert hooks.md5_in(ObjectInfo("a", etag="0" * 32)) is None
        assert not hooks.keeps_time(datetime.now(UTC))
        assert [*hooks.own_paths(), *hooks.sha256_many(["a"]), *hooks.kept_times(["a"])] == []
        assert hooks_of(Wrapper(mock)).tidy() == 0

    def test_its_errors_pass(self, mock: MagicMock) -> None:
        mock.read.side_effect = FileNotFoundError("a")
        for wrapped in (Wrapper(mock), PrefixedStorage(mock, "p"), ReadOnlyStorage(mock)):
            with pytest.raises(FileNotFoundError):
                wrapped.read("a")

    def test_defaults_run_on_a_mock_of_the_seven(self, mock: MagicMock) -> None:
        assert StorageBackend.stat(mock, "a") == ObjectInfo("a", 7)
        assert [info.identifier for info in StorageBackend.scan(mock)] == ["a", "b"]
        assert dict(StorageBackend.read_many(mock, ["a", "b"])) == {"a": b"content", "b": b"content"}


def test_class_that_lacks_one_of_the_seven_is_abstract() -> None:
    for missing in StorageBackend.__abstractmethods__:
        rest = {name: getattr(Seven, name) for name in StorageBackend.__abstractmethods__ - {missing}}
        kind = type("Incomplete", (StorageBackend,), rest)
        with pytest.raises(TypeError, match=missing):
            kind()
    assert "__init__" not in vars(StorageBackend)


SEVEN_TYPED = """
from storage_backend import MemoryStorage, ObjectInfo, StorageBackend, PrefixedStorage

class Mine(StorageBackend):
    def __init__(self, url: str) -> None:
        self.url = url

    def exists(self, identifier: str) -> bool:
        return False

    def read(self, identifier: str) -> bytes:
        raise FileNotFoundError(identifier)

    def write(self, identifier: str, content: bytes) -> bool:
        return True

    def delete(self, identifier: str) -> bool:
        return True

    def list(self, pattern: str | None = None) -> list[str]:
        return []

    def get_path(self, identifier: str) -> str:
        return identifier

    def size(self, identifier: str) -> int:
        return 0

def use(storage: StorageBackend) -> None:
    storage.write("a", b"x")
    with storage.open("a") as reader, storage.open("b", "wb") as writer:
        writer.write(reader.read(10))
        storage.write_stream("c", reader, info=ObjectInfo("c", size=3), verify=True)
    names: list[str] = storage.list("*.pdf")
    infos: list[ObjectInfo] = list(storage.scan("prefix"))
    count: int = storage.write_many([("a", b"x"), (ObjectInfo("b"), b"y")]) + len(names) + len(infos)
    for name, content in storage.read_many(["a"]):
        print(name.upper(), content.hex(), count)

with Mine("url") as mine:
    use(mine)
    reveal_type(mine)
use(PrefixedStorage(Mine("url"), "p"))
memory = MemoryStorage()
with open("file", "rb") as file:
    memory.write("a", file)
memory.write("a", bytearray(b"x"))
memory.write("a", memoryview(b"x"))
"""
MISTAKES = """
from storage_backend import MemoryStorage
MemoryStorage().write("a", "text")
MemoryStorage().open("a", "r")
"""


@pytest.mark.soak
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy comes with the dev extra")
class TestTypes:
    def check(self, program: str, folder: Path) -> str:
        (folder / "mine.py").write_text(program)
        arguments = [
            "--strict",
            "--no-incremental",
            f"--cache-dir={folder / 'cache'}",
            str(folder / "mine.py"),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--config-file=", *arguments],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent,
            check=False,
        )
        return done.stdout + done.stderr

    def test_class_with_the_seven_type_checks(self, tmp_path: Path) -> None:
        output = self.check(SEVEN_TYPED, tmp_path)
        assert 'Revealed type is "mine.Mine"' in output
        assert "Success: no issues found" in output, output

    def test_mistakes_are_told(self, tmp_path: Path) -> None:
        output = self.check(MISTAKES, tmp_path)
        assert "Found 2 errors" in output, output


def test_a_decorated_method_is_the_classs_own() -> None:
    class Traced(Seven):
        def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
            return "traced"

        checksum.__module__ = StorageBackend.checksum.__module__  # as functools.wraps does

    assert overrides(Traced(), "checksum")
    assert not overrides(Seven(), "checksum")
    assert overrides(MagicMock(), "checksum")
