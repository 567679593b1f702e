"""PrefixedStorage: nothing outside the prefix is seen or touched, and everything speaks the caller's names."""

import gc
import io
import pickle
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_backend import (
    BatchError,
    Capability,
    ConfigurationError,
    IntegrityError,
    InvalidIdentifierError,
    MemoryStorage,
    NotFoundError,
    ObjectInfo,
    PrefixedStorage,
    SourceChangedError,
    StorageBackend,
    StorageError,
)
from storage_backend.streams import ranged_reader
from tests.seven import Careless

pytestmark = pytest.mark.quick


@pytest.fixture
def inner() -> MemoryStorage:
    inner = MemoryStorage()
    for name in ["mod", "models/a", "mod/a", "mod/d/b", "mod.x", "a", "mod/mod/a"]:
        inner.write(name, name.encode())
    return inner


@pytest.mark.parametrize("prefix", ["mod", "mod/"])
def test_sees_only_what_is_beneath(inner: MemoryStorage, prefix: str) -> None:
    storage = PrefixedStorage(inner, prefix)
    assert storage.prefix == "mod"
    assert storage.list() == ["a", "d/b", "mod/a"]
    assert [info.identifier for info in storage.scan()] == ["a", "d/b", "mod/a"]
    assert [info.identifier for info in storage.scan("d")] == ["d/b"]
    assert storage.read("a") == b"mod/a"
    assert not storage.exists("els/a")


@pytest.mark.parametrize(
    "prefix", ["", "/", "/a", "a//", "a//b", "..", "a/../b", ".", "a\0", ".~sb-x", "x" * 1025]
)
def test_refuses_a_bad_prefix(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="prefix") as caught:
        PrefixedStorage(MemoryStorage(), prefix)
    assert caught.value.parameter == "prefix"


@pytest.mark.parametrize(
    "identifier", ["", "../models/a", "..", "/a", "a/../../models/a", "a//b", "a/", "./a", "\0"]
)
@pytest.mark.parametrize("user", [False, True])
def test_identifiers_are_checked_before_they_are_joined(identifier: str, user: bool) -> None:
    inner = Careless() if user else MemoryStorage()
    storage = PrefixedStorage(inner, "mod")
    assert storage.exists(identifier) is False
    calls: list[Any] = [
        lambda: storage.read(identifier),
        lambda: storage.write(identifier, b""),
        lambda: storage.delete(identifier),
        lambda: storage.get_path(identifier),
        lambda: storage.copy("a", identifier),
        lambda: storage.move(identifier, "a"),
        lambda: storage.open(identifier),
        lambda: storage.open(identifier, "wb"),
        lambda: storage.write_stream(identifier, io.BytesIO()),
        lambda: storage.upload("/dev/null", identifier),
    ]
    for call in calls:
        with pytest.raises(InvalidIdentifierError) as caught:
            call()
        assert caught.value.identifier == identifier
    assert inner.list() == []


def test_a_batch_reports_refused_identifiers_and_does_the_rest() -> None:
    inner = Careless()
    storage = PrefixedStorage(inner, "p")
    with pytest.raises(BatchError) as written:
        storage.write_many(
            [("../x", b"1"), ("a", b"2"), (ObjectInfo("/y", 1), b"3"), (ObjectInfo("b"), b"4")]
        )
    assert inner.objects == {"p/a": b"2", "p/b": b"4"}
    assert set(written.value.failures) == {"../x", "/y"}
    found: list[tuple[str, bytes]] = []
    with pytest.raises(BatchError) as read:
        found.extend(storage.read_many(["a", "../p/a", "gone", "b"]))
    assert found == [("a", b"2"), ("b", b"4")]
    assert set(read.value.failures) == {"../p/a", "gone"}
    with pytest.raises(BatchError) as deleted:
        storage.delete_many(["a", "..", "gone"])
    assert set(deleted.value.failures) == {".."}
    assert inner.objects == {"p/b": b"4"}


def test_failures_of_a_batch_are_the_callers_names() -> None:
    storage = PrefixedStorage(PrefixedStorage(MemoryStorage(), "p"), "p")
    storage.write("there", b"1")
    with pytest.raises(BatchError) as caught:
        list(storage.read_many(["there", "p/gone", "gone"]))
    failures = caught.value.failures
    assert set(failures) == {"p/gone", "gone"}
    assert {name: cast(StorageError, error).identifier for name, error in failures.items()} == {
        "p/gone": "p/gone",
        "gone": "gone",
    }
    assert "'p/gone'" in str(caught.value) or "'gone'" in str(caught.value)


def test_errors_name_the_object_as_the_caller_did() -> None:
    storage = PrefixedStorage(PrefixedStorage(MemoryStorage(), "p"), "q")
    storage.write("here", b"1")
    calls: list[Any] = [
        lambda: storage.read("gone"),
        lambda: storage.delete("gone"),
        lambda: storage.size("gone"),
        lambda: storage.stat("gone"),
        lambda: storage.copy("gone", "here"),
        lambda: storage.move("gone", "here"),
        lambda: storage.open("gone"),
        lambda: storage.read_range("gone", 0),
        lambda: storage.checksum("gone"),
        lambda: storage.download("gone", "/nowhere/x"),
        lambda: storage.get_url("gone"),
    ]
    for call in calls:
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.identifier == "gone"
    with pytest.raises(IntegrityError) as arrived:
        storage.write_stream("here", io.BytesIO(b"1"), info=ObjectInfo("here", 2))
    assert arrived.value.identifier == "here"


def test_a_name_that_begins_with_the_prefix_is_stripped_once() -> None:
    storage = PrefixedStorage(MemoryStorage(), "p")
    with pytest.raises(NotFoundError) as caught:
        storage.read("p/x")
    assert caught.value.identifier == "p/x"
    with pytest.raises(NotFoundError) as copied:
        storage.copy("p/x", "x")
    assert copied.value.identifier == "p/x"


class Late(MemoryStorage):
    """Gives readers that fail late, and a scan that skips an entry."""

    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        def fetch(start: int, end: int) -> bytes:
            if start > 0:
                raise SourceChangedError(f"{identifier!r} changed", identifier=identifier)
            return b"0123456789"[start:end]

        return ranged_reader(fetch, 1000, 10) if mode == "rb" else super().open(identifier, mode)

    def scan(self, prefix: str = "", *, on_skip: Any = None) -> Iterator[ObjectInfo]:
        found = super().scan(prefix)
        yield next(found)
        if on_skip is not None:
            on_skip(InvalidIdentifierError("unusable", identifier=f"{prefix}/bad"))
        yield from found
        raise StorageError("the listing broke", identifier=f"{prefix}last")


def test_late_errors_of_readers_are_mapped() -> None:
    storage = PrefixedStorage(Late(), "p")
    reads: list[Any] = [
        lambda r: r.read(),
        lambda r: r.readline(),
        lambda r: r.readinto(bytearray(100)),
        lambda r: (r.read(10), r.read(1)),
        lambda r: r.read1(),
    ]
    for read in reads:
        with storage.open("x") as reader, pytest.raises(SourceChangedError) as caught:
            read(reader)
        assert caught.value.identifier == "x"


def test_a_mapped_reader_is_a_reader() -> None:
    class Ranged(MemoryStorage):
        def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
            content = self.read(identifier)
            return ranged_reader(lambda start, end: content[start:end], len(content), 16)

    storage = PrefixedStorage(Ranged(), "p")
    storage.write("x", b"one\ntwo\n" * 9)
    with storage.open("x") as reader:
        assert reader.readable()
        assert reader.seekable()
        assert not reader.writable()
        assert reader.readline() == b"one\n"
        assert reader.seek(-4, io.SEEK_END) == 68
        assert reader.tell() == 68
        assert reader.read() == b"two\n"
        reader.seek(0)
        assert len(list(reader)) == 18
        reader.seek(0)
        assert io.TextIOWrapper(reader).read() == "one\ntwo\n" * 9
    assert reader.closed
    with pytest.raises(ValueError, match="closed"):
        reader.read()


def test_a_reader_without_names_in_its_errors_comes_as_it_is(inner: MemoryStorage) -> None:
    assert type(PrefixedStorage(inner, "mod").open("a")) is io.BytesIO


def test_errors_of_a_reader_passed_in_are_left_alone() -> None:
    source, target = Late(), PrefixedStorage(MemoryStorage(), "p")
    with pytest.raises(SourceChangedError) as caught:
        target.write_stream("x", source.open("p/z"))
    assert caught.value.identifier == "p/z"
    assert not target.exists("x")


def test_errors_of_an_iterable_passed_in_are_left_alone() -> None:
    source, target = MemoryStorage(), PrefixedStorage(MemoryStorage(), "p")
    source.write("p/here", b"1")
    with pytest.raises(BatchError) as caught:
        target.write_many(source.read_many(["p/here", "p/gone"]))
    assert set(caught.value.failures) == {"p/gone"}
    error = caught.value.failures["p/gone"]
    assert isinstance(error, NotFoundError)
    assert error.identifier == "p/gone"


def test_scan_maps_skips_and_late_errors() -> None:
    inner = Late()
    inner.write("p/a", b"")
    inner.write("p/b", b"")
    skipped: list[StorageError] = []
    scan = PrefixedStorage(inner, "p").scan(on_skip=skipped.append)
    found: list[ObjectInfo] = []
    with pytest.raises(StorageError, match="broke") as caught:
        found.extend(scan)
    assert [info.identifier for info in found] == ["a", "b"]
    assert [error.identifier for error in skipped] == ["/bad"]
    assert caught.value.identifier == "last"


def test_an_error_of_the_skip_callback_is_left_alone() -> None:
    inner = Late()
    inner.write("p/a", b"")

    def refuse(_: StorageError) -> None:
        raise StorageError("enough", identifier="p/mine")

    with pytest.raises(StorageError, match="enough") as caught:
        list(PrefixedStorage(inner, "p").scan(on_skip=refuse))
    assert caught.value.identifier == "p/mine"


def test_writers_publish_on_a_clean_exit_only(inner: MemoryStorage) -> None:
    storage = PrefixedStorage(inner, "mod")
    with storage.open("w", "wb") as writer:
        text = io.TextIOWrapper(writer)
        text.write("published")
        text.close()
        assert not storage.exists("w")
    assert inner.read("mod/w") == b"published"
    with suppress(RuntimeError), storage.open("w", "wb") as writer:
        writer.write(b"broken")
        raise RuntimeError
    assert inner.read("mod/w") == b"published"
    plain = storage.open("w", "wb")
    plain.write(b"closed")
    plain.close()
    assert inner.read("mod/w") == b"closed"
    dropped = storage.open("w", "wb")
    dropped.write(b"dropped")
    del dropped, writer
    gc.collect()
    assert inner.read("mod/w") == b"closed"


def test_errors_of_writers_are_mapped() -> None:
    class Full(MemoryStorage):
        def write_stream(self, identifier: str, reader: BinaryIO, **_: Any) -> bool:
            raise StorageError("full", identifier=identifier)

    storage = PrefixedStorage(Full(), "p")
    with pytest.raises(StorageError) as caught, storage.open("x", "wb") as writer:
        writer.write(b"1")
    assert caught.value.identifier == "x"


MAGIC = ["a[b]", "a*", "a?b/c[", "[!x]", "**", "a**b/**", "]", "a[[]"]


@pytest.mark.parametrize("prefix", MAGIC)
@pytest.mark.parametrize("user", [False, True])
def test_glob_characters_in_the_prefix_are_literal(prefix: str, user: bool) -> None:
    inner = Careless() if user else MemoryStorage()
    for name in ["x.pdf", "d/x.pdf", "y"]:
        inner.write(f"{prefix}/{name}", b"")
        inner.write(f"ab/{name}", b"")
        inner.write(f"axb/{name}", b"")
        inner.write(f"b/c/{name}", b"")
    storage = PrefixedStorage(inner, prefix)
    assert storage.list() == ["d/x.pdf", "x.pdf", "y"]
    assert storage.list("*.pdf") == ["x.pdf"]
    assert storage.list("**/*.pdf") == ["d/x.pdf", "x.pdf"]
    assert storage.list("[xy]*") == ["x.pdf", "y"]
    assert storage.list("d/**") == ["d/x.pdf"]
    assert storage.list("nothing/**") == []


@pytest.mark.parametrize("pattern", ["", "/x", "../*", "a/", "a//b", "a/../b"])
def test_patterns_are_refused_as_the_caller_spelled_them(pattern: str) -> None:
    with pytest.raises(ValueError) as caught:
        PrefixedStorage(MemoryStorage(), "p").list(pattern)
    assert isinstance(caught.value, InvalidIdentifierError)
    assert caught.value.identifier == pattern


segments = st.text(st.sampled_from("ab[]*?!-."), min_size=1, max_size=4).filter(
    lambda s: s not in {".", ".."} and "~" not in s
)
paths = st.lists(segments, min_size=1, max_size=3).map("/".join)


@given(prefix=paths, stored=st.lists(paths, max_size=6), pattern=paths)
def test_list_through_a_prefix_is_list_without(prefix: str, stored: list[str], pattern: str) -> None:
    alone, inner = MemoryStorage(), MemoryStorage()
    storage = PrefixedStorage(inner, prefix)
    for name in stored:
        alone.write(name, b"")
        storage.write(name, b"")
        inner.write(f"{prefix}~/{name}", b"")
    assert storage.list(pattern) == alone.list(pattern)
    assert storage.list() == alone.list()


def test_copies_and_moves_within_the_prefix(inner: MemoryStorage) -> None:
    storage = PrefixedStorage(inner, "mod")
    assert storage.copy("a", "c")
    assert storage.move("a", "m/n")
    assert storage.list() == ["c", "d/b", "m/n", "mod/a"]
    assert inner.read("a") == b"a"
    assert inner.read("mod/m/n") == b"mod/a"


def test_a_mock_sees_the_joined_names(tmp_path: Path) -> None:
    mock = MagicMock(spec=StorageBackend)
    mock.read.return_value = b"1"
    mock.list.return_value = ["p/x", "q/x"]
    mock.scan.return_value = [ObjectInfo("p/x", 1), ObjectInfo("q", 2)]
    storage = PrefixedStorage(mock, "p")
    assert storage.read("x") == b"1"
    mock.read.assert_called_with("p/x")
    storage.write("x", b"2")
    mock.write.assert_called_with("p/x", b"2")
    reader = io.BytesIO(b"3")
    storage.write("x", reader)
    mock.write_stream.assert_called_with("p/x", reader)
    storage.write_stream("x", reader, info=ObjectInfo("x", 1), verify=True)
    mock.write_stream.assert_called_with("p/x", reader, info=ObjectInfo("p/x", 1), verify=True)
    assert storage.list("*") == ["x"]
    mock.list.assert_called_with("p/*")
    assert storage.list() == ["x"]
    mock.list.assert_called_with("p/**")
    assert list(storage.scan("y")) == [ObjectInfo("x", 1)]
    mock.scan.assert_called_with("p/y", on_skip=None)
    storage.copy("x", "y")
    mock.copy.assert_called_with("p/x", "p/y")
    storage.move("x", "y")
    mock.move.assert_called_with("p/x", "p/y")
    storage.download("x", tmp_path)
    mock.download.assert_called_with("p/x", tmp_path)
    storage.upload(tmp_path, "x")
    mock.upload.assert_called_with(tmp_path, "p/x")
    storage.create("x", b"")
    mock.create.assert_called_with("p/x", b"")
    storage.replace("x", b"", "e")
    mock.replace.assert_called_with("p/x", b"", "e")
    storage.get_url("x", 5)
    mock.get_url.assert_called_with("p/x", 5)
    storage.read_range("x", 1, 2)
    mock.read_range.assert_called_with("p/x", 1, 2)
    storage.checksum("x", "md5")
    mock.checksum.assert_called_with("p/x", "md5")
    assert storage.stat("x") == ObjectInfo("x")
    assert storage.capabilities == Capability(0)


def test_everything_works_over_a_class_with_seven_methods(tmp_path: Path) -> None:
    inner = Careless()
    storage = PrefixedStorage(inner, "p")
    assert storage.write("a", memoryview(b"1"))
    assert storage.write_stream("b", io.BytesIO(b"22"), info=ObjectInfo("b", 2), verify=True)
    assert storage.write_many([("c", b"3"), ("d", b"4")], verify=True) == 2
    inner.objects["pq/z"] = inner.objects["p"] = b"no"
    assert storage.list() == ["a", "b", "c", "d"]
    assert list(storage.scan("c")) == [ObjectInfo("c")]
    assert storage.stat("b") == ObjectInfo("b", 2)
    assert storage.copy("a", "e/f")
    assert storage.move("e/f", "g")
    assert storage.read_range("b", 1) == b"2"
    assert storage.download("b", tmp_path / "b")
    assert storage.upload(tmp_path / "b", "h")
    assert storage.delete_many(["a", "a", "nowhere"]) == 2
    assert dict(storage.read_many(["b", "g", "h"])) == {"b": b"22", "g": b"1", "h": b"22"}
    assert storage.location == "Careless#p"
    with pytest.raises(FileNotFoundError):
        storage.delete("nowhere")


def test_location_appends_the_prefix_percent_encoded() -> None:
    class There(MemoryStorage):
        location = "sqlite:////a/b.db"

    storage = PrefixedStorage(There(), "a b/#é%")
    assert storage.location == "sqlite:////a/b.db#a%20b/%23%C3%A9%25"
    assert PrefixedStorage(storage, "c").location == "sqlite:////a/b.db#a%20b/%23%C3%A9%25/c"


def test_one_level_is_mapped_and_deeper_ones_appear_once(inner: MemoryStorage) -> None:
    inner.write("mod/d/c", b"")
    inner.write("mod/d.x", b"")
    storage = PrefixedStorage(inner, "mod")

    def level(prefix: str) -> list[str]:
        return [found if isinstance(found, str) else found.identifier for found in storage.scan_level(prefix)]

    assert level("") == ["a", "d.x", "d/", "mod/"]
    assert level("d/") == ["d/b", "d/c"]
    assert level("nothing/") == []


@pytest.mark.parametrize("user", [False, True])
def test_a_name_too_long_together_with_the_prefix_is_refused(user: bool) -> None:
    inner = Careless() if user else MemoryStorage()
    storage = PrefixedStorage(inner, "prefix")
    long, fits = "x" * 1018, "x" * 1017
    assert storage.write(fits, b"1")
    assert storage.exists(fits)
    assert storage.exists(long) is False
    with pytest.raises(InvalidIdentifierError) as caught:
        storage.write(long, b"1")
    assert caught.value.identifier == long
    with pytest.raises(BatchError) as batch:
        storage.write_many([(long, b"1"), ("y", b"2")])
    assert set(batch.value.failures) == {long}
    assert storage.list() == [fits, "y"]


def test_get_path_and_pickle(inner: MemoryStorage) -> None:
    storage = PrefixedStorage(inner, "mod")
    assert storage.get_path("a") == "memory:mod/a"
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.read("a") == b"mod/a"
    assert copy.list() == storage.list()
