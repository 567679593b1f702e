"""Many at once over one cache directory: threads, processes, and those that are killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
from typing_extensions import override

from storage_backend import CachedStorage, LocalStorage, MemoryStorage, UnavailableError
from storage_backend.testing import FaultyStorage
from storage_backend.wrappers.base import Wrapper
from tests.tiers import few
from tests.wrappers.cached.tools import assert_whole, end, entry_in, line_of, program, tell

# Values say which key they are of, and carry their own digest.
WORKER = """
import hashlib, os, random, sys, time
from storage_backend import BatchError, CachedStorage, LocalStorage

base, cache, seed, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
rnd = random.Random(seed)
storage = CachedStorage(LocalStorage(base), cache, limit)

def value(key):
    body = key.encode() + b" " + os.urandom(rnd.choice([10, 2_000, 30_000]))
    return hashlib.sha256(body).digest() + body

def check(key, content):
    assert hashlib.sha256(content[32:]).digest() == content[:32], f"torn: {key}"
    assert content[32:].startswith(key.encode() + b" "), f"another's: {key}"

print("ready", flush=True)
until = time.monotonic() + float(sys.stdin.readline())
reads = writes = deletes = clears = 0
while time.monotonic() < until:
    key = f"k{rnd.randrange(100)}"
    what = rnd.random()
    try:
        if what < 0.55:
            reads += 1
            check(key, storage.read(key))
        elif what < 0.65:
            reads += 1
            with storage.open(key) as reader:
                check(key, reader.read())
        elif what < 0.75:
            keys = [f"k{rnd.randrange(100)}" for _ in range(5)]
            for key, content in storage.read_many([key for key in keys if storage.exists(key)]):
                reads += 1
                check(key, content)
        elif what < 0.93:
            writes += 1
            storage.write(key, value(key))
        # Not at the end: something is to be left in the cache.
        elif what < 0.995 or time.monotonic() > until - 0.5:
            deletes += 1
            storage.delete(key)
        else:
            clears += 1
            storage.clear_cache()
    except FileNotFoundError:
        pass
    except BatchError as error:
        # What has gone since it was looked for.
        assert all(isinstance(failure, FileNotFoundError) for failure in error.failures.values())
print(reads, writes, deletes, clears, flush=True)
sys.stdin.readline()
"""


def held(blobs: Path) -> int:
    """The content of all entries, in bytes, while they come and go."""
    size = 0
    for folder, _, names in os.walk(blobs):
        for name in names:
            entry = entry_in(Path(folder, name))
            size += 0 if entry is None else entry.size
    return size


@pytest.mark.soak
def test_eight_processes_do_everything_at_once(tmp_path: Path, soak: bool) -> None:
    seconds = 60.0 if soak else 2.0
    LocalStorage(tmp_path / "base")
    limit = 1.0
    children = [program(WORKER, tmp_path / "base", tmp_path / "cache", seed, limit) for seed in range(8)]
    peak = 0
    try:
        for child in children:
            assert line_of(child.stdout) == "ready"
        for child in children:
            tell(child, str(seconds))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            peak = max(peak, held(tmp_path / "cache" / "blobs"))
        done = [[int(word) for word in line_of(child.stdout).split()] for child in children]
    finally:
        for child in children:
            end(child)
    assert all(reads > 10 and writes > 2 for reads, writes, *_ in done), done
    reads, writes, deletes, clears = (sum(counts) for counts in zip(*done, strict=True))
    assert reads > 500
    assert min(writes, deletes) > 20
    assert clears > 0
    assert 0 < peak <= limit * 2**20 * 1.05
    with CachedStorage(LocalStorage(tmp_path / "base"), tmp_path / "cache", limit) as storage:
        stats = storage.get_cache_stats()
        assert 0 < stats["size_mb"] <= limit
        assert stats["hits"] + stats["misses"] == reads
        assert_whole(storage)
        for identifier in storage.list():
            assert storage.read(identifier) == storage.backend.read(identifier)


def test_statistics_of_killed_processes_add_up(tmp_path: Path) -> None:
    source = """
import sys
from storage_backend import CachedStorage, LocalStorage
storage = CachedStorage(LocalStorage(sys.argv[1]), sys.argv[2])
for number in range(50):
    storage.read(f"k{number % 10}")
print("done", flush=True)
sys.stdin.readline()
"""
    base = LocalStorage(tmp_path / "base")
    for number in range(10):
        base.write(f"k{number}", b"12345")
    children = [program(source, tmp_path / "base", tmp_path / "cache") for _ in range(4)]
    for child in children:
        assert line_of(child.stdout) == "done"
    with CachedStorage(base, tmp_path / "cache") as storage:
        living = storage.get_cache_stats()
    for child in children:
        end(child)
    with CachedStorage(base, tmp_path / "cache") as storage:
        storage.read("k0")
        dead = storage.get_cache_stats()
    assert (living["hits"], living["misses"]) == (190, 10)
    assert (dead["hits"], dead["misses"]) == (191, 10)
    assert dead["bytes_saved"] == 191 * 5
    assert list((tmp_path / "cache" / "members").iterdir()) == []


class SlowStorage(Wrapper):
    """Counts reads, and takes its time for each."""

    def __init__(self, *, fails: int = 0) -> None:
        super().__init__(MemoryStorage())
        self.reads = 0
        self.fails = fails
        self.under_way = 0
        self.most = 0
        self._lock = threading.Lock()

    @override
    def read(self, identifier: str) -> bytes:
        with self._lock:
            self.reads += 1
            number = self.reads
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            time.sleep(0.2)
            if number <= self.fails:
                raise ConnectionResetError("made to fail")
            return super().read(identifier)
        finally:
            with self._lock:
                self.under_way -= 1


def test_a_hundred_threads_miss_one_object_once(tmp_path: Path) -> None:
    backend = SlowStorage()
    backend.write("a", b"x" * 100_000)
    storage = CachedStorage(backend, tmp_path)
    gate = threading.Barrier(100)

    def read(_: int) -> bytes:
        gate.wait()
        return storage.read("a")

    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(read, range(100))) == {b"x" * 100_000}
    assert backend.reads == 1
    stats = storage.get_cache_stats()
    assert (stats["hits"], stats["misses"]) == (99, 1)


def test_those_who_waited_for_a_failure_do_not_queue_for_the_next(tmp_path: Path) -> None:
    backend = SlowStorage(fails=1)
    backend.write("a", b"1")
    storage = CachedStorage(backend, tmp_path)
    gate = threading.Barrier(20)

    def read(_: int) -> object:
        gate.wait()
        try:
            return storage.read("a")
        except ConnectionResetError:
            return None

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(read, range(20)))
    assert found.count(None) == 1
    assert found.count(b"1") == 19
    assert backend.most > 1


def test_a_hundred_readers_in_four_processes_miss_one_object_once(tmp_path: Path) -> None:
    source = """
import os, sys, time, threading
from concurrent.futures import ThreadPoolExecutor
from storage_backend import CachedStorage, LocalStorage

class Counting(LocalStorage):
    def read(self, identifier):
        with open(sys.argv[3], "ab", 0) as log:
            log.write(b"read\\n")
        time.sleep(0.5)
        return super().read(identifier)

storage = CachedStorage(Counting(sys.argv[1]), sys.argv[2])
gate = threading.Barrier(25)
print("ready", flush=True)
sys.stdin.readline()

def read(_):
    gate.wait()
    return len(storage.read("a"))

with ThreadPoolExecutor(25) as pool:
    print(*set(pool.map(read, range(25))), flush=True)
"""
    LocalStorage(tmp_path / "base").write("a", b"x" * 1_000_000)
    children = [program(source, tmp_path / "base", tmp_path / "cache", tmp_path / "log") for _ in range(4)]
    try:
        for child in children:
            assert line_of(child.stdout) == "ready"
        for child in children:
            tell(child, "go")
        assert [line_of(child.stdout) for child in children] == ["1000000"] * 4
    finally:
        for child in children:
            end(child)
    assert (tmp_path / "log").read_bytes() == b"read\n"


@pytest.mark.soak
def test_killed_at_any_time_nothing_is_left_over_or_wrong(tmp_path: Path, soak: bool) -> None:
    limit = 1.0
    base = LocalStorage(tmp_path / "base")
    rnd = random.Random(5)
    busy = 0
    for run in range(50 if soak else 4):
        children = [
            program(WORKER, tmp_path / "base", tmp_path / "cache", 1000 + 2 * run + number, limit)
            for number in range(2)
        ]
        for child in children:
            assert line_of(child.stdout) == "ready"
        for child in children:
            tell(child, "60")
        time.sleep(0.05 + rnd.random() * 0.3)
        for child in children:
            assert child.poll() is None
            os.kill(child.pid, signal.SIGKILL)
            end(child)
        with CachedStorage(base, tmp_path / "cache", limit) as storage:
            stats = storage.get_cache_stats()
            busy += stats["hits"] + stats["misses"] > 0
            assert stats["size_mb"] <= limit
            for identifier in base.list():
                assert storage.read(identifier) == base.read(identifier), identifier
            # Rows without files are what an eviction that was cut short leaves: they count too much, never too little.
            findings = storage.check_cache()
            assert (findings.damaged, findings.strays) == (0, 0), findings
            assert_whole(storage)
            assert len(list((tmp_path / "cache" / "members").iterdir())) == 1
    assert busy == (50 if soak else 4)


@pytest.mark.parametrize("method", few(["fork", "spawn"], 1))
def test_processes_that_begin_while_it_is_used(tmp_path: Path, method: Literal["fork", "spawn"]) -> None:

    storage = CachedStorage(LocalStorage(tmp_path / "base"), tmp_path / "cache", 1)
    storage.write("a", b"1")
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            storage.read("a")
            storage.write("b", b"2")

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    context: Any = multiprocessing.get_context(method)
    try:
        for _ in range(5):
            queue = context.Queue()
            child = context.Process(target=_in_child, args=(storage, queue))
            child.start()
            assert queue.get(timeout=60) == (b"1", b"c")
            child.join(60)
            assert child.exitcode == 0
            assert storage.read("c") == b"c"
            storage.delete("c")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert storage.read("b") == b"2"
    assert_whole(storage)
    storage.close()


def _in_child(storage: CachedStorage, queue: Any) -> None:
    found = storage.read("a")
    storage.write("c", b"c")
    assert storage.read("c") == b"c"
    queue.put((found, storage.read("c")))
    storage.close()


def test_a_fetch_that_breaks_off_shows_nothing_short(tmp_path: Path) -> None:
    memory = MemoryStorage()
    content = random.Random(3).randbytes(3 << 20)
    memory.write("a", content)
    backend = FaultyStorage(memory)
    storage = CachedStorage(backend, tmp_path / "cache")
    backend.cut("open", at=1 << 20, times=2)
    with pytest.raises(UnavailableError):
        storage.open("a")
    with pytest.raises(UnavailableError):
        storage.download("a", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert storage.get_cache_stats()["file_count"] == 0
    assert list((tmp_path / "cache" / "staging").iterdir()) == []
    assert storage.read("a") == content
    assert_whole(storage)


def test_others_see_nothing_of_a_fetch_that_is_slow_and_dies(tmp_path: Path) -> None:
    source = """
import io, sys
from storage_backend import CachedStorage, LocalStorage

class Slow(LocalStorage):
    def open(self, identifier, mode="rb"):
        class Stopping(io.BytesIO):
            def read(self, size=-1):
                if self.tell() > 500_000:
                    print("half", flush=True)
                    sys.stdin.readline()
                return super().read(size)
        return Stopping(super().read(identifier))

CachedStorage(Slow(sys.argv[1]), sys.argv[2]).open("a")
"""
    base = LocalStorage(tmp_path / "base")
    content = random.Random(4).randbytes(1 << 20)
    base.write("a", content)
    child = program(source, tmp_path / "base", tmp_path / "cache")
    try:
        assert line_of(child.stdout) == "half"
        with CachedStorage(base, tmp_path / "cache") as storage:
            assert storage._cache.find(storage._cache.key("a")) is None
            assert len(list((tmp_path / "cache" / "staging").iterdir())) == 1
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    finally:
        end(child)
    with CachedStorage(base, tmp_path / "cache") as storage:
        assert storage.read("a") == content
        assert_whole(storage)
