"""CachedStorage over S3, SSH and databases: what their answers tell a cache for free."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage_backend import CachedStorage, DatabaseStorage, ObjectInfo, StorageBackend
from storage_backend.testing import FaultyStorage
from storage_backend.testing.subject import content_of
from storage_backend.wrappers.cached import cache
from tests.backends.test_remote import storage_at as remote_at
from tests.backends.test_s3 import AtPlace


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["s3", "ssh", "sqlite"])
def telling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StorageBackend:
    """A store whose reads tell what they were of."""
    if request.param == "s3":
        return AtPlace(request.getfixturevalue("moto_bucket"), monkeypatch).storage()
    if request.param == "ssh":
        return remote_at(request.getfixturevalue("openssh_place"))
    return DatabaseStorage(request.getfixturevalue("sqlite_url"))


def written(storage: StorageBackend, identifier: str, content: bytes) -> None:
    """Store an object, long ago where the store keeps times: what has just changed may change again unseen."""
    info = ObjectInfo(identifier, modified=datetime(2020, 1, 1, tzinfo=UTC))
    storage.write_stream(identifier, io.BytesIO(content), info=info)


def test_what_is_unchanged_is_renewed_by_one_stat(telling: StorageBackend, tmp_path: Path) -> None:
    clock = Clock()
    inner = FaultyStorage(telling)
    cached = CachedStorage(inner, tmp_path, ttl_seconds=60, clock=clock)
    written(telling, "a", b"first")
    assert cached.read("a") == b"first"
    clock.now += 61
    inner.calls.clear()
    assert cached.read("a") == b"first"
    assert [call.method for call in inner.calls] == ["stat"]
    inner.calls.clear()
    clock.now += 59
    assert cached.read("a") == b"first"
    assert inner.calls == []
    clock.now += 2
    telling.write("a", b"other")
    assert cached.read("a") == b"other"
    stats = cached.get_cache_stats()
    assert (stats["hits"], stats["misses"], stats["expired"]) == (2, 2, 2)
    telling.delete("a")
    clock.now += 61
    with pytest.raises(FileNotFoundError):
        cached.read("a")
    assert cached.get_cache_stats()["file_count"] == 0


@pytest.mark.parametrize("by", ["open", "download"])
def test_what_was_streamed_is_renewed_by_one_stat(
    telling: StorageBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "download":
        monkeypatch.setattr(cache, "DOWNLOADED_FROM", 1 << 20)
    clock = Clock()
    inner = FaultyStorage(telling)
    cached = CachedStorage(inner, tmp_path, ttl_seconds=60, clock=clock)
    content = content_of(3 << 20)
    written(telling, "a", content)
    inner.calls.clear()
    assert cached.download("a", tmp_path / "copy")
    assert [call.method for call in inner.calls] == ["open", "download"][: 1 + (by == "download")]
    clock.now += 61
    inner.calls.clear()
    with cached.open("a") as reader:
        assert reader.read() == content
    assert [call.method for call in inner.calls] == ["stat"]
    clock.now += 61
    telling.write("a", b"other")
    with cached.open("a") as reader:
        assert reader.read() == b"other"


def test_a_look_of_before_is_not_taken_for_that_of_a_read(telling: StorageBackend, tmp_path: Path) -> None:
    written(telling, "a", b"first")
    written(telling, "b", b"second")
    telling.read("a")
    telling.read("b")
    assert telling.hooks.last_read("a") is None
    telling.open("a").close()
    seen = telling.hooks.last_read("a")
    assert seen is not None
    assert seen.size == 5
    assert telling.hooks.last_read("a") is None


def test_ranges_of_a_large_object_are_fetched_as_blocks(telling: StorageBackend, tmp_path: Path) -> None:
    content = content_of(5 * (1 << 20) + 17)
    inner = FaultyStorage(telling)
    cached = CachedStorage(inner, tmp_path, ttl_seconds=60, clock=(clock := Clock()))
    written(telling, "large", content)
    inner.calls.clear()
    assert cached.read_range("large", 1_100_000, 1_100_100) == content[1_100_000:1_100_100]
    assert [(call.method, *call.arguments[1:]) for call in inner.calls] == [
        ("stat",),
        ("read_range", 1 << 20, 2 << 20),
    ]
    inner.calls.clear()
    assert cached.read_range("large", 1_100_000, 1_100_100) == content[1_100_000:1_100_100]
    assert inner.calls == []
    assert cached.read_range("large", 10, None) == content[10:]
    assert [call.arguments[1:] for call in inner.calls] == [(0, 1 << 20), (2 << 20, len(content))]
    inner.calls.clear()
    assert cached.read_range("large", 5 << 20) == content[5 << 20 :]
    assert cached.read_range("large", 7 << 20) == b""
    assert inner.calls == []
    clock.now += 61
    assert cached.read_range("large", 0, 3) == content[:3]
    assert [call.method for call in inner.calls] == ["stat"]


def test_blocks_of_two_versions_are_never_mixed(telling: StorageBackend, tmp_path: Path) -> None:
    old, new = content_of(3 << 20), content_of(3 << 20, 1)
    inner = FaultyStorage(telling)
    cached = CachedStorage(inner, tmp_path)
    written(telling, "large", old)
    assert cached.read_range("large", 0, 10) == old[:10]
    inner.before("read_range", lambda: written_new(telling, new))
    across = cached.read_range("large", (1 << 20) - 5, (1 << 20) + 5)
    assert across == new[(1 << 20) - 5 : (1 << 20) + 5]
    assert cached.read_range("large", 0, 10) == new[:10]


def written_new(storage: StorageBackend, content: bytes) -> None:
    """As `written`, at another time: on SSH only that tells the versions apart."""
    storage.write("large", content)
