"""LocalStorage against the contract, with and without the calls that only newer Linux has."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage_backend import LocalStorage
from storage_backend.testing import ConformanceSuite, Subject
from tests.backends.local_ways import BareStorage

LACKS = {"content_type": "a file has no media type"}


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local") / "base"


class TestLocalStorage(ConformanceSuite):
    @pytest.fixture
    def subject(self, base: Path) -> Subject:
        return Subject(make=lambda: LocalStorage(base), lacks=LACKS)


class TestWithoutLinuxCalls(ConformanceSuite):
    """Without openat2 and O_TMPFILE, as on macOS and older kernels; durable, which adds a sync to each write."""

    @pytest.fixture
    def subject(self, base: Path) -> Subject:
        return Subject(make=lambda: BareStorage(base, durable=True), lacks=LACKS)
