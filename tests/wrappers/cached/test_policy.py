"""CachedStorage: what is kept, for how long, and what the backend is asked."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from storage_backend import (
    BatchError,
    CachedStorage,
    ConfigurationError,
    LocalStorage,
    MemoryStorage,
    NotFoundError,
    StorageBackend,
    UnavailableError,
)
from storage_backend.testing import FaultyStorage
from storage_backend.wrappers.cached.ranges import BLOCK
from tests.seven import Seven
from tests.wrappers.cached.tools import KIB, Clock, assert_whole, blobs, content_bytes

pytestmark = pytest.mark.quick


def asked(backend: FaultyStorage) -> list[str]:
    """The methods that were called since this was last called."""
    methods = [call.method for call in backend.calls]
    backend.calls.clear()
    return methods


@pytest.fixture
def memory() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def backend(memory: MemoryStorage) -> FaultyStorage:
    return FaultyStorage(memory)


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestParameters:
    @pytest.mark.parametrize("name", ["max_cache_size_mb", "ttl_seconds", "stale_if_error"])
    @pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, True, "1", b"1", [1], 1j])
    def test_what_is_no_amount_is_refused(
        self, memory: MemoryStorage, tmp_path: Path, name: str, value: Any
    ) -> None:
        with pytest.raises(ConfigurationError) as caught:
            CachedStorage(memory, tmp_path / "cache", **{name: value})
        assert caught.value.parameter == name
        assert isinstance(caught.value, ValueError)
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize(
        ("name", "value"), [("revalidate", "maybe"), ("revalidate", 1), ("clock", 5), ("clock", "now")]
    )
    def test_what_makes_no_sense_is_refused(
        self, memory: MemoryStorage, tmp_path: Path, name: str, value: Any
    ) -> None:
        with pytest.raises(ConfigurationError) as caught:
            CachedStorage(memory, tmp_path / "cache", **{name: value})
        assert caught.value.parameter == name
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize("value", [10**400, 1e305])
    def test_a_limit_beyond_all_disks_is_none(
        self, memory: MemoryStorage, tmp_path: Path, value: float
    ) -> None:
        cached = CachedStorage(memory, tmp_path, value)
        cached.write("a", b"1")
        assert cached.get_cache_stats()["file_count"] == 1

    def test_fractions_are_amounts(self, memory: MemoryStorage, tmp_path: Path) -> None:
        cached = CachedStorage(memory, tmp_path, 0.1)
        cached.write("a", bytes(104_857))
        assert cached.get_cache_stats()["file_count"] == 1
        cached.write("b", bytes(104_858))
        assert cached.get_cache_stats()["file_count"] == 1
        assert cached.get_cache_stats()["max_size_mb"] == 0.1

    def test_home_directory_is_expanded(
        self, memory: MemoryStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        cached = CachedStorage(memory, "~/a/b")
        assert cached.cache_dir == tmp_path / "a/b"
        cached.write("x", b"1")
        assert blobs(tmp_path / "a/b")
        assert not (tmp_path / "~").exists()

    def test_the_directory_is_created_by_the_first_use_and_for_its_owner(
        self, memory: MemoryStorage, tmp_path: Path
    ) -> None:
        memory.write("a", b"1")
        cached = CachedStorage(memory, tmp_path / "new")
        assert cached.list() == ["a"]
        assert not (tmp_path / "new").exists()
        cached.read("a")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("below", ["", "below"])
    def test_a_file_in_the_directorys_place_is_refused(
        self, memory: MemoryStorage, tmp_path: Path, below: str
    ) -> None:
        (tmp_path / "file").write_bytes(b"precious")
        with pytest.raises(ConfigurationError) as caught:
            CachedStorage(memory, tmp_path / "file" / below)
        assert caught.value.parameter == "cache_dir"
        assert (tmp_path / "file").read_bytes() == b"precious"

    def test_unknown_format_is_refused_and_left_as_it_is(self, memory: MemoryStorage, tmp_path: Path) -> None:
        CachedStorage(memory, tmp_path).write("a", b"1")
        (tmp_path / "format.1").rename(tmp_path / "format.2")
        before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
        with pytest.raises(ConfigurationError, match="format 2") as caught:
            CachedStorage(memory, tmp_path)
        assert caught.value.parameter == "cache_dir"
        assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before

    def test_an_unknown_engine_is_refused(self, memory: MemoryStorage, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError) as caught:
            CachedStorage(memory, tmp_path, engine="tape")  # type: ignore[arg-type]  # that is what is refused
        assert caught.value.parameter == "engine"


class TestWhatTheBackendIsAsked:
    def test_a_miss_reads_once_and_a_hit_asks_nothing(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path
    ) -> None:
        memory.write("a", b"1")
        cached = CachedStorage(backend, tmp_path)
        assert cached.read("a") == b"1"
        assert asked(backend) == ["read"]
        assert cached.read("a") == b"1"
        assert cached.read_range("a", 0, 1) == b"1"
        assert dict(cached.read_many(["a"])) == {"a": b"1"}
        assert cached.open("a").read() == b"1"
        assert cached.download("a", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"1"
        assert cached.prefetch(["a"]) == 0
        assert asked(backend) == []

    def test_a_write_writes_once_and_the_next_read_is_a_hit(
        self, backend: FaultyStorage, tmp_path: Path
    ) -> None:
        cached = CachedStorage(backend, tmp_path)
        assert cached.write("a", b"1") is True
        assert asked(backend) == ["write"]
        assert cached.read("a") == b"1"
        assert asked(backend) == []
        assert cached.get_cache_stats()["hits"] == 1
        assert cached.get_cache_stats()["misses"] == 0

    def test_a_mock_is_read_and_written_by_the_seven_methods_alone(self, tmp_path: Path) -> None:
        mock = MagicMock(spec=StorageBackend)
        mock.read.return_value = b"1"
        cached = CachedStorage(mock, tmp_path)
        assert cached.read("a") == b"1"
        assert cached.read("a") == b"1"
        mock.read.assert_called_once_with("a")
        cached.write("a", b"2")
        mock.write.assert_called_once_with("a", b"2")
        assert type(mock.write.call_args.args[1]) is bytes
        assert cached.read("a") == b"2"
        mock.read.assert_called_once_with("a")

    def test_buffers_reach_a_seven_method_class_as_bytes(self, tmp_path: Path) -> None:
        cached = CachedStorage(Seven(), tmp_path)
        cached.write("a", memoryview(bytearray(b"123"))[::2])
        assert cached.read("a") == b"13"
        cached.write_many([("b", b"x"), ("c", b"y"), ("b", b"z")])
        assert dict(cached.read_many(["b", "c"])) == {"b": b"z", "c": b"y"}

    def test_what_gives_no_content_asks_the_backend(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path
    ) -> None:
        cached = CachedStorage(backend, tmp_path)
        cached.write("a", b"1")
        memory.delete("a")
        memory.write("b", b"22")
        asked(backend)
        assert cached.exists("a") is False
        assert cached.list() == ["b"]
        assert cached.size("b") == 2
        assert cached.stat("b").size == 2
        assert [info.identifier for info in cached.scan()] == ["b"]
        assert cached.get_path("b") == "memory:b"
        assert asked(backend) == ["exists", "list", "size", "stat", "scan", "get_path"]
        assert cached.read("a") == b"1"  # without a time to live, until somebody says otherwise

    def test_read_many_asks_for_what_is_missing_as_one_batch(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path
    ) -> None:
        for name in "abcd":
            memory.write(name, name.encode())
        cached = CachedStorage(backend, tmp_path)
        cached.read("b")
        asked(backend)
        assert dict(cached.read_many("abcd")) == {name: name.encode() for name in "abcd"}
        assert asked(backend) == ["read_many"]
        assert dict(cached.read_many("abcd")) == {name: name.encode() for name in "abcd"}
        assert asked(backend) == []

    @pytest.mark.parametrize("warm", [True, False])
    def test_read_many_gives_each_as_often_as_it_is_asked_for(
        self, memory: MemoryStorage, tmp_path: Path, warm: bool
    ) -> None:
        memory.write("a", b"1")
        cached = CachedStorage(memory, tmp_path)
        if warm:
            cached.read("a")
        assert list(cached.read_many(["a", "a"])) == list(memory.read_many(["a", "a"]))

    def test_copy_and_move_are_the_backends(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path
    ) -> None:
        cached = CachedStorage(backend, tmp_path)
        for name in ("a", "b", "c"):
            cached.write(name, b"old")
        memory.write("a", b"newer")
        asked(backend)
        cached.copy("a", "b")
        assert asked(backend) == ["copy"]
        assert memory.read("b") == cached.read("b") == b"newer"
        assert cached.read("a") == b"old"
        asked(backend)
        cached.move("a", "c")
        assert asked(backend) == ["move"]
        assert memory.read("c") == cached.read("c") == b"newer"
        with pytest.raises(NotFoundError):
            cached.read("a")

    @pytest.mark.parametrize(
        "change",
        [
            lambda cached: cached.delete("a"),
            lambda cached: cached.write("a", b"new"),
            lambda cached: cached.copy("b", "a"),
            lambda cached: cached.move("a", "c"),
            lambda cached: cached.create("a", b"new"),
            lambda cached: cached.write_many([("a", b"new")]),
            lambda cached: cached.delete_many(["a"]),
        ],
    )
    def test_a_change_that_fails_leaves_nothing_in_the_cache(
        self, backend: FaultyStorage, tmp_path: Path, change: Callable[[CachedStorage], object]
    ) -> None:
        cached = CachedStorage(backend, tmp_path)
        cached.write("b", b"b")
        cached.write("a", b"old")
        for method in ("delete", "write", "copy", "move", "create", "write_many", "delete_many"):
            backend.fail(method)
        with pytest.raises(UnavailableError):
            change(cached)
        asked(backend)
        assert cached.read("a") == b"old"
        assert asked(backend) == ["read"]

    def test_a_lost_acknowledgement_of_a_delete_is_not_answered_from_the_cache(
        self, backend: FaultyStorage, tmp_path: Path
    ) -> None:
        cached = CachedStorage(backend, tmp_path)
        cached.write("a", b"old")
        backend.lose("delete")
        with pytest.raises(UnavailableError):
            cached.delete("a")
        with pytest.raises(NotFoundError):
            cached.read("a")

    def test_a_reader_that_breaks_leaves_the_old(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path
    ) -> None:
        memory.write("a", b"0123456789")
        cached = CachedStorage(backend, tmp_path)
        backend.cut("open", at=5)
        with pytest.raises(UnavailableError), cached.open("a") as reader:
            reader.read()
        assert cached.open("a").read() == b"0123456789"
        assert_whole(cached)


class TestTime:
    def test_an_entry_is_good_for_its_time_from_the_fetch(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path, clock: Clock
    ) -> None:
        memory.write("a", b"1")
        cached = CachedStorage(backend, tmp_path, ttl_seconds=2.5, clock=clock, revalidate=False)
        cached.read("a")
        memory.write("a", b"2")
        clock.now += 2.4
        assert cached.read("a") == b"1"  # and this is not another fetch
        clock.now += 0.1
        assert cached.read("a") == b"2"
        assert asked(backend) == ["read", "read"]
        assert cached.get_cache_stats()["expired"] == 1

    def test_the_machines_clock_is_looked_up_at_each_use(
        self, memory: MemoryStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cached = CachedStorage(memory, tmp_path, ttl_seconds=10)
        cached.write("a", b"1")
        memory.write("a", b"2")
        assert cached.read("a") == b"1"
        later = time.time() + 10
        monkeypatch.setattr(time, "time", lambda: later)
        assert cached.read("a") == b"2"

    def test_time_counts_from_before_the_backend_was_asked(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path, clock: Clock
    ) -> None:
        memory.write("a", b"1")
        cached = CachedStorage(backend, tmp_path, ttl_seconds=10, clock=clock)

        def slow() -> None:
            clock.now += 9

        backend.before("read", slow)
        cached.read("a")
        memory.write("a", b"2")
        clock.now += 1
        assert cached.read("a") == b"2"

    def test_a_fetch_in_the_future_is_no_fetch(
        self, memory: MemoryStorage, tmp_path: Path, clock: Clock
    ) -> None:
        cached = CachedStorage(memory, tmp_path, ttl_seconds=10, clock=clock)
        cached.write("a", b"1")
        memory.write("a", b"2")
        clock.now -= 1
        assert cached.read("a") == b"2"

    def test_times_of_files_mean_nothing(self, memory: MemoryStorage, tmp_path: Path, clock: Clock) -> None:
        cached = CachedStorage(memory, tmp_path, ttl_seconds=10, clock=clock)
        cached.write("a", b"1")
        memory.write("a", b"2")
        for path in tmp_path.rglob("*"):
            os.utime(path, (0, 0))
        assert cached.read("a") == b"1"
        clock.now += 10
        for path in tmp_path.rglob("*"):
            os.utime(path, (2**31, 2**31))
        assert cached.read("a") == b"2"

    def test_without_time_each_read_asks(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path
    ) -> None:
        cached = CachedStorage(backend, tmp_path, ttl_seconds=0)
        for number in range(5):
            memory.write("a", b"%d" % number)
            assert cached.read("a") == b"%d" % number
        assert asked(backend) == ["read"] * 5

    def test_an_unchanged_etag_renews_by_one_stat(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path, clock: Clock
    ) -> None:
        memory.write("a", b"1")
        cached = CachedStorage(backend, tmp_path, ttl_seconds=10, clock=clock, revalidate=True)
        assert cached.read("a") == b"1"
        assert asked(backend) == ["stat", "read", "stat"]
        for _ in range(3):
            clock.now += 10
            assert cached.read("a") == b"1"
            assert asked(backend) == ["stat"]
            clock.now += 9
            assert cached.read("a") == b"1"
            assert asked(backend) == []
        memory.write("a", b"2")  # of the same size
        clock.now += 10
        assert cached.read("a") == b"2"

    def test_an_object_that_changes_while_it_is_read_is_not_known_by_the_later_etag(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path, clock: Clock
    ) -> None:
        memory.write("a", b"old")
        cached = CachedStorage(backend, tmp_path, ttl_seconds=10, clock=clock, revalidate=True)
        backend.before("stat", lambda: memory.write("a", b"new"), nth=2)
        assert cached.read("a") == b"old"
        clock.now += 10
        assert cached.read("a") == b"new"

    def test_what_is_gone_at_a_renewal_is_gone(
        self, memory: MemoryStorage, tmp_path: Path, clock: Clock
    ) -> None:
        memory.write("a", b"1")
        cached = CachedStorage(
            memory, tmp_path, ttl_seconds=10, clock=clock, revalidate=True, stale_if_error=1000
        )
        cached.read("a")
        memory.delete("a")
        clock.now += 10
        with pytest.raises(NotFoundError):
            cached.read("a")
        assert blobs(tmp_path) == []


class TestStale:
    @pytest.fixture
    def cached(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path, clock: Clock
    ) -> CachedStorage:
        memory.write("a", b"1")
        cached = CachedStorage(backend, tmp_path, ttl_seconds=10, clock=clock, stale_if_error=100)
        cached.read("a")
        clock.now += 20
        return cached

    def test_an_expired_entry_stands_in_with_a_warning(
        self, cached: CachedStorage, backend: FaultyStorage, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend.fail("read", times=None)
        backend.fail("open", times=None)
        assert cached.read("a") == b"1"
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "'a'" in caplog.text
        assert cached.open("a").read() == b"1"

    def test_but_not_for_longer_than_was_said(
        self, cached: CachedStorage, backend: FaultyStorage, clock: Clock
    ) -> None:
        backend.fail("read", times=None)
        clock.now += 89.9
        assert cached.read("a") == b"1"
        clock.now += 0.1
        with pytest.raises(UnavailableError):
            cached.read("a")

    @pytest.mark.parametrize("kind", [FileNotFoundError, NotFoundError, PermissionError, ValueError])
    def test_nor_when_the_backend_answers(
        self, cached: CachedStorage, backend: FaultyStorage, kind: type[Exception]
    ) -> None:
        backend.fail("read", error=kind("a"))
        with pytest.raises(kind):
            cached.read("a")

    def test_nor_once_it_was_gone(self, cached: CachedStorage, backend: FaultyStorage) -> None:
        backend.fail("read", error=NotFoundError("a"))
        with pytest.raises(NotFoundError):
            cached.read("a")
        backend.fail("read")
        with pytest.raises(UnavailableError):
            cached.read("a")

    def test_nor_after_a_write_that_failed(self, cached: CachedStorage, backend: FaultyStorage) -> None:
        backend.fail("write")
        with pytest.raises(UnavailableError):
            cached.write("a", b"2")
        backend.fail("read")
        with pytest.raises(UnavailableError):
            cached.read("a")

    def test_the_built_in_errors_of_users_classes_are_understood(
        self, cached: CachedStorage, backend: FaultyStorage
    ) -> None:
        for error in (ConnectionResetError("a"), TimeoutError("a")):
            backend.fail("read", error=error)
            assert cached.read("a") == b"1"

    def test_each_read_is_counted_once(self, cached: CachedStorage, backend: FaultyStorage) -> None:
        before = cached.get_cache_stats()
        backend.fail("read")
        cached.read("a")
        after = cached.get_cache_stats()
        assert after["hits"] + after["misses"] == before["hits"] + before["misses"] + 1

    def test_without_it_errors_are_raised(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path, clock: Clock
    ) -> None:
        memory.write("b", b"1")
        cached = CachedStorage(backend, tmp_path, ttl_seconds=10, clock=clock)
        cached.read("b")
        clock.now += 10
        backend.fail("read")
        with pytest.raises(UnavailableError):
            cached.read("b")


class TestRoom:
    def names(self, cached: CachedStorage, backend: FaultyStorage, candidates: str) -> str:
        """Which of *candidates* the cache has, with no use noted."""
        assert isinstance(backend, FaultyStorage)
        cache = cached._cache
        there = ""
        for name in candidates:
            found = cache.find(cache.key(name))
            if found is not None:
                found.close()
                there += name
        return there

    def test_the_least_recently_used_goes_first(self, backend: FaultyStorage, tmp_path: Path) -> None:
        cached = CachedStorage(backend, tmp_path, 3 * KIB)
        for name in "abc":
            cached.write(name, bytes(1024))
        cached.read("a")
        for path in blobs(tmp_path):
            os.utime(path, (0, 0))
        cached.write("d", bytes(1024))
        assert self.names(cached, backend, "abcd") == "acd"
        cached.read("c")
        cached.write("e", bytes(1024))
        assert self.names(cached, backend, "abcde") == "cde"
        assert cached.get_cache_stats()["evictions"] == 2

    def test_a_use_before_another_entry_came_is_older_than_it(
        self, backend: FaultyStorage, tmp_path: Path
    ) -> None:
        cached = CachedStorage(backend, tmp_path, 3 * KIB)
        cached.write("a", bytes(1024))
        cached.write("b", bytes(1024))
        cached.read("a")
        cached.write("c", bytes(1024))
        cached.write("d", bytes(1024))
        assert self.names(cached, backend, "abcd") == "acd"
        cached.write("e", bytes(1024))
        assert self.names(cached, backend, "abcde") == "cde"

    def test_order_is_that_of_an_ideal_cache(self, backend: FaultyStorage, tmp_path: Path) -> None:
        cached = CachedStorage(backend, tmp_path, 5 * KIB)
        ideal: list[str] = []
        names = "abcdefgh"
        state = 1
        reads = 0
        for step in range(400):
            state = state * 1_103_515_245 + 12_345 & 0x7FFFFFFF
            name = names[(state >> 16) % len(names)]
            if state >> 24 & 1 or not cached.exists(name):
                cached.write(name, bytes(1024))
            else:
                reads += 1
                cached.read(name)
            if name in ideal:
                ideal.remove(name)
            ideal = [*ideal, name][-5:]
            assert self.names(cached, backend, names) == "".join(sorted(ideal)), step
        assert reads > 100

    def test_an_overwrite_is_counted_once(self, backend: FaultyStorage, tmp_path: Path) -> None:
        cached = CachedStorage(backend, tmp_path, 3 * KIB)
        cached.write("b", bytes(1024))
        for size in (1024, 2048, 1, 2000, 2048):
            cached.write("a", bytes(size))
            stats = cached.get_cache_stats()
            assert (stats["size_mb"] * 2**20, stats["file_count"]) == (1024 + size, 2)
        assert cached.get_cache_stats()["evictions"] == 0
        assert_whole(cached)

    def test_what_is_larger_than_the_limit_passes_and_evicts_nothing(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path
    ) -> None:
        cached = CachedStorage(backend, tmp_path / "cache", 3 * KIB)
        for name in "abc":
            cached.write(name, bytes(1024))
        large = os.urandom(3 * 1024 + 1)
        memory.write("large", large)
        assert cached.read("large") == large
        assert cached.open("large").read() == large
        assert dict(cached.read_many(["large"])) == {"large": large}
        assert cached.prefetch(["large"]) == 1
        assert cached.read_range("large", 1, 9) == large[1:9]
        cached.download("large", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == large
        cached.write("large", large)
        assert self.names(cached, backend, "abc") == "abc"
        assert cached.get_cache_stats()["evictions"] == 0
        assert content_bytes(tmp_path / "cache") == 3 * 1024

    def test_a_limit_of_zero_keeps_nothing(self, backend: FaultyStorage, tmp_path: Path) -> None:
        cached = CachedStorage(backend, tmp_path, 0)
        for content in (b"", b"1"):
            cached.write("a", content)
            assert cached.read("a") == content
            assert cached.open("a").read() == content
            assert dict(cached.read_many("a")) == {"a": content}
            assert cached.read_range("a", 0) == content
        assert blobs(tmp_path) == []
        assert cached.get_cache_stats()["file_count"] == 0

    def test_a_smaller_limit_holds_from_the_next_opening(
        self, backend: FaultyStorage, tmp_path: Path
    ) -> None:
        with CachedStorage(backend, tmp_path) as cached:
            for name in "abcdef":
                cached.write(name, bytes(1024))
        cached = CachedStorage(backend, tmp_path, 2 * KIB)
        cached.read("f")
        assert content_bytes(tmp_path) <= 2048

    def test_two_streams_at_once_do_not_empty_the_cache_for_what_cannot_fit(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path
    ) -> None:
        cached = CachedStorage(backend, tmp_path, 10 * KIB)
        cached.write("kept", bytes(1024))
        engine = cached._cache.engine
        first = engine.stage(8 * 1024)
        assert first is not None
        memory.write("second", bytes(8 * 1024))
        assert cached.read("second") == bytes(8 * 1024)
        assert cached.open("second").read() == bytes(8 * 1024)
        first.discard()
        kept = cached._cache.find(cached._cache.key("kept"))
        assert kept is not None
        kept.close()

    def test_more_uses_and_entries_than_are_remembered_between_evictions(
        self, backend: FaultyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from storage_backend.wrappers.cached import blobs as engine

        monkeypatch.setattr(engine, "_TOUCHES", 3)
        cached = CachedStorage(backend, tmp_path)

        def use() -> None:
            for number in range(20):
                cached.write(f"{number}", b"1")
                cached.read(f"{number}")

        thread = threading.Thread(target=use, daemon=True)  # which may come to wait for itself
        thread.start()
        thread.join(30)
        assert not thread.is_alive()


class TestStatistics:
    def test_an_empty_cache(self, memory: MemoryStorage, tmp_path: Path) -> None:
        stats = CachedStorage(memory, tmp_path).get_cache_stats()
        assert stats == {
            "size_mb": 0.0,
            "file_count": 0,
            "max_size_mb": None,
            "ttl_seconds": None,
            "hits": 0,
            "misses": 0,
            "hit_rate": 0.0,
            "evictions": 0,
            "expired": 0,
            "bytes_saved": 0,
        }
        assert type(stats["size_mb"]) is float
        assert type(stats["hit_rate"]) is float

    def test_every_kind_of_read_is_counted_once(self, memory: MemoryStorage, tmp_path: Path) -> None:
        memory.write("a", bytes(100))
        memory.write("large", bytes(3 * BLOCK))
        cached = CachedStorage(memory, tmp_path / "cache")
        reads: list[Callable[[], object]] = [
            lambda: cached.read("a"),
            lambda: cached.open("a").close(),
            lambda: list(cached.read_many(["a"])),
            lambda: cached.read_range("a", 3, 5),
            lambda: cached.download("a", tmp_path / "out"),
            lambda: cached.read_range("large", 5, 2 * BLOCK),
        ]
        for number, read in enumerate(reads):
            cached.clear_cache()
            before = cached.get_cache_stats()
            read()
            after = cached.get_cache_stats()
            assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (0, 1), number
            read()
            last = cached.get_cache_stats()
            assert (last["hits"] - after["hits"], last["misses"] - after["misses"]) == (1, 0), number
        saved = 100 + 100 + 100 + 2 + 100 + 2 * BLOCK - 5
        assert last["bytes_saved"] == saved

    def test_counts_outlive_who_counted(self, memory: MemoryStorage, tmp_path: Path) -> None:
        memory.write("a", b"1")
        for _ in range(3):
            with CachedStorage(memory, tmp_path) as cached:
                cached.read("a")
        stats = CachedStorage(memory, tmp_path).get_cache_stats()
        assert (stats["hits"], stats["misses"]) == (2, 1)


class TestNames:
    @pytest.mark.parametrize(
        "identifier",
        [
            "a\nb",
            "x" * 1024,
            "ä/" * 300 + "é",
            "CON",
            ".hidden",
            "a b ",
            "-rf",
            "a" * 300 + "/b",
            "%2e%2e",
            "🎈",
        ],
    )
    def test_what_cannot_be_a_file_name_is_cached(
        self, backend: FaultyStorage, tmp_path: Path, identifier: str
    ) -> None:
        cached = CachedStorage(backend, tmp_path)
        cached.write(identifier, b"1")
        asked(backend)
        assert cached.read(identifier) == b"1"
        assert asked(backend) == []
        assert_whole(cached)

    def test_names_that_are_not_utf8_are_cached(self, tmp_path: Path) -> None:
        backend = FaultyStorage(LocalStorage(tmp_path / "base"))
        cached = CachedStorage(backend, tmp_path / "cache")
        cached.write("a\udcff", b"1")
        asked(backend)
        assert cached.read("a\udcff") == b"1"
        assert asked(backend) == []

    def test_an_object_and_those_beneath_it_are_apart(self, memory: MemoryStorage, tmp_path: Path) -> None:
        cached = CachedStorage(memory, tmp_path)
        cached.write("a", b"1")
        cached.write("a/b", b"2")
        assert (cached.read("a"), cached.read("a/b")) == (b"1", b"2")

    def test_backends_that_share_a_directory_are_apart(self, tmp_path: Path) -> None:
        one = CachedStorage(LocalStorage(tmp_path / "one"), tmp_path / "cache")
        two = CachedStorage(LocalStorage(tmp_path / "two"), tmp_path / "cache")
        one.write("a", b"1")
        with pytest.raises(NotFoundError):
            two.read("a")
        two.write("a", b"2")
        assert (one.read("a"), two.read("a")) == (b"1", b"2")
        two.delete("a")
        assert one.read("a") == b"1"
        assert one.get_cache_stats()["file_count"] == 1


class TestRanges:
    @pytest.fixture
    def large(self) -> bytes:
        return os.urandom(5 * BLOCK + 17)

    def test_a_cold_range_fetches_blocks_and_no_more(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path, large: bytes
    ) -> None:
        memory.write("a", large)
        cached = CachedStorage(backend, tmp_path)
        assert cached.read_range("a", BLOCK - 10, BLOCK + 10) == large[BLOCK - 10 : BLOCK + 10]
        ranges = [call.arguments for call in backend.calls if call.method == "read_range"]
        assert ranges == [("a", 0, 2 * BLOCK)]
        assert "read" not in asked(backend)
        assert cached.read_range("a", 5, 2 * BLOCK) == large[5 : 2 * BLOCK]
        assert asked(backend) == []
        assert cached.read_range("a", 5 * BLOCK, None) == large[5 * BLOCK :]
        ranges = [call.arguments for call in backend.calls if call.method == "read_range"]
        assert ranges == [("a", 5 * BLOCK, 5 * BLOCK + 17)]
        asked(backend)
        assert cached.read_range("a", BLOCK, 4 * BLOCK) == large[BLOCK : 4 * BLOCK]
        ranges = [call.arguments for call in backend.calls if call.method == "read_range"]
        assert ranges == [("a", 2 * BLOCK, 4 * BLOCK)]
        assert cached.read_range("a", 10 * BLOCK, 11 * BLOCK) == b""
        assert_whole(cached)

    def test_an_object_that_changes_outside_is_never_mixed(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path, large: bytes
    ) -> None:
        memory.write("a", large)
        cached = CachedStorage(backend, tmp_path)
        cached.read_range("a", 0, 10)
        other = bytes(byte ^ 0xFF for byte in large[: 2 * BLOCK]) + large[2 * BLOCK :]
        memory.write("a", other)
        assert cached.read_range("a", 0, 2 * BLOCK) == other[: 2 * BLOCK]

    def test_nor_one_that_changes_between_the_blocks_and_the_look(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path, large: bytes
    ) -> None:
        memory.write("a", large)
        cached = CachedStorage(backend, tmp_path)
        cached.read_range("a", 0, 10)
        other = large[::-1]
        backend.before("read_range", lambda: memory.write("a", other))
        assert cached.read_range("a", 0, 2 * BLOCK) == other[: 2 * BLOCK]
        memory.write("a", large)
        cached.invalidate("a")
        backend.before("stat", lambda: memory.write("a", other), nth=2)
        assert cached.read_range("a", 0, 4 * BLOCK) == other[: 4 * BLOCK]

    def test_an_own_write_is_seen_by_the_next_range(
        self, memory: MemoryStorage, tmp_path: Path, large: bytes
    ) -> None:
        memory.write("a", large)
        cached = CachedStorage(memory, tmp_path, 3)
        cached.read_range("a", 0, 10)
        cached.write("a", large[::-1])
        assert cached.read_range("a", 0, 10) == large[::-1][:10]
        cached.write("a", b"small")
        assert cached.read_range("a", 0, 10) == b"small"
        cached.delete("a")
        with pytest.raises(NotFoundError):
            cached.read_range("a", 0, 10)

    def test_a_note_is_good_for_its_time(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path, large: bytes, clock: Clock
    ) -> None:
        memory.write("a", large)
        cached = CachedStorage(backend, tmp_path, ttl_seconds=10, clock=clock)
        cached.read_range("a", 0, 10)
        memory.write("a", large[::-1])
        clock.now += 9
        assert cached.read_range("a", 0, 10) == large[:10]
        clock.now += 1
        assert cached.read_range("a", 0, 10) == large[::-1][:10]

    @pytest.fixture
    def ranged(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path, large: bytes, clock: Clock
    ) -> CachedStorage:
        """A cache that has two blocks, which have expired."""
        memory.write("a", large)
        cached = CachedStorage(backend, tmp_path, ttl_seconds=10, clock=clock, stale_if_error=100)
        cached.read_range("a", BLOCK, 3 * BLOCK)
        clock.now += 20
        return cached

    def test_expired_blocks_stand_in_for_a_backend_that_fails(
        self,
        ranged: CachedStorage,
        backend: FaultyStorage,
        large: bytes,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        backend.fail("stat", times=None)
        backend.fail("read_range", times=None)
        clock.now += 89
        before = ranged.get_cache_stats()
        for start, end in ((BLOCK, 3 * BLOCK), (2 * BLOCK - 1, 2 * BLOCK + 1), (9 * BLOCK, None)):
            assert ranged.read_range("a", start, end) == large[start:end]
        assert {record.levelno for record in caplog.records} == {logging.WARNING}
        after = ranged.get_cache_stats()
        assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (3, 0)
        with pytest.raises(UnavailableError):
            ranged.read_range("a", BLOCK, 3 * BLOCK + 1)
        clock.now += 1
        with pytest.raises(UnavailableError):
            ranged.read_range("a", BLOCK, 3 * BLOCK)

    def test_but_not_for_one_that_answers(
        self, ranged: CachedStorage, backend: FaultyStorage, large: bytes
    ) -> None:
        for error in (PermissionError("a"), NotFoundError("a")):
            backend.fail("stat", error=error)
            with pytest.raises(type(error)):
                ranged.read_range("a", BLOCK, 2 * BLOCK)
            backend.fail("stat")
            if isinstance(error, PermissionError):
                assert ranged.read_range("a", BLOCK, 2 * BLOCK) == large[BLOCK : 2 * BLOCK]
            else:  # it is gone
                with pytest.raises(UnavailableError):
                    ranged.read_range("a", BLOCK, 2 * BLOCK)

    def test_a_note_is_never_taken_for_the_content(
        self, memory: MemoryStorage, tmp_path: Path, large: bytes
    ) -> None:
        memory.write("a", large)
        for read in (
            lambda cached: cached.read("a"),
            lambda cached: cached.open("a").read(),
            lambda cached: dict(cached.read_many("a"))["a"],
            lambda cached: (cached.prefetch("a"), cached.read("a"))[1],
            lambda cached: (cached.download("a", tmp_path / "out"), (tmp_path / "out").read_bytes())[1],
        ):
            cached = CachedStorage(memory, tmp_path / "cache")
            cached.clear_cache()
            cached.read_range("a", 0, 10)
            assert (read(cached) == large) is True

    @pytest.mark.parametrize("window", [(0, 0), (5, 3), (0, None), (3, 4), (6, 9)])
    def test_edges(self, memory: MemoryStorage, tmp_path: Path, window: tuple[int, int | None]) -> None:
        memory.write("a", b"0123456")
        cached = CachedStorage(memory, tmp_path)
        for _ in range(2):
            assert cached.read_range("a", *window) == b"0123456"[window[0] : window[1]]
        with pytest.raises(ValueError):
            cached.read_range("a", -1)


class TestForgetting:
    def test_invalidate_makes_the_next_read_ask(self, memory: MemoryStorage, tmp_path: Path) -> None:
        cached = CachedStorage(memory, tmp_path)
        cached.write("a", b"1")
        cached.write("b", b"1")
        memory.write("a", b"2")
        cached.invalidate("a")
        cached.invalidate("never there")
        assert cached.read("a") == b"2"
        assert cached.get_cache_stats()["file_count"] == 2

    def test_clear_forgets_everything_and_nothing_of_the_backend(
        self, memory: MemoryStorage, tmp_path: Path
    ) -> None:
        cached = CachedStorage(memory, tmp_path)
        for number in range(50):
            cached.write(f"{number}", b"1")
        cached.clear_cache()
        assert blobs(tmp_path) == []
        assert list((tmp_path / "trash").iterdir()) == []
        assert cached.get_cache_stats()["file_count"] == 0
        assert cached.get_cache_stats()["size_mb"] == 0.0
        assert len(cached.list()) == 50
        assert cached.read("7") == b"1"

    def test_prefetch_fetches_what_is_missing_or_too_old(
        self, memory: MemoryStorage, backend: FaultyStorage, tmp_path: Path, clock: Clock
    ) -> None:
        for name in "abc":
            memory.write(name, b"1")
        cached = CachedStorage(backend, tmp_path, ttl_seconds=10, clock=clock)
        cached.read("a")
        clock.now += 5
        assert cached.prefetch("abc") == 2
        clock.now += 5
        assert cached.prefetch("abc") == 1
        asked(backend)
        assert dict(cached.read_many("abc")) == dict.fromkeys("abc", b"1")
        assert asked(backend) == []


def test_a_note_does_not_outlive_a_content_that_does_not_go_in(tmp_path: Path) -> None:
    memory = MemoryStorage()
    cached = CachedStorage(memory, tmp_path, 2.0)
    for read in (cached.read, lambda name: cached.open(name).read()):
        memory.write("a", bytes(3 << 19))
        cached.invalidate("a")
        assert cached.read_range("a", 0, 2) == b"\0\0"
        memory.write("a", b"\1" * (3 << 20))
        assert read("a")[:2] == b"\1\1"
        assert cached.read_range("a", 0, 2) == b"\1\1"


def test_every_read_is_stood_in_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = MemoryStorage()
    backend, clock = FaultyStorage(memory), Clock()
    cached = CachedStorage(backend, tmp_path, ttl_seconds=10, stale_if_error=5, revalidate=True, clock=clock)
    for name in "ab":
        memory.write(name, name.encode() * 3)
        cached.read(name)
    clock.now += 11
    for method in ("read", "open", "stat", "read_range", "read_many", "size"):
        backend.fail(method, times=None)
    assert cached.read("a") == b"aaa"
    with cached.open("a") as reader:
        assert reader.read() == b"aaa"
    assert cached.read_range("a", 1, 2) == b"a"
    assert cached.download("a", tmp_path / "copy")
    assert sorted(cached.read_many(["a", "b", "a"])) == [("a", b"aaa"), ("a", b"aaa"), ("b", b"bbb")]
    with pytest.raises(UnavailableError):
        list(cached.read_many(["a", "never seen"]))
    clock.now += 5
    with pytest.raises(UnavailableError):
        cached.read_range("a", 1, 2)
    with pytest.raises(UnavailableError):
        list(cached.read_many(["a"]))
    backend.heal()
    memory.delete("a")
    with pytest.raises(BatchError):
        list(cached.read_many(["a"]))
    caplog.clear()  # pytest keeps what was logged, and with it the errors' frames, to the end of the module
