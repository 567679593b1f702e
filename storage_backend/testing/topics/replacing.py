"""Overwrites during reads; conditional writes (`create`, `replace`)."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from storage_backend.base import StorageBackend
from storage_backend.defensive import capabilities_of
from storage_backend.errors import PreconditionFailedError, UnsupportedOperationError
from storage_backend.info import Capability
from storage_backend.testing.subject import (
    Source,
    SourceBrokeError,
    Subject,
    Topic,
    content_of,
    everything,
    fill,
    named,
    names,
    same,
)

ROUNDS = 60  # of each side, for a race to count
PATIENCE = 60.0  # seconds after which a race that had fewer rounds is an error
THREADS = 8


@contextmanager
def close_race() -> Iterator[None]:
    """Switch threads as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """Run all *calls* at the same moment, each in a thread; return their results or errors."""
    results: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(number: int, call: Callable[[], Any]) -> None:
        start.wait(PATIENCE)
        try:
            results[number] = call()
        except Exception as error:  # noqa: BLE001 - returned for the test to judge
            results[number] = error

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a call did not come back"
    return results


class Replacing(Topic):
    """Readers see the old object or the new one, never a mixture."""

    def test_readers_see_whole_versions(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("atomic")
        subject.require("whole reads")
        subject.require("threads")
        versions = [bytes([number]) * size for number, size in enumerate((70_000, 300_000, 5, 150_001))]
        backend.write("a", versions[0])
        reads = {"read": 0, "open": 0, "size": 0}
        wrong: list[str] = []
        stop = threading.Event()

        def keep_reading(kind: str, look: Callable[[], bool]) -> None:
            while not stop.is_set():
                try:
                    if not look():
                        wrong.append(f"{kind}: a part, or a mixture")
                except Exception as error:  # noqa: BLE001 - judged below
                    wrong.append(f"{kind}: {error!r}")
                reads[kind] += 1

        def whole_stream() -> bool:
            with backend.open("a") as reader:
                return b"".join(iter(lambda: reader.read(65_536), b"")) in versions

        looks: dict[str, Callable[[], bool]] = {
            "read": lambda: backend.read("a") in versions,
            "open": whole_stream,
            "size": lambda: backend.size("a") in map(len, versions),
        }
        threads = [threading.Thread(target=keep_reading, args=item, daemon=True) for item in looks.items()]
        writes = 0
        deadline = time.monotonic() + PATIENCE
        with close_race():
            for thread in threads:
                thread.start()
            while min(writes, *reads.values()) < ROUNDS and not wrong and time.monotonic() < deadline:
                version = versions[writes % len(versions)]
                if writes % 2:
                    backend.write("a", version)
                else:
                    backend.write_stream("a", Source(version, most=50_000).as_binary())
                writes += 1
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert wrong == []
        assert min(writes, *reads.values()) >= ROUNDS, f"too few to mean anything: {writes}, {reads}"

    def test_old_object_is_seen_while_the_new_one_arrives(
        self, subject: Subject, backend: StorageBackend
    ) -> None:
        subject.require("atomic")
        fill(backend, "old")
        looked = 0

        def look() -> None:
            nonlocal looked
            looked += 1
            assert backend.read("old") == named("old")
            assert backend.size("old") == len(named("old"))
            assert backend.exists("new") is False
            assert names(backend.scan()) == ["old"]

        for identifier in ("old", "new", "folder/new"):
            source = Source(content_of(3 << 20), most=1 << 20, watch=look)
            backend.write_stream(identifier, source.as_binary())
            backend.delete(identifier)
            fill(backend, "old")
        assert looked >= 9

    def test_other_instances_see_the_old_object_too(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("atomic")
        subject.require("shared")
        fill(backend, "old")
        with subject.make() as other:

            def look() -> None:
                assert everything(other) == {"old": named("old")}

            backend.write_stream("old", Source(content_of(2 << 20), most=1 << 20, watch=look).as_binary())
            assert same(other.read("old"), content_of(2 << 20))

    def test_temporary_names_are_never_listed(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("atomic")
        fill(backend, "folder/old")

        def look() -> None:
            heard: list[Exception] = []
            assert names(backend.scan(on_skip=heard.append)) == ["folder/old"]
            assert heard == []
            assert backend.list() == ["folder/old"]
            if subject.has("globs"):
                assert backend.list("**/.*") == []
            assert names(backend.scan("folder/.")) == []

        for breaks_at in (None, 2 << 20):
            source = Source(content_of(3 << 20), most=1 << 20, breaks_at=breaks_at, watch=look)
            try:
                backend.write_stream("folder/new", source.as_binary())
            except SourceBrokeError:
                look()
            else:
                backend.delete("folder/new")
        with backend.open("folder/new", "wb") as writer:
            writer.write(content_of(3 << 20))
            look()

    def test_last_of_many_writers_wins_as_a_whole(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("threads")
        versions = [bytes([number]) * (100_000 + number) for number in range(THREADS)]
        for _ in range(5):
            answers = together([lambda version=version: backend.write("a", version) for version in versions])  # type: ignore[misc] # a default binds the loop's name
            assert answers == [True] * THREADS
            assert backend.read("a") in versions
        assert backend.list() == ["a"]


class Conditions(Topic):
    """`create` and `replace`: check and write are atomic."""

    def test_create_does_not_overwrite(self, subject: Subject, backend: StorageBackend) -> None:
        if not offers(backend, Capability.CREATE):
            return
        assert backend.create("folder/a", b"first") is True
        if subject.has("conditions"):
            assert backend.create("folder/a", b"second") is False
        assert backend.read("folder/a") == b"first"
        backend.delete("folder/a")
        assert backend.create("folder/a", b"third") is True
        assert everything(backend) == {"folder/a": b"third"}

    def test_create_takes_every_content(self, subject: Subject, backend: StorageBackend) -> None:
        if not offers(backend, Capability.CREATE):
            return
        subject.require("content")
        assert backend.create("reader", Source(content_of(300_000), most=70_000).as_binary()) is True
        assert same(backend.read("reader"), content_of(300_000))
        assert backend.create("buffer", bytearray(b"buffer")) is True
        assert backend.read("buffer") == b"buffer"
        assert backend.create("empty", b"") is True
        if subject.has("conditions"):
            assert backend.create("empty", b"x") is False
        with pytest.raises(SourceBrokeError):
            backend.create("broken", Source(content_of(100), breaks_at=50).as_binary())
        assert backend.exists("broken") is False
        assert backend.create("broken", b"whole") is True

    def test_one_of_many_creators_wins(self, subject: Subject, backend: StorageBackend) -> None:
        if not offers(backend, Capability.CREATE):
            return
        subject.require("conditions")
        subject.require("one winner")
        subject.require("threads")
        for round_number in range(10):
            name = f"lock/{round_number}"
            answers = together(
                [lambda n=n, name=name: backend.create(name, b"%d" % n) for n in range(THREADS)]  # type: ignore[misc] # defaults bind the loop's names
            )
            assert sorted(answers, key=repr) == [False] * (THREADS - 1) + [True]
            assert backend.read(name) == b"%d" % answers.index(True)

    def test_create_is_whole_when_it_is_seen(self, subject: Subject, backend: StorageBackend) -> None:
        if not offers(backend, Capability.CREATE):
            return
        subject.require("content")

        def look() -> None:
            assert backend.exists("a") is False
            assert backend.list() == []

        assert backend.create("a", Source(b"x" * 1000, most=300, watch=look).as_binary()) is True
        assert backend.read("a") == b"x" * 1000

    def test_replace_needs_the_very_version(self, subject: Subject, backend: StorageBackend) -> None:
        if not offers(backend, Capability.REPLACE):
            return
        backend.write("a", b"one")
        first = backend.stat("a").etag
        assert first is not None
        second = backend.replace("a", b"two", first)
        assert second == backend.stat("a").etag
        assert second != first
        assert backend.read("a") == b"two"
        subject.require("conditions")
        for stale in (first, "nonsense", ""):
            with pytest.raises(PreconditionFailedError):
                backend.replace("a", b"three", stale)
        assert backend.read("a") == b"two"
        third = backend.replace("a", b"two", second)
        backend.write("a", b"four")
        with pytest.raises(PreconditionFailedError):
            backend.replace("a", b"five", third)
        assert everything(backend) == {"a": b"four"}

    def test_replace_of_a_missing_object_fails(self, subject: Subject, backend: StorageBackend) -> None:
        if not offers(backend, Capability.REPLACE):
            return
        subject.require("conditions")
        backend.write("a", b"one")
        etag = backend.stat("a").etag
        assert etag is not None
        backend.delete("a")
        for identifier in ("a", "never"):
            with pytest.raises(PreconditionFailedError):
                backend.replace(identifier, b"two", etag)
        assert backend.list() == []

    def test_replace_with_a_source_that_breaks_changes_nothing(
        self, subject: Subject, backend: StorageBackend
    ) -> None:
        if not offers(backend, Capability.REPLACE):
            return
        subject.require("content")
        backend.write("a", b"one")
        etag = backend.stat("a").etag
        assert etag is not None
        with pytest.raises(SourceBrokeError):
            backend.replace("a", Source(content_of(100), breaks_at=50).as_binary(), etag)
        assert backend.stat("a").etag == etag
        backend.replace("a", Source(content_of(100_000)).as_binary(), etag)
        assert same(backend.read("a"), content_of(100_000))

    def test_one_of_many_replacers_wins(self, subject: Subject, backend: StorageBackend) -> None:
        if not offers(backend, Capability.REPLACE):
            return
        subject.require("conditions")
        subject.require("one winner")
        subject.require("threads")
        backend.write("a", b"start")
        for round_number in range(10):
            etag = backend.stat("a").etag
            assert etag is not None
            # All different: where the etag is a digest of the content, two writers of the same content may both win.
            contents = [b"%d of round %d" % (n, round_number) for n in range(THREADS)]
            answers = together(
                [lambda c=content, etag=etag: backend.replace("a", c, etag) for content in contents]  # type: ignore[misc] # defaults bind the loop's names
            )
            won = [n for n, answer in enumerate(answers) if isinstance(answer, str)]
            lost = [answer for answer in answers if isinstance(answer, PreconditionFailedError)]
            assert (len(won), len(lost)) == (1, THREADS - 1), answers
            assert backend.read("a") == contents[won[0]]
            assert backend.stat("a").etag == answers[won[0]]

    def test_counting_by_replace_loses_nothing(self, subject: Subject, backend: StorageBackend) -> None:
        if not offers(backend, Capability.REPLACE):
            return
        subject.require("conditions")
        subject.require("one winner")
        subject.require("threads")
        backend.write("count", b"0")

        def add() -> int:
            tries = 0
            while True:
                tries += 1
                info = backend.stat("count")
                assert info.etag is not None
                # If the content is newer than the etag, the replace fails: that is what is tested.
                value = int(backend.read("count"))
                try:
                    backend.replace("count", b"%d" % (value + 1), info.etag)
                except PreconditionFailedError:
                    assert tries < 10_000
                else:
                    return tries

        answers = together([lambda: [add() for _ in range(5)]] * 4)
        assert all(isinstance(answer, list) for answer in answers), answers
        assert backend.read("count") == b"20"


def offers(backend: StorageBackend, capability: Capability) -> bool:
    """Whether the backend has the capability. One without it must refuse."""
    if capability in capabilities_of(backend):
        return True
    with pytest.raises(UnsupportedOperationError):
        if capability is Capability.CREATE:
            backend.create("a", b"x")
        else:
            backend.replace("a", b"x", "etag")
    assert backend.list() == []
    return False
