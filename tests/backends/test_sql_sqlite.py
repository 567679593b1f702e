"""DatabaseStorage on an SQLite file: what only a file does."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from storage_backend import (
    AccessDeniedError,
    ConfigurationError,
    DatabaseStorage,
    IntegrityError,
    NotFoundError,
    QuotaExceededError,
    SourceChangedError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
)
from storage_backend.testing.topics.processes import in_child

NOBODY = 65534
BIG = os.urandom(3 << 20)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "objects.db"


def opened(place: Path, **options: float | bool) -> DatabaseStorage:
    return DatabaseStorage(f"sqlite:///{place}", **options)  # type: ignore[arg-type] # one of each kind


def query(place: Path, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(place)) as connection, connection:
        return connection.execute(statement, parameters).fetchall()


EVERYTHING: dict[str, Callable[[DatabaseStorage], object]] = {
    "exists": lambda storage: storage.exists("a"),
    "read": lambda storage: storage.read("a"),
    "list": lambda storage: storage.list(),
    "scan": lambda storage: list(storage.scan()),
    "write": lambda storage: storage.write("a", b"new"),
    "stream": lambda storage: storage.write("a", BIG),
    "delete": lambda storage: storage.delete("a"),
}


def refused(storage: DatabaseStorage, kind: type[StorageError], *verbs: str) -> list[str]:
    """What each verb says as it fails: one line each, in words that stand alone."""
    said = []
    for verb in verbs or EVERYTHING:
        with pytest.raises(kind) as caught:
            EVERYTHING[verb](storage)
        message = str(caught.value)
        assert "\n" not in message
        assert storage.location in message
        assert caught.value.backend == storage.location
        said.append(message)
    return said


@pytest.mark.parametrize(
    "content", [b"hello, this is no database\n" * 100, b"x", b"SQLite format 3\0" + bytes(84)]
)
def test_file_that_is_no_database_is_left_alone(place: Path, content: bytes) -> None:
    place.write_bytes(content)
    refused(opened(place), ConfigurationError)
    assert place.read_bytes() == content
    assert list(place.parent.iterdir()) == [place]


def test_truncated_file_is_damage(place: Path) -> None:
    with opened(place) as storage:
        storage.write("a", BIG)
        storage.write_many((f"{number}", b"x" * 3000) for number in range(300))
    whole = place.read_bytes()
    for length in (len(whole) // 2, 20_000, 17_000):
        place.write_bytes(whole[:length])
        said = refused(opened(place), IntegrityError, "read")
        assert "damaged" in said[0] or "not those that were stored" in said[0]
        assert place.read_bytes() == whole[:length]


def test_scrambled_pages_are_damage_or_other_words_for_it(place: Path) -> None:
    with opened(place) as storage:
        storage.write_many((f"{number}", b"x" * 3000) for number in range(300))
    whole = bytearray(place.read_bytes())
    whole[16384 : 16384 * 8] = os.urandom(16384 * 7)
    place.write_bytes(whole)
    refused(opened(place), IntegrityError, "list", "read", "write")


@pytest.mark.parametrize("statement", ["UPDATE sb_schema SET version = 2", "DELETE FROM sb_schema"])
def test_tables_of_another_version_are_left_alone(place: Path, statement: str) -> None:
    with opened(place) as storage:
        storage.write("a", b"1")
    query(place, statement)
    before = place.read_bytes()
    said = refused(opened(place), ConfigurationError)
    assert all("version" in message for message in said)
    assert place.read_bytes() == before


def test_tables_of_other_programs_stay(place: Path) -> None:
    query(place, "CREATE TABLE theirs (x)")
    query(place, "INSERT INTO theirs VALUES (42)")
    with opened(place) as storage:
        storage.write("a", b"1")
    assert query(place, "SELECT x FROM theirs") == [(42,)]
    with opened(place) as storage:
        assert storage.read("a") == b"1"


def test_empty_file_becomes_a_database(place: Path) -> None:
    place.touch()
    with opened(place) as storage:
        storage.write("a", b"1")
    assert place.stat().st_size > 0


def test_directory_is_no_database(tmp_path: Path) -> None:
    refused(opened(tmp_path), ConfigurationError)


def test_missing_directory_is_not_created(tmp_path: Path) -> None:
    storage = opened(tmp_path / "no" / "where.db")
    said = refused(storage, NotFoundError)
    assert all(f"no directory '{tmp_path}/no'" in message for message in said)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "no").mkdir()
    assert storage.write("a", b"1") is True  # what went wrong is not remembered


def test_missing_file_is_not_created_if_it_is_not_to_be(place: Path) -> None:
    storage = opened(place, create_if_missing=False)
    refused(storage, NotFoundError)
    assert not place.exists()
    query(place, "CREATE TABLE theirs (x)")
    refused(storage, NotFoundError)
    assert query(place, "SELECT name FROM sqlite_master") == [("theirs",)]
    opened(place).write("a", b"1")
    assert storage.read("a") == b"1"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that other users can enter."""
    directory = Path(tempfile.mkdtemp(prefix="sb-test-", dir="/tmp"))
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory)


def as_nobody(work: Callable[[], object]) -> None:
    """Run *work* in a child without root's right to write everywhere."""
    # What is imported late is imported here: the other user may not read Python's own files.
    with tempfile.TemporaryDirectory() as directory, opened(Path(directory) / "warm.db") as storage:
        storage.write("a", BIG)
        storage.write_many([("b", b"")])

    def demoted() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        work()

    in_child(demoted)


def test_read_only_file_refuses_writes(shared: Path) -> None:
    place = shared / "objects.db"
    with opened(place) as storage:
        storage.write("a", b"old")
        place.chmod(0o444)
        for name in ("objects.db-wal", "objects.db-shm"):
            (shared / name).chmod(0o444)

        def work() -> None:
            with opened(place) as theirs:
                assert theirs.read("a") == b"old"
                assert theirs.list() == ["a"]
                refused(theirs, AccessDeniedError, "write", "stream", "delete")

        as_nobody(work)
        assert storage.read("a") == b"old"


def test_unreadable_file_and_read_only_directory_are_denied(shared: Path) -> None:
    place = shared / "objects.db"
    with opened(place) as storage:
        storage.write("a", b"old")
    place.chmod(0o600)
    as_nobody(lambda: refused(opened(place), AccessDeniedError))
    shared.chmod(0o755)
    as_nobody(lambda: refused(opened(shared / "new.db"), AccessDeniedError))
    with opened(place) as storage:
        assert storage.read("a") == b"old"


def test_what_may_not_be_written_to_can_be_read(shared: Path) -> None:
    """On a medium without the right to write, SQLite itself cannot make the files that it needs beside a database."""
    place = shared / "objects.db"
    with opened(place) as storage:
        storage.write("a", BIG)
        storage.write("d/b", b"old")
    place.chmod(0o444)
    shared.chmod(0o555)
    reading, writing = os.pipe()
    changed, change = os.pipe()

    def work() -> None:
        with opened(place, create_if_missing=False) as theirs:
            assert theirs.list() == ["a", "d/b"]
            assert theirs.read("d/b") == b"old"
            assert theirs.stat("a").size == len(BIG)
            with theirs.open("a") as reader:
                assert reader.read(1000) == BIG[:1000]
                # Its owner goes on: what is read from now on is what is there.
                os.write(writing, b"1")
                os.read(changed, 1)
                with pytest.raises((UnavailableError, NotFoundError, SourceChangedError)):
                    reader.read()
            assert theirs.read("a") == b"new"
            assert theirs.read("d/b") == b"old"
            os.write(writing, b"1")
            os.read(changed, 1)
            assert theirs.list() == ["a", "c", "d/b"]
            refused(theirs, AccessDeniedError, "write", "stream", "delete")

    def own() -> None:
        os.read(reading, 1)
        for name, content in (("a", b"new"), ("c", b"3")):
            with opened(place) as storage:
                storage.write(name, content)
            os.write(change, b"1")
            if name == "a":
                os.read(reading, 1)

    owner = threading.Thread(target=own, daemon=True)
    owner.start()
    as_nobody(work)
    owner.join()
    for descriptor in (reading, writing, changed, change):
        os.close(descriptor)
    assert sorted(path.name for path in shared.iterdir()) == ["objects.db"]


def test_unfinished_writing_is_not_passed_over(shared: Path) -> None:
    """What is in the -wal of a writer that has died counts: without the files beside, or the right to make them, it is denied."""
    place = shared / "objects.db"
    with opened(place) as storage:
        storage.write("a", b"old")
        shutil.copy(place, shared / "copy.db")
        shutil.copy(f"{place}-wal", shared / "copy.db-wal")
    (shared / "links").mkdir()
    (shared / "links" / "copy.db").symlink_to(shared / "copy.db")
    shared.chmod(0o555)

    def work() -> None:
        for name in (shared / "copy.db", shared / "links" / "copy.db"):
            with opened(name, create_if_missing=False) as theirs:
                refused(theirs, AccessDeniedError, "read", "list")

    as_nobody(work)
    assert opened(shared / "copy.db").read("a") == b"old"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_full_disk_keeps_the_old_object(small_disk: Path) -> None:
    place = small_disk / "objects.db"
    with opened(place) as storage:
        storage.write("a", b"old")
        storage.write("b", b"other")
        for _ in range(3):
            with pytest.raises(QuotaExceededError) as caught:
                storage.write("a", os.urandom(12 << 20))
            assert not caught.value.retryable
            with pytest.raises(QuotaExceededError):
                storage.write_many(
                    [("a", os.urandom(400_000)), *((f"{n}", os.urandom(400_000)) for n in range(40))]
                )
        with pytest.raises(QuotaExceededError):
            deque((storage.write(f"small/{n}", os.urandom(20_000)) for n in range(10_000)), maxlen=0)
        assert storage.read("a") == b"old"
        assert storage.read("b") == b"other"
        subprocess.run(["mount", "-o", "remount,size=32m", small_disk], check=True)
        # What the failed uploads took is free again, at the latest with the next write.
        storage.write("a", b"new")
        storage.delete_many(name for name in storage.list() if name not in {"a", "b"})
        assert (storage.read("a"), storage.read("b")) == (b"new", b"other")
        assert query(place, "SELECT count(*) FROM sb_unpublished") == [(0,)]
        assert query(place, "SELECT count(*) FROM sb_chunks") == [(2,)]
    assert query(place, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("size", [20_000, 2_000_000])
def test_on_a_full_disk_objects_can_be_deleted(small_disk: Path, size: int) -> None:
    place = small_disk / "objects.db"
    names: list[str] = []

    def fill(storage: DatabaseStorage) -> None:
        while True:
            storage.write(f"{len(names)}", os.urandom(size))
            names.append(f"{len(names)}")

    for _ in range(2):  # also when it is opened again
        with opened(place) as storage, pytest.raises(QuotaExceededError, match="space that deleting needs"):
            fill(storage)
    assert len(names) * size > 5 << 20
    with opened(place) as storage:
        kept = names.pop()
        content = storage.read(kept)
        for name in names:
            assert storage.delete(name)
        assert storage.list() == [kept]
        storage.write("new", bytes(size))
        assert storage.read(kept) == content
        assert storage.delete("new")
        if size > 1 << 20:  # what is left does not fit twice more, and stays as it is
            with pytest.raises(QuotaExceededError):
                storage.compact()
            assert storage.read(kept) == content
        else:
            assert storage.compact()
            assert place.stat().st_size < 1 << 20
    assert query(place, "PRAGMA integrity_check") == [("ok",)]


def test_on_a_disk_that_others_have_filled_objects_can_be_read(small_disk: Path) -> None:
    place = small_disk / "objects.db"
    with opened(place) as storage:
        storage.write("a", b"1")
    with (small_disk / "others").open("wb", buffering=0) as others, suppress(OSError):
        while others.write(bytes(4096)):
            pass
    with opened(place) as storage:
        assert storage.list() == ["a"]
        assert storage.read("a") == b"1"
        with pytest.raises(QuotaExceededError):
            storage.write("b", b"2")
        with pytest.raises(QuotaExceededError):
            storage.delete("a")
        (small_disk / "others").unlink()
        storage.write("b", b"2")
        assert storage.delete("a")
        assert storage.list() == ["b"]


def test_compact_gives_the_space_of_what_was_deleted_back(place: Path) -> None:
    with opened(place) as storage, opened(place) as other:
        storage.write("a", b"1")
        for number in range(3):
            storage.write(f"{number}", BIG)
        with other.open("0") as reader:
            assert reader.read(10) == BIG[:10]
            storage.delete_many(["1", "2"])
            assert place.stat().st_size + Path(f"{place}-wal").stat().st_size > 3 * len(BIG)
            assert storage.compact()
            assert reader.read() == BIG[10:]
        assert (other.read("a"), other.list()) == (b"1", ["0", "a"])
        assert storage.compact()
        assert place.stat().st_size < len(BIG) + (1 << 20)
    assert query(place, "PRAGMA integrity_check") == [("ok",)]


def test_limit_of_pages_is_a_quota(place: Path) -> None:
    # As a full disk, where nobody may mount one.
    with opened(place) as storage:
        storage.write("a", b"old")
        from sqlalchemy import event

        engine = storage._database._pool()._opened()
        storage.close()
        event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA max_page_count = 100"))
        storage._database._pool()._engine = engine
        with pytest.raises(QuotaExceededError):
            storage.write("a", os.urandom(5 << 20))
        assert storage.read("a") == b"old"


def test_another_writer_is_waited_for(place: Path) -> None:
    with opened(place) as storage, closing(sqlite3.connect(place, isolation_level=None)) as other:
        storage.write("a", b"old")
        other.execute("BEGIN IMMEDIATE")
        assert storage.read("a") == b"old"  # readers never wait
        started = threading.Event()

        def write() -> None:
            started.set()
            storage.write("a", b"new")

        thread = threading.Thread(target=write)
        thread.start()
        assert started.wait(60)
        assert storage.read("a") == b"old"
        other.execute("COMMIT")
        thread.join(60)
        assert storage.read("a") == b"new"


def test_waiting_for_a_writer_ends(place: Path) -> None:
    with (
        opened(place, timeout_seconds=0.2) as storage,
        closing(sqlite3.connect(place, isolation_level=None)) as other,
    ):
        storage.write("a", b"old")
        other.execute("BEGIN IMMEDIATE")
        for verb in ("write", "stream", "delete"):
            with pytest.raises(StorageTimeoutError, match="locked") as caught:
                EVERYTHING[verb](storage)
            assert caught.value.retryable
        other.execute("ROLLBACK")
        storage.write("a", b"new")
        assert storage.read("a") == b"new"


@pytest.mark.parametrize("verb", EVERYTHING)
def test_file_that_was_deleted_is_used_no_more(place: Path, verb: str) -> None:
    with opened(place) as storage:
        storage.write("a", b"old")
        place.unlink()
        with pytest.raises(UnavailableError, match="deleted"):
            EVERYTHING[verb](storage)
        # The next one opens what is there: nothing, so it makes a new file.
        storage.write("b", b"new")
        assert storage.list() == ["b"]


def test_journal_is_write_ahead_and_pages_are_large(place: Path) -> None:
    with opened(place) as storage:
        storage.write("a", b"1")
        assert query(place, "PRAGMA journal_mode") == [("wal",)]
        assert query(place, "PRAGMA page_size") == [(16384,)]
    assert list(place.parent.iterdir()) == [place]  # closing tidies up


@pytest.mark.parametrize("durable", [False, True])
def test_durability_is_as_asked_also_after_a_flush(place: Path, durable: bool) -> None:
    with opened(place, durable=durable, connections=1) as storage:
        storage.write("a", b"1")

        def level() -> object:
            database = storage._database
            return database.run(lambda connection: connection.exec_driver_sql("PRAGMA synchronous").scalar())

        before = level()
        assert before == (2 if durable else 1)
        assert storage.flush() is True
        assert level() == before


def test_flush_waits_for_the_disk(place: Path, tmp_path: Path) -> None:
    """Counted by the kernel's own record of system calls, where strace is; else by SQLite's."""
    with opened(place, connections=1) as storage:
        storage.write("a", b"1")
        wal = place.with_name(place.name + "-wal")
        frames = wal.stat().st_size
        levels: list[str] = []
        engine = storage._database._pool()._opened()
        from sqlalchemy import event

        def watch(*arguments: object) -> None:
            levels.append(str(arguments[2]))

        event.listen(engine, "before_cursor_execute", watch)
        storage.flush()
        # A transaction under FULL was written to the log, and FULL syncs the log after each transaction.
        assert levels[0] == "PRAGMA synchronous = FULL"
        assert levels[1].startswith("UPDATE")
        assert wal.stat().st_size > frames


def test_child_keeps_its_writes_when_the_parent_closes(place: Path) -> None:
    """SQLite's own trap: an inherited count of locks has the child believe that it holds what it does not."""
    with opened(place) as storage:
        storage.write("parent", b"1")
        ready, go = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                storage.write("child/1", b"1")
                os.write(ready[1], b"1")
                os.read(go[0], 1)
                storage.write("child/2", b"2")
            finally:
                os._exit(0)
        assert os.read(ready[0], 1) == b"1"
        storage.close()
        with opened(place) as other:
            other.write("other", b"3")
            os.write(go[1], b"1")
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert other.list() == ["child/1", "child/2", "other", "parent"]
    assert query(place, "PRAGMA integrity_check") == [("ok",)]
    for end in (*ready, *go):
        os.close(end)


def test_child_of_a_fork_that_could_not_wait_refuses(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage_backend.backends.sql import connection_pool

    monkeypatch.setattr(connection_pool, "FORK_PATIENCE", 0.05)
    with opened(place) as storage:
        storage.write("a", b"1")
        inside, leave = threading.Event(), threading.Event()

        def hold() -> None:
            def work(_: object) -> None:
                inside.set()
                leave.wait(60)

            storage._database.run(work)

        thread = threading.Thread(target=hold)
        thread.start()
        assert inside.wait(60)

        def child() -> None:
            with pytest.raises(UnavailableError, match="spawn") as caught:
                storage.read("a")
            assert not caught.value.retryable

        in_child(child)
        leave.set()
        thread.join(60)
        assert storage.read("a") == b"1"
        in_child(lambda: storage.write("child", b"1"))
        assert storage.exists("child")


def test_many_processes_create_the_file_at_once(place: Path) -> None:
    ready, go = os.pipe(), os.pipe()
    pids = []
    for number in range(8):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                storage = opened(place)
                os.write(ready[1], b"1")
                os.read(go[0], 1)
                storage.write(f"{number}", b"x")
                storage.close()
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    waiting = 0
    while waiting < 8:
        waiting += len(os.read(ready[0], 8))
    os.write(go[1], b"12345678")
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
    with opened(place) as storage:
        assert storage.list() == [f"{number}" for number in range(8)]
    for end in (*ready, *go):
        os.close(end)


@pytest.mark.soak
def test_batches_never_exceed_the_limit_of_parameters(place: Path) -> None:
    names = [f"{number:05}" for number in range(70_000)]
    with opened(place) as storage:
        assert storage.write_many((name, b"") for name in names) == 70_000
        assert storage.list() == names
        assert sum(1 for _ in storage.read_many(names)) == 70_000
        from sqlalchemy import event

        most = 0

        def watch(*arguments: object) -> None:
            nonlocal most
            parameters, many = arguments[3], arguments[5]
            assert isinstance(parameters, list | tuple)
            most = max(most, *map(len, parameters if many else [parameters]))

        event.listen(storage._database._pool()._opened(), "before_cursor_execute", watch)
        assert storage.delete_many(names) == 70_000
        assert storage.list() == []
        assert storage.write_many([("a", b"1")] * 1200) == 1200
        assert 100 < most < 999  # what SQLite took before 3.32
