"""The conformance suite through the wrappers."""

from pathlib import Path

import pytest

from storage_backend import LocalStorage, MemoryStorage, PrefixedStorage, StorageBackend
from storage_backend.testing import ConformanceSuite, Subject
from storage_backend.wrappers.base import Wrapper
from tests.seven import Careless

LACKS = {"shared": "the objects live in one instance, in one process"}


def subject_of(storage: StorageBackend) -> Subject:
    return Subject(make=lambda: storage, lacks=LACKS)


class TestWrapper(ConformanceSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        return subject_of(Wrapper(MemoryStorage()))


class TestPrefixedStorage(ConformanceSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        return subject_of(PrefixedStorage(MemoryStorage(), "a/prefix"))


class TestPrefixedStorageWithAwkwardPrefix(ConformanceSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        inner = MemoryStorage()
        for name in ["[a]*", "[a]*x", "a", "[a]", "b/[a]*"]:
            inner.write(name, b"outside")
        return subject_of(PrefixedStorage(PrefixedStorage(inner, "[a]*"), "**/é?"))


class TestPrefixedStorageOverSevenMethods(ConformanceSuite):
    """The prefix brings the rules for identifiers, and `content`; the rest is the user's."""

    @pytest.fixture
    def subject(self) -> Subject:
        storage = PrefixedStorage(Careless(), "p")
        lacks = {
            "content_type": "it has no place for one",
            "errors": "it raises built-in errors",
            "modified": "it has no place for one",
            **LACKS,
        }
        return Subject(make=lambda: storage, lacks=lacks)


class TestPrefixedLocalStorage(ConformanceSuite):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return Subject(
            make=lambda: PrefixedStorage(LocalStorage(tmp_path / "base"), "some/where"),
            lacks={"content_type": "a file has no place for one"},
        )
