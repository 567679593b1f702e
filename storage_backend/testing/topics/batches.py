"""Batches: `read_many`, `write_many`, `delete_many`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from storage_backend.base import StorageBackend
from storage_backend.errors import BatchError, IntegrityError
from storage_backend.info import ObjectInfo
from storage_backend.streams import sha256
from storage_backend.testing.subject import (
    SourceBrokeError,
    Subject,
    Topic,
    content_of,
    everything,
    fill,
    named,
    same,
)


class EnoughError(Exception):
    """The error of a caller's `progress` function."""


def _enough(objects: int, size: int) -> None:  # noqa: ARG001 - as it is called
    raise EnoughError


def _told(told: list[tuple[int, int]]) -> tuple[int, ...]:
    """The last progress, after a check that each is above the one before; clears the list."""
    taken, told[:] = told[:], []
    assert taken
    assert taken == sorted(taken)
    assert len(set(taken)) == len(taken)
    return taken[-1]


class Batches(Topic):
    """`stat_many`, `read_many`, `write_many` and `delete_many`: all that can be done is done."""

    def test_many_round_trip(self, backend: StorageBackend) -> None:
        objects = {f"folder/{n % 7}/{n}": content_of(n * 37) for n in range(300)}
        assert backend.write_many(objects.items()) == len(objects)
        assert same(dict(backend.read_many(objects)), objects)
        assert same(everything(backend), objects)
        assert backend.delete_many(objects) == len(objects)
        assert backend.list() == []

    def test_stat_of_many_is_that_of_each(self, backend: StorageBackend) -> None:
        fill(backend, "a", "b/c", "d")
        found = {info.identifier: info for info in backend.stat_many(["a", "absent", "b/c", "d/absent"])}
        assert found == {name: backend.stat(name) for name in ("a", "b/c")}
        assert list(backend.stat_many([])) == []

    def test_nothing_is_fine(self, backend: StorageBackend) -> None:
        fill(backend, "a")
        assert list(backend.read_many([])) == []
        assert backend.write_many([]) == 0
        assert backend.delete_many([]) == 0
        assert everything(backend) == {"a": named("a")}

    def test_large_and_small_together(self, backend: StorageBackend) -> None:
        sizes = (0, 5 << 20, 1, 9 << 20, 300)
        objects = {f"{size}": content_of(size) for size in sizes}
        assert backend.write_many(objects.items()) == len(objects)
        assert same(dict(backend.read_many(objects)), objects)

    def test_batch_overwrites(self, backend: StorageBackend) -> None:
        backend.write("a", content_of(70_000))
        assert backend.write_many([("a", b"new"), ("b", b"")]) == 2
        assert everything(backend) == {"a": b"new", "b": b""}

    def test_last_of_a_repeated_identifier_stays(self, backend: StorageBackend) -> None:
        backend.write_many([("a", b"first"), ("b", b"b"), ("a", b"second"), ("a", b"third")])
        assert everything(backend) == {"a": b"third", "b": b"b"}

    def test_repeated_and_absent_identifiers_are_deleted_once(self, backend: StorageBackend) -> None:
        fill(backend, "a", "b", "ab", "c")
        assert backend.delete_many(["a", "a", "absent", "b", "absent", "b"]) == 3
        assert backend.list() == ["ab", "c"]
        assert backend.delete_many(iter(["a", "c"])) == 2

    def test_missing_objects_are_reported_after_the_others(self, backend: StorageBackend) -> None:
        fill(backend, "a", "b", "c")
        found: dict[str, bytes] = {}
        with pytest.raises(BatchError) as caught:
            found.update(backend.read_many(["a", "gone/1", "b", "gone2", "c"]))
        assert found == {name: named(name) for name in ("a", "b", "c")}
        assert sorted(caught.value.failures) == ["gone/1", "gone2"]
        assert all(isinstance(error, FileNotFoundError) for error in caught.value.failures.values())
        assert caught.value.retryable is False

    def test_bad_items_are_reported_after_the_others(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("refusals")
        fill(backend, "old")
        with pytest.raises(BatchError) as caught:
            backend.write_many([("a", b"1"), ("../b", b"2"), ("c", b"3"), ("", b"4"), ("old", b"5")])
        assert sorted(caught.value.failures) == ["", "../b"]
        assert all(isinstance(error, ValueError) for error in caught.value.failures.values())
        assert everything(backend) == {"a": b"1", "c": b"3", "old": b"5"}
        with pytest.raises(BatchError) as caught:
            backend.delete_many(["a", "/b", "old"])
        assert list(caught.value.failures) == ["/b"]
        assert everything(backend) == {"c": b"3"}
        found: dict[str, bytes] = {}
        with pytest.raises(BatchError) as caught:
            found.update(backend.read_many(["x/../y", "c"]))
        assert found == {"c": b"3"}
        assert list(caught.value.failures) == ["x/../y"]

    def test_wrong_sizes_and_digests_are_reported_after_the_others(self, backend: StorageBackend) -> None:
        fill(backend, "old")
        items: list[tuple[str | ObjectInfo, bytes]] = [
            (ObjectInfo("a", size=3), b"abc"),
            (ObjectInfo("old", size=4), b"abc"),
            (ObjectInfo("b", size=3, sha256=sha256(b"abc")), b"abc"),
            (ObjectInfo("c", size=3, sha256=sha256(b"abd")), b"abc"),
            ("d", b"plain"),
        ]
        with pytest.raises(BatchError) as caught:
            backend.write_many(items, verify=True)
        assert sorted(caught.value.failures) == ["c", "old"]
        assert all(isinstance(error, IntegrityError) for error in caught.value.failures.values())
        assert everything(backend) == {"a": b"abc", "b": b"abc", "d": b"plain", "old": named("old")}

    def test_verified_batch_is_stored(self, backend: StorageBackend) -> None:
        objects = {f"{n}": content_of(n) for n in range(50)}
        items = [(ObjectInfo(name, len(content)), content) for name, content in objects.items()]
        assert backend.write_many(items, verify=True) == 50
        assert same(everything(backend), objects)

    def test_media_type_of_a_batch_is_kept(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("content_type")
        backend.write_many([(ObjectInfo("a", content_type="text/csv"), b"1"), ("b", b"2")])
        assert backend.stat("a").content_type == "text/csv"
        assert backend.stat("b").content_type != "text/csv"

    def test_endless_identifiers_are_read_as_they_come(self, backend: StorageBackend) -> None:
        fill(backend, "a", "b", "c")
        found = backend.read_many(itertools.cycle(["a", "b", "c"]))
        assert isinstance(found, Iterator)
        taken = list(itertools.islice(found, 10))
        assert {name for name, _ in taken} <= {"a", "b", "c"}
        assert all(content == named(name) for name, content in taken)
        del found
        fill(backend, "d")

    def test_items_are_taken_lazily(self, backend: StorageBackend) -> None:
        alive = 0
        most = 0

        class Counted(bytes):
            """Bytes that say when they are let go."""

            __slots__ = ()

            def __del__(self) -> None:
                nonlocal alive
                alive -= 1

        def items() -> Iterator[tuple[str, bytes]]:
            nonlocal alive, most
            for number in range(96):
                alive += 1
                most = max(most, alive)
                yield f"{number}", Counted(content_of(1 << 20))

        assert backend.write_many(items()) == 96
        # 1 MiB each. A store may collect some of them, but not all.
        assert most <= 64

    def test_items_that_break_off_are_an_error(self, backend: StorageBackend) -> None:
        def items() -> Iterator[tuple[str, bytes]]:
            yield "a", b"1"
            raise SourceBrokeError

        def identifiers() -> Iterator[str]:
            yield "old"
            raise SourceBrokeError

        fill(backend, "old")
        with pytest.raises(SourceBrokeError):
            backend.write_many(items())
        with pytest.raises(SourceBrokeError):
            list(backend.read_many(identifiers()))
        with pytest.raises(SourceBrokeError):
            backend.delete_many(identifiers())
        # The store is not locked, and no operation is unfinished.
        assert set(backend.list()) <= {"a", "old"}
        fill(backend, "b")

    def test_progress_is_told_as_it_is_made(self, subject: Subject, backend: StorageBackend) -> None:
        objects = {f"{n:03}": content_of(n) for n in range(60)}
        size = sum(map(len, objects.values()))
        told: list[tuple[int, int]] = []

        def progress(count: int, total: int) -> None:
            assert threading.current_thread() is caller
            told.append((count, total))

        def items() -> Iterator[tuple[str, bytes]]:
            for taken, item in enumerate(objects.items()):
                assert not told or told[-1][0] <= taken
                yield item

        caller = threading.current_thread()
        assert backend.write_many(items(), progress=progress) == len(objects)
        assert _told(told) == (len(objects), size)
        for number, (identifier, _) in enumerate(backend.read_many(objects, progress=progress), 1):
            assert len(told) == number
            assert told[-1][0] == number
            assert identifier in objects
        assert _told(told) == (len(objects), size)
        found: dict[str, bytes] = {}
        with pytest.raises(BatchError):
            found.update(backend.read_many(["001", "gone", "002"], progress=progress))
        assert _told(told) == (2, 3)
        with pytest.raises(EnoughError):
            found.update(backend.read_many(objects, progress=_enough))
        with pytest.raises(EnoughError):
            backend.write_many([("more", b"")], progress=_enough)
        assert backend.read("more") == b""
        assert backend.delete_many([*objects, "more"], progress=progress) == len(objects) + 1
        assert _told(told) == (len(objects) + 1, 0)
        assert backend.list() == []
        if subject.has("refusals"):
            with pytest.raises(BatchError):
                backend.write_many([("a", b"1"), ("../b", b"22")], progress=progress)
            assert _told(told) == (1, 1)

    def test_batch_may_read_what_it_writes(self, backend: StorageBackend) -> None:
        fill(backend, "a", "b", "c")
        copies = ((f"copy/{name}", content) for name, content in backend.read_many(["a", "b", "c"]))
        assert backend.write_many(copies) == 3
        assert backend.read("copy/b") == named("b")
