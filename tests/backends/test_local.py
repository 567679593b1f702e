"""LocalStorage against the contract, by each of its ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage_backend import LocalStorage
from storage_backend.testing import ConformanceSuite, Subject
from tests.backends.local_ways import NamingStorage, WalkingStorage

LACKS = {"content_type": "a file has no media type"}


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local") / "base"


class TestLocalStorage(ConformanceSuite):
    @pytest.fixture
    def subject(self, base: Path) -> Subject:
        return Subject(make=lambda: LocalStorage(base), lacks=LACKS)


class TestWithoutOpenat2(ConformanceSuite):
    @pytest.fixture
    def subject(self, base: Path) -> Subject:
        return Subject(make=lambda: WalkingStorage(base), lacks=LACKS)


class TestWithoutTmpfile(ConformanceSuite):
    @pytest.fixture
    def subject(self, base: Path) -> Subject:
        return Subject(make=lambda: NamingStorage(base), lacks=LACKS)


class TestDurable(ConformanceSuite):
    @pytest.fixture
    def subject(self, base: Path) -> Subject:
        return Subject(make=lambda: LocalStorage(base, durable=True), lacks=LACKS)
