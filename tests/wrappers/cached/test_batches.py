"""CachedStorage: what comes and goes in batches is published in groups, and no group shows more or less than each alone would."""

from __future__ import annotations

import errno
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_backend import BatchError, CachedStorage, LocalStorage, MemoryStorage
from storage_backend.testing import FaultyStorage
from storage_backend.wrappers.cached import publishing
from storage_backend.wrappers.cached.staged import HELD, OverCacheLimitError, StagedContent
from tests.wrappers.cached.tools import KIB, assert_whole, blobs, content_bytes, end, line_of, program

COUNT = 200
NAMES = [f"d/{number:03}" for number in range(COUNT)]


def content_of(name: str) -> bytes:
    return name.encode() * 20


@pytest.fixture
def memory() -> MemoryStorage:
    memory = MemoryStorage()
    for name in NAMES:
        memory.write(name, content_of(name))
    return memory


@pytest.fixture
def backend(memory: MemoryStorage) -> FaultyStorage:
    return FaultyStorage(memory)


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time stands still for batches; `steps(seconds)`: so many go by from one look at the clock to the next."""
    step, now = 0.0, 0.0

    def monotonic() -> float:
        nonlocal now
        now += step
        return now

    def set_step(seconds: float) -> None:
        nonlocal step
        step = seconds

    monkeypatch.setattr(f"{publishing.__name__}.monotonic", monotonic)
    return set_step


def transactions(cache_dir: Path) -> int:
    """How many transactions changed the index so far: SQLite's file change counter (https://sqlite.org/fileformat.html)."""
    with (cache_dir / "index.db").open("rb") as file:
        return int.from_bytes(file.read(28)[24:], "big")


def reads(backend: FaultyStorage) -> int:
    return sum(method.startswith("read") for method, _ in backend.calls)


FILLS: dict[str, Callable[[CachedStorage], object]] = {
    "read_many": lambda cached: dict(cached.read_many(NAMES)),
    "prefetch": lambda cached: cached.prefetch(NAMES),
    "write_many": lambda cached: cached.write_many((name, content_of(name)) for name in NAMES),
}


@pytest.mark.parametrize("fill", FILLS)
def test_a_batch_takes_few_transactions_and_is_there_after_it(
    memory: MemoryStorage, tmp_path: Path, fill: str
) -> None:
    backend = FaultyStorage(memory)
    cached = CachedStorage(backend, tmp_path)
    cached.get_cache_stats()
    before = transactions(tmp_path)
    FILLS[fill](cached)
    assert 0 < transactions(tmp_path) - before <= COUNT // publishing.MOST + 4
    backend.calls.clear()
    assert {name: cached.read(name) for name in NAMES} == {name: content_of(name) for name in NAMES}
    assert reads(backend) == 0
    assert_whole(cached)


def test_where_the_backend_is_slow_each_is_there_when_it_is_given(
    backend: FaultyStorage, tmp_path: Path, steps: Callable[[float], None]
) -> None:
    steps(publishing.LONGEST)
    cached, other = CachedStorage(backend, tmp_path), CachedStorage(backend, tmp_path)
    given = cached.read_many(NAMES)
    [first, second, third] = [next(given)[0] for _ in range(3)]
    backend.calls.clear()
    assert other.read(first) == content_of(first)
    assert other.read(second) == content_of(second)
    assert reads(backend) == 0
    assert other.read(third) == content_of(third)  # which waits for the next one
    assert reads(backend) == 1


def test_few_bytes_wait(memory: MemoryStorage, tmp_path: Path) -> None:
    names = [f"large/{number}" for number in range(2 * publishing.MOST_BYTES // HELD)]
    for name in names:
        memory.write(name, bytes(HELD))
    given = 0
    for _ in CachedStorage(memory, tmp_path).read_many(names):
        given += HELD
        assert given - content_bytes(tmp_path) < publishing.MOST_BYTES


def test_an_iteration_that_is_dropped_leaves_what_was_published(
    backend: FaultyStorage, tmp_path: Path
) -> None:
    cached = CachedStorage(backend, tmp_path)
    given: Iterator[tuple[str, bytes]] = cached.read_many(NAMES)
    for _ in range(publishing.MOST + 5):
        next(given)
    del given
    assert len(blobs(tmp_path)) == publishing.MOST
    assert_whole(cached)
    assert dict(cached.read_many(NAMES)) == {name: content_of(name) for name in NAMES}
    assert len(blobs(tmp_path)) == COUNT


CHANGES: dict[str, Callable[[CachedStorage, str], object]] = {
    "write": lambda cached, name: cached.write(name, b"new"),
    "write_many": lambda cached, name: cached.write_many([(name, b"new")]),
    "upload": lambda cached, name: cached.upload(cached.cache_dir / "../upload", name),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("other", [False, True], ids=["this", "another instance"])
def test_what_is_changed_while_it_waits_for_its_group_is_not_published(
    memory: MemoryStorage, tmp_path: Path, change: str, other: bool
) -> None:
    (tmp_path / "upload").write_bytes(b"new")
    cached = CachedStorage(memory, tmp_path / "cache")
    changer = CachedStorage(memory, tmp_path / "cache") if other else cached
    for number, (name, content) in enumerate(cached.read_many(NAMES)):
        assert content == content_of(name)
        if number % 3 == 0:
            CHANGES[change](changer, name)
    expected = {name: content_of(name) if number % 3 else b"new" for number, name in enumerate(NAMES)}
    assert {name: cached.read(name) for name in NAMES} == expected
    assert dict(changer.read_many(NAMES)) == expected
    assert_whole(cached)


def test_what_is_deleted_or_forgotten_while_it_waits_for_its_group_is_not_published(
    memory: MemoryStorage, tmp_path: Path
) -> None:
    cached = CachedStorage(memory, tmp_path)
    for number, (name, _) in enumerate(cached.read_many(NAMES[:30])):
        if number < 10:
            cached.delete(name)
        elif number < 20:
            memory.write(name, b"changed by others")
            cached.invalidate(name)
    with pytest.raises(BatchError) as caught:
        dict(cached.read_many(NAMES[:10]))
    assert set(caught.value.failures) == set(NAMES[:10])
    assert set(dict(cached.read_many(NAMES[10:20])).values()) == {b"changed by others"}
    for name, _ in cached.read_many(NAMES[20:]):
        memory.write(name, b"changed by others")
        if name == NAMES[-1]:
            cached.clear_cache()
    assert set(dict(cached.read_many(NAMES[-COUNT % publishing.MOST :])).values()) == {b"changed by others"}
    assert_whole(cached)


def test_a_batch_of_more_than_the_cache_holds(backend: FaultyStorage, tmp_path: Path) -> None:
    each = len(content_of(NAMES[0]))
    cached = CachedStorage(backend, tmp_path, 50 * each * KIB / 1024)
    for fill in FILLS.values():
        fill(cached)
        assert content_bytes(tmp_path) == 50 * each
        backend.calls.clear()
        assert [cached.read(name) for name in NAMES[-50:]] == [content_of(name) for name in NAMES[-50:]]
        assert reads(backend) == 0  # those that came last are there
        assert_whole(cached)
        cached.clear_cache()
    assert cached.get_cache_stats()["evictions"] == 3 * 150


def test_large_ones_among_small_ones(memory: MemoryStorage, tmp_path: Path) -> None:
    large = {f"large/{number}": bytes([number]) * (HELD + 1 + number) for number in range(4)}
    for name, content in large.items():
        memory.write(name, content)
    mixed = [name for pair in zip(NAMES, [*large, *large], strict=False) for name in pair]
    expected = {name: memory.read(name) for name in mixed}
    backend = FaultyStorage(memory)
    cached = CachedStorage(backend, tmp_path, 3 * (HELD + 10) / 2**20)
    assert dict(cached.read_many(mixed)) == expected
    assert content_bytes(tmp_path) <= 3 * (HELD + 10)
    backend.calls.clear()
    assert cached.read("large/3") == large["large/3"]
    assert reads(backend) == 0
    assert cached.write_many(expected.items()) == len(expected)
    assert {name: cached.read(name) for name in mixed} == expected
    assert_whole(cached)


def test_what_finds_no_room_is_left_out_without_a_word(
    backend: FaultyStorage,
    memory: MemoryStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory.write("large", bytes(HELD + 1))
    cached = CachedStorage(backend, tmp_path)
    write = StagedContent.write

    def refusing(blob: StagedContent, data: bytes) -> None:
        if data[:5] in {b"d/001", bytes(5)}:
            raise OverCacheLimitError("another has taken the room")
        write(blob, data)

    monkeypatch.setattr(StagedContent, "write", refusing)
    assert len(dict(cached.read_many([*NAMES, "large"]))) == COUNT + 1
    assert len(blobs(tmp_path)) == COUNT - 1
    assert caplog.messages == []
    assert_whole(cached)


@pytest.mark.parametrize("at", ["writing", "naming"])
def test_a_group_that_cannot_be_stored_is_given_all_the_same(
    backend: FaultyStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at: str,
) -> None:
    cached = CachedStorage(backend, tmp_path)
    count = 0

    def failing(function: Callable[..., object]) -> Callable[..., object]:
        def fail(*arguments: object) -> object:
            nonlocal count
            count += 1
            if count == 10:
                raise OSError(errno.ENOSPC, "no space left")
            return function(*arguments)

        return fail

    method = "write" if at == "writing" else "publish"
    with monkeypatch.context() as patched:
        patched.setattr(StagedContent, method, failing(getattr(StagedContent, method)))
        assert dict(cached.read_many(NAMES)) == {name: content_of(name) for name in NAMES}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no space left" in caplog.text
    assert_whole(cached)
    assert len(blobs(tmp_path)) == COUNT - publishing.MOST
    assert dict(cached.read_many(NAMES)) == {name: content_of(name) for name in NAMES}
    assert len(blobs(tmp_path)) == COUNT


def test_what_had_come_before_a_batch_failed_is_kept(
    backend: FaultyStorage, memory: MemoryStorage, tmp_path: Path
) -> None:
    cached = CachedStorage(backend, tmp_path)
    with pytest.raises(BatchError):
        dict(cached.read_many([*NAMES[:10], "missing"]))
    assert len(blobs(tmp_path)) == 10

    class Ending(MemoryStorage):
        def read_many(self, identifiers: Any, **_: Any) -> Iterator[tuple[str, bytes]]:
            for name in list(identifiers)[:10]:
                yield name, memory.read(name)
            raise ConnectionError("the link is down")

    other = CachedStorage(Ending(), tmp_path)
    with pytest.raises(ConnectionError):
        dict(other.read_many(NAMES[10:]))
    assert len(blobs(tmp_path)) == 20
    assert_whole(other)


CHILD = """
import sys
from storage_backend import CachedStorage, LocalStorage
from storage_backend.wrappers.cached.index import IndexTransaction
from storage_backend.wrappers.cached.staged import StagedContent

base, directory, where, way = sys.argv[1:]
cached = CachedStorage(LocalStorage(base), directory)
cached.read("kept")
left = 10

def stop():
    global left
    left -= 1
    if left == 0:
        print(where, flush=True)
        sys.stdin.readline()

publish, store, finish = StagedContent.publish, IndexTransaction.store, IndexTransaction.finish
if where == "unnamed":
    StagedContent.publish = lambda *arguments: (stop(), publish(*arguments))[1]
if where == "named":
    StagedContent.publish = lambda *arguments: (publish(*arguments), stop())[0]
if where == "stored":
    IndexTransaction.store = lambda *arguments: (store(*arguments), stop())[0]
names = [name for name in cached.list() if name != "kept"]
if way == "read_many":
    dict(cached.read_many(names))
else:
    cached.write_many([(name, b"new") for name in names])
"""


@pytest.mark.parametrize("way", ["read_many", "write_many"])
@pytest.mark.parametrize("where", ["unnamed", "named", "stored"])
def test_a_kill_in_the_middle_of_a_group_leaves_nothing_over(tmp_path: Path, where: str, way: str) -> None:
    base = LocalStorage(tmp_path / "base")
    base.write_many((name, b"old") for name in [*NAMES, "kept"])
    directory = tmp_path / "cache"
    child = program(CHILD, tmp_path / "base", directory, where, way)
    try:
        assert line_of(child.stdout) == where
        child.send_signal(signal.SIGKILL)
        child.wait()
    finally:
        end(child)
    backend = FaultyStorage(base)
    cached = CachedStorage(backend, directory)
    assert_whole(cached)
    expected = dict.fromkeys(NAMES, b"old" if way == "read_many" else b"new")
    assert {name: cached.read(name) for name in NAMES} == expected
    backend.calls.clear()
    assert cached.read("kept") == b"old"
    assert reads(backend) == 0
