"""Copying and moving."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from storage_backend.base import StorageBackend
from storage_backend.info import ObjectInfo
from storage_backend.testing.subject import (
    ALL_BYTES,
    Subject,
    Topic,
    content_of,
    everything,
    fill,
    has_directories,
    named,
    same,
)

MEGABYTES = 9 << 20


class Copying(Topic):
    """`copy`: the bytes under both names."""

    def test_copy_has_the_same_bytes(self, backend: StorageBackend) -> None:
        for size in (0, 1, 100_001, MEGABYTES):
            backend.write("source", content_of(size))
            assert backend.copy("source", "folder/copy") is True
            assert same(backend.read("folder/copy"), content_of(size))
            assert same(backend.read("source"), content_of(size))
            assert backend.size("folder/copy") == size

    def test_copy_overwrites(self, backend: StorageBackend) -> None:
        backend.write("source", b"short")
        backend.write("dest", ALL_BYTES)
        backend.copy("source", "dest")
        assert everything(backend) == {"source": b"short", "dest": b"short"}

    def test_copy_is_independent(self, backend: StorageBackend) -> None:
        backend.write("source", b"one")
        backend.copy("source", "dest")
        backend.write("source", b"another")
        assert backend.read("dest") == b"one"
        backend.write("dest", b"third")
        assert backend.read("source") == b"another"
        backend.delete("source")
        assert everything(backend) == {"dest": b"third"}

    def test_copy_onto_itself_changes_nothing(self, backend: StorageBackend) -> None:
        fill(backend, "folder/a")
        before = backend.stat("folder/a")
        assert backend.copy("folder/a", "folder/a") is True
        assert backend.stat("folder/a") == before
        assert everything(backend) == {"folder/a": named("folder/a")}

    def test_missing_object_is_not_copied(self, backend: StorageBackend) -> None:
        fill(backend, "dest")
        for dest in ("dest", "new", "absent", "folder/new"):
            with pytest.raises(FileNotFoundError):
                backend.copy("absent", dest)
        assert everything(backend) == {"dest": named("dest")}

    def test_media_type_is_copied(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("content_type")
        copied_as(backend, backend.copy)

    def test_copy_next_to_similar_names(self, backend: StorageBackend) -> None:
        fill(backend, "a", "ab", "b/a")
        backend.copy("a", "c/a")
        expected = {name: named(name) for name in ("a", "ab", "b/a")}
        assert everything(backend) == {**expected, "c/a": named("a")}


class Moving(Topic):
    """`move`: the bytes under the new name only."""

    def test_moved_object_has_the_same_bytes(self, backend: StorageBackend) -> None:
        for size in (0, 1, 100_001, MEGABYTES):
            backend.write("source", content_of(size))
            assert backend.move("source", "folder/dest") is True
            assert same(everything(backend), {"folder/dest": content_of(size)})
            assert backend.exists("source") is False

    def test_move_overwrites(self, backend: StorageBackend) -> None:
        backend.write("source", b"short")
        backend.write("dest", ALL_BYTES)
        backend.move("source", "dest")
        assert everything(backend) == {"dest": b"short"}

    def test_move_onto_itself_keeps_the_object(self, backend: StorageBackend) -> None:
        fill(backend, "folder/a", "b")
        before = backend.stat("folder/a")
        assert backend.move("folder/a", "folder/a") is True
        assert backend.stat("folder/a") == before
        assert everything(backend) == {"folder/a": named("folder/a"), "b": named("b")}

    def test_missing_object_is_not_moved(self, backend: StorageBackend) -> None:
        fill(backend, "dest")
        for dest in ("dest", "new", "absent", "folder/new"):
            with pytest.raises(FileNotFoundError):
                backend.move("absent", dest)
        assert everything(backend) == {"dest": named("dest")}

    def test_only_that_object_moves(self, subject: Subject, backend: StorageBackend) -> None:
        others = ["ab", "a.b", "b/a", "folder/a"]
        if subject.has("exact names"):
            others.append("A")
        if subject.has("beneath") and not has_directories(backend):
            others += ["a/b"]
        fill(backend, "a", *others)
        backend.move("a", "moved/a")
        assert everything(backend) == {**{name: named(name) for name in others}, "moved/a": named("a")}

    def test_move_there_and_back(self, backend: StorageBackend) -> None:
        fill(backend, "one/a")
        backend.move("one/a", "two/b")
        backend.move("two/b", "one/a")
        assert everything(backend) == {"one/a": named("one/a")}

    def test_source_can_be_written_anew(self, backend: StorageBackend) -> None:
        fill(backend, "a")
        backend.move("a", "b")
        backend.write("a", b"new")
        assert everything(backend) == {"a": b"new", "b": named("a")}

    def test_media_type_is_moved(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("content_type")
        copied_as(backend, backend.move)


def copied_as(backend: StorageBackend, carry: Callable[[str, str], bool]) -> None:
    """Check that *carry* takes the media type along."""
    info = ObjectInfo("a", content_type="text/csv")
    backend.write_stream("a", io.BytesIO(b"1,2"), info=info)
    carry("a", "b")
    assert backend.stat("b").content_type == "text/csv"
