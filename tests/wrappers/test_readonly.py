"""ReadOnlyStorage: reads pass, changes do not."""

import errno
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_backend import AccessDeniedError, Capability, MemoryStorage, ReadOnlyStorage, StorageBackend

pytestmark = pytest.mark.quick

CHANGES: dict[str, Callable[[StorageBackend], object]] = {
    "write": lambda b: b.write("a", b"2"),
    "delete": lambda b: b.delete("a"),
    "copy": lambda b: b.copy("a", "b"),
    "move": lambda b: b.move("a", "a"),
    "write_stream": lambda b: b.write_stream("a", io.BytesIO(b"2")),
    "open": lambda b: b.open("a", "wb"),
    "write_many": lambda b: b.write_many([("a", b"2")]),
    "delete_many": lambda b: b.delete_many(["a"]),
    "upload": lambda b: b.upload("/dev/null", "a"),
    "create": lambda b: b.create("b", b""),
    "replace": lambda b: b.replace("a", b"2", b.stat("a").etag or ""),
}


@pytest.fixture
def inner() -> MemoryStorage:
    inner = MemoryStorage()
    inner.write("a", b"1")
    return inner


@pytest.mark.parametrize("method", sorted(CHANGES))
def test_refuses_every_change_untouched(inner: MemoryStorage, method: str) -> None:
    before = inner.stat("a")
    with pytest.raises(AccessDeniedError, match="is read-only") as caught:
        CHANGES[method](ReadOnlyStorage(inner))
    assert caught.value.errno == errno.EROFS
    assert caught.value.backend == inner.location
    assert inner.list() == ["a"]
    assert inner.stat("a") == before


def test_a_batch_is_refused_before_its_items_are_taken(inner: MemoryStorage) -> None:
    items = iter([("a", b"2")])
    with pytest.raises(AccessDeniedError):
        ReadOnlyStorage(inner).write_many(items)
    assert next(items) == ("a", b"2")


def test_reads_pass(inner: MemoryStorage, tmp_path: Path) -> None:
    storage = ReadOnlyStorage(inner)
    assert storage.exists("a")
    assert storage.read("a") == b"1"
    assert storage.list("*") == ["a"]
    assert [info.identifier for info in storage.scan()] == ["a"]
    assert dict(storage.read_many(["a"])) == {"a": b"1"}
    assert storage.read_range("a", 0, 1) == b"1"
    assert storage.download("a", tmp_path / "a")
    with storage.open("a") as reader:
        assert reader.read() == b"1"
    assert storage.checksum("a") == inner.checksum("a")


def test_capabilities_to_change_are_cleared(inner: MemoryStorage) -> None:
    assert ReadOnlyStorage(inner).capabilities == Capability.RANGES


def test_the_error_pickles(inner: MemoryStorage) -> None:
    with pytest.raises(AccessDeniedError) as caught:
        ReadOnlyStorage(inner).write("a", b"")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.errno, copy.identifier, str(copy)) == (errno.EROFS, "a", str(caught.value))
