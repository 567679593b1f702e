"""Deleting."""

from __future__ import annotations

import pytest

from storage_backend.base import StorageBackend
from storage_backend.testing.subject import Subject, Topic, everything, fill, has_directories, names, same


class Deleting(Topic):
    """`delete`: exactly one object."""

    def test_deleted_object_is_gone(self, backend: StorageBackend) -> None:
        fill(backend, "a/b", "a/c")
        assert backend.delete("a/b") is True
        assert backend.exists("a/b") is False
        assert backend.list() == ["a/c"]
        with pytest.raises(FileNotFoundError):
            backend.read("a/b")

    def test_missing_object_is_not_deleted(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("missing delete")
        fill(backend, "present")
        with pytest.raises(FileNotFoundError):
            backend.delete("absent")
        with pytest.raises(FileNotFoundError):
            backend.delete("absent/too")
        backend.delete("present")
        with pytest.raises(FileNotFoundError):
            backend.delete("present")

    def test_only_that_object_goes(self, subject: Subject, backend: StorageBackend) -> None:
        others = ["ab", "a.b", "b/a", "a-b", "aa/a", "a b"]
        if subject.has("exact names"):
            others.append("A")
        if subject.has("beneath") and not has_directories(backend):
            others += ["a/b", "a/a"]
        fill(backend, "a", *others)
        backend.delete("a")
        assert sorted(everything(backend)) == sorted(others)

    def test_wildcards_are_ordinary(self, backend: StorageBackend) -> None:
        fill(backend, "a%", "a_", "a*", "a?", "[a]", "ab", "a", "axx")
        for identifier in ("a%", "a_", "a*", "a?", "[a]"):
            backend.delete(identifier)
        assert names(backend.scan()) == ["a", "ab", "axx"]

    def test_siblings_stay_when_the_last_of_a_folder_goes(self, backend: StorageBackend) -> None:
        fill(backend, "folder/sub/one", "folder/two", "other/three")
        backend.delete("folder/sub/one")
        assert names(backend.scan()) == ["folder/two", "other/three"]
        backend.delete("folder/two")
        assert names(backend.scan()) == ["other/three"]
        fill(backend, "folder/sub/one")
        assert names(backend.scan()) == ["folder/sub/one", "other/three"]

    def test_deleted_object_can_be_written_again(self, backend: StorageBackend) -> None:
        for content in (b"first", b"second"):
            backend.write("a", content)
            assert same(backend.read("a"), content)
            backend.delete("a")
        assert backend.list() == []
