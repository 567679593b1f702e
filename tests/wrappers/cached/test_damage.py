"""A damaged disk: bytes that are not those that were stored are never given, and the backend is read instead."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_backend import CachedStorage, MemoryStorage, StorageBackend

SIZES = [20, 3 << 20]


def opened(cached: CachedStorage) -> bytes:
    with cached.open("a") as reader:
        return reader.read()


def downloaded(cached: CachedStorage, path: Path) -> bytes:
    cached.download("a", path)
    return path.read_bytes()


READS: dict[str, Callable[[CachedStorage, Path], bytes]] = {
    "read": lambda cached, _: cached.read("a"),
    "open": lambda cached, _: opened(cached),
    "read_range": lambda cached, _: cached.read_range("a", 0),
    "read_range of a piece": lambda cached, _: cached.read_range("a", 0, 7) + cached.read_range("a", 7),
    "read_many": lambda cached, _: dict(cached.read_many(["a"]))["a"],
    "download": downloaded,
}


def flip(directory: Path, content: bytes) -> None:
    """Change a byte of what is cached, and leave the file's times as they were."""
    for path in directory.rglob("*"):
        if path.is_file() and path.read_bytes()[: len(content)] == content:
            facts = path.stat()
            with path.open("r+b") as file:
                file.seek(5)
                file.write(bytes([content[5] ^ 0x10]))
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            return
    raise AssertionError("nothing is cached")


@pytest.fixture(params=["blobs", "diskcache"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[StorageBackend], CachedStorage]:
    return lambda backend: CachedStorage(backend, tmp_path / "cache", engine=request.param)


@pytest.mark.parametrize("again", [False, True], ids=["the same object", "another process"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("verb", READS)
def test_a_flipped_byte_is_never_given(
    make: Callable[[StorageBackend], CachedStorage], tmp_path: Path, verb: str, size: int, again: bool
) -> None:
    content = os.urandom(size)
    backend = MemoryStorage()
    backend.write("a", content)
    read = READS[verb]
    cached = make(backend)
    cached.read("a")
    assert read(cached, tmp_path / "x") == content
    if again:
        cached.close()
        cached = make(backend)
    flip(tmp_path / "cache", content)
    assert read(cached, tmp_path / "x") == content
    # It is dropped, and a hit again once it has been fetched.
    assert cached.read("a") == content
    hits = cached.get_cache_stats()["hits"]
    assert read(cached, tmp_path / "x") == content
    assert cached.get_cache_stats()["hits"] > hits
    assert cached.check_cache().clean
    cached.close()


def test_a_pipe_in_the_place_of_content_is_not_waited_for(
    make: Callable[[StorageBackend], CachedStorage], tmp_path: Path
) -> None:
    content = os.urandom(100)
    backend = MemoryStorage()
    backend.write("a", content)
    with make(backend) as cached:
        cached.read("a")
        (path,) = [
            path
            for path in (tmp_path / "cache").rglob("*")
            if path.is_file() and path.read_bytes()[:100] == content
        ]
        path.unlink()
        os.mkfifo(path)
        for _ in range(2):
            assert cached.read("a") == content
            with cached.open("a") as reader:
                assert reader.read() == content


def test_a_flipped_byte_of_a_block_is_never_given(
    make: Callable[[StorageBackend], CachedStorage], tmp_path: Path
) -> None:
    content = os.urandom(3 << 20)
    backend = MemoryStorage()
    backend.write("a", content)
    with make(backend) as cached:
        assert cached.read_range("a", 10, 20) == content[10:20]
        flip(tmp_path / "cache", content[: 1 << 20])
        assert cached.read_range("a", 0, 20) == content[:20]


def test_an_entry_that_stands_in_is_checked_too(tmp_path: Path) -> None:
    backend = MemoryStorage()
    backend.write("a", b"x" * 100)
    now = [1e9]
    with CachedStorage(backend, tmp_path, ttl_seconds=1, stale_if_error=100, clock=lambda: now[0]) as cached:
        cached.read("a")
        flip(tmp_path, b"x" * 100)
        now[0] += 10
        assert cached.read("a") == b"x" * 100
