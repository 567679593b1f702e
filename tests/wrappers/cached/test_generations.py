"""CachedStorage: a fetch that a change overtakes is not published, whoever makes the change and however it ends."""

from __future__ import annotations

import errno
import fcntl
import io
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from storage_backend import CachedStorage, LocalStorage, MemoryStorage, NotFoundError, UnavailableError
from storage_backend.testing import FaultyStorage
from storage_backend.wrappers.cached.blobs import BlobEngine
from storage_backend.wrappers.cached.ranges import BLOCK
from storage_backend.wrappers.cached.staged import StagedContent
from tests.wrappers.cached.tools import assert_whole, blobs, end, line_of, program, tell

PATIENCE = 30.0  # seconds

Fetch = Callable[[CachedStorage], object]
FETCHES: dict[str, tuple[str, Fetch]] = {
    "read": ("read", lambda cached: cached.read("a")),
    "open": ("open", lambda cached: cached.open("a").close()),
    "read_many": ("read_many", lambda cached: list(cached.read_many(["a"]))),
    "prefetch": ("read_many", lambda cached: cached.prefetch(["a"])),
    "download": ("open", lambda cached: cached.download("a", cached.cache_dir / "../out")),
    "read_range": ("read", lambda cached: cached.read_range("a", 0, 2)),
}


def _written_by_writer(cached: CachedStorage) -> None:
    with cached.open("a", "wb") as writer:
        writer.write(b"new")


CHANGES: dict[str, Fetch] = {
    "write": lambda cached: cached.write("a", b"new"),
    "write from a reader": lambda cached: cast(Any, cached).write("a", io.BytesIO(b"new")),
    "write_stream": lambda cached: cached.write_stream("a", io.BytesIO(b"new")),
    "open wb": _written_by_writer,
    "write_many": lambda cached: cached.write_many([("a", b"new")]),
    "copy": lambda cached: cached.copy("other", "a"),
    "move": lambda cached: cached.move("other", "a"),
    "replace": lambda cached: cached.replace("a", b"new", str(cached.stat("a").etag)),
    "upload": lambda cached: cached.upload(cached.cache_dir / "../upload", "a"),
}


class Held(FaultyStorage):
    """Gives what it read only when it is told to: what a slow link does."""

    def __init__(self, backend: MemoryStorage | LocalStorage) -> None:
        super().__init__(backend)
        self.meanwhile: Callable[[], object] | None = None

    def _after(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()

    def read(self, identifier: str) -> bytes:
        content = super().read(identifier)
        self._after()
        return content

    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        content = super().read_range(identifier, start, end)
        self._after()
        return content

    def read_many(self, identifiers: Any, **_: Any) -> Iterator[tuple[str, bytes]]:
        found = list(super().read_many(identifiers))
        self._after()
        return iter(found)

    def open(self, identifier: str, mode: Any = "rb") -> Any:
        if mode == "wb":
            return super().open(identifier, mode)
        content = super().open(identifier, mode).read()
        self._after()
        return io.BytesIO(content)


@pytest.fixture
def memory() -> MemoryStorage:
    memory = MemoryStorage()
    memory.write("a", b"old")
    memory.write("other", b"new")
    return memory


@pytest.fixture
def backend(memory: MemoryStorage) -> Held:
    return Held(memory)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "upload").write_bytes(b"new")
    return tmp_path / "cache"


class TestOvertaken:
    @pytest.mark.parametrize("other", [False, True], ids=["this", "another instance"])
    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("fetch", FETCHES)
    def test_a_fetch_that_a_change_overtakes_is_not_published(
        self, backend: Held, directory: Path, fetch: str, change: str, other: bool
    ) -> None:
        cached = CachedStorage(backend, directory)
        changer = CachedStorage(backend, directory) if other else cached
        changed = []

        def overtake() -> None:
            CHANGES[change](changer)
            changed.append(change)

        backend.meanwhile = overtake
        FETCHES[fetch][1](cached)
        assert changed
        assert cached.read("a") == changer.read("a") == b"new"
        assert_whole(cached)

    @pytest.mark.parametrize("fetch", FETCHES)
    def test_a_fetch_that_a_delete_overtakes_is_not_published(
        self, backend: Held, directory: Path, fetch: str
    ) -> None:
        cached = CachedStorage(backend, directory)
        deletes: list[Callable[[], object]] = [
            lambda: cached.delete("a"),
            lambda: cached.delete_many(["a"]),
            lambda: cached.move("a", "b"),
        ]
        for delete in deletes:
            backend.backend.write("a", b"old")
            cached.invalidate("a")
            backend.meanwhile = delete
            FETCHES[fetch][1](cached)
            assert backend.meanwhile is None
            with pytest.raises(NotFoundError):
                cached.read("a")

    @pytest.mark.parametrize("fetch", FETCHES)
    @pytest.mark.parametrize("forget", ["clear_cache", "invalidate"])
    def test_what_is_forgotten_while_it_is_fetched_stays_forgotten(
        self, backend: Held, memory: MemoryStorage, directory: Path, fetch: str, forget: str
    ) -> None:
        cached = CachedStorage(backend, directory)

        def change_outside_and_forget() -> None:
            memory.write("a", b"new")
            if forget == "clear_cache":
                cached.clear_cache()
            else:
                cached.invalidate("a")

        backend.meanwhile = change_outside_and_forget
        FETCHES[fetch][1](cached)
        assert blobs(directory) == []
        assert cached.read("a") == b"new"

    def test_blocks_that_a_write_overtakes_are_not_given_again(
        self, backend: Held, memory: MemoryStorage, directory: Path
    ) -> None:
        old, new = bytes(3 * BLOCK), b"\1" * (3 * BLOCK)
        memory.write("a", old)
        cached = CachedStorage(backend, directory)
        backend.meanwhile = lambda: cached.write_stream("a", io.BytesIO(new))
        assert cached.read_range("a", BLOCK - 1, BLOCK + 1) == new[:2]
        assert cached.read_range("a", 0, 5) == new[:5]

    def test_a_fetch_that_is_older_than_what_was_fetched_since_a_change_is_not_published(
        self, backend: Held, directory: Path
    ) -> None:
        cached = CachedStorage(backend, directory)

        def overtake() -> None:
            cached.write_stream("a", io.BytesIO(b"new"))
            assert cached.read("a") == b"new"

        backend.meanwhile = overtake
        assert list(cached.read_many(["a"])) == [("a", b"old")]
        assert cached.read("a") == b"new"

    def test_a_transaction_that_fails_at_its_end_gives_no_generation_twice(
        self, backend: Held, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from storage_backend.wrappers.cached import index

        cached = CachedStorage(backend, directory)
        cached.read("other")

        def failing(fd: int, number: int) -> None:
            write(fd, number)
            raise OSError(errno.EIO, "told, and never committed")

        write = index.write_latest
        with monkeypatch.context() as patched:
            patched.setattr(index, "write_latest", failing)
            cached.delete_many([f"{number}" for number in range(10)])
        backend.meanwhile = lambda: cached.write("a", b"new")
        assert cached.read("a") == b"old"
        assert cached.read("a") == b"new"
        assert_whole(cached)

    def test_a_note_that_a_write_overtakes_is_not_published(
        self, backend: Held, memory: MemoryStorage, directory: Path
    ) -> None:
        memory.write("a", bytes(3 * BLOCK))
        cached = CachedStorage(backend, directory)
        stat = memory.stat

        def overtaken(identifier: str) -> Any:
            info = stat(identifier)
            memory.stat = stat  # type: ignore[method-assign]  # the next is an ordinary one
            cached.write_stream("a", io.BytesIO(b"\1" * (3 * BLOCK)))
            return info

        memory.stat = overtaken  # type: ignore[method-assign]  # the answer of a slow link
        cached.read_range("a", 0, 2)
        assert cached.read_range("a", 0, 2) == b"\1\1"
        assert cached.read_range("a", 2 * BLOCK, 2 * BLOCK + 2) == b"\1\1"

    def test_an_evicted_key_still_refuses_an_old_fetch(
        self, backend: Held, memory: MemoryStorage, directory: Path
    ) -> None:
        cached = CachedStorage(backend, directory, 1 / 1024)

        def overtake() -> None:
            cached.write("a", b"new")
            for number in range(5):
                cached.write(f"{number}", bytes(1000))
            memory.write("a", b"newer")

        backend.meanwhile = overtake
        assert cached.read("a") == b"old"
        assert cached.read("a") == b"newer"

    def test_a_fetch_of_before_a_change_is_refused_after_the_rows_were_dropped(
        self, backend: Held, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from storage_backend.wrappers.cached import index

        monkeypatch.setattr(index, "_TOMBSTONES", 3)
        cached = CachedStorage(backend, directory)

        def overtake() -> None:
            cached.write_stream("a", io.BytesIO(b"new"))
            for number in range(50):
                cached.invalidate(f"{number}")

        backend.meanwhile = overtake
        assert cached.read("a") == b"old"
        assert cached.read("a") == b"new"


class TestOverlapping:
    def test_a_fetch_inside_a_change_is_not_published(
        self, backend: Held, memory: MemoryStorage, directory: Path
    ) -> None:
        cached = CachedStorage(backend, directory)
        other = CachedStorage(backend, directory)
        seen: list[bytes] = []
        # Before the backend has the new content, and by whom ever.
        backend.before(
            "write", lambda: seen.extend([cached.read("a"), other.read("a"), cached.open("a").read()])
        )
        cached.write("a", b"new")
        assert seen == [b"old"] * 3
        assert cached.read("a") == other.read("a") == b"new"

    def test_a_fetch_that_lasts_from_within_a_change_to_after_it_is_not_published(
        self, backend: Held, directory: Path
    ) -> None:
        cached = CachedStorage(backend, directory)
        fetching, written = threading.Event(), threading.Event()
        given: list[bytes] = []

        def wait() -> None:
            fetching.set()
            assert written.wait(PATIENCE)

        thread = threading.Thread(target=lambda: given.append(cached.read("a")))

        def start_a_fetch() -> None:
            backend.meanwhile = wait
            thread.start()
            assert fetching.wait(PATIENCE)

        backend.before("write", start_a_fetch)
        cached.write("a", b"new")
        written.set()
        thread.join(PATIENCE)
        assert given == [b"old"]
        assert cached.read("a") == b"new"

    @pytest.mark.parametrize("inner_fails", [False, True])
    def test_of_overlapping_writes_none_is_published(
        self, backend: Held, memory: MemoryStorage, directory: Path, inner_fails: bool
    ) -> None:
        cached, other = CachedStorage(backend, directory), CachedStorage(backend, directory)

        def write_between() -> None:
            if inner_fails:
                backend.lose("write")
                with pytest.raises(UnavailableError):
                    other.write("a", b"between")
            else:
                other.write("a", b"between")

        # The outer one is stored last, or first: only the backend knows.
        backend.before("write", write_between)
        cached.write("a", b"outer")
        assert blobs(directory) == []
        memory.write("a", b"what the backend says")
        assert cached.read("a") == other.read("a") == b"what the backend says"

    def test_after_overlapping_writes_entries_are_kept_again(self, backend: Held, directory: Path) -> None:
        cached = CachedStorage(backend, directory)
        backend.before("write", lambda: cached.write("a", b"between"))
        cached.write("a", b"outer")
        cached.write("a", b"last")
        calls = len(backend.calls)
        assert cached.read("a") == b"last"
        assert len(backend.calls) == calls

    def test_a_write_between_a_change_and_its_publication_wins(
        self, backend: Held, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cached, other = CachedStorage(backend, directory), CachedStorage(backend, directory)
        end = BlobEngine.end
        written: list[int] = []

        def overtaken(engine: BlobEngine, *arguments: Any) -> Any:
            if not written:
                written.append(1)
                other.write("a", b"newest")
            return end(engine, *arguments)

        monkeypatch.setattr(BlobEngine, "end", overtaken)
        cached.write("a", b"new")
        assert written
        assert cached.read("a") == other.read("a") == b"newest"

    def test_clear_during_a_write_publishes_nothing_old(self, backend: Held, directory: Path) -> None:
        cached = CachedStorage(backend, directory)
        cached.read("a")
        backend.before("write", cached.clear_cache)
        cached.write("a", b"new")
        assert cached.read("a") == b"new"
        assert_whole(cached)

    def test_close_during_a_write_publishes_nothing_old(self, backend: Held, directory: Path) -> None:
        cached, other = CachedStorage(backend, directory), CachedStorage(backend, directory)

        def close_and_fetch() -> None:
            cached._cache.engine.close()
            assert other.read("a") == b"old"

        backend.before("write", close_and_fetch)
        cached.write("a", b"new")
        assert cached.read("a") == other.read("a") == b"new"

    def test_the_index_removed_during_a_write_publishes_nothing_old(
        self, backend: Held, directory: Path
    ) -> None:
        cached, other = CachedStorage(backend, directory), CachedStorage(backend, directory)
        cached.read("a")

        def remove_and_fetch() -> None:
            (directory / "index.db").unlink()
            assert other.read("a") == b"old"

        backend.before("write", remove_and_fetch)
        cached.write("a", b"new")
        assert cached.read("a") == other.read("a") == b"new"

    def test_the_index_removed_during_a_fetch_publishes_nothing_old(
        self, backend: Held, directory: Path
    ) -> None:
        cached = CachedStorage(backend, directory)

        def overtake() -> None:
            cached.write("a", b"new")
            (directory / "index.db").unlink()
            for path in blobs(directory):
                path.unlink()

        backend.meanwhile = overtake
        assert cached.read("a") == b"old"
        assert cached.read("a") == b"new"


# What a child does: "fetch" holds the content until a line comes, "write" stops where its second argument says.
CHILD = """
import os, sys
from storage_backend import CachedStorage, LocalStorage
from storage_backend.wrappers.cached.blobs import BlobEngine
from storage_backend.wrappers.cached.layout import BlobLayout
from storage_backend.wrappers.cached.staged import StagedContent

def stop(where):
    print(where, flush=True)
    sys.stdin.readline()

class Slow(LocalStorage):
    def read(self, identifier):
        content = super().read(identifier)
        if role == "fetch":
            stop("read")
        return content
    def open(self, identifier, mode="rb"):
        reader = super().open(identifier, mode)
        if role == "open":
            stop("read")
        return reader
    def write(self, identifier, content):
        if "begun" in where:
            stop("begun")
        super().write(identifier, content)
        if "written" in where:
            stop("written")
        return True
    def write_many(self, items, *, verify=False):
        if "begun" in where:
            stop("begun")
        count = super().write_many(items, verify=verify)
        if "written" in where:
            stop("written")
        return count

base, directory, role, where = sys.argv[1:]
cached = CachedStorage(Slow(base), directory)
if where == "staged":
    ended = BlobEngine._ended
    BlobEngine._ended = lambda *arguments: (stop(where), ended(*arguments))[1]
if where in ("unnamed", "named"):
    publish = StagedContent.publish
    def stopped(blob, path, metadata):
        if where == "unnamed":
            stop(where)
        publish(blob, path, metadata)
        stop(where)
    StagedContent.publish = stopped
if where == "unlinked":
    unlink = BlobLayout.unlink
    def stopped(layout, name):
        unlink(layout, name)
        stop(where)
    BlobLayout.unlink = stopped
if "opened" in where:
    cached.read("a")
    stop("opened")
if role == "fetch":
    print(cached.read("a").decode(), flush=True)
elif role == "open":
    print(cached.open("a").read().decode(), flush=True)
elif role == "clear":
    real = os.rename
    def renamed(*arguments):
        real(*arguments)
        stop("cleared")
    os.rename = renamed
    cached.clear_cache()
elif role == "delete":
    cached.delete("a")
elif role == "many":
    cached.write_many([("a", b"new"), ("b", b"new")])
else:
    cached.write("a", b"new")
print("done", flush=True)
sys.stdin.readline()
"""


class TestProcesses:
    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        base = tmp_path / "base"
        LocalStorage(base).write("a", b"old")
        return base

    @pytest.mark.parametrize("role", ["fetch", "open"])
    def test_a_fetch_that_another_process_overtakes_is_not_published(
        self, base: Path, directory: Path, role: str
    ) -> None:
        child = program(CHILD, base, directory, role, "")
        try:
            assert line_of(child.stdout) == "read"
            cached = CachedStorage(LocalStorage(base), directory)
            cached.write("a", b"new")
            cached._cache.engine.drop(cached._cache.key("a"))
            tell(child, "go on")
            if role == "fetch":
                assert line_of(child.stdout) == "old"
            else:
                assert line_of(child.stdout) in {"old", "new"}
            assert line_of(child.stdout) == "done"
            assert cached.read("a") == b"new"
            assert_whole(cached)
        finally:
            end(child)

    def test_a_fetch_of_ours_is_refused_while_another_process_changes_and_after(
        self, base: Path, directory: Path
    ) -> None:
        child = program(CHILD, base, directory, "write", "begun")
        try:
            assert line_of(child.stdout) == "begun"
            backend = Held(LocalStorage(base))
            cached = CachedStorage(backend, directory)

            def let_it_write() -> None:
                tell(child, "go on")
                assert line_of(child.stdout) == "done"

            backend.meanwhile = let_it_write
            assert cached.read("a") == b"old"
            assert cached.read("a") == b"new"
            assert_whole(cached)
        finally:
            end(child)

    @pytest.mark.parametrize("where", ["unlinked", "begun", "written", "staged", "unnamed", "named"])
    def test_a_kill_in_the_middle_of_a_write_leaves_nothing_stale(
        self, base: Path, directory: Path, where: str
    ) -> None:
        backend = Held(LocalStorage(base))
        cached = CachedStorage(backend, directory)
        cached.read("a")
        cached.write("neighbour", b"stays")
        child = program(CHILD, base, directory, "write", where)
        try:
            assert line_of(child.stdout) == where
            child.send_signal(signal.SIGKILL)
            child.wait()
            now = LocalStorage(base).read("a")
            assert now == (b"old" if where in {"begun", "unlinked"} else b"new")
            with CachedStorage(backend, directory) as reopened:
                assert_whole(reopened)
                assert reopened.read("a") == now
            assert cached.read("a") == now
            assert cached.read("neighbour") == b"stays"
            assert_whole(cached)
        finally:
            end(child)

    @pytest.mark.parametrize("where", ["begun", "written"])
    def test_a_fetch_under_way_while_a_writer_is_killed_is_not_published(
        self, base: Path, directory: Path, where: str
    ) -> None:
        child = program(CHILD, base, directory, "write", where)
        try:
            backend = Held(LocalStorage(base))
            cached = CachedStorage(backend, directory)
            assert line_of(child.stdout) == where

            def killed() -> None:
                # As if the write had reached the backend late.
                child.send_signal(signal.SIGKILL)
                child.wait()
                LocalStorage(base).write("a", b"new")

            backend.meanwhile = killed
            cached.read("a")
            assert cached.read("a") == b"new"
            assert cached.read("a") == b"new"
            calls = len(backend.calls)
            assert cached.read("a") == b"new"
            assert len(backend.calls) == calls
        finally:
            end(child)

    @pytest.mark.parametrize("where", ["begun", "written"])
    def test_a_kill_in_the_middle_of_a_batch_leaves_nothing_stale(
        self, base: Path, directory: Path, where: str
    ) -> None:
        LocalStorage(base).write("b", b"old")
        backend = Held(LocalStorage(base))
        cached = CachedStorage(backend, directory)
        assert dict(cached.read_many("ab")) == {"a": b"old", "b": b"old"}
        child = program(CHILD, base, directory, "many", where)
        try:
            assert line_of(child.stdout) == where

            def killed() -> None:
                child.send_signal(signal.SIGKILL)
                child.wait()
                # As if it had reached the backend late.
                LocalStorage(base).write_many([("a", b"new"), ("b", b"new")])

            backend.meanwhile = killed
            cached.read("a")
            assert dict(cached.read_many("ab")) == {"a": b"new", "b": b"new"}
            assert cached.read("b") == b"new"
            assert_whole(cached)
        finally:
            end(child)

    def test_where_files_cannot_be_locked_nothing_stale_is_published_either(
        self, base: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def flock(_fd: int, _operation: int) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(fcntl, "flock", flock)
        backend = Held(LocalStorage(base))
        cached, other = CachedStorage(backend, directory), CachedStorage(backend, directory)
        backend.meanwhile = lambda: other.write("a", b"new")
        assert cached.read("a") == b"old"
        assert cached.read("a") == other.read("a") == b"new"
        backend.before("write", lambda: other.write("a", b"between"))
        cached.write("a", b"outer")
        assert cached.read("a") == other.read("a") == LocalStorage(base).read("a") == b"outer"
        assert_whole(cached)

    def test_a_change_that_cannot_be_told_of_leaves_nothing_stale(
        self, base: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from storage_backend.wrappers.cached.pending_writes import PendingWrites

        def begin(*_arguments: object) -> str:
            raise OSError(errno.ENOSPC, "no room")

        backend = Held(LocalStorage(base))
        cached, other = CachedStorage(backend, directory), CachedStorage(backend, directory)
        assert cached.read("a") == b"old"
        monkeypatch.setattr(PendingWrites, "begin", begin)
        backend.before("write", lambda: cached.read("a") and None)
        other.write("a", b"new")
        assert cached.read("a") == other.read("a") == b"new"
        backend.meanwhile = lambda: other.write("a", b"newer")
        cached.invalidate("a")
        assert cached.read("a") == b"new"
        assert cached.read("a") == b"newer"
        assert_whole(cached)

    @pytest.mark.parametrize("role", ["write", "many"])
    @pytest.mark.parametrize("way", ["read", "write", "write_many"])
    def test_what_was_fetched_or_stored_within_a_change_is_not_given_after_a_kill(
        self, base: Path, directory: Path, way: str, role: str
    ) -> None:
        cached = CachedStorage(LocalStorage(base), directory)
        child = program(CHILD, base, directory, role, "begun, written")
        try:
            assert line_of(child.stdout) == "begun"
            if way == "read":
                assert cached.read("a") == b"old"
            elif way == "write":
                cached.write("a", b"between")
            else:
                cached.write_many([("a", b"between"), *((f"{number}", b"x") for number in range(20))])
            tell(child, "go on")
            assert line_of(child.stdout) == "written"
            child.kill()
            child.wait()
            assert cached.read("a") == b"new"
            assert cached.read("a") == b"new"
            assert_whole(cached)
        finally:
            end(child)

    def test_a_change_waits_for_a_publication_so_that_a_kill_leaves_nothing_stale(
        self, base: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cached = CachedStorage(LocalStorage(base), directory)
        child = program(CHILD, base, directory, "write", "opened, written")
        publish = StagedContent.publish
        try:
            assert line_of(child.stdout) == "opened"
            cached.invalidate("a")

            def delayed(blob: StagedContent, path: str, metadata: bytes) -> None:
                tell(child, "go on")
                assert child.stdout is not None
                done = select.poll()
                done.register(child.stdout, select.POLLIN)
                if done.poll(1000):
                    assert line_of(child.stdout) == "written"
                    child.kill()
                    child.wait()
                publish(blob, path, metadata)

            monkeypatch.setattr(StagedContent, "publish", delayed)
            assert cached.read("a") == b"old"
            monkeypatch.setattr(StagedContent, "publish", publish)
            if child.poll() is None:
                assert line_of(child.stdout) == "written"
                child.kill()
                child.wait()
            assert cached.read("a") == b"new"
            assert_whole(cached)
        finally:
            end(child)

    @pytest.mark.parametrize("alone", [False, True])
    def test_a_kill_in_the_middle_of_a_clear(self, base: Path, directory: Path, alone: bool) -> None:
        cached = CachedStorage(LocalStorage(base), directory)
        cached.write("a", b"old")
        cached.write("b", b"1")
        if alone:
            cached.close()
        child = program(CHILD, base, directory, "clear", "")
        try:
            assert line_of(child.stdout) == "cleared"
            child.send_signal(signal.SIGKILL)
            child.wait()
            with CachedStorage(LocalStorage(base), directory) as reopened:
                if alone:
                    assert reopened.read("b") == b"1"  # what clears up is the opening, then
                    assert reopened.get_cache_stats()["file_count"] == 1
                assert_whole(reopened)
                assert reopened.read("b") == b"1"
            assert cached.read("a") == b"old"
            assert_whole(cached)
        finally:
            end(child)
