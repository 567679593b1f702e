"""MemoryStorage: the conformance suite, and what only it does."""

import pytest

from storage_backend import MemoryStorage
from storage_backend.testing import ConformanceSuite, Subject

LACKS = {"shared": "the objects live in one instance, in one process"}


class TestMemoryStorage(ConformanceSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        storage = MemoryStorage()
        return Subject(make=lambda: storage, lacks=LACKS)
