"""One S3Storage in many threads, forked children and spawned ones: what is shared, and what must never be."""

from __future__ import annotations

import faulthandler
import gc
import io
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from storage_backend import ConfigurationError, S3Storage
from storage_backend.backends.s3.settings import MIB
from storage_backend.testing.subject import same
from tests.backends.test_s3 import storage_at
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_servers import BucketPlace
from tests.tiers import few

BUCKET = "bucket"
CONTENT = random.Random(9).randbytes(24 * MIB)
THREADS = 200
IDLE_MOST = 16
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture
def place(server: S3Server) -> BucketPlace:
    return BucketPlace(server.url, BUCKET, ACCESS_KEY, SECRET_KEY)


@pytest.fixture
def storage(place: BucketPlace) -> Iterator[S3Storage]:
    storage = storage_at(place, multipart_chunk_size=5 * MIB, multipart_threshold=8 * MIB)
    yield storage
    storage.close()


def connected(port: int) -> int:
    """How many connections to *port* of 127.0.0.1 this machine has open ("proc_net_tcp", the kernel's documentation)."""
    remote = f"0100007F:{port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return sum(line[2] == remote and line[3] == "01" for line in lines)


def in_child(work: Callable[[], object]) -> int:
    """Fork; the child does *work* and leaves as programs do, collecting what it has. Its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            faulthandler.dump_traceback_later(PATIENCE, exit=True)  # what hangs is ended, and shows where
            work()
            gc.collect()
            status = 0
        except BaseException:  # noqa: BLE001 - the child must not go on with the parent's tests
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def busy(storage: S3Storage, threads: int = 8) -> Iterator[None]:
    """Threads that use *storage* until the body is done; what they find wrong is raised."""
    stop = threading.Event()
    rounds = [0] * threads

    def work(number: int) -> None:
        while not stop.is_set():
            content = b"%d" % rounds[number] * 500
            storage.write(f"busy/{number}", content)
            assert storage.read(f"busy/{number}") == content
            rounds[number] += 1

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(work, number) for number in range(threads)]
        try:
            yield
            goal = [count + 3 for count in rounds]
            waiting = threading.Event()
            while any(count < wanted for count, wanted in zip(rounds, goal, strict=True)) and not any(
                each.done() for each in running
            ):
                waiting.wait(0.005)
        finally:
            stop.set()
        for each in running:
            each.result(PATIENCE)


def use(storage: S3Storage, name: str) -> None:
    """A little of everything."""
    storage.write(name, name.encode())
    assert storage.read(name) == name.encode()
    assert storage.exists(name)
    assert [info.identifier for info in storage.scan(name)] == [name]
    assert dict(storage.read_many([name])) == {name: name.encode()}
    storage.write_many((f"{name}/{number}", b"x") for number in range(20))
    assert storage.delete_many(f"{name}/{number}" for number in range(20)) == 20
    with storage.open(f"{name}-large", "wb") as writer:
        writer.write(CONTENT)
    with storage.open(f"{name}-large") as reader:
        reader.seek(20 * MIB)
        assert reader.read(10) == CONTENT[20 * MIB : 20 * MIB + 10]
    storage.delete(f"{name}-large")


# Threads


@pytest.mark.soak
@pytest.mark.parametrize("where", few(["own", "rclone"], 1))
def test_two_hundred_threads_share_one_storage(where: str, request: pytest.FixtureRequest) -> None:
    place: BucketPlace = request.getfixturevalue("place" if where == "own" else "rclone_bucket")
    port = int(place.url.rpartition(":")[2])
    others = connected(port)
    storage = storage_at(place)
    shared = {f"shared/{number}": CONTENT[number * 1000 :][: 50_000 + number] for number in range(10)}
    storage.write_many(shared.items())
    gate = threading.Barrier(THREADS)

    def work(number: int) -> None:
        chosen = random.Random(number)
        gate.wait(PATIENCE)
        for step in range(2):
            own = CONTENT[number * 5000 + step :][: chosen.randrange(20_000)]
            storage.write(f"own/{number}/{step}", own)
            assert storage.read(f"own/{number}/{step}") == own
            name = f"shared/{chosen.randrange(10)}"
            assert storage.read(name) == shared[name]
            with storage.open(name) as reader:
                assert reader.read() == shared[name]
            assert storage.size(f"own/{number}/{step}") == len(own)
        # All at once of the threads that this storage keeps, too.
        names = [f"own/{number}/{step}" for step in range(2)]
        assert {name for name, _ in storage.read_many(names)} == set(names)
        assert storage.delete_many(names[:1]) == 1

    with ThreadPoolExecutor(THREADS) as pool:
        for each in [pool.submit(work, number) for number in range(THREADS)]:
            each.result(4 * PATIENCE)
    assert connected(port) - others <= IDLE_MOST
    assert len(storage.list("own/*/*")) == THREADS
    own_threads = [thread for thread in threading.enumerate() if thread.name == "storage-backend-s3"]
    assert len(own_threads) <= 3 * IDLE_MOST  # of this storage, and of others that tests before left
    storage.close()
    assert connected(port) == others


def test_threads_that_write_one_object_leave_one_of_theirs(server: S3Server, storage: S3Storage) -> None:
    versions = [CONTENT[number : number + 10 * MIB] for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for each in [pool.submit(storage.write_stream, "one", io.BytesIO(content)) for content in versions]:
            each.result(PATIENCE)
    assert server.objects(BUCKET)["one"] in versions
    assert server.uploads(BUCKET) == {}


# Children


@pytest.mark.soak
def test_forked_children_use_it_while_the_parents_threads_do(server: S3Server, storage: S3Storage) -> None:
    server.put(BUCKET, "large", CONTENT)
    with storage.open("large") as reader, busy(storage):
        assert reader.read(1000) == CONTENT[:1000]
        for number in range(3):
            assert in_child(lambda number=number: use(storage, f"child-{number}")) == 0  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        # Its connection was in each child, too.
        assert same(reader.read(), CONTENT[1000:])
    assert storage.read("child-2") == b"child-2"


def test_a_child_goes_on_with_a_reader_by_a_connection_of_its_own(
    server: S3Server, storage: S3Storage
) -> None:
    server.put(BUCKET, "large", CONTENT)
    with storage.open("large") as reader:
        assert reader.read(1000) == CONTENT[:1000]

        def child() -> None:
            assert same(reader.read(3 * MIB), CONTENT[1000 : 1000 + 3 * MIB])
            reader.seek(20 * MIB)
            assert same(reader.read(), CONTENT[20 * MIB :])
            reader.close()

        assert in_child(child) == 0
        assert same(reader.read(), CONTENT[1000:])


def test_an_open_writer_is_the_parents(server: S3Server, storage: S3Storage) -> None:
    holder = [storage.open("large", "wb")]
    holder[0].write(CONTENT[: 12 * MIB])

    def collect() -> None:
        holder.clear()

    def close() -> None:
        with pytest.raises(ValueError, match="process"):
            holder[0].close()

    def write() -> None:
        with pytest.raises(ValueError, match="process"):
            holder[0].write(CONTENT)

    def leave() -> None:
        sys.exit(0)

    for work in (collect, close, write):
        assert in_child(work) == 0
        assert len(server.uploads(BUCKET)) == 1
    context = multiprocessing.get_context("fork")
    process = context.Process(target=leave)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert len(server.uploads(BUCKET)) == 1
    assert server.objects(BUCKET) == {}
    holder[0].write(CONTENT[12 * MIB :])
    holder[0].close()
    assert same(server.objects(BUCKET), {"large": CONTENT})
    assert server.uploads(BUCKET) == {}


@pytest.mark.soak
def test_a_child_that_is_forked_while_parts_are_sent_disturbs_none(
    server: S3Server, storage: S3Storage
) -> None:
    class Forking(io.BytesIO):
        forks = 0

        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 9 * MIB and self.forks < 2:
                self.forks += 1
                assert in_child(lambda: use(storage, f"child-{self.forks}")) == 0
            return super().read(size)

    reader = Forking(CONTENT)
    storage.write_stream("large", reader, verify=True)
    assert reader.forks == 2
    assert same(server.objects(BUCKET)["large"], CONTENT)
    assert server.uploads(BUCKET) == {}


def test_a_child_that_leaves_in_the_middle_of_a_batch_does_not_wait_for_it(
    server: S3Server, storage: S3Storage
) -> None:
    names = [f"{number:03}" for number in range(100)]
    storage.write_many((name, name.encode()) for name in names)
    found = {}
    iterator = storage.read_many(names)
    for name, content in iterator:
        found[name] = content
        if len(found) == 3:
            assert in_child(cast(Callable[[], object], iterator.close)) == 0  # type: ignore[attr-defined]  # it is a generator
    assert found == {name: name.encode() for name in names}


def test_a_child_that_leaves_in_the_middle_of_a_writing_batch_does_not_wait_for_it(
    server: S3Server, storage: S3Storage
) -> None:
    statuses: list[int] = []

    def items() -> Iterator[tuple[str, bytes]]:
        for number in range(60):
            if number == 40:
                pid = os.fork()
                if pid == 0:
                    signal.alarm(int(PATIENCE))
                    raise _LeftError
                statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            yield f"{number:03}", b"%d" % number

    try:
        stored = storage.write_many(items())
    except _LeftError:
        os._exit(7)  # the child's way out, past all that waits
    assert statuses == [7]
    assert stored == 60
    assert server.objects(BUCKET) == {f"{number:03}": b"%d" % number for number in range(60)}


class _LeftError(Exception):
    """A child leaves."""


def test_no_fork_meets_a_lock_that_is_held(storage: S3Storage) -> None:
    with busy(storage, threads=6):
        for number in range(5):
            status = in_child(
                lambda number=number: storage.write_many(  # type: ignore[misc]  # as above
                    (f"child/{number}/{each}", b"x") for each in range(5)
                )
            )
            assert status == 0
    assert len(storage.list("child/**")) == 25


@pytest.mark.soak
def test_a_spawned_child_uses_what_was_pickled(
    server: S3Server, place: BucketPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SB_TEST_ACCESS_KEY", place.access_key)
    monkeypatch.setenv("SB_TEST_SECRET_KEY", place.secret_key)
    storage = S3Storage(
        place.bucket,
        endpoint_url=place.url,
        region=place.region,
        access_key="env:SB_TEST_ACCESS_KEY",
        secret_key="env:SB_TEST_SECRET_KEY",
    )
    storage.write("before", b"old")
    pickled = pickle.dumps(storage)
    for secret in (place.secret_key, place.access_key):
        assert secret.encode() not in pickled
    program = """
import pickle, sys
storage = pickle.loads(sys.stdin.buffer.read())
assert storage.read("before") == b"old"
storage.write("after", b"new")
with storage.open("large", "wb") as writer:
    writer.write(bytes(20 << 20))
"""
    with busy(storage, threads=4):
        subprocess.run([sys.executable, "-c", program], input=pickled, check=True)
    assert storage.read("after") == b"new"
    assert same(server.objects(BUCKET)["large"], bytes(20 * MIB))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=storage.write, args=("spawned", b"there"))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert storage.read("spawned") == b"there"


def test_a_secret_is_refused_a_pickle(storage: S3Storage) -> None:
    with pytest.raises(ConfigurationError, match="pickle"):
        pickle.dumps(storage)


def test_a_closed_storage_begins_anew(server: S3Server, storage: S3Storage) -> None:
    server.put(BUCKET, "large", CONTENT)
    storage.write("object", b"content")
    reader = storage.open("large")
    assert reader.read(10) == CONTENT[:10]
    storage.close()
    storage.close()
    assert same(reader.read(), CONTENT[10:])
    reader.close()
    assert connected(server.port) == 0
    use(storage, "object")
    assert connected(server.port) > 0
    storage.close()
    assert connected(server.port) == 0


def test_it_is_closed_while_threads_use_it(server: S3Server, storage: S3Storage) -> None:
    waiting = threading.Event()
    with busy(storage, threads=6):
        for _ in range(20):
            storage.close()
            waiting.wait(0.02)
    storage.close()
    assert connected(server.port) == 0


def test_children_leave_no_connection_open_in_the_parent(server: S3Server, storage: S3Storage) -> None:
    storage.write("object", b"content")
    before = server.connections
    for _ in range(3):
        assert in_child(lambda: storage.read("object")) == 0
    assert storage.read("object") == b"content"
    assert server.connections == before + 3  # one a child, and the parent's own still serves
