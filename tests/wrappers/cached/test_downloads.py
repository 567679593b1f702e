"""CachedStorage: a large object that is streamed or downloaded comes by the backend's own download, which may use many connections."""

from __future__ import annotations

import errno
import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from storage_backend import (
    CachedStorage,
    Capability,
    LocalStorage,
    MemoryStorage,
    NotFoundError,
    StorageBackend,
    UnavailableError,
)
from storage_backend.hooks import Hooks
from storage_backend.testing import FaultyStorage
from storage_backend.testing.subject import content_of
from storage_backend.wrappers.cached import cache
from tests.seven import Seven
from tests.wrappers.cached.tools import Clock, assert_whole, blobs, end, line_of, program

LARGE = 300_000
CONTENT, OTHER = content_of(LARGE), content_of(LARGE + 7, 1)


@pytest.fixture(autouse=True)
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is large need not be so large."""
    monkeypatch.setattr(cache, "DOWNLOADED_FROM", LARGE)


@pytest.fixture
def base(tmp_path: Path) -> LocalStorage:
    base = LocalStorage(tmp_path / "base")
    base.write("large", CONTENT)
    base.write("small", CONTENT[:-1])
    return base


@pytest.fixture
def backend(base: LocalStorage) -> FaultyStorage:
    return FaultyStorage(base)


def asked(backend: FaultyStorage) -> list[str]:
    calls, backend.calls[:] = [call.method for call in backend.calls], []
    return calls


def opened(cached: CachedStorage) -> bytes:
    with cached.open("large") as reader:
        return reader.read()


def downloaded(cached: CachedStorage) -> bytes:
    path = cached.cache_dir.parent / "out"
    assert cached.download("large", path) is True
    return path.read_bytes()


WAYS: dict[str, Callable[[CachedStorage], bytes]] = {"open": opened, "download": downloaded}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
engines = pytest.mark.parametrize("engine", ["blobs", "diskcache"])


@ways
@engines
def test_what_is_large_is_downloaded_once(
    backend: FaultyStorage, tmp_path: Path, way: Any, engine: Literal["blobs", "diskcache"]
) -> None:
    cached = CachedStorage(backend, tmp_path / "cache", engine=engine)
    assert way(cached) == CONTENT
    assert asked(backend) == ["open", "download"]
    assert opened(cached) == downloaded(cached) == cached.read("large") == CONTENT
    assert asked(backend) == []
    cached.open("small").close()
    assert asked(backend) == ["open"]
    assert cached.check_cache().entries == 2
    assert list((tmp_path / "cache" / "staging").iterdir()) == []


def test_a_backend_that_has_no_ranges_is_asked_once(tmp_path: Path) -> None:
    seven = Seven()
    seven.write("large", CONTENT)
    backend = FaultyStorage(seven)
    cached = CachedStorage(backend, tmp_path)
    assert opened(cached) == CONTENT
    assert asked(backend) == ["open"]


def test_what_does_not_go_in_is_streamed(backend: FaultyStorage, tmp_path: Path) -> None:
    cached = CachedStorage(backend, tmp_path / "cache", (LARGE - 1) / 2**20)
    assert opened(cached) == CONTENT
    assert asked(backend) == ["open"]


@ways
@engines
def test_what_grew_beyond_the_limit_meanwhile_is_streamed(
    backend: FaultyStorage,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    way: Any,
    engine: Literal["blobs", "diskcache"],
) -> None:
    cached = CachedStorage(backend, tmp_path / "cache", (LARGE + 1) / 2**20, engine=engine)
    backend.before("download", lambda: backend.backend.write("large", OTHER))
    assert way(cached) == CONTENT  # which was opened
    assert caplog.messages == []
    cached.invalidate("large")
    assert way(cached) == OTHER
    assert cached.get_cache_stats()["size_mb"] <= (LARGE + 1) / 2**20


@ways
@pytest.mark.parametrize("other", [False, True], ids=["this", "another instance"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_download_that_a_change_overtakes_is_not_published(
    backend: FaultyStorage, tmp_path: Path, way: Any, other: bool, when: str
) -> None:
    cached = CachedStorage(backend, tmp_path / "cache")
    changer = CachedStorage(backend, tmp_path / "cache") if other else cached
    if when == "before":
        backend.before("download", lambda: changer.write_stream("large", io.BytesIO(OTHER)))
        assert way(cached) == OTHER
    else:
        download = LocalStorage.download

        class Overtaken(LocalStorage):
            def download(self, identifier: str, path: Any) -> bool:
                download(self, identifier, path)
                changer.write_stream("large", io.BytesIO(OTHER))
                return True

        cached = CachedStorage(Overtaken(tmp_path / "base"), tmp_path / "cache")
        assert way(cached) == CONTENT
    assert blobs(tmp_path / "cache") == []
    assert opened(cached) == opened(changer) == cached.read("large") == OTHER
    assert_whole(cached)


@ways
def test_trouble_with_the_caches_disk_is_nothing_to_the_caller(
    backend: FaultyStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: Any
) -> None:
    cached = CachedStorage(backend, tmp_path / "cache")
    backend.fail("download", error=OSError(errno.ENOSPC, "no space left"))
    assert way(cached) == CONTENT
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert asked(backend) == ["open", "download"]
    assert_whole(cached)
    assert cached.read("large") == CONTENT
    assert asked(backend) == []


@ways
def test_trouble_with_the_backend_is_told(
    backend: FaultyStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: Any
) -> None:
    cached = CachedStorage(backend, tmp_path / "cache")
    for error in (UnavailableError("down"), NotFoundError("gone")):
        backend.fail("download", error=error)
        with pytest.raises(type(error)) as caught:
            way(cached)
        assert caught.value is error
        assert blobs(tmp_path / "cache") == []
    assert caplog.messages == []
    assert_whole(cached)
    assert way(cached) == CONTENT


def test_an_interrupt_leaves_nothing(backend: FaultyStorage, base: LocalStorage, tmp_path: Path) -> None:
    class Interrupted(LocalStorage):
        def download(self, identifier: str, path: Any) -> bool:
            super().download(identifier, path)
            (Path(path).parent / "part").write_bytes(b"of some other")
            raise KeyboardInterrupt

    cached = CachedStorage(Interrupted(tmp_path / "base"), tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        cached.open("large")
    assert blobs(tmp_path / "cache") == []
    assert_whole(cached)


def test_what_was_downloaded_is_renewed_by_what_it_was(tmp_path: Path) -> None:
    class Telling(MemoryStorage):
        """Tells what its reads saw; the object changes for the time of a download."""

        capabilities = Capability.RANGES

        def __init__(self) -> None:
            super().__init__()
            self.saw: Any = None
            self.fleeting: bytes | None = None

        def download(self, identifier: str, path: Any) -> bool:
            content = self.fleeting
            if content is not None:
                before = self.read(identifier)
                self.write(identifier, content)
            self.saw = self.stat(identifier)
            Path(path).write_bytes(self.read(identifier))
            if content is not None:
                self.write(identifier, before)
            return True

        def open(self, identifier: str, mode: Any = "rb") -> Any:
            self.saw = self.stat(identifier)
            return super().open(identifier, mode)

        @property
        def hooks(self) -> Hooks:
            return Saw(self)

    class Saw(Hooks):
        def last_read(self, identifier: str) -> Any:
            telling = cast(Telling, self.backend)
            saw, telling.saw = telling.saw, None
            return saw

    memory = Telling()
    memory.write("large", CONTENT)
    clock = Clock()
    backend = FaultyStorage(memory)
    cached = CachedStorage(backend, tmp_path / "cache", ttl_seconds=60, clock=clock)
    assert opened(cached) == CONTENT
    clock.now += 61
    asked(backend)
    assert opened(cached) == CONTENT
    assert asked(backend) == ["stat"]
    cached.invalidate("large")
    memory.fleeting = OTHER
    assert opened(cached) == OTHER  # it was the backend's, if not for long
    memory.fleeting = None
    clock.now += 61
    assert opened(cached) == CONTENT


CHILD = """
import sys
from storage_backend import CachedStorage, LocalStorage
from storage_backend.wrappers.cached import cache

class Slow(LocalStorage):
    def download(self, identifier, path):
        super().download(identifier, path)
        print("downloaded", flush=True)
        sys.stdin.readline()
        return True

base, directory, engine = sys.argv[1:]
cache.DOWNLOADED_FROM = 1
CachedStorage(Slow(base), directory, engine=engine).open("large")
"""


@engines
def test_a_kill_in_the_middle_leaves_nothing(
    base: StorageBackend, tmp_path: Path, engine: Literal["blobs", "diskcache"]
) -> None:
    directory = tmp_path / "cache"
    child = program(CHILD, tmp_path / "base", directory, engine)
    try:
        assert line_of(child.stdout) == "downloaded"
        with CachedStorage(base, directory, engine=engine) as beside:
            beside.read("small")
            assert len(list((directory / "staging").iterdir())) == 2  # of one that lives
        child.send_signal(signal.SIGKILL)
        child.wait()
    finally:
        end(child)
    with CachedStorage(base, directory, engine=engine) as cached:
        assert cached.read("small") == CONTENT[:-1]
        assert list((directory / "staging").iterdir()) == []
        assert opened(cached) == CONTENT
