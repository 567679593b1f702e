"""DatabaseStorage: the conformance suite over SQLite and PostgreSQL, plain and through a prefix."""

from __future__ import annotations

import pytest

from storage_backend.backends.sql import DatabaseStorage
from storage_backend.testing import ConformanceSuite, Subject


class TestSqlite(ConformanceSuite):
    @pytest.fixture
    def subject(self, sqlite_url: str) -> Subject:
        return Subject(make=lambda: DatabaseStorage(sqlite_url))


class TestPostgresql(ConformanceSuite):
    @pytest.fixture
    def subject(self, postgresql_url: str) -> Subject:
        return Subject(make=lambda: DatabaseStorage(postgresql_url))
