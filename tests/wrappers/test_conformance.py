"""The conformance suite through the wrappers."""

import pytest

from storage_backend import MemoryStorage, PrefixedStorage, StorageBackend
from storage_backend.testing import ConformanceSuite, Subject
from tests.seven import Careless
from tests.topics import ObjectTopics

LACKS = {"shared": "the objects live in one instance, in one process"}


def subject_of(storage: StorageBackend) -> Subject:
    return Subject(make=lambda: storage, lacks=LACKS)


class TestPrefixedStorageWithAwkwardPrefix(ConformanceSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        inner = MemoryStorage()
        for name in ["[a]*", "[a]*x", "a", "[a]", "b/[a]*"]:
            inner.write(name, b"outside")
        return subject_of(PrefixedStorage(PrefixedStorage(inner, "[a]*"), "**/é?"))


class TestPrefixedStorageOverSevenMethods(ObjectTopics):
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
