"""MemoryStorage: the conformance suite, a model, and what only it does."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import threading
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from storage_backend import (
    BatchError,
    Capability,
    MemoryStorage,
    ObjectInfo,
    PreconditionFailedError,
    PrefixedStorage,
    StorageBackend,
)
from storage_backend.identifiers import encode
from storage_backend.testing import ConformanceSuite, Subject
from storage_backend.wrappers.base import Wrapper
from tests.seven import Seven

pytestmark = pytest.mark.quick

LACKS = {"shared": "the objects live in one instance, in one process"}


class TestMemoryStorage(ConformanceSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        storage = MemoryStorage()
        return Subject(make=lambda: storage, lacks=LACKS)


names = st.sampled_from(["a", "a/b", "a.b", "ab", "é", "b/c/d", "b", "😀"])
contents = st.binary(max_size=20)


class Model(RuleBasedStateMachine):
    """Whatever is done in whatever order, a backend holds what a dictionary would."""

    make: ClassVar[Any] = MemoryStorage

    def __init__(self) -> None:
        super().__init__()
        self.backend: StorageBackend = type(self).make()
        self.objects: dict[str, bytes] = {}

    @rule(name=names, content=contents)
    def write(self, name: str, content: bytes) -> None:
        assert self.backend.write(name, content) is True
        self.objects[name] = content

    @rule(name=names, content=contents)
    def write_stream(self, name: str, content: bytes) -> None:
        info = ObjectInfo(name, size=len(content))
        assert self.backend.write_stream(name, io.BytesIO(content), info=info, verify=True) is True
        self.objects[name] = content

    @rule(name=names, content=contents, clean=st.booleans())
    def write_by_writer(self, name: str, content: bytes, clean: bool) -> None:
        try:
            with self.backend.open(name, "wb") as writer:
                writer.write(content)
                if not clean:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return
        self.objects[name] = content

    @rule(items=st.lists(st.tuples(names, contents), max_size=4))
    def write_many(self, items: list[tuple[str, bytes]]) -> None:
        assert self.backend.write_many(items) == len(items)
        self.objects.update(items)

    @rule(name=names)
    def delete(self, name: str) -> None:
        if name in self.objects:
            assert self.backend.delete(name) is True
            del self.objects[name]
            return
        with pytest.raises(FileNotFoundError):
            self.backend.delete(name)

    @rule(found=st.lists(names, max_size=4))
    def delete_many(self, found: list[str]) -> None:
        assert self.backend.delete_many(found) == len(set(found))
        for name in found:
            self.objects.pop(name, None)

    @rule(source=names, dest=names, moving=st.booleans())
    def copy_or_move(self, source: str, dest: str, moving: bool) -> None:
        call = self.backend.move if moving else self.backend.copy
        if source not in self.objects:
            with pytest.raises(FileNotFoundError):
                call(source, dest)
            return
        assert call(source, dest) is True
        self.objects[dest] = self.objects[source]
        if moving and source != dest:
            del self.objects[source]

    @precondition(lambda self: Capability.CREATE in self.backend.capabilities)
    @rule(name=names, content=contents)
    def create(self, name: str, content: bytes) -> None:
        assert self.backend.create(name, content) is (name not in self.objects)
        self.objects.setdefault(name, content)

    @precondition(lambda self: Capability.REPLACE in self.backend.capabilities)
    @rule(name=names, content=contents, stale=st.booleans())
    def replace(self, name: str, content: bytes, stale: bool) -> None:
        etag = self.backend.stat(name).etag if name in self.objects else None
        if etag is None or stale:
            with pytest.raises(PreconditionFailedError):
                self.backend.replace(name, content, "stale")
            return
        assert self.backend.replace(name, content, etag) == self.backend.stat(name).etag
        self.objects[name] = content

    @rule(name=names, start=st.integers(0, 25), end=st.none() | st.integers(0, 25))
    def read_range(self, name: str, start: int, end: int | None) -> None:
        if name in self.objects:
            assert self.backend.read_range(name, start, end) == self.objects[name][start:end]
            return
        with pytest.raises(FileNotFoundError):
            self.backend.read_range(name, start, end)

    @rule(wanted=st.lists(names, max_size=4, unique=True))
    def read_many(self, wanted: list[str]) -> None:
        found: dict[str, bytes] = {}
        missing: set[str] = set()
        try:
            found.update(self.backend.read_many(wanted))
        except BatchError as error:
            missing = set(error.failures)
        assert missing == set(wanted) - set(self.objects)
        if not missing:
            assert found == {name: self.objects[name] for name in wanted}

    @rule(prefix=st.sampled_from(["", "a", "a/", "b/c", "é", "zz"]))
    def scan(self, prefix: str) -> None:
        expected = sorted((name for name in self.objects if name.startswith(prefix)), key=encode)
        assert [info.identifier for info in self.backend.scan(prefix)] == expected

    @invariant()
    def holds_what_a_dictionary_holds(self) -> None:
        assert self.backend.list() == sorted(self.objects, key=encode)
        assert {name: self.backend.read(name) for name in self.objects} == self.objects
        assert all(self.backend.size(name) == len(content) for name, content in self.objects.items())


class WrappedPlainModel(Model):
    make = staticmethod(lambda: Wrapper(Seven()))


class PrefixedModel(Model):
    make = staticmethod(lambda: PrefixedStorage(MemoryStorage(), "p"))


FEW = settings(max_examples=40, stateful_step_count=25)
TestModel = Model.TestCase
TestModel.settings = FEW
TestWrappedPlainModel = WrappedPlainModel.TestCase
TestWrappedPlainModel.settings = FEW
TestPrefixedModel = PrefixedModel.TestCase
TestPrefixedModel.settings = FEW


class TestOnlyMemory:
    def test_pickle_is_a_copy(self) -> None:
        storage = MemoryStorage()
        storage.write("a", b"one")
        other = pickle.loads(pickle.dumps(storage))
        other.write("a", b"two")
        other.write("b", b"new")
        assert storage.read("a") == b"one"
        assert storage.list() == ["a"]
        assert copy.deepcopy(storage).read("a") == b"one"

    def test_etags_of_a_copy_go_on(self) -> None:
        storage = MemoryStorage()
        storage.write("a", b"one")
        before = storage.stat("a").etag
        other = pickle.loads(pickle.dumps(storage))
        other.write("a", b"two")
        assert other.stat("a").etag != before

    def test_deleted_and_written_again_is_another_version(self) -> None:
        storage = MemoryStorage()
        storage.write("a", b"same")
        etag = storage.stat("a").etag
        storage.delete("a")
        storage.write("a", b"same")
        assert storage.stat("a").etag != etag

    def test_bytes_are_shared_not_copied(self) -> None:
        storage = MemoryStorage()
        content = bytes(1000)
        storage.write("a", content)
        assert storage.read("a") is content
        storage.copy("a", "b")
        assert storage.read("b") is content

    def test_copy_keeps_the_time(self) -> None:
        storage = MemoryStorage()
        storage.write("a", b"x")
        storage.copy("a", "b")
        storage.move("b", "c")
        assert storage.stat("c").modified == storage.stat("a").modified

    def test_listing_stays_as_it_was_when_it_began(self) -> None:
        storage = MemoryStorage()
        storage.write("a", b"")
        scan = storage.scan()
        storage.write("b", b"")
        storage.delete("a")
        assert [info.identifier for info in scan] == ["a"]

    def test_writers_and_scans_do_not_meet(self) -> None:
        # A dictionary that changes size while it is iterated raises.
        storage = MemoryStorage()
        stop = threading.Event()
        written = itertools.count()

        def write() -> None:
            while not stop.is_set():
                number = next(written)
                storage.write(f"{number % 500}", b"")
                if number % 3 == 0:
                    storage.delete(f"{number % 500}")

        thread = threading.Thread(target=write)
        thread.start()
        scans = 0
        try:
            while scans < 300 or next(written) < 3000:
                names = [info.identifier for info in storage.scan()]
                assert names == sorted(set(names))
                scans += 1
        finally:
            stop.set()
            thread.join()

    def test_path_names_the_memory(self) -> None:
        assert MemoryStorage().get_path("a/b") == "memory:a/b"
        assert MemoryStorage().location == "MemoryStorage"
