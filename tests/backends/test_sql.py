"""DatabaseStorage: the conformance suite over SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from storage_backend import DatabaseStorage
from storage_backend.testing import ConformanceSuite, Pickling, Processes, Replacing, Subject, Threads
from tests.conftest import unavailable
from tests.topics import ObjectTopics

if TYPE_CHECKING:
    from tests.servers import PostgreSQL


class TestSqlite(ConformanceSuite):
    @pytest.fixture
    def subject(self, sqlite_url: str) -> Subject:
        return Subject(make=lambda: DatabaseStorage(sqlite_url))


@pytest.fixture(scope="class")
def database(postgresql_server: PostgreSQL | str) -> Iterator[str]:
    """The name of a database for all tests of a class, since making one takes longer than most of them."""
    if isinstance(postgresql_server, str):
        unavailable(postgresql_server)
    assert not isinstance(postgresql_server, str)
    with postgresql_server.database() as name:
        yield name


@pytest.fixture(scope="class")
def instance(postgresql_server: PostgreSQL, database: str) -> Iterator[DatabaseStorage]:
    """A storage for all tests of a class."""
    with DatabaseStorage(postgresql_server.url(database)) as storage:
        yield storage


class TestPostgresql(ObjectTopics, Replacing, Threads, Pickling, Processes):
    @pytest.fixture
    def subject(self, postgresql: PostgreSQL, database: str, instance: DatabaseStorage) -> Subject:
        tables = postgresql.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database)
        names = ", ".join(str(name) for (name,) in tables if name != "sb_schema")
        if names:
            postgresql.execute(f"TRUNCATE {names}", database)
        return Subject(lambda: DatabaseStorage(postgresql.url(database)), instance=instance)
