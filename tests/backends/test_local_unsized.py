"""Files whose size is not told: what can be read is given and copied, and what is not known is not made up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_backend import (
    CachedStorage,
    DatabaseStorage,
    LocalStorage,
    MemoryStorage,
    StorageError,
    migrate,
    sync,
)
from tests.backends.local_ways import BareStorage

pytestmark = [
    pytest.mark.quick,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and /sys are Linux's"),
]

# Size 0, by seq_file; size 0, by sysctl, which gives it in one call or not at all; a page, of which little is used.
FILES = ["/proc/version", "/proc/sys/kernel/pid_max", "/sys/kernel/mm/transparent_hugepage/enabled"]


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> Path:
    path = Path(request.param)
    if not path.exists():
        pytest.skip(f"no {path} here")
    return path


@pytest.mark.parametrize("kind", [LocalStorage, BareStorage])
def test_what_can_be_read_is_given(file: Path, kind: type[LocalStorage], tmp_path: Path) -> None:
    storage, content = kind(file.parent), file.read_bytes()
    assert len(content) > 3
    assert storage.read(file.name) == content
    assert storage.read_range(file.name, 0) == content
    assert storage.read_range(file.name, 2, 4) == content[2:4]
    assert storage.read_range(file.name, 1) == content[1:]
    assert storage.read_range(file.name, len(content) + 10) == b""
    with storage.open(file.name) as reader:
        assert reader.seek(0, 2) == len(content)
        reader.seek(1)
        assert reader.read() == content[1:]
    assert dict(storage.read_many([file.name])) == {file.name: content}
    assert storage.download(file.name, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content
    for target in (LocalStorage(tmp_path), MemoryStorage(), DatabaseStorage(f"sqlite:///{tmp_path}/x.db")):
        with target:
            assert target.upload(file, "uploaded")
            assert target.read("uploaded") == content


def test_unknown_size_is_told(file: Path) -> None:
    storage = LocalStorage(file.parent)
    assert storage.stat(file.name).size is None
    assert {info.identifier: info.size for info in storage.scan(file.name)}[file.name] is None
    with pytest.raises(StorageError, match="does not report the size"):
        storage.size(file.name)


def test_it_is_cached_whole(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    reads: dict[str, Callable[[CachedStorage], bytes]] = {
        "range": lambda cached: cached.read_range(file.name, 0, 3),
        "open": lambda cached: cached.open(file.name).read(3),
        "read": lambda cached: cached.read(file.name)[:3],
    }
    for name, read in reads.items():
        with CachedStorage(LocalStorage(file.parent), tmp_path / name) as cached:
            for _ in range(2):
                assert read(cached) == content[:3]
                assert cached.read(file.name) == content


def test_a_folder_of_them_is_migrated(tmp_path: Path) -> None:
    folder = Path("/proc/sys/fs/inotify")
    if not folder.exists():
        pytest.skip(f"no {folder} here")
    target = LocalStorage(tmp_path)
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = migrate(LocalStorage(folder), target, journal=None)
    assert report.ok
    assert dict(target.read_many(target.list())) == expected
    assert sync(LocalStorage(folder), target).failed == {}


def test_empty_files_are_empty(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("empty", b"")
    assert storage.stat("empty").size == storage.size("empty") == 0
    assert storage.read("empty") == storage.read_range("empty", 0) == b""
