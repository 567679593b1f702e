"""One directory, several backends: none is given the bytes of another."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from storage_backend import (
    CachedStorage,
    ConfigurationError,
    FallbackStorage,
    LocalStorage,
    MemoryStorage,
    PrefixedStorage,
    RetryingStorage,
    StorageBackend,
)
from tests.seven import Seven


class Rooted(Seven):
    """A user's class whose paths tell where it is."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root

    def get_path(self, identifier: str) -> str:
        return f"{self.root}/{identifier}"


def with_bytes(backend: StorageBackend, content: bytes) -> StorageBackend:
    backend.write("a", content)
    return backend


@pytest.mark.parametrize("wrapped", [False, True])
def test_second_object_without_a_url_is_refused(tmp_path: Path, wrapped: bool) -> None:
    one, two = with_bytes(Seven(), b"one"), with_bytes(Seven(), b"two")
    with CachedStorage(one, tmp_path / "cache") as cached:
        assert cached.read("a") == b"one"
        (tmp_path / "link").symlink_to(tmp_path / "cache")
        for directory in ("cache", "link"):
            with pytest.raises(ConfigurationError, match="namespace=") as caught:
                CachedStorage(RetryingStorage(two) if wrapped else two, tmp_path / directory)
            assert caught.value.parameter == "namespace"
        for _ in range(2):
            with CachedStorage(two, tmp_path / "cache", namespace="two") as other:
                assert other.read("a") == b"two"
        assert cached.read("a") == b"one"
        # The same one again, and what is a copy of it.
        assert CachedStorage(RetryingStorage(one), tmp_path / "cache").read("a") == b"one"
        assert pickle.loads(pickle.dumps(cached)).read("a") == b"one"


def test_what_is_known_to_differ_is_told_apart(tmp_path: Path) -> None:
    shared = MemoryStorage()
    local = LocalStorage(tmp_path / "local", create_if_missing=True)
    for prefix in ("p", "q"):
        shared.write(f"{prefix}/a", prefix.encode())
    empty = LocalStorage(tmp_path / "empty", create_if_missing=True)
    backends = {
        b"1": with_bytes(MemoryStorage(), b"1"),
        b"2": with_bytes(MemoryStorage(), b"2"),
        b"p": PrefixedStorage(shared, "p"),
        b"q": PrefixedStorage(shared, "q"),
        b"r": with_bytes(Rooted("/r"), b"r"),
        b"s": with_bytes(Rooted("/s"), b"s"),
        b"l": with_bytes(local, b"l"),
        b"f": FallbackStorage(empty, with_bytes(Rooted("/f"), b"f")),
        b"g": FallbackStorage(empty, with_bytes(Rooted("/g"), b"g")),
    }
    for _ in range(2):
        for content, backend in backends.items():
            with CachedStorage(backend, tmp_path / "cache") as cached:
                assert cached.read("a") == content
    # A pickle of objects in memory is another store.
    copy = pickle.loads(pickle.dumps(backends[b"1"]))
    copy.write("a", b"3")
    assert CachedStorage(copy, tmp_path / "cache").read("a") == b"3"


def test_class_of_a_user_is_cached_from_one_run_to_the_next(tmp_path: Path) -> None:
    with CachedStorage(with_bytes(Seven(), b"1"), tmp_path) as cached:
        cached.read("a")
    del cached
    with CachedStorage(Seven(), tmp_path) as cached:  # as the next process makes it
        assert cached.read("a") == b"1"


def test_namespaces_of_one_backend_are_apart(tmp_path: Path) -> None:
    local = LocalStorage(tmp_path / "local", create_if_missing=True)
    one = CachedStorage(local, tmp_path / "cache", namespace="one")
    other = CachedStorage(local, tmp_path / "cache", namespace="other")
    one.write("a", b"1")
    assert (other.namespace, other.read("a")) == ("other", b"1")
    assert other.get_cache_stats()["file_count"] == 2
    with pytest.raises(ConfigurationError, match="is not a str"):
        CachedStorage(local, tmp_path / "cache", namespace=1)  # type: ignore[arg-type] # as a careless user does
