"""One level of a scan: the same on every backend, and without what is beneath it where the backend can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_backend import DatabaseStorage, LocalStorage, MemoryStorage, PrefixedStorage, StorageBackend
from storage_backend.wrappers.base import Wrapper
from tests.backends.sql_samples import statements
from tests.seven import Seven

pytestmark = pytest.mark.quick

NAMES = ["a", "d-x", "d.x", "d/b", "d/e/c", "d/e/f", "d/e0", "d0", "dd/x", "z", "é/x", "é"]


@pytest.fixture(params=["memory", "seven", "local", "sqlite", "prefixed local", "prefixed sqlite", "wrapped"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageBackend]:
    kind: str = request.param
    inner: StorageBackend = (
        LocalStorage(tmp_path / "place")
        if "local" in kind
        else DatabaseStorage(f"sqlite:///{tmp_path}/place.db")
        if "sqlite" in kind
        else Seven()
        if kind == "seven"
        else MemoryStorage()
    )
    if "prefixed" in kind:
        for name in ["p", "pp/x"] if "sqlite" in kind else ["pp/x"]:
            inner.write(name, b"outside")
    with (
        PrefixedStorage(inner, "p")
        if "prefixed" in kind
        else Wrapper(inner)
        if kind == "wrapped"
        else inner as found
    ):
        for name in NAMES:
            if name != "é" or "local" not in kind:
                found.write(name, b"1")
        yield found


def level(backend: StorageBackend, prefix: str = "") -> list[str]:
    return [found if isinstance(found, str) else found.identifier for found in backend.scan_level(prefix)]


def test_every_backend_gives_the_same(backend: StorageBackend) -> None:
    top = ["a", "d-x", "d.x", "d/", "d0", "dd/", "z", "é", "é/"]
    if not backend.exists("é"):
        top.remove("é")
    assert level(backend) == top
    assert level(backend, "d/") == ["d/b", "d/e/", "d/e0"]
    assert level(backend, "d/e/") == ["d/e/c", "d/e/f"]
    assert level(backend, "nothing/") == []
    assert level(backend, "a/") == []


def test_objects_come_with_what_a_scan_shows(backend: StorageBackend) -> None:
    scanned = {info.identifier: info for info in backend.scan()}
    for found in backend.scan_level("d/"):
        assert isinstance(found, str) or found == scanned[found.identifier]


def test_a_directory_is_not_walked(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for number in range(50):
        storage.write(f"d{number % 5}/deep/{number}", b"")
    (tmp_path / "d1").chmod(0)  # would be denied to a walk, were we not root
    (tmp_path / "link").symlink_to(tmp_path / "d2")
    (tmp_path / "empty").mkdir()
    skipped: list[Any] = []
    found = list(storage.scan_level(on_skip=skipped.append))
    assert found == ["d0/", "d1/", "d2/", "d3/", "d4/", "empty/"]
    assert [error.identifier for error in skipped] == ["link"]


def test_a_database_skips_what_is_beneath(tmp_path: Path) -> None:
    with DatabaseStorage(f"sqlite:///{tmp_path}/place.db") as storage:
        storage.write_many((f"big/{number:05}", b"") for number in range(9000))
        storage.write_many([("a", b""), ("z", b"")])
        with statements() as one_level:
            assert level(storage) == ["a", "big/", "z"]
        with statements() as whole:
            assert len(list(storage.scan())) == 9002
        assert 0 < len(one_level) < len(whole) / 2
