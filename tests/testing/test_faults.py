from __future__ import annotations

import io
import pickle
import threading
from typing import Any

import pytest

from storage_backend import MemoryStorage, NotFoundError, ObjectInfo, StorageBackend, UnavailableError
from storage_backend.testing import FaultyStorage
from storage_backend.testing.faults import CUTTABLE, METHODS
from tests.seven import Seven

pytestmark = pytest.mark.quick


@pytest.fixture
def inner() -> MemoryStorage:
    storage = MemoryStorage()
    storage.write("a", b"0123456789")
    return storage


@pytest.fixture
def faulty(inner: MemoryStorage) -> FaultyStorage:
    return FaultyStorage(inner)


class TestFail:
    def test_only_the_nth_call_fails(self, faulty: FaultyStorage) -> None:
        faulty.fail("read", nth=2)
        assert faulty.read("a") == b"0123456789"
        with pytest.raises(UnavailableError) as caught:
            faulty.read("a")
        assert caught.value.identifier == "a"
        assert caught.value.backend == "MemoryStorage"
        assert "injected fault" in str(caught.value)
        assert faulty.read("a") == b"0123456789"

    def test_failed_call_is_not_done(self, faulty: FaultyStorage, inner: MemoryStorage) -> None:
        faulty.fail("write")
        with pytest.raises(UnavailableError):
            faulty.write("b", b"x")
        assert inner.list() == ["a"]

    def test_given_error_is_raised_as_it_is(self, faulty: FaultyStorage) -> None:
        error = NotFoundError("no such thing")
        faulty.fail("size", error=error)
        with pytest.raises(NotFoundError) as caught:
            faulty.size("a")
        assert caught.value is error
        faulty.fail("size", error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            faulty.size("a")

    def test_several_in_a_row_and_for_ever(self, faulty: FaultyStorage) -> None:
        faulty.fail("stat", nth=2, times=2)
        answers = [failed(faulty.stat, "a") for _ in range(5)]
        assert answers == [False, True, True, False, False]
        faulty.fail("stat", times=None)
        assert [failed(faulty.stat, "a") for _ in range(4)] == [True] * 4
        faulty.heal()
        assert not failed(faulty.stat, "a")

    def test_each_error_is_a_new_one(self, faulty: FaultyStorage) -> None:
        faulty.fail("read", times=None)
        errors = []
        for _ in range(2):
            with pytest.raises(UnavailableError) as caught:
                faulty.read("a")
            errors.append(caught.value)
        assert errors[0] is not errors[1]

    def test_counting_starts_when_the_fault_is_asked_for(self, faulty: FaultyStorage) -> None:
        faulty.read("a")
        faulty.read("a")
        faulty.fail("read", nth=1)
        assert failed(faulty.read, "a")

    @pytest.mark.parametrize("method", sorted(METHODS))
    def test_every_method_can_fail(self, faulty: FaultyStorage, method: str) -> None:
        arguments: dict[str, tuple[Any, ...]] = {
            "write": ("b", b"x"),
            "list": (),
            "flush": (),
            "scan": (),
            "copy": ("a", "b"),
            "move": ("a", "b"),
            "write_stream": ("b", io.BytesIO()),
            "read_range": ("a", 0, 1),
            "read_many": (["a"],),
            "write_many": ([("a", b"x")],),
            "delete_many": (["a"],),
            "download": ("a", "/nowhere/at/all"),
            "upload": ("/nowhere/at/all", "a"),
            "create": ("b", b"x"),
            "replace": ("a", b"x", "1"),
        }
        faulty.fail(method, error=ZeroDivisionError)
        with pytest.raises(ZeroDivisionError):
            getattr(faulty, method)(*arguments.get(method, ("a",)))
        assert [call.method for call in faulty.calls] == [method]
        assert faulty.count(method) == 1

    def test_methods_are_all_public_ones(self) -> None:
        public = {
            name
            for name, value in vars(StorageBackend).items()
            if not name.startswith("_") and callable(value)
        }
        assert public - {"close"} == METHODS
        assert CUTTABLE <= METHODS

    def test_mistakes_are_errors(self, faulty: FaultyStorage) -> None:
        with pytest.raises(ValueError, match="raed"):
            faulty.fail("raed")
        with pytest.raises(ValueError, match="counted from 1"):
            faulty.fail("read", nth=0)
        with pytest.raises(ValueError, match="counted from 1"):
            faulty.lose("read", times=0)
        with pytest.raises(ValueError, match="stat"):
            faulty.cut("stat", at=1)
        with pytest.raises(ValueError, match="close"):
            faulty.count("close")


def failed(call: Any, *arguments: Any) -> bool:
    try:
        call(*arguments)
    except UnavailableError:
        return True
    return False


class TestLose:
    def test_call_is_done_and_its_answer_lost(self, faulty: FaultyStorage, inner: MemoryStorage) -> None:
        faulty.lose("write")
        with pytest.raises(UnavailableError) as caught:
            faulty.write("b", b"x")
        assert caught.value.retryable is True
        assert inner.read("b") == b"x"
        faulty.lose("delete")
        assert failed(faulty.delete, "b")
        assert not inner.exists("b")

    def test_error_of_the_call_itself_comes_first(self, faulty: FaultyStorage) -> None:
        faulty.lose("read")
        with pytest.raises(NotFoundError):
            faulty.read("absent")


class TestCut:
    @pytest.mark.parametrize("size", [1, 3, 7, 100])
    def test_reader_gives_what_is_before(self, faulty: FaultyStorage, size: int) -> None:
        faulty.cut("open", at=7)
        with faulty.open("a") as reader:
            got = b""
            with pytest.raises(UnavailableError):  # noqa: PT012 - it is one of the reads that raises
                while chunk := reader.read(size):
                    got += chunk
            assert got == b"0123456"

    def test_reading_all_of_a_cut_reader_raises(self, faulty: FaultyStorage) -> None:
        for at in (0, 7, 10):
            faulty.cut("open", at=at)
            with faulty.open("a") as reader, pytest.raises(UnavailableError):
                reader.read()

    def test_object_that_ends_before_is_whole(self, faulty: FaultyStorage) -> None:
        faulty.cut("open", at=11)
        with faulty.open("a") as reader:
            assert reader.read() == b"0123456789"

    def test_cut_is_a_place_in_the_object(self, faulty: FaultyStorage) -> None:
        faulty.cut("open", at=7)
        with faulty.open("a") as reader:
            assert reader.seek(5) == 5
            assert reader.read(2) == b"56"
            with pytest.raises(UnavailableError):
                reader.read(1)
            reader.seek(0)
            assert reader.read(3) == b"012"
        assert reader.closed

    def test_only_the_nth_reader_is_cut(self, faulty: FaultyStorage) -> None:
        faulty.cut("open", at=3, nth=2, error=ZeroDivisionError)
        assert faulty.open("a").read() == b"0123456789"
        with pytest.raises(ZeroDivisionError):
            faulty.open("a").read()
        assert faulty.open("a").read() == b"0123456789"

    @pytest.mark.parametrize("backend", [MemoryStorage, Seven])
    def test_cut_write_leaves_the_old_object(self, backend: type[StorageBackend]) -> None:
        inner = backend()
        inner.write("a", b"old")
        faulty = FaultyStorage(inner)
        faulty.cut("write", at=5, times=2)
        for content in (b"0123456789", io.BytesIO(b"0123456789")):
            with pytest.raises(UnavailableError):
                faulty.write("a", content)
        faulty.cut("write_stream", at=5)
        reader = io.BytesIO(b"0123456789")
        with pytest.raises(UnavailableError):
            faulty.write_stream("a", reader)
        assert reader.tell() == 5
        assert not reader.closed
        assert inner.read("a") == b"old"
        assert faulty.write("a", b"new") is True
        assert inner.read("a") == b"new"

    def test_cut_writer_leaves_the_old_object(self, faulty: FaultyStorage, inner: MemoryStorage) -> None:
        faulty.cut("open", at=5)
        with pytest.raises(UnavailableError), faulty.open("a", "wb") as writer:  # noqa: PT012 - the whole `with` is the point
            writer.write(b"abc")
            writer.write(b"defg")
        assert inner.read("a") == b"0123456789"

    def test_writer_that_ends_before_the_cut_publishes(
        self, faulty: FaultyStorage, inner: MemoryStorage
    ) -> None:
        faulty.cut("open", at=5)
        with faulty.open("a", "wb") as writer:
            writer.write(b"abcde")
        assert inner.read("a") == b"abcde"
        faulty.cut("open", at=5)
        writer = faulty.open("a", "wb")
        writer.write(b"abc")
        writer.close()
        assert inner.read("a") == b"abc"

    def test_scan_and_read_many_end_after_so_many(self, faulty: FaultyStorage) -> None:
        for name in ("b", "c"):
            faulty.write(name, name.encode())
        for at in (0, 2, 3):
            faulty.cut("scan", at=at)
            found: list[ObjectInfo] = []
            with pytest.raises(UnavailableError):
                found.extend(faulty.scan())
            assert len(found) <= at
        faulty.cut("read_many", at=1)
        many = faulty.read_many(["b", "c"])
        assert next(many) == ("b", b"b")
        with pytest.raises(UnavailableError):
            next(many)

    def test_earliest_of_several_cuts_counts(self, faulty: FaultyStorage) -> None:
        faulty.cut("open", at=7)
        faulty.cut("open", at=3)
        with faulty.open("a") as reader:
            assert reader.read(5) == b"012"


class TestDelayAndBefore:
    def test_delay_sleeps_by_the_given_clock(self, inner: MemoryStorage) -> None:
        slept: list[float] = []
        faulty = FaultyStorage(inner, sleep=slept.append)
        faulty.delay("read", 2.5)
        faulty.read("a")
        faulty.read("a")
        faulty.delay("size", 1.0, nth=2, times=1)
        for _ in range(3):
            faulty.size("a")
        assert slept == [2.5, 2.5, 1.0]

    def test_action_runs_just_before(self, faulty: FaultyStorage, inner: MemoryStorage) -> None:
        faulty.before("read", lambda: inner.write("a", b"changed"), nth=2)
        assert [faulty.read("a"), faulty.read("a")] == [b"0123456789", b"changed"]

    def test_action_that_raises_stops_the_call(self, faulty: FaultyStorage, inner: MemoryStorage) -> None:
        def stop() -> None:
            raise KeyboardInterrupt

        faulty.before("delete", stop)
        with pytest.raises(KeyboardInterrupt):
            faulty.delete("a")
        assert inner.exists("a")


class TestRecording:
    def test_calls_are_in_order_without_contents(self, faulty: FaultyStorage) -> None:
        faulty.write("b", b"content")
        faulty.copy("b", "c")
        list(faulty.scan("x"))
        faulty.fail("size")
        failed(faulty.size, "c")
        assert faulty.calls == [
            ("write", ("b",)),
            ("copy", ("b", "c")),
            ("scan", ("x",)),
            ("size", ("c",)),
        ]

    def test_threads_are_counted_exactly(self, faulty: FaultyStorage) -> None:
        faulty.fail("read", nth=101)
        failures: list[bool] = []

        def work() -> None:
            failures.extend(failed(faulty.read, "a") for _ in range(50))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures.count(True) == 1
        assert faulty.count("read") == len(faulty.calls) == 200

    def test_pickle_keeps_faults_and_counts(self, faulty: FaultyStorage) -> None:
        faulty.read("a")
        faulty.fail("read", nth=2)
        faulty.cut("open", at=3)
        copy = pickle.loads(pickle.dumps(faulty))
        assert copy.calls == faulty.calls
        assert [failed(copy.read, "a") for _ in range(3)] == [False, True, False]
        assert [failed(faulty.read, "a") for _ in range(3)] == [False, True, False]


def test_one_level_of_a_scan_is_a_scan(faulty: FaultyStorage) -> None:
    faulty.fail("scan")
    with pytest.raises(UnavailableError):
        faulty.scan_level()
    assert [getattr(found, "identifier", found) for found in faulty.scan_level()] == ["a"]
