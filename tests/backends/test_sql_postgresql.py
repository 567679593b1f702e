"""DatabaseStorage on PostgreSQL: what only a server does."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from storage_backend import (
    AccessDeniedError,
    AuthenticationError,
    BatchError,
    ConfigurationError,
    DatabaseStorage,
    MissingClientError,
    NotFoundError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
)
from storage_backend.backends.sql.object_row import CHUNK_SIZE
from storage_backend.testing.topics.processes import in_child
from tests.backends.sql_samples import is_clean, line_of, program, query, rows, until

if TYPE_CHECKING:
    from tests.servers import PostgreSQL

BIG = os.urandom(3 * CHUNK_SIZE + 5)


def over_tcp(server: PostgreSQL, url: str, account: str) -> str:
    """The URL of the same database at 127.0.0.1, where passwords are asked for."""
    name = url.partition("?")[0].rpartition("/")[2]
    return f"postgresql://{account}127.0.0.1:{server.port}/{name}"


def refused(storage: DatabaseStorage, kind: type[StorageError]) -> StorageError:
    """Each verb fails so, in one line that stands alone and holds no secret."""
    verbs: list[Callable[[], object]] = [
        lambda: storage.exists("a"),
        lambda: storage.read("a"),
        storage.list,
        lambda: storage.write("a", b""),
        lambda: storage.write_many([("a", b"")]),
    ]
    for verb in verbs:
        with pytest.raises((kind, BatchError)) as caught:
            verb()
        error = caught.value
        if isinstance(error, BatchError):
            (only,) = error.failures.values()
            assert isinstance(only, kind)
            error = only
        assert "\n" not in str(error)
        assert storage.location in str(error)
        assert "s3cret" not in str(error) + repr(error) + repr(error.__cause__)
        assert pickle.loads(pickle.dumps(error)).args == error.args
    assert isinstance(error, StorageError)
    return error


def test_password_is_used_and_told_to_nobody(
    postgresql: PostgreSQL, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SB_TEST_PASSWORD", postgresql.PASSWORD)
    inline = over_tcp(postgresql, postgresql_url, f"postgres:{quote(postgresql.PASSWORD, safe='')}@")
    plain = over_tcp(postgresql, postgresql_url, "postgres@")
    for storage in (
        DatabaseStorage(inline),
        DatabaseStorage(plain, password=postgresql.PASSWORD),
        DatabaseStorage(plain, password="env:SB_TEST_PASSWORD"),
        pickle.loads(pickle.dumps(DatabaseStorage(plain, password="env:SB_TEST_PASSWORD"))),
    ):
        with storage:
            assert storage.write("a", b"1") is True
            assert storage.location == plain
            assert "s3cret" not in repr(storage)


def test_wrong_account_is_an_authentication_error(postgresql: PostgreSQL, postgresql_url: str) -> None:
    wrong = over_tcp(postgresql, postgresql_url, "postgres:s3cret-but-wrong@")
    refused(DatabaseStorage(wrong), AuthenticationError)
    refused(DatabaseStorage(over_tcp(postgresql, postgresql_url, "postgres@")), AuthenticationError)
    refused(DatabaseStorage(over_tcp(postgresql, postgresql_url, "who:s3cret@")), AuthenticationError)
    trusted = postgresql_url.replace("postgres@", "nobody_of_that_name@")
    refused(DatabaseStorage(trusted), AuthenticationError)


def test_missing_database_is_not_found(postgresql: PostgreSQL) -> None:
    error = refused(DatabaseStorage(postgresql.url("no_such_database")), NotFoundError)
    assert isinstance(error, ValueError)
    assert not error.retryable


def test_missing_tables_are_not_created_if_they_are_not_to_be(postgresql_url: str) -> None:
    refused(DatabaseStorage(postgresql_url, create_if_missing=False), NotFoundError)
    assert query(
        postgresql_url, "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'sb!_%' ESCAPE '!'"
    ) == [(0,)]


def test_unreachable_server_is_unavailable() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound, so that nobody else takes it; not listening
        port = listener.getsockname()[1]
        error = refused(DatabaseStorage(f"postgresql://me@127.0.0.1:{port}/db"), UnavailableError)
    assert error.retryable
    refused(DatabaseStorage("postgresql://me@/db?host=/nowhere"), UnavailableError)
    refused(DatabaseStorage("postgresql://me@host.invalid/db"), UnavailableError)


@pytest.mark.soak
def test_silent_server_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        storage = DatabaseStorage(
            f"postgresql://me@127.0.0.1:{listener.getsockname()[1]}/db?connect_timeout=2"
        )
        with pytest.raises((StorageTimeoutError, UnavailableError)) as caught:
            storage.read("a")
    assert caught.value.retryable


def test_tables_of_another_version_are_left_alone(postgresql_url: str) -> None:
    DatabaseStorage(postgresql_url).write("a", b"1")
    query(postgresql_url, "UPDATE sb_schema SET version = 2")
    refused(DatabaseStorage(postgresql_url), ConfigurationError)
    assert rows(postgresql_url)["objects"] == 1


def test_chunks_are_stored_out_of_line_and_uncompressed(postgresql_url: str) -> None:
    DatabaseStorage(postgresql_url).write("a", b"1")
    assert query(
        postgresql_url,
        "SELECT attstorage::text FROM pg_attribute WHERE attrelid = 'sb_chunks'::regclass AND attname = 'data'",
    ) == [("e",)]


FIRST = """
import sys
from storage_backend import DatabaseStorage
storage = DatabaseStorage(sys.argv[1])
import storage_backend.backends.sql.database, sqlalchemy.dialects.postgresql, psycopg
print("ready", flush=True)
sys.stdin.readline()
print(storage.write(sys.argv[2], b"x"))
"""


@pytest.mark.soak
def test_first_use_by_many_processes_at_once(postgresql_url: str) -> None:
    processes = [program(FIRST, postgresql_url, str(number)) for number in range(5)]
    for process in processes:
        assert line_of(process.stdout) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [line_of(process.stdout) for process in processes] == ["True"] * 5
    for process in processes:
        process.communicate()
    assert DatabaseStorage(postgresql_url).list() == [str(number) for number in range(5)]


@contextmanager
def role(server: PostgreSQL, name: str) -> Iterator[None]:
    server.execute(f"CREATE ROLE {name} LOGIN")
    try:
        yield
    finally:
        server.execute(f"DROP ROLE {name}")


def test_missing_rights_are_access_denied(postgresql: PostgreSQL, postgresql_url: str) -> None:
    name = postgresql_url.partition("?")[0].rpartition("/")[2]
    with role(postgresql, "sb_reader"):
        reader = DatabaseStorage(postgresql_url.replace("postgres@", "sb_reader@"))
        with pytest.raises(AccessDeniedError):  # may not create tables
            reader.list()
        DatabaseStorage(postgresql_url).write("a", b"1")
        with pytest.raises(AccessDeniedError):
            reader.read("a")
        postgresql.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO sb_reader", name)
        try:
            assert reader.read("a") == b"1"
            assert reader.list() == ["a"]
            writes: list[Callable[[], object]] = [
                lambda: reader.write("a", b"2"),
                lambda: reader.delete("a"),
                lambda: reader.write("b", BIG),
            ]
            for verb in writes:
                with pytest.raises(AccessDeniedError) as caught:
                    verb()
                assert not isinstance(caught.value, AuthenticationError)
        finally:
            reader.close()
            postgresql.execute("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM sb_reader", name)


def test_read_only_session_refuses_writes(postgresql_url: str) -> None:
    DatabaseStorage(postgresql_url).write("a", b"1")
    storage = DatabaseStorage(f"{postgresql_url}&options=-c%20default_transaction_read_only%3Don")
    assert storage.read("a") == b"1"
    with pytest.raises(AccessDeniedError, match="read-only"):
        storage.write("a", b"2")


@pytest.mark.soak
def test_serializable_default_changes_nothing(postgresql_url: str) -> None:
    url = f"{postgresql_url}&options=-c%20default_transaction_isolation%3Dserializable"
    with DatabaseStorage(url) as storage:
        storage.write("a", b"0")
        threads = [
            threading.Thread(target=lambda: [storage.write("a", BIG) for _ in range(10)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert storage.read("a") == BIG
        assert is_clean(postgresql_url)


def test_restarted_server_is_used_again(postgresql: PostgreSQL, postgresql_url: str) -> None:
    with DatabaseStorage(postgresql_url) as storage:
        storage.write("a", BIG)
        storage.write("b", b"1")
        # Several pooled connections, all of which die.
        threads = [threading.Thread(target=lambda: storage.read("a")) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        verbs: list[Callable[[], Any]] = [
            lambda: storage.read("a") == BIG,
            lambda: storage.write("c", b"new"),
            lambda: storage.write("d", BIG),
            lambda: storage.write_many([("e", b"1"), ("f", b"2")]) == 2,
            lambda: len(dict(storage.read_many(["a", "b"]))) == 2,
            lambda: storage.exists("b"),
            lambda: "b" in storage.list(),
        ]
        for verb in verbs:
            postgresql.halt()
            postgresql.start()
            assert verb()
        with storage.open("a") as reader:
            head = reader.read(CHUNK_SIZE)
            postgresql.halt()
            with pytest.raises(UnavailableError) as caught:
                reader.read(1)
            assert caught.value.retryable
            assert caught.value.attempts == 2
            postgresql.start()
            assert head + reader.read() == BIG  # it can even go on


def kill_connections(url: str) -> None:
    query(
        url,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()",
    )


def test_killed_connection_in_the_middle_of_a_stream(postgresql_url: str) -> None:
    with DatabaseStorage(postgresql_url) as storage:
        kills = 0

        class Killing:
            reads = 0

            def read(self, _: int = -1) -> bytes:
                nonlocal kills
                self.reads += 1
                if self.reads % 2:
                    kill_connections(postgresql_url)
                    kills += 1
                return BIG if self.reads < 7 else b""

        storage.write_stream("a", Killing(), verify=True)  # type: ignore[arg-type] # all that a source must have
        assert kills == 4
        assert storage.read("a") == BIG * 6
        assert is_clean(postgresql_url)


@pytest.mark.soak
@pytest.mark.parametrize("verb", ["write", "stream", "create", "replace", "delete", "move", "copy", "batch"])
def test_lost_acknowledgement_of_a_commit_is_no_error(
    postgresql_url: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection dies after the server has committed: the transaction is run again, and finds what it did."""
    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

    with DatabaseStorage(postgresql_url) as storage:
        storage.write("a", b"old")
        storage.write("large", BIG)
        etag = storage.stat("a").etag
        assert etag
        lost = 0
        real: Any = PGDialect_psycopg.do_commit

        def commit(self: Any, connection: Any) -> None:
            nonlocal lost
            real(self, connection)
            if not lost:
                lost += 1
                kill_connections(postgresql_url)
                connection.execute("SELECT 1")

        verbs: dict[str, Callable[[], object]] = {
            "write": lambda: storage.write("a", b"new"),
            "stream": lambda: storage.write("a", BIG),
            "create": lambda: storage.create("n", b"new"),
            "replace": lambda: storage.replace("a", b"new", etag),
            "delete": lambda: storage.delete("a"),
            "move": lambda: storage.move("a", "large"),
            "copy": lambda: storage.copy("large", "a"),
            "batch": lambda: storage.write_many([("a", b"new"), ("n", b"new")]) == 2,
        }
        monkeypatch.setattr(PGDialect_psycopg, "do_commit", commit)
        assert verbs[verb]()
        monkeypatch.undo()
        assert lost == 1
        expected = {
            "write": {"a": b"new", "large": BIG},
            "stream": {"a": BIG, "large": BIG},
            "create": {"a": b"old", "large": BIG, "n": b"new"},
            "replace": {"a": b"new", "large": BIG},
            "delete": {"large": BIG},
            "move": {"large": b"old"},
            "copy": {"a": BIG, "large": BIG},
            "batch": {"a": b"new", "large": BIG, "n": b"new"},
        }
        assert dict(storage.read_many(storage.list())) == expected[verb]
        assert is_clean(postgresql_url)


@pytest.mark.soak
def test_lost_acknowledgement_of_the_flip_of_a_stream(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

    real: Any = PGDialect_psycopg.do_commit
    for which in range(6):  # register, four chunks, and the flip
        commits = 0

        def commit(self: Any, connection: Any, which: int = which) -> None:
            nonlocal commits
            real(self, connection)
            commits += 1
            if commits == which + 1:
                kill_connections(postgresql_url)
                connection.execute("SELECT 1")

        with DatabaseStorage(postgresql_url) as storage:
            storage.write("a", b"old")
            monkeypatch.setattr(PGDialect_psycopg, "do_commit", commit)
            assert storage.write("a", BIG + BIG)
            monkeypatch.undo()
            assert commits >= 7
            assert storage.read("a") == BIG + BIG
            assert is_clean(postgresql_url)


def test_waiting_for_a_lock_ends(postgresql: PostgreSQL, postgresql_url: str) -> None:
    import psycopg

    with DatabaseStorage(postgresql_url, timeout_seconds=0.3) as storage:
        storage.write("a", b"old")
        place = f"host={postgresql.directory} port={postgresql.port} user=postgres"
        name = postgresql_url.partition("?")[0].rpartition("/")[2]
        with psycopg.connect(f"{place} dbname={name}") as other:
            other.execute("SELECT 1 FROM sb_objects FOR UPDATE")
            with pytest.raises(StorageTimeoutError) as caught:
                storage.write("a", b"new")
            assert caught.value.retryable
            assert storage.read("a") == b"old"
        storage.write("a", b"new")


def test_all_connections_busy_ends(postgresql_url: str) -> None:
    with DatabaseStorage(postgresql_url, timeout_seconds=0.3, connections=1) as storage:
        storage.write("a", b"1")
        inside, leave = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            inside.set()
            leave.wait(60)

        thread = threading.Thread(target=lambda: storage._database.run(hold))
        thread.start()
        assert inside.wait(60)
        with pytest.raises(StorageTimeoutError) as caught:
            storage.read("a")
        assert caught.value.retryable
        leave.set()
        thread.join(60)
        assert storage.read("a") == b"1"


def sessions(url: str) -> int:
    """How many others are connected."""
    ((count,),) = query(
        url,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
    )
    return int(count)


def test_connection_in_use_is_closed_when_it_comes_back(postgresql_url: str) -> None:
    storage = DatabaseStorage(postgresql_url)
    inside, leave = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        inside.set()
        leave.wait(60)

    thread = threading.Thread(target=lambda: storage._database.run(hold))
    thread.start()
    assert inside.wait(60)
    storage.close()
    assert sessions(postgresql_url) == 1
    leave.set()
    thread.join(60)
    until(lambda: sessions(postgresql_url) == 0, "the last connection is closed")
    assert storage.list() == []  # and it connects again
    storage.close()
    until(lambda: sessions(postgresql_url) == 0, "closed again")


def test_child_speaks_on_no_inherited_connection(postgresql_url: str) -> None:
    with DatabaseStorage(postgresql_url, connections=1) as storage:
        storage.write("a", b"1")

        def backend() -> object:
            return storage._database.run(lambda c: c.exec_driver_sql("SELECT pg_backend_pid()").scalar())

        ours = backend()

        def child() -> None:
            assert backend() != ours
            assert storage.read("a") == b"1"
            # The inherited descriptor is another file now, so that the server hears of the parent's end.
            (pool,) = (s for pid, s in storage._database._pools.items() if pid != os.getpid())
            for raw in pool._raw:
                assert Path(f"/proc/self/fd/{raw.fileno()}").readlink() == Path(os.devnull)

        for _ in range(3):
            in_child(child)
            assert backend() == ours  # the parent's connection was neither closed nor disturbed


@pytest.mark.soak
def test_child_that_outlives_its_parent_keeps_no_session(postgresql_url: str) -> None:
    source = """
import os, sys
from storage_backend import DatabaseStorage
storage = DatabaseStorage(sys.argv[1])
storage.write("a", b"1")
if os.fork() == 0:
    storage.read("a")
    storage.close()
    print("ready", flush=True)
    sys.stdin.readline()
    os._exit(0)
os.wait()
"""

    with program(source, postgresql_url) as process:
        assert line_of(process.stdout) == "ready"
        assert sessions(postgresql_url) == 1  # the parent's
        process.kill()
        until(
            lambda: sessions(postgresql_url) == 0,
            "the server hears of the parent's end while the child lives",
        )
        process.communicate()


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingClientError, match=r"storage-backend\[sql\]"):
        DatabaseStorage("postgresql://me@host/db").list()


def test_flush_waits_for_the_log(postgresql_url: str) -> None:
    url = f"{postgresql_url}&options=-c%20synchronous_commit%3Doff"
    with DatabaseStorage(url, connections=1) as storage:
        storage.write("a", b"1")
        assert storage.flush() is True
        ((behind,),) = query(
            postgresql_url, "SELECT pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()"
        )
        assert isinstance(behind, bool)
        assert query(postgresql_url, "SELECT flushes FROM sb_schema") == [(1,)]
        setting = storage._database.run(lambda c: c.exec_driver_sql("SHOW synchronous_commit").scalar())
        assert setting == "off"  # as the user wants it for the rest
