"""The conformance suite through CachedStorage."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage_backend import CachedStorage, LocalStorage, PrefixedStorage
from storage_backend.testing import ConformanceSuite, Subject
from tests.seven import Careless
from tests.topics import ObjectTopics

LACKS = {"shared": "the objects live in one instance, in one process"}


class TestCachedLocal(ConformanceSuite):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return Subject(
            make=lambda: CachedStorage(LocalStorage(tmp_path / "base"), tmp_path / "cache"),
            lacks={"content_type": "a file has no place for one"},
        )


class TestSmallCacheThatAsksEachTime(ObjectTopics):
    """Hardly anything stays, and what does is asked for again."""

    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return Subject(
            make=lambda: CachedStorage(LocalStorage(tmp_path / "base"), tmp_path / "cache", 0.1, 0),
            lacks={"content_type": "a file has no place for one"},
        )


class TestCachedSevenMethods(ObjectTopics):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        storage = PrefixedStorage(CachedStorage(Careless(), tmp_path), "p")
        lacks = {
            "content_type": "it has no place for one",
            "errors": "it raises built-in errors",
            "modified": "it has no place for one",
            **LACKS,
        }
        return Subject(make=lambda: storage, lacks=lacks)


class TestDiskCacheThatAsksEachTime(ObjectTopics):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return Subject(
            make=lambda: CachedStorage(
                LocalStorage(tmp_path / "base"),
                tmp_path / "cache",
                50,
                0,
                engine="diskcache",
                revalidate=True,
                stale_if_error=0,
            ),
            lacks={"content_type": "a file has no place for one"},
        )
