"""What LocalStorage does with files, directories, disks and users, beyond the contract of every backend."""

from __future__ import annotations

import errno
import gc
import io
import itertools
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

from storage_backend import (
    AccessDeniedError,
    AlreadyExistsError,
    BaseDirectoryNotFoundError,
    BatchError,
    ConfigurationError,
    IntegrityError,
    InvalidIdentifierError,
    LocalStorage,
    NotAFileError,
    NotFoundError,
    ObjectInfo,
    QuotaExceededError,
    SourceChangedError,
    StorageError,
    UnavailableError,
    UnsupportedOperationError,
    destinations,
)
from storage_backend.backends.local import leftovers
from storage_backend.backends.local.base_directory import refuse_platform
from storage_backend.backends.local.errors import translate
from storage_backend.owners import temporary_name
from storage_backend.streams import ranged_reader
from storage_backend.testing import Source, SourceBrokeError
from tests.backends.local_ways import WAYS, BareStorage, NamingStorage, as_nobody, small_disk
from tests.tiers import few

pytestmark = pytest.mark.quick

ALL_WAYS = (*WAYS, NamingStorage, BareStorage)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "base"


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory on a file system in memory, where there is one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        yield Path(place)


@pytest.fixture
def storage(base: Path) -> LocalStorage:
    return LocalStorage(base)


@pytest.fixture(params=ALL_WAYS)
def any_way(request: pytest.FixtureRequest, base: Path) -> LocalStorage:
    found: LocalStorage = request.param(base)
    return found


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def entries(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir())


def descriptors() -> list[str]:
    """This process's open ones; also that by which we look."""
    return entries(Path("/dev/fd"))


def all_names(base: Path) -> list[str]:
    return sorted(str(path.relative_to(base)) for path in base.rglob("*"))


class TestBaseDirectory:
    def test_it_is_expanded_and_resolved(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        storage = LocalStorage("~/link/../link/base")
        assert storage.base_dir == (tmp_path / "real" / "base").resolve()
        assert isinstance(storage.base_dir, Path)
        assert storage.base_dir.is_dir()

    def test_missing_one_is_both_kinds_of_error(self, tmp_path: Path) -> None:
        with pytest.raises(BaseDirectoryNotFoundError, match="does not exist") as caught:
            LocalStorage(tmp_path / "missing", create_if_missing=False)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, FileNotFoundError)
        assert not (tmp_path / "missing").exists()

    @pytest.mark.parametrize("create", [True, False])
    def test_file_is_no_base_directory(self, tmp_path: Path, create: bool) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ValueError, match="not a directory"):
            LocalStorage(tmp_path / "file", create)

    def test_file_above_it_is_no_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ConfigurationError, match="not a directory"):
            LocalStorage(tmp_path / "file" / "base")

    def test_unknown_user_is_a_configuration_error(self) -> None:
        with pytest.raises(ConfigurationError, match="base_dir"):
            LocalStorage("~no-such-user-here/base")

    def test_windows_is_refused_clearly(self) -> None:
        with pytest.raises(UnsupportedOperationError, match="Windows"):
            refuse_platform("win32")

    @pytest.mark.parametrize("way", ALL_WAYS)
    def test_removed_one_is_no_empty_store(self, way: type[LocalStorage], base: Path) -> None:
        storage = way(base)
        storage.write("a", b"1")
        base.rename(base.with_name("elsewhere"))
        for act in (
            lambda: storage.exists("a"),
            lambda: storage.read("a"),
            lambda: storage.write("a", b""),
            lambda: storage.write("b/c", b""),
            lambda: storage.delete("a"),
            storage.list,
            lambda: list(storage.scan()),
            lambda: storage.move("a", "b"),
            storage.flush,
        ):
            with pytest.raises(BaseDirectoryNotFoundError, match="does not exist"):
                act()
        assert not base.exists()
        base.write_bytes(b"now a file")
        for act in (lambda: storage.exists("a"), storage.list, lambda: storage.write("a", b"")):
            with pytest.raises(ConfigurationError, match="not a directory"):
                act()

    def test_replaced_one_is_used_from_then_on(self, storage: LocalStorage, base: Path) -> None:
        storage.write("a", b"old")
        base.rename(base.with_name("elsewhere"))
        base.mkdir()
        assert storage.exists("a") is False
        storage.write("a", b"new")
        assert (base / "a").read_bytes() == b"new"
        assert (base.with_name("elsewhere") / "a").read_bytes() == b"old"
        storage.close()
        assert storage.read("a") == b"new"

    def test_root_of_the_file_system_can_be_one(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"1")
        identifier = str(tmp_path / "file").lstrip("/")
        for way in WAYS:
            storage = way("/")
            assert storage.read(identifier) == b"1"
            assert storage.get_path(identifier) == str(tmp_path / "file")
            assert identifier in storage.list(f"{identifier[:-1]}*")

    def test_nothing_stays_open(self, any_way: LocalStorage) -> None:
        before = descriptors()
        any_way.write("a/b", b"1")
        any_way.write("a/b", b"2")
        any_way.read("a/b")
        any_way.copy("a/b", "c")
        any_way.move("c", "d")
        any_way.list()
        next(iter(any_way.scan()))
        any_way.delete("d")
        any_way.exists("x/y")
        any_way.create("a/b", b"")
        for bad in ("a", "a/b/c", "x", "../x"):
            with pytest.raises(OSError):
                any_way.read(bad)
            with pytest.raises(OSError):
                any_way.delete(bad)
        with pytest.raises(AlreadyExistsError):
            any_way.write("a", b"")
        with pytest.raises(SourceBrokeError):
            any_way.write_stream("s", Source(b"12345", breaks_at=3).as_binary())
        assert descriptors() == before

    def test_pickle_holds_configuration_only(self, base: Path) -> None:
        storage = BareStorage(base, durable=True)
        storage.write("a", b"1")
        again = pickle.loads(pickle.dumps(storage))
        assert type(again) is BareStorage
        assert vars(again).keys() == vars(storage).keys()
        assert repr(again) == repr(storage) == f"BareStorage({str(base)!r}, durable=True)"
        assert again.read("a") == b"1"

    def test_pickle_of_a_removed_one_loads_and_then_says_so(self, storage: LocalStorage, base: Path) -> None:
        data = pickle.dumps(storage)
        base.rmdir()
        again = pickle.loads(data)
        with pytest.raises(BaseDirectoryNotFoundError):
            again.list()


class TestPaths:
    def test_path_url_and_location_are_absolute_and_quoted(self, tmp_path: Path) -> None:
        storage = LocalStorage(tmp_path / "a b#%")
        storage.write("x?/ü #1", b"1")
        assert storage.get_path("x?/ü #1") == str(tmp_path / "a b#%" / "x?" / "ü #1")
        assert storage.location == (tmp_path / "a b#%").as_uri()
        with urllib.request.urlopen(storage.get_url("x?/ü #1")) as answer:
            assert answer.read() == b"1"

    def test_resolve_path_refuses_what_is_outside(self, storage: LocalStorage, base: Path) -> None:
        assert storage._resolve_path("a/b") == base.resolve() / "a" / "b"
        for bad in ("../x", "/etc/passwd", "a/../../x"):
            with pytest.raises(ValueError, match="outside base directory"):
                storage._resolve_path(bad)

    def test_names_that_are_not_utf8_round_trip(self, any_way: LocalStorage, base: Path) -> None:
        raw = [b"\x80", b"\xc3\xa9", b"\xff\xfe.bin", b"a\xf0\x9f\x98\x80", b"sub\xff/\xed\xa0\x80"]
        (base / os.fsdecode(b"sub\xff")).mkdir()
        for name in raw:
            Path(os.fsdecode(os.fsencode(base) + b"/" + name)).write_bytes(name)
        found = any_way.list()
        assert [os.fsencode(name) for name in found] == sorted(raw)
        assert [info.identifier for info in any_way.scan()] == found
        for identifier in found:
            assert any_way.read(identifier) == os.fsencode(identifier)
            any_way.copy(identifier, f"copies/{identifier}")
        assert [os.fsencode(name) for name in any_way.list("copies/**")] == sorted(
            b"copies/" + name for name in raw
        )

    def test_segment_may_have_255_bytes(self, any_way: LocalStorage) -> None:
        for name in ("x" * 255, "é" * 127 + "x", "sub/" + "y" * 255):
            any_way.write(name, b"1")
            assert any_way.read(name) == b"1"
            with pytest.raises(InvalidIdentifierError, match="256 bytes"):
                any_way.write(f"{name}z", b"1")
        assert len(any_way.list()) == 3

    def test_identifier_may_have_1024_bytes(self, any_way: LocalStorage) -> None:
        name = "/".join(["d" * 200] * 5)
        name += "x" * (1024 - len(name) - 1) + "y"
        assert len(name) == 1024
        any_way.write(name, b"1")
        assert any_way.list() == [name]

    def test_longer_names_on_disk_are_reported(self, storage: LocalStorage, base: Path) -> None:
        deep = base.joinpath(*["d" * 250] * 4)
        deep.mkdir(parents=True)
        (deep / "short").write_bytes(b"1")
        (deep / ("x" * 30)).write_bytes(b"1")
        (deep / "directory-of-some-length").mkdir()
        skipped: list[StorageError] = []
        found = [info.identifier for info in storage.scan(on_skip=skipped.append)]
        assert [name.rpartition("/")[2] for name in found] == ["short"]
        assert len(skipped) == 2
        assert all(isinstance(error, InvalidIdentifierError) for error in skipped)


class TestNoRegularFiles:
    def test_pipes_and_sockets_are_no_objects_and_nobody_waits(
        self, any_way: LocalStorage, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        os.mkfifo(base / "pipe")
        monkeypatch.chdir(base)  # a socket's address is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
        any_way.write("own", b"1")
        for name in ("pipe", "socket"):
            for act in (
                lambda name=name: any_way.read(name),
                lambda name=name: any_way.open(name),
                lambda name=name: any_way.size(name),
                lambda name=name: any_way.write(name, b""),
                lambda name=name: any_way.copy(name, "x"),
                lambda name=name: any_way.copy("own", name),
                lambda name=name: any_way.move(name, "x"),
                lambda name=name: any_way.move("own", name),
                lambda name=name: any_way.delete(name),
            ):
                with pytest.raises(NotAFileError, match="Not a regular file"):
                    act()
            assert any_way.exists(name) is False
        skipped: list[StorageError] = []
        assert [info.identifier for info in any_way.scan(on_skip=skipped.append)] == ["own"]
        assert [(error.identifier, type(error)) for error in skipped] == [
            ("pipe", NotAFileError),
            ("socket", NotAFileError),
        ]
        assert any_way.list() == ["own"]
        assert entries(base) == ["own", "pipe", "socket"]

    def test_directories_left_empty_give_way(self, any_way: LocalStorage, base: Path) -> None:
        any_way.write("a/b/c", b"1")
        any_way.delete("a/b/c")
        assert (base / "a" / "b").is_dir()
        any_way.write("a", b"2")
        assert any_way.read("a") == b"2"
        (base / "d" / "e").mkdir(parents=True)
        any_way.move("a", "d")
        assert any_way.list() == ["d"]
        (base / "f").mkdir()
        assert any_way.create("f", b"3") is True
        assert any_way.create("f", b"4") is False
        assert any_way.read("f") == b"3"

    def test_directory_with_anything_in_it_stays_whole(self, any_way: LocalStorage, base: Path) -> None:
        (base / "a" / "empty").mkdir(parents=True)
        (base / "a" / "later").mkdir()
        (base / "a" / "later" / "link").symlink_to("nowhere")
        before = all_names(base)
        any_way.write("own", b"1")
        acts: tuple[Callable[[], object], ...] = (
            lambda: any_way.write("a", b""),
            lambda: any_way.create("a", b""),
            lambda: any_way.move("own", "a"),
            lambda: any_way.copy("own", "a"),
        )
        for act in acts:
            with pytest.raises(AlreadyExistsError):
                act()
        assert all_names(base) == [*before, "own"]

    def test_hard_link_is_another_name_of_the_same_file(self, any_way: LocalStorage, base: Path) -> None:
        any_way.write("a", b"1")
        os.link(base / "a", base / "b")
        any_way.copy("a", "b")
        any_way.write("a", b"2")
        assert any_way.read("b") == b"1"

    @pytest.mark.parametrize("dest", ["b", "d/b"])
    def test_move_onto_a_hard_link_leaves_that_name_alone(
        self, any_way: LocalStorage, base: Path, dest: str
    ) -> None:
        any_way.write("a", b"1")
        (base / "d").mkdir()
        os.link(base / "a", base / "third")
        os.link(base / "a", base / dest)
        assert any_way.move("a", dest) is True
        assert any_way.list() == sorted([dest, "third"])
        assert any_way.read(dest) == b"1"
        assert any_way.move("third", dest) is True
        assert any_way.list() == [dest]
        assert any_way.move(dest, dest) is True
        assert any_way.read(dest) == b"1"
        assert all_names(base) == sorted({dest, "d"})


class TestModesAndTimes:
    def test_new_files_obey_the_umask(self, any_way: LocalStorage, base: Path) -> None:
        old = os.umask(0o027)
        try:
            any_way.write("d/a", b"1")
            any_way.copy("d/a", "b")
            any_way.create("c", b"")
        finally:
            os.umask(old)
        assert [mode_of(base / name) for name in ("d/a", "b", "c", "d")] == [0o640, 0o640, 0o640, 0o750]

    @pytest.mark.parametrize("mode", [0o600, 0o755, 0o666, 0o000, 0o4755])
    def test_overwritten_file_keeps_its_mode(self, any_way: LocalStorage, base: Path, mode: int) -> None:
        writes: tuple[Callable[[], object], ...] = (
            lambda: any_way.write("a", b"2"),
            lambda: any_way.write_stream("a", io.BytesIO(b"3")),
            lambda: any_way.copy("other", "a"),
        )
        any_way.write("other", b"4")
        any_way.write("a", b"1")
        for write in writes:
            (base / "a").chmod(mode)
            write()
            # As write(2) does, a new content takes the right to run as its owner away.
            assert mode_of(base / "a") == mode & 0o777

    def test_times_are_exact(self, any_way: LocalStorage, base: Path) -> None:
        moments = (
            datetime(2001, 2, 3, 4, 5, 6, 123457, UTC),
            datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
            datetime(2038, 1, 19, 3, 14, 8, 1, UTC),
        )
        for moment in moments:
            any_way.write_stream("a", io.BytesIO(b"1"), info=ObjectInfo("a", modified=moment))
            info = any_way.stat("a")
            assert info.modified == moment
            assert info == next(iter(any_way.scan()))
            assert info.etag is None
        os.utime(base / "a", ns=(1, 1_700_000_000_123_456_789))
        any_way.copy("a", "b")
        any_way.upload(base / "a", "c")
        any_way.move("b", "d")
        for name in ("c", "d"):
            assert (base / name).stat().st_mtime_ns == 1_700_000_000_123_456_789

    def test_time_beyond_all_calendars_is_unknown(self, in_memory: Path) -> None:
        storage = LocalStorage(in_memory)
        storage.write("a", b"1")
        os.utime(in_memory / "a", (1e12, 1e12))
        if (in_memory / "a").stat().st_mtime < 1e12:
            pytest.skip("this file system has no such times")
        assert storage.stat("a") == ObjectInfo("a", 1)
        assert list(storage.scan()) == [ObjectInfo("a", 1)]


class TestReading:
    def test_reader_keeps_to_what_it_opened(self, any_way: LocalStorage) -> None:
        old, new = b"old" * 100_000, b"new" * 100_000
        any_way.write("a", old)
        with any_way.open("a") as reader:
            start = reader.read(10)
            any_way.write("a", new)
            assert start + reader.read() == old
            any_way.delete("a")
            reader.seek(-3, io.SEEK_END)
            assert reader.read() == b"old"

    def test_file_that_is_cut_while_read_by_range_is_noticed(
        self, storage: LocalStorage, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage.write("a", bytes(100))
        real = os.pread

        def cut_first(fd: int, count: int, offset: int) -> bytes:
            os.truncate(base / "a", 10)
            return real(fd, count, offset)

        monkeypatch.setattr(os, "pread", cut_first)  # the only moment between looking and reading
        with pytest.raises(SourceChangedError, match="truncated"):
            storage.read_range("a", 0, 50)

    def test_huge_range_of_a_small_file_takes_little_memory(self, storage: LocalStorage) -> None:
        storage.write("a", b"123")
        assert storage.read_range("a", 1, 1 << 60) == b"23"

    def test_late_errors_of_a_reader_are_ours(self, storage: LocalStorage) -> None:
        storage.write("a", bytes(1 << 20))
        reader = storage.open("a")
        reader.read(1)
        os.close(reader.fileno())
        # What stands in its place is a directory: a read of it fails as a broken disk's would.
        taken = os.open("/", os.O_RDONLY)
        try:
            with pytest.raises(NotAFileError) as caught:
                reader.read()
            assert caught.value.identifier == "a"
            assert caught.value.backend == storage.location
        finally:
            reader.close()
            assert taken >= 0

    @pytest.mark.parametrize("way", few(ALL_WAYS, 1))
    def test_writer_that_replaces_shows_whole_versions_only(
        self, way: type[LocalStorage], in_memory: Path
    ) -> None:
        storage = way(in_memory)
        storage.write("a", b"\x00" * 5000)
        writer = subprocess.Popen(
            [sys.executable, "-c", _VERSIONS, in_memory, way.__name__],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        reads = 0
        versions = set()
        while writer.poll() is None:
            for _ in range(100):
                content = storage.read("a")
                assert len(content) == 5000 + content[0] * 7
                assert content == content[:1] * len(content)
                versions.add(content[0])
                reads += 1
        assert writer.returncode == 0
        assert writer.stdout.read() == b"10000\n"
        writer.stdout.close()
        assert reads > 2000
        assert len(versions) > 50


_VERSIONS = """
import sys
import time
from tests.backends import local_ways
way = getattr(local_ways, sys.argv[2])
storage = way(sys.argv[1])
print("ready", flush=True)
writes = 0
for number in range(10_000):
    version = number % 251
    storage.write("a", bytes([version]) * (5000 + version * 7))
    writes += 1
print(writes, flush=True)
"""


class Killer:
    """Kills this process at the nth line of the package that it comes to (as a function for `sys.settrace`)."""

    def __init__(self, line: int) -> None:
        self._left = line

    def __call__(self, frame: FrameType, event: str, _: object) -> Self:
        if event == "line" and "/storage_backend/" in frame.f_code.co_filename:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def dead_name() -> str:
    """A temporary name of a process that has ended."""
    return subprocess.run(
        [sys.executable, "-c", "from storage_backend.owners import temporary_name as n; print(n())"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout.strip()


class TestInterruptedWrites:
    def test_killed_writer_leaves_the_old_object(self, any_way: LocalStorage, base: Path) -> None:
        any_way.write("a", b"old")
        writer = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(base), type(any_way).__name__],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert any_way.read("a") == b"old"
        assert any_way.list() == ["a"]
        assert [info.identifier for info in any_way.scan()] == ["a"]
        left = [name for name in entries(base) if name != "a"]
        if any_way._tmpfile and hasattr(os, "O_TMPFILE"):
            assert left == []
        else:
            assert [name[:5] for name in left] == [".~sb-"]
        any_way.write("a", b"new")
        assert any_way.read("a") == b"new"

    def test_what_a_kill_left_is_removed_by_the_next_write_to_that_directory(
        self, any_way: LocalStorage, base: Path
    ) -> None:
        any_way.write("d/a", b"old")
        any_way.write("a", b"old")
        gone = dead_name()
        kept = [temporary_name(), ".~sb-of-another-version"]
        for name in (gone, *kept):
            (base / "d" / name).write_bytes(b"half")
        acts: tuple[Callable[[LocalStorage], object], ...] = (
            lambda storage: storage.write("d/a", b"new"),
            lambda storage: storage.write("d/b", b"new"),
            lambda storage: storage.create("d/c", b"new"),
            lambda storage: storage.write_stream("d/a", io.BytesIO(b"new")),
        )
        for act in acts:
            (base / "d" / gone).write_bytes(b"half")
            any_way.write("a", b"elsewhere")
            assert gone in entries(base / "d")
            act(type(any_way)(base))
            assert gone not in entries(base / "d")
        assert set(kept) < set(entries(base / "d"))

    def test_first_write_to_a_large_directory_does_not_wait_for_a_listing(
        self, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leftovers, "_FIRST_SECONDS", 0.0)  # as if all were large
        name = dead_name()
        for number in range(3):
            (base / "d").mkdir(parents=True, exist_ok=True)
            (base / "d" / name).with_name(f"{name}-{number}").write_bytes(b"")
        storage = LocalStorage(base)
        storage.write("d/a", b"1")
        assert len(entries(base / "d")) >= 3  # it looked at one entry
        deadline = time.monotonic() + 10
        while len(entries(base / "d")) > 1 and time.monotonic() < deadline:
            storage.write("d/a", b"2")
        assert entries(base / "d") == ["a"]

    @pytest.mark.parametrize("way", [LocalStorage, NamingStorage])
    def test_crash_at_any_line_leaves_the_old_object_or_the_new(
        self, way: type[LocalStorage], base: Path
    ) -> None:
        storage = way(base)
        found = set()
        for line in itertools.count(1):
            storage.write("d/a", b"old")
            child = os.fork()
            if child == 0:
                sys.settrace(Killer(line))
                storage.write("d/a", b"new")
                os._exit(0)
            _, status = os.waitpid(child, 0)
            found.add(storage.read("d/a"))
            assert storage.list() == ["d/a"]
            if status == 0:
                break
        assert found == {b"old", b"new"}
        way(base).write("d/a", b"last")
        assert entries(base / "d") == ["a"]

    def test_forked_child_leaves_its_parents_write_alone(self, any_way: LocalStorage) -> None:
        writer = any_way.open("a", "wb")
        writer.write(b"1")
        child = os.fork()
        if child == 0:
            writer._sink.discard()  # type: ignore[attr-defined]  # as the child's finalisers would
            os._exit(0)
        os.waitpid(child, 0)
        writer.close()
        assert any_way.read("a") == b"1"

    def test_collected_writer_leaves_nothing(self, any_way: LocalStorage, base: Path) -> None:
        before = descriptors()
        writer = any_way.open("a", "wb")
        writer.write(b"1")
        del writer
        gc.collect()
        assert entries(base) == []
        assert descriptors() == before

    def test_directory_removed_while_writing_is_made_again(self, any_way: LocalStorage, base: Path) -> None:
        def remove() -> None:
            # A temporary name keeps its directory, a file without a name does not.
            if (base / "d").exists() and not any((base / "d" / "e").iterdir()):
                (base / "d" / "e").rmdir()
                (base / "d").rmdir()

        (base / "d" / "e").mkdir(parents=True)
        any_way.write_stream("d/e/f", Source(b"12345", watch=remove).as_binary())
        assert any_way.read("d/e/f") == b"12345"

    def test_content_changed_on_disk_before_publication_is_noticed(self, base: Path) -> None:
        storage = NamingStorage(base)
        storage.write("a", b"old")

        def spoil() -> None:
            for path in base.glob(".~sb-*"):
                if path.stat().st_size == 4:
                    with path.open("r+b") as file:
                        file.write(b"X")

        source = Source(b"12345678", most=4, watch=spoil)
        with pytest.raises(IntegrityError):
            storage.write_stream("a", source.as_binary(), verify=True)
        assert storage.read("a") == b"old"
        assert entries(base) == ["a"]

    def test_file_system_that_gives_nothing_by_the_descriptor_that_wrote(
        self, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a mount of rclone's without a cache, on which this was tried: a file is there once it was closed."""
        really = os.open

        def for_writing_only(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
            if flags & os.O_CREAT and flags & os.O_RDWR:
                flags = flags & ~os.O_RDWR | os.O_WRONLY
            return really(path, flags, *arguments, **keywords)

        monkeypatch.setattr(os, "open", for_writing_only)
        storage = NamingStorage(base)
        for content in (b"new", b"", bytes(range(256)) * 4096):
            assert storage.write_stream("d/a", io.BytesIO(content), verify=True)
            assert storage.read("d/a") == content
            assert entries(base / "d") == ["a"]

    def test_file_that_grows_while_it_is_copied_is_noticed(
        self, storage: LocalStorage, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage.write("a", bytes(100))
        storage.write("b", b"old")
        copied = os.copy_file_range
        growth = [b"more"]

        def copy_and_grow(*arguments: int) -> int:
            moved = copied(*arguments)
            if growth:
                with (base / "a").open("ab") as file:
                    file.write(growth.pop())
            return moved

        monkeypatch.setattr(os, "copy_file_range", copy_and_grow)  # the only moment between two looks
        with pytest.raises(SourceChangedError):
            storage.copy("a", "b")
        assert storage.read("b") == b"old"


_KILLED = """
import sys, time
from tests.backends import local_ways
way = getattr(local_ways, sys.argv[2])
storage = way(sys.argv[1])
with storage.open("a", "wb") as writer:
    writer.write(bytes(1 << 20))
    print("half", flush=True)
    sys.stdin.read()
    time.sleep(60)
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user can reach; pytest's own are their maker's."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


class TestDenied:
    @pytest.mark.parametrize("way", few(ALL_WAYS, 1))
    def test_denial_is_neither_absence_nor_emptiness(self, way: type[LocalStorage], shared: Path) -> None:
        storage = way(shared)
        storage.write("open/file", b"1")
        storage.write("file", b"1")
        storage.write("closed/file", b"1")
        (shared / "file").chmod(0)
        (shared / "closed").chmod(0)
        acts: dict[str, Callable[[], object]] = {
            "read": lambda: storage.read("file"),
            "open": lambda: storage.open("file"),
            "range": lambda: storage.read_range("file", 0, 1),
            "copy": lambda: storage.copy("file", "x"),
            "exists": lambda: storage.exists("closed/file"),
            "size": lambda: storage.size("closed/file"),
            "read below": lambda: storage.read("closed/file"),
            "write": lambda: storage.write("new", b"1"),
            "write below": lambda: storage.write("closed/new", b"1"),
            "write deep": lambda: storage.write("new/new", b"1"),
            "overwrite": lambda: storage.write("open/file", b"2"),
            "create": lambda: storage.create("new", b"1"),
            "writer": lambda: storage.open("new", "wb").close(),
            "delete": lambda: storage.delete("file"),
            "move": lambda: storage.move("open/file", "open/x"),
            "list": storage.list,
            "scan": lambda: list(storage.scan()),
            "scan below": lambda: list(storage.scan("closed/f")),
        }
        try:
            for name, act in acts.items():
                error = as_nobody(act)
                assert type(error) is AccessDeniedError, f"{name}: {error!r}"
                assert error.backend == storage.location
                assert error.identifier is not None
            assert as_nobody(lambda: storage.exists("file")) is True
            assert as_nobody(lambda: storage.size("file")) == 1
            assert as_nobody(lambda: storage.read("open/file")) == b"1"
            assert as_nobody(lambda: storage.list("open/*")) == ["open/file"]
            denied = as_nobody(lambda: list(storage.read_many(["file", "open/file"])))
            assert isinstance(denied, BatchError)
            assert [type(error) for error in denied.failures.values()] == [AccessDeniedError]
        finally:
            (shared / "closed").chmod(0o755)
        assert storage.read("open/file") == b"1"

    def test_base_directory_that_may_not_be_made_is_denied(self, shared: Path) -> None:
        assert type(as_nobody(lambda: LocalStorage(shared / "base"))) is AccessDeniedError

    @pytest.mark.parametrize("way", WAYS)
    def test_directory_that_may_only_be_passed_through_serves(
        self, way: type[LocalStorage], shared: Path
    ) -> None:
        storage = way(shared)
        storage.write("d/file", b"1")
        (shared / "d").chmod(0o711)
        assert as_nobody(lambda: storage.read("d/file")) == b"1"
        assert as_nobody(lambda: storage.exists("d/file")) is True
        assert type(as_nobody(storage.list)) is AccessDeniedError

    def test_others_cannot_read_a_private_file_while_it_is_rewritten(self, shared: Path) -> None:
        storage = NamingStorage(shared)
        storage.write("a", b"1")
        (shared / "a").chmod(0o600)
        with storage.open("a", "wb") as writer:
            writer.write(b"2")
            (staged,) = shared.glob(".~sb-*")
            assert mode_of(staged) == 0o600


class TestFullDisk:
    @pytest.mark.parametrize("way", ALL_WAYS)
    def test_full_disk_keeps_the_old_object(self, way: type[LocalStorage], tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk") as disk:
            storage = way(disk)
            storage.write("a", b"old" * 10_000)
            big = bytes(2 << 20)
            (tmp_path / "big").write_bytes(big)
            elsewhere = LocalStorage(tmp_path)

            def stream() -> None:
                with elsewhere.open("big") as reader:
                    storage.write_stream("a", reader)

            def writer() -> None:
                with storage.open("a", "wb") as sink:
                    for _ in range(64):
                        sink.write(big[: 64 << 10])

            for act in (
                lambda: storage.write("a", big),
                lambda: storage.write("new/b", big),
                lambda: storage.create("b", big),
                lambda: storage.upload(tmp_path / "big", "a"),
                lambda: storage.write_many([("c", b"fits"), ("a", big), ("d", b"never tried")]),
                stream,
                writer,
            ):
                with pytest.raises(QuotaExceededError) as caught:
                    act()
                assert caught.value.errno == errno.ENOSPC
                assert storage.read("a") == b"old" * 10_000
            assert storage.list() == ["a", "c"]
            assert not [name for name in all_names(disk) if ".~sb-" in name]
            storage.write("a", b"new")  # what failed has been given back
            assert storage.read("a") == b"new"

    @pytest.mark.parametrize("way", WAYS)
    def test_move_onto_another_file_system_copies(self, way: type[LocalStorage], base: Path) -> None:
        storage = way(base)
        storage.write("a", b"1" * 1000)
        os.utime(base / "a", ns=(1, 1_234_567_890_123_456_789))
        with small_disk(base / "mounted"):
            storage.move("a", "mounted/x")
            assert storage.list() == ["mounted/x"]
            assert storage.read("mounted/x") == b"1" * 1000
            assert (base / "mounted" / "x").stat().st_mtime_ns == 1_234_567_890_123_456_789
            storage.write("b", bytes(2 << 20))
            with pytest.raises(QuotaExceededError):
                storage.move("b", "mounted/x")
            assert storage.size("b") == 2 << 20
            assert storage.read("mounted/x") == b"1" * 1000
            storage.move("mounted/x", "back")
            assert storage.read("back") == b"1" * 1000
            assert storage.list() == ["b", "back"]


class TestDurable:
    @pytest.mark.parametrize("way", ALL_WAYS)
    def test_file_is_synced_before_it_is_named_and_directories_after(
        self, way: type[LocalStorage], base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage = way(base, durable=True)
        synced: list[tuple[str, bool]] = []
        real = os.fsync

        def note(fd: int) -> None:
            path = Path(f"/proc/self/fd/{fd}").readlink()
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            what = os.path.relpath(path, base) if is_directory else "the file"
            synced.append((what, storage.exists("new/deep/a")))
            real(fd)

        if not Path("/proc/self/fd").is_dir():
            pytest.skip("descriptors have no names here")
        monkeypatch.setattr(os, "fsync", note)  # nothing short of pulling the plug shows more
        storage.write("new/deep/a", b"1")
        assert synced[0] == ("the file", False)
        assert sorted(synced[1:]) == [(".", True), ("new", True), ("new/deep", True)]
        synced.clear()
        storage.write("new/deep/a", b"2")
        assert synced == [("the file", True), ("new/deep", True)]
        synced.clear()
        storage.move("new/deep/a", "other/b")
        assert sorted(synced) == [(".", False), ("new/deep", False), ("other", False)]
        synced.clear()
        storage.delete("other/b")
        assert synced == [("other", False)]

    def test_base_directory_is_synced_into_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced = []
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))  # as above
        LocalStorage(tmp_path / "a" / "b", durable=True)
        assert synced == [tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino]

    def test_flush_returns(self, any_way: LocalStorage) -> None:
        any_way.write("a", b"1")
        assert any_way.flush() is True


class TestWalking:
    def test_deep_tree_takes_few_descriptors(self, any_way: LocalStorage, base: Path) -> None:
        depth = 400
        expected = ["/".join(["d"] * level + ["f"]) for level in range(depth)]
        expected += ["/".join(["d"] * level + ["z"]) for level in range(depth)]
        for name in expected:
            path = base / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"1")
        before = len(descriptors())
        most = 0
        found = []
        for info in any_way.scan():
            found.append(info.identifier)
            most = max(most, len(descriptors()) - before)
        assert found == sorted(expected)
        assert most < 50
        assert any_way.list() == found
        assert len(descriptors()) == before

    def test_abandoned_scan_closes_what_it_opened(self, any_way: LocalStorage) -> None:
        any_way.write("a/b/c", b"1")
        any_way.write("a/b/d", b"1")
        before = len(descriptors())
        scan = any_way.scan()
        next(scan)
        assert len(descriptors()) > before
        del scan
        gc.collect()
        assert len(descriptors()) == before

    def test_directory_swapped_while_it_is_walked_leads_nowhere_else(
        self, any_way: LocalStorage, base: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "outside" / "d").mkdir(parents=True)
        (tmp_path / "outside" / "secret").write_bytes(b"2")
        (tmp_path / "outside" / "z").write_bytes(b"22")
        for name in ("a/1", "b/1", "b/2", "c/1"):
            any_way.write(name, b"1")
        scan = any_way.scan()
        assert next(scan).identifier == "a/1"
        (base / "b").rename(tmp_path / "b")
        (base / "b").symlink_to(tmp_path / "outside")
        assert [info.identifier for info in scan] == ["c/1"]

    def test_directory_swapped_while_its_descriptor_was_given_up_leads_nowhere_else(
        self, any_way: LocalStorage, base: Path, tmp_path: Path
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "z").write_bytes(b"secret")
        deep = "/".join(["d"] * 60)
        for level in range(1, 60):
            path = base.joinpath(*["d"] * level)
            path.mkdir(exist_ok=True)
            (path / "z").write_bytes(b"1")
        any_way.write(f"{deep}/f", b"1")
        scan = any_way.scan()
        assert next(scan).identifier == f"{deep}/f"
        # The third directory from the top is long closed by now; the names that were found in it are not looked up outside.
        third = base / "d" / "d" / "d"
        third.rename(tmp_path / "moved")
        third.symlink_to(outside)
        rest = [(info.identifier, info.size) for info in scan]
        assert {size for _, size in rest} == {1}
        assert ("d/d/d/z", 1) not in rest
        assert ("d/d/z", 1) in rest

    def test_what_vanishes_meanwhile_is_left_out(self, any_way: LocalStorage, base: Path) -> None:
        for name in ("a", "b", "c/d", "e/f/g", "h"):
            any_way.write(name, b"1")
        skipped: list[StorageError] = []
        scan = any_way.scan(on_skip=skipped.append)
        assert next(scan).identifier == "a"
        (base / "b").unlink()
        (base / "c" / "d").unlink()
        (base / "c").rmdir()
        (base / "e").rename(base / "i")
        assert [info.identifier for info in scan] == ["h"]
        assert skipped == []

    def test_symlinked_directory_is_reported_and_not_walked(
        self, any_way: LocalStorage, base: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        any_way.write("real/a", b"1")
        (base / "link").symlink_to("real")
        assert any_way.list() == ["real/a"]
        assert "link" in caplog.text

    @pytest.mark.parametrize(
        "prefix",
        [
            "/",
            "..",
            "../",
            "./",
            "real//",
            "real/../",
            "\0",
            "\udc61",
            "x" * 5000,
            ".~sb-",
            "link/",
            "link/a",
        ],
    )
    def test_odd_prefix_is_literal(self, any_way: LocalStorage, base: Path, prefix: str) -> None:
        any_way.write("real/a", b"1")
        (base / "link").symlink_to("real")
        (base / ".~sb-0").mkdir()
        (base / ".~sb-0" / "x").write_bytes(b"1")
        (base / ".~sb-1").write_bytes(b"1")
        assert list(any_way.scan(prefix)) == []
        assert list(any_way.scan(f"{prefix}/x")) == []
        assert any_way.list() == ["real/a"]

    def test_pattern_looks_only_where_it_can_match(self, shared: Path) -> None:
        storage = LocalStorage(shared)
        for name in ("a/x.txt", "a/deep/y.txt", "closed/z.txt", "top.txt"):
            storage.write(name, b"1")
        (shared / "closed").chmod(0)
        try:
            for pattern, expected in {
                "*.txt": ["top.txt"],
                "a/*": ["a/x.txt"],
                "a/**": ["a/deep/y.txt", "a/x.txt"],
                "a/*/y.txt": ["a/deep/y.txt"],
                "[ab]/**/y.txt": ["a/deep/y.txt"],
            }.items():
                assert as_nobody(partial(storage.list, pattern)) == expected
            assert type(as_nobody(lambda: storage.list("**/*.txt"))) is AccessDeniedError
        finally:
            (shared / "closed").chmod(0o755)


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (errno.EDQUOT, QuotaExceededError),
            (errno.EROFS, AccessDeniedError),
            (errno.EPERM, AccessDeniedError),
            (errno.ENAMETOOLONG, InvalidIdentifierError),
            (errno.EXDEV, InvalidIdentifierError),
            (errno.EMFILE, UnavailableError),
            (errno.ESTALE, UnavailableError),
            (errno.EIO, StorageError),
            (errno.ENOTDIR, NotFoundError),
        ],
    )
    def test_each_error_has_its_class_and_stands_alone(self, code: int, kind: type[StorageError]) -> None:
        error = translate(OSError(code, os.strerror(code)), "a/b", "file:///base")
        assert type(error) is kind
        assert (error.identifier, error.backend) == ("a/b", "file:///base")
        assert "'a/b' in file:///base" in str(error)
        assert error.errno is not None
        assert not str(error).startswith("[Errno")
        again = pickle.loads(pickle.dumps(error))
        assert vars(again) == vars(error)

    def test_read_only_file_system_denies(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk") as disk:
            storage = LocalStorage(disk)
            storage.write("a", b"1")
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            acts: tuple[Callable[[], object], ...] = (
                lambda: storage.write("a", b"2"),
                lambda: storage.delete("a"),
                lambda: storage.move("a", "b"),
                lambda: storage.write("new/b", b"2"),
            )
            for act in acts:
                with pytest.raises(AccessDeniedError, match="read-only"):
                    act()
            assert storage.read("a") == b"1"

    def test_error_of_a_source_stays_the_sources_own(self, any_way: LocalStorage) -> None:
        def broken(start: int, end: int) -> bytes:
            raise OSError(errno.ENOSPC, "the source's own trouble")

        any_way.write("a", b"old")
        with pytest.raises(OSError, match="the source's own trouble") as caught:
            any_way.write_stream("a", ranged_reader(broken, 10))
        assert not isinstance(caught.value, StorageError)
        assert any_way.read("a") == b"old"

    def test_download_says_what_is_wrong_with_its_own_path(
        self, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(destinations, "READER_PATIENCE", 0.1)
        storage.write("a", b"1")
        os.mkfifo(tmp_path / "pipe")
        for place in (tmp_path / "pipe", tmp_path):
            with pytest.raises(OSError) as caught:
                storage.download("a", place)
            assert not isinstance(caught.value, StorageError)
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
