"""DatabaseStorage: streams on their way in, and what becomes of those that do not arrive."""

from __future__ import annotations

import gc
import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from storage_backend import (
    BatchError,
    DatabaseStorage,
    IntegrityError,
    MemoryStorage,
    ObjectInfo,
    UnavailableError,
    UnsupportedOperationError,
    sync,
)
from storage_backend.backends.sql import statements
from storage_backend.backends.sql.database import Database
from storage_backend.backends.sql.object_row import CHUNK_SIZE
from storage_backend.testing import Source, SourceBrokeError
from storage_backend.testing.topics.processes import in_child
from tests.backends.sql_samples import is_clean, line_of, program, query, rows, until

BIG = os.urandom(5 * CHUNK_SIZE + 17)


def watched(content: bytes, watch: Callable[[], object], at: int = 3) -> Source:
    """A source that calls *watch* once, before its read number *at*."""
    reads = 0

    def look() -> None:
        nonlocal reads
        reads += 1
        if reads == at:
            watch()

    return Source(content, most=CHUNK_SIZE, watch=look)


def test_slow_stream_holds_up_nobody(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage, DatabaseStorage(database_url, timeout_seconds=5) as other:
        storage.write("big", b"old")
        done: list[str] = []

        def meanwhile() -> None:
            assert rows(database_url)["unpublished"] == 1  # some of it has been written
            for name, backend in (("own", storage), ("other", other)):
                backend.write(f"{name}/small", b"1")
                backend.write(f"{name}/large", BIG)
                backend.write("big", name.encode())
                assert backend.read("big") == name.encode()
                backend.copy(f"{name}/large", f"{name}/copy")
                backend.move(f"{name}/copy", f"{name}/moved")
                assert backend.create("big", b"") is False
                backend.write_many([(f"{name}/{n}", b"") for n in range(10)])
                backend.delete(f"{name}/large")
                assert len(backend.list(f"{name}/**")) == 12
                done.append(name)

        storage.write_stream("big", watched(BIG, meanwhile).as_binary())
        assert done == ["own", "other"]
        assert storage.read("big") == BIG
        assert is_clean(database_url)


MEASURE = """
import resource, sys
from storage_backend import DatabaseStorage
url, size = sys.argv[1], int(sys.argv[2])
class Zeros:
    left = size
    def read(self, most=-1):
        size = min(self.left, most if most >= 0 else self.left)
        self.left -= size
        return bytes(size)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
storage = DatabaseStorage(url)
storage.write("warm", bytes(4 << 20))
storage.read("warm")
with storage.open("warm") as reader:
    reader.read(1)
before = peak()
storage.write_stream("big", Zeros(), verify=True)
with storage.open("big") as reader:
    read = sum(map(len, iter(lambda: reader.read(256 << 10), b"")))
storage.copy("big", "copy")
digest = storage.checksum("copy")
storage.write_many((f"{n}", bytes(400_000)) for n in range(200))
count = sum(1 for _ in storage.read_many(f"{n}" for n in range(200)))
storage.delete_many(["big", "copy"])
print(read, count, peak() - before)
"""


@pytest.mark.soak
def test_memory_does_not_grow_with_the_object(database_url: str) -> None:
    size = 96 << 20
    with program(MEASURE, database_url, str(size)) as process:
        read, count, grown = map(int, line_of(process.stdout).split())
    assert process.returncode == 0
    assert (read, count) == (size, 200)
    assert grown < 48  # MiB; batches of 8 MiB are held in a few forms at a time
    assert is_clean(database_url)


STREAM = """
import sys
from storage_backend import DatabaseStorage
class Slow:
    reads = 0
    def read(self, most=-1):
        self.reads += 1
        if self.reads == 4:
            print("half", flush=True)
            sys.stdin.readline()
        return b"new" * 100_000 if self.reads < 8 else b""
DatabaseStorage(sys.argv[1]).write_stream("a", Slow())
print("done", flush=True)
"""


def test_killed_stream_leaves_the_old_object_and_is_swept(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        storage.write("a", BIG)
        before = rows(database_url)
        with program(STREAM, database_url) as process:
            assert line_of(process.stdout) == "half"
            process.kill()
        assert process.returncode == -9
        assert storage.read("a") == BIG
        left = rows(database_url)
        assert left["unpublished"] == 1
        assert left["chunks"] > before["chunks"]
        # Nobody can know yet that it is dead.
        assert storage.sweep() == 0
        storage.write("b", b"1")
        assert rows(database_url)["unpublished"] == 1
        # An hour later, by itself, before the first write of whoever comes.
        query(database_url, "UPDATE sb_unpublished SET beat = beat - 3601")
        with DatabaseStorage(database_url) as other:
            assert other.read("a") == BIG
            assert rows(database_url)["unpublished"] == 1
            other.write("c", b"1")
        assert is_clean(database_url)
        assert storage.read("a") == BIG


def test_a_transfer_that_succeeds_removes_what_killed_ones_left(database_url: str) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("which processes live is known from /proc, which is Linux's")
    with DatabaseStorage(database_url) as storage:
        storage.write("a", BIG)
        with program(STREAM, database_url) as alive:
            assert line_of(alive.stdout) == "half"
            with program(STREAM, database_url) as killed:
                assert line_of(killed.stdout) == "half"
                killed.kill()
            assert rows(database_url)["unpublished"] == 2
            source = MemoryStorage()
            source.write("b", b"1")
            assert sync(source, storage).ok
            assert rows(database_url)["unpublished"] == 1
            alive.communicate("go on\n")
        assert storage.read("a") == b"new" * 700_000
        assert is_clean(database_url)


def test_sweeping_takes_what_is_old_enough(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        storage.write("a", b"1")
        with program(STREAM, database_url) as process:
            assert line_of(process.stdout) == "half"
            process.kill()
        query(database_url, "UPDATE sb_unpublished SET beat = beat - 100")
        assert storage.sweep(older_than_seconds=1000) == 0
        assert storage.sweep(older_than_seconds=50) == 1
        assert storage.sweep(older_than_seconds=50) == 0
        assert is_clean(database_url)


@pytest.mark.soak
def test_slow_upload_is_kept_alive(database_url: str) -> None:
    with (
        DatabaseStorage(database_url, stale_seconds=5.0) as storage,
        DatabaseStorage(database_url) as other,
    ):
        swept: list[int] = []

        def meanwhile() -> None:
            # As if nothing had been heard of it for two days; the heart beats while the source sleeps.
            query(database_url, "UPDATE sb_unpublished SET beat = beat - 172800")
            (then,) = query(database_url, "SELECT beat FROM sb_unpublished")
            until(lambda: query(database_url, "SELECT beat FROM sb_unpublished") != [then], "a beat")
            swept.append(other.sweep())

        storage.write_stream("a", watched(BIG, meanwhile).as_binary())
        assert swept == [0]
        assert storage.read("a") == BIG


def test_no_upload_is_swept_before_its_time(database_url: str) -> None:
    # Beats are whole seconds: one at 9.9 and a sweep at 10.1 are a fifth of a second apart, and a whole one by the clock.
    with DatabaseStorage(database_url) as storage, DatabaseStorage(database_url) as other:
        began = time.monotonic()
        swept: list[tuple[int, float]] = []

        def meanwhile() -> None:
            for _ in range(2):
                query(database_url, "UPDATE sb_unpublished SET beat = beat - 2")
                swept.append((other.sweep(older_than_seconds=2.5), time.monotonic() - began))

        with pytest.raises(UnavailableError, match="swept"):
            storage.write_stream("a", watched(BIG, meanwhile).as_binary())
        (early, took), (late, _) = swept
        assert early == 0 or 2 + took > 2.5
        assert early + late == 1


@pytest.mark.parametrize("at", [3, 7])
def test_upload_that_was_given_up_stores_nothing(database_url: str, at: int) -> None:
    with DatabaseStorage(database_url) as storage, DatabaseStorage(database_url) as other:
        storage.write("a", b"old")
        swept: list[int] = []
        source = watched(BIG, lambda: swept.append(other.sweep(older_than_seconds=0)), at)
        with pytest.raises(UnavailableError, match="swept") as caught:
            storage.write_stream("a", source.as_binary())
        # It stops at the next chunk: what came after the sweep would stay for ever if this process died now.
        assert source.position <= (at + 1) * CHUNK_SIZE
        assert swept == [1]
        assert caught.value.retryable
        assert caught.value.identifier == "a"
        assert storage.read("a") == b"old"
        assert is_clean(database_url)


def test_source_that_breaks_leaves_nothing(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        storage.write("a", b"old")
        for place in (0, 1, CHUNK_SIZE, CHUNK_SIZE + 1, 4 * CHUNK_SIZE):
            with pytest.raises(SourceBrokeError):
                storage.write_stream("a", Source(BIG, breaks_at=place).as_binary())
        with pytest.raises(IntegrityError):
            storage.write_stream("a", io.BytesIO(BIG), info=ObjectInfo("a", size=len(BIG) + 1))
        assert storage.read("a") == b"old"
        assert is_clean(database_url)


def test_collected_writer_leaves_nothing(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        storage.write("a", b"old")
        writer = storage.open("a", "wb")
        writer.write(BIG)
        assert not is_clean(database_url)
        del writer
        gc.collect()
        until(lambda: is_clean(database_url), "the dropped writer's chunks are deleted")
        assert storage.read("a") == b"old"


def test_forked_child_neither_drops_nor_publishes_its_parents_writer(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        for content in (b"half", BIG):
            with storage.open("a", "wb") as writer:
                writer.write(content)

                def leave(error: Exception | None) -> None:
                    writer.__exit__(None if error is None else type(error), error, None)

                def publish() -> None:
                    writer.write(b" of the child")
                    with pytest.raises(UnsupportedOperationError, match="forked"):
                        leave(None)

                in_child(lambda: leave(SourceBrokeError()))
                in_child(publish)
                writer.write(b" and whole")
            assert storage.read("a") == content + b" and whole"
            assert is_clean(database_url)


def test_heart_stops_when_nothing_is_under_way(sqlite_url: str) -> None:
    others = set(threading.enumerate())
    with DatabaseStorage(sqlite_url, stale_seconds=0.5) as storage:
        storage.write("small", b"1")
        assert set(threading.enumerate()) == others
        storage.write("large", BIG)
        until(lambda: set(threading.enumerate()) <= others, "its thread ends")
        storage.write("large", BIG)
        assert storage.read("large") == BIG
    patient = DatabaseStorage(sqlite_url)
    patient.write("large", BIG)
    patient.close()
    until(lambda: set(threading.enumerate()) <= others, "closing ends it")
    patient.write("large", BIG)
    del patient
    gc.collect()
    until(lambda: set(threading.enumerate()) <= others, "so does being collected")


def test_writer_takes_pieces_of_any_size(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        piece = bytearray(b"x")
        with storage.open("a", "wb") as writer:
            position = 0
            for size in (0, 1, 7, CHUNK_SIZE - 8, CHUNK_SIZE, 3 * CHUNK_SIZE - 1, 100):
                writer.write(memoryview(BIG)[position : position + size])
                position += size
            writer.write(piece)
            piece[:] = b"y"  # what was written is written
        assert storage.read("a") == BIG[:position] + b"x"


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE])
def test_object_at_the_edge_of_a_chunk(database_url: str, size: int) -> None:
    with DatabaseStorage(database_url) as storage:
        for verify in (False, True):
            storage.write_stream("a", io.BytesIO(BIG[:size]), verify=verify)
            storage.write_many([("b", BIG[:size])], verify=verify)
            assert rows(database_url)["chunks"] == 2 * -(-size // CHUNK_SIZE)
            for name in ("a", "b"):
                assert storage.read(name) == BIG[:size]
                assert storage.size(name) == size
                assert storage.open(name).read() == BIG[:size]
                assert storage.read_range(name, max(0, size - 1), size + 10) == BIG[max(0, size - 1) : size]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks are as many as one transaction may delete."""
    monkeypatch.setattr(statements, "RETIRED_AT_ONCE", 2)


@pytest.mark.usefixtures("impatient")
def test_large_objects_are_deleted_in_short_transactions(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        for end in ("overwrite", "delete", "move", "replace", "delete_many", "copy", "write_many"):
            storage.write("a", BIG)
            storage.write("b", b"small")
            match end:
                case "overwrite":
                    storage.write("a", b"new")
                case "delete":
                    storage.delete("a")
                case "move":
                    storage.move("b", "a")
                case "replace":
                    storage.replace("a", b"new", cast(str, storage.stat("a").etag))
                case "delete_many":
                    storage.delete_many(["a", "b"])
                case "copy":
                    storage.copy("b", "a")
                case "write_many":
                    storage.write_many([("b", b"1"), ("a", b"2")])
            assert rows(database_url)["chunks"] == len(storage.list()), end
            assert is_clean(database_url), end


@pytest.mark.usefixtures("impatient")
def test_garbage_of_one_that_died_is_swept_by_the_next(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DatabaseStorage(database_url) as storage:
        storage.write("a", BIG)
        with monkeypatch.context() as patched:
            patched.setattr(Database, "collect", lambda _: None)
            storage.delete("a")
        assert rows(database_url) == {"objects": 0, "chunks": 4, "unpublished": 1}
        with DatabaseStorage(database_url) as other:
            other.write("b", b"1")
        assert rows(database_url) == {"objects": 1, "chunks": 1, "unpublished": 0}


def spoil(url: str) -> None:
    """Have the database change what it is given, as a bad disk would."""
    if url.startswith("sqlite"):
        query(
            url,
            "CREATE TRIGGER spoil AFTER INSERT ON sb_chunks WHEN hex(NEW.data) LIKE '424144%' BEGIN "
            "UPDATE sb_chunks SET data = zeroblob(length(data)) WHERE version = NEW.version AND seq = NEW.seq; END",
        )
        return
    query(
        url,
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF substr(NEW.data, 1, 3) = 'BAD'::bytea THEN NEW.data := set_byte(NEW.data, 2, 0); END IF; RETURN NEW; END $$",
    )
    query(url, "CREATE TRIGGER spoil BEFORE INSERT ON sb_chunks FOR EACH ROW EXECUTE FUNCTION spoil()")


@pytest.mark.parametrize("size", [10, CHUNK_SIZE, 3 * CHUNK_SIZE])
def test_verified_stream_is_read_back_before_it_is_published(database_url: str, size: int) -> None:
    bad = b"BAD".ljust(size, b"x")
    with DatabaseStorage(database_url) as storage:
        storage.write("a", b"old")
        spoil(database_url)
        storage.write_stream("good", io.BytesIO(BIG), verify=True)
        with pytest.raises(IntegrityError, match="what was stored") as caught:
            storage.write_stream("a", io.BytesIO(bad), verify=True)
        assert caught.value.identifier == "a"
        assert storage.read("a") == b"old"
        assert is_clean(database_url)
        # Without verification it is found when it is read.
        storage.write_stream("a", io.BytesIO(bad))
        with pytest.raises(IntegrityError):
            storage.read("a")


def test_verified_batch_is_read_back_before_it_is_published(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        storage.write("a", b"old")
        spoil(database_url)
        items = [("a", b"BAD"), ("b", b"good"), ("c", b"BAD" * 400_000), ("d", b""), ("e", b"BAD!")]
        with pytest.raises(BatchError) as caught:
            storage.write_many(items, verify=True)
        assert sorted(caught.value.failures) == ["a", "c", "e"]
        assert all(isinstance(error, IntegrityError) for error in caught.value.failures.values())
        assert {name: storage.read(name) for name in storage.list()} == {"a": b"old", "b": b"good", "d": b""}
        assert is_clean(database_url)


def test_media_type_that_the_database_cannot_hold_is_an_error_of_that_object(postgresql_url: str) -> None:
    with DatabaseStorage(postgresql_url) as storage:
        with pytest.raises(BatchError) as caught:
            storage.write_many([(ObjectInfo("a", content_type="text/\0"), b"1"), ("b", b"2")])
        assert list(caught.value.failures) == ["a"]
        assert not caught.value.retryable
        assert storage.list() == ["b"]


def test_one_row_that_the_database_refuses_does_not_lose_the_others(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        storage.write("a", b"old")
        if database_url.startswith("sqlite"):
            query(
                database_url,
                "CREATE TRIGGER refuse BEFORE INSERT ON sb_objects WHEN NEW.name = CAST('no' AS BLOB) BEGIN "
                "SELECT RAISE(ABORT, 'not this one'); END",
            )
        else:
            query(database_url, "ALTER TABLE sb_objects ADD CONSTRAINT refuse CHECK (name <> 'no'::bytea)")
        with pytest.raises(BatchError) as caught:
            storage.write_many([(name, b"new") for name in ("a", "b", "no", "y", "z")])
        assert list(caught.value.failures) == ["no"]
        assert not caught.value.retryable
        assert {name: storage.read(name) for name in storage.list()} == dict.fromkeys("abyz", b"new")
        assert is_clean(database_url)
