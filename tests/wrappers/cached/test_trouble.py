"""What can befall a cache directory: reads work, a warning comes once, and the cache itself raises nothing."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest

from storage_backend import (
    BatchError,
    CachedStorage,
    ConfigurationError,
    InvalidIdentifierError,
    LocalStorage,
    StorageBackend,
)
from storage_backend.testing import FaultyStorage
from tests.backends.local_ways import small_disk
from tests.wrappers.cached.tools import assert_whole, blobs

CONTENT = b"content " * 1000


@pytest.fixture
def base(tmp_path: Path) -> FaultyStorage:
    storage = LocalStorage(tmp_path / "base")
    for name in "abc":
        storage.write(name, name.encode() + CONTENT)
    return FaultyStorage(storage)


@pytest.fixture
def cached(base: FaultyStorage, tmp_path: Path) -> Iterator[CachedStorage]:
    with CachedStorage(base, tmp_path / "cache") as storage:
        yield storage


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.levelno >= logging.WARNING for record in caplog.records)


def assert_serves(cached: CachedStorage, backend: StorageBackend) -> None:
    """Everything that is asked for is right, twice; and what is written is read."""
    for _ in range(2):
        for name in backend.list():
            content = backend.read(name)
            assert cached.read(name) == content
            with cached.open(name) as reader:
                assert reader.read() == content
            assert cached.read_range(name, 3, 50) == content[3:50]
            assert dict(cached.read_many([name])) == {name: content}
    cached.write("b", b"changed")
    assert cached.read("b") == b"changed"
    cached.delete("c")
    with pytest.raises(FileNotFoundError):
        cached.read("c")
    cached.write("c", b"again")
    assert cached.read("c") == b"again"


def truncated(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def index_with(content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / "index.db").write_bytes(content)


def index_cut(directory: Path) -> None:
    os.truncate(directory / "index.db", 5000)


def index_removed(directory: Path) -> None:
    (directory / "index.db").unlink()


def index_of_another(directory: Path) -> None:
    import sqlite3

    (directory / "index.db").unlink()
    connection = sqlite3.connect(directory / "index.db")
    connection.execute("CREATE TABLE state (counter)")
    connection.commit()
    connection.close()


def blobs_emptied(directory: Path) -> None:
    for path in blobs(directory):
        os.truncate(path, 0)


def blobs_flipped(directory: Path) -> None:
    """In the record, where each byte counts; the content is checked when one asks for that."""
    for path in blobs(directory):
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes(data)


def blobs_exchanged(directory: Path) -> None:
    first, second, *_ = blobs(directory)
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


def blobs_are_directories(directory: Path) -> None:
    for path in blobs(directory):
        path.unlink()
        path.mkdir()


def pipe_for(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def blobs_are_pipes(directory: Path) -> None:
    for path in blobs(directory):
        pipe_for(path)


def changes_of_nobody(directory: Path) -> None:
    """Of what is there, and of what is none."""
    changing = directory / "changing"
    (changing / "notes").write_bytes(b"not ours")
    (changing / ("f" * 32)).mkdir()
    (changing / ("e" * 32)).write_bytes(b"\xff" * 100)
    for path in blobs(directory):
        (changing / (os.urandom(16).hex() + path.parent.name + path.name)).write_bytes(b"")


DAMAGES: list[Callable[[Path], object]] = [
    truncated,
    index_with(b"garbage" * 10_000),
    index_with(b""),
    index_cut,
    index_removed,
    index_of_another,
    blobs_emptied,
    blobs_flipped,
    blobs_exchanged,
    blobs_are_directories,
    blobs_are_pipes,
    lambda directory: os.mkfifo(directory / "changed"),
    lambda directory: pipe_for(directory / "queue"),
    lambda directory: pipe_for(directory / "format.1"),
    shutil.rmtree,
    lambda directory: shutil.rmtree(directory / "blobs"),
    lambda directory: shutil.rmtree(directory / "staging"),
    lambda directory: shutil.rmtree(directory / "members"),
    lambda directory: shutil.rmtree(directory / "changing"),
    lambda directory: (directory / "intent").write_bytes(b"\xff" * 44),
    lambda directory: (directory / "latest").unlink(),
    lambda directory: (directory / "latest").write_bytes(b""),
    lambda directory: (directory / "latest").write_bytes(b"\xff" * 12),
    changes_of_nobody,
    lambda directory: directory.chmod(0o700),
]


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_survived_and_mended(
    base: FaultyStorage, tmp_path: Path, damage: Callable[[Path], object], reopened: bool
) -> None:
    directory = tmp_path / "cache"
    cached = CachedStorage(base, directory)
    for name in "abc":
        cached.read(name)
    if reopened:
        cached.close()
        cached = CachedStorage(base, directory)
    damage(directory)
    assert_serves(cached, base.backend)
    cached.close()
    with CachedStorage(base, directory) as again:
        assert_serves(again, base.backend)
        again.check_cache()
        assert_whole(again)
        # It works as before.
        base.calls.clear()
        again.read("a")
        assert [call.method for call in base.calls] == []


def test_changes_of_nothing_are_no_trouble(
    cached: CachedStorage, base: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    assert cached.write_many([]) == cached.delete_many([]) == 0
    with pytest.raises(InvalidIdentifierError):
        cached.write("..", b"x")
    with pytest.raises(BatchError):
        cached.write_many([("..", b"x"), ("/", b"x")])
    assert_serves(cached, base.backend)
    assert caplog.messages == []
    assert_whole(cached)


@pytest.mark.parametrize("place", ["changing", "intent"])
def test_names_that_lead_elsewhere_are_none(base: FaultyStorage, tmp_path: Path, place: str) -> None:
    directory, elsewhere = tmp_path / "cache", tmp_path / "x"
    elsewhere.write_bytes(b"not ours")
    with CachedStorage(base, directory) as cached:
        cached.read("a")
    name = ".." + "../" + "./" * 13 + "x"
    assert (directory / "blobs" / name[:2] / name[2:]).samefile(elsewhere)
    if place == "changing":
        (directory / "changing" / ("0" * 32)).write_text(name)
    else:
        data = struct.pack("<QI", 1 << 62, 1) + name.encode()
        (directory / "intent").write_bytes(data + struct.pack("<I", zlib.crc32(data)))
    with CachedStorage(base, directory) as cached:
        assert_serves(cached, base.backend)
        assert_whole(cached)
    assert elsewhere.read_bytes() == b"not ours"


def test_a_damaged_index_is_made_anew_from_the_blobs(cached: CachedStorage, base: FaultyStorage) -> None:
    for name in "abc":
        cached.read(name)
    cached.close()
    (cached.cache_dir / "index.db").write_bytes(b"garbage" * 1000)
    base.calls.clear()
    assert cached.get_cache_stats()["file_count"] == 3
    for name in "abc":
        assert cached.read(name) == name.encode() + CONTENT
    assert base.calls == []
    assert_whole(cached)


def test_a_flipped_content_byte_is_found_by_a_check(cached: CachedStorage) -> None:
    for name in "abc":
        cached.read(name)
    path = blobs(cached.cache_dir)[0]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    findings = cached.check_cache()
    assert (findings.entries, findings.damaged, findings.clean) == (2, 1, False)
    assert cached.check_cache().clean
    assert {cached.read(name)[:1] for name in "abc"} == {b"a", b"b", b"c"}
    assert_whole(cached)


def test_strays_and_missing_files_are_found_by_a_check(cached: CachedStorage) -> None:
    for name in "abc":
        cached.read(name)
    first, second, _ = blobs(cached.cache_dir)
    first.unlink()
    (second.parent / ("0" * 30)).write_bytes(b"stray")
    findings = cached.check_cache()
    assert (findings.entries, findings.missing, findings.strays) == (2, 1, 1)
    assert_whole(cached)


def test_a_full_disk(base: FaultyStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk") as disk:
        cached = CachedStorage(base, disk / "cache")
        assert cached.read("a") == b"a" + CONTENT
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        with caplog.at_level(logging.WARNING):
            assert_serves(cached, base.backend)
            base.backend.write("large", bytes(2 << 20))
            assert cached.read("large") == bytes(2 << 20)
            with cached.open("large") as reader:
                assert reader.read() == bytes(2 << 20)
            assert cached.download("large", tmp_path / "copy")
            assert (tmp_path / "copy").stat().st_size == 2 << 20
        assert warnings(caplog) == 1
        (disk / "filler").unlink()
        assert_serves(cached, base.backend)
        cached.read("a")
        base.calls.clear()
        cached.read("a")
        assert base.calls == []
        cached.close()


def test_a_read_only_directory(base: FaultyStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk") as disk:
        with CachedStorage(base, disk / "cache") as filled:
            filled.read("a")
        remounted = subprocess.run(
            ["mount", "-o", "remount,ro", disk], capture_output=True, text=True, check=False
        )
        assert remounted.returncode == 0, remounted.stderr
        with caplog.at_level(logging.WARNING):
            cached = CachedStorage(base, disk / "cache")
            base.calls.clear()
            assert cached.read("a") == b"a" + CONTENT
            assert base.calls == [], "what is there can be read"
            assert_serves(cached, base.backend)
            # The old entry is still in the directory, and must not be seen by the one that has changed the object.
            cached.write("a", b"new")
            assert cached.read("a") == b"new"
            cached.close()
        assert warnings(caplog) == 1


def test_a_directory_that_cannot_be_made(base: FaultyStorage, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        cached = CachedStorage(base, "/proc/no/such/place")
        assert_serves(cached, base.backend)
    assert warnings(caplog) == 1
    with pytest.raises(OSError, match="cannot look at the cache"):
        cached.get_cache_stats()
    with pytest.raises(OSError, match="cannot clear the cache"):
        cached.clear_cache()


@pytest.mark.parametrize("call", ["rename", "write", "pread", "open", "read"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EMFILE])
def test_errors_of_the_disk(  # noqa: PLR0917 - fixtures
    cached: CachedStorage,
    base: FaultyStorage,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    code: int,
) -> None:
    cached.read("a")
    expected = {name: base.backend.read(name) for name in "abc"}
    directory = str(cached.cache_dir)
    real: Any = getattr(os, call)

    def failing(*arguments: Any, **keywords: Any) -> Any:
        # The calls on descriptors are the cache's own as long as the backend is not asked, which has others.
        if not isinstance(arguments[0], int) and not str(arguments[0]).startswith(directory):
            return real(*arguments, **keywords)
        if isinstance(arguments[0], int) and not str(
            Path(f"/proc/self/fd/{arguments[0]}").readlink()
        ).startswith(directory):
            return real(*arguments, **keywords)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(os, call, failing)
        for _ in range(2):
            for name, content in expected.items():
                assert cached.read(name) == content
                with cached.open(name) as reader:
                    assert reader.read(5) == content[:5]
        cached.write("b", b"changed")
        assert cached.read("b") == b"changed"
    assert warnings(caplog) <= 1
    assert cached.read("b") == b"changed"
    assert_serves(cached, base.backend)


def test_another_format_is_refused_and_kept(base: FaultyStorage, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    with CachedStorage(base, directory) as cached:
        cached.read("a")
    (directory / "format.1").rename(directory / "format.2")
    before = sorted(directory.rglob("*"))
    engines: tuple[Literal["blobs", "diskcache"], ...] = ("blobs", "diskcache")
    for engine in engines:
        with pytest.raises(ConfigurationError, match="format 2"):
            CachedStorage(base, directory, engine=engine)
    assert sorted(directory.rglob("*")) == before
    (directory / "format.2").rename(directory / "format.1")
    with pytest.raises(ConfigurationError, match="format 1"):
        CachedStorage(base, directory, engine="diskcache")


def test_another_format_that_comes_while_it_is_used(
    cached: CachedStorage, base: FaultyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    cached.read("a")
    shutil.rmtree(cached.cache_dir)
    cached.cache_dir.mkdir()
    (cached.cache_dir / "format.2").write_bytes(b"a newer version's")
    (cached.cache_dir / "blobs").write_bytes(b"its own")
    with caplog.at_level(logging.WARNING):
        assert_serves(cached, base.backend)
    assert warnings(caplog) == 1
    assert (cached.cache_dir / "blobs").read_bytes() == b"its own"
    assert sorted(path.name for path in cached.cache_dir.iterdir()) == ["blobs", "format.2"]
