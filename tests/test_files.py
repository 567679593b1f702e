"""Files that appear whole or not at all, and copying by the kernel where it can."""

from __future__ import annotations

import errno
import filecmp
import os
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from storage_backend import (
    CachedStorage,
    LocalStorage,
    MemoryStorage,
    NotAFileError,
    QuotaExceededError,
    StorageBackend,
)
from storage_backend.destinations import write_file
from storage_backend.files import StagedFile, copy_descriptor
from storage_backend.paths import state_directory
from tests.backends.local_ways import NOBODY, as_nobody, small_disk
from tests.seven import Seven

pytestmark = pytest.mark.quick


def staged_in(place: Path, name: str, *, anonymous: bool) -> StagedFile:
    return StagedFile(os.open(place, os.O_RDONLY | os.O_DIRECTORY), name, anonymous=anonymous)


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


@pytest.mark.parametrize("anonymous", [True, False])
class TestStagedFile:
    def test_it_appears_whole(self, tmp_path: Path, anonymous: bool) -> None:
        staged = staged_in(tmp_path, "a", anonymous=anonymous)
        staged.write(b"12")
        staged.write(memoryview(b"3456").cast("H"))
        assert staged.size == 6
        assert not (tmp_path / "a").exists()
        staged.publish()
        staged.discard()
        staged.discard()
        assert (tmp_path / "a").read_bytes() == b"123456"
        assert names(tmp_path) == ["a"]

    def test_discarded_it_leaves_nothing(self, tmp_path: Path, anonymous: bool) -> None:
        (tmp_path / "a").write_bytes(b"old")
        before = names(Path("/dev/fd"))
        staged = staged_in(tmp_path, "a", anonymous=anonymous)
        staged.write(b"new")
        staged.discard()
        assert names(tmp_path) == ["a"]
        assert (tmp_path / "a").read_bytes() == b"old"
        assert names(Path("/dev/fd")) == before

    def test_it_overwrites_or_refuses_to(self, tmp_path: Path, anonymous: bool) -> None:
        (tmp_path / "a").write_bytes(b"old")
        staged = staged_in(tmp_path, "a", anonymous=anonymous)
        staged.write(b"new")
        with pytest.raises(FileExistsError):
            staged.publish(overwrite=False)
        assert (tmp_path / "a").read_bytes() == b"old"
        staged.publish()
        staged.discard()
        assert (tmp_path / "a").read_bytes() == b"new"
        assert names(tmp_path) == ["a"]

    def test_of_many_that_do_not_overwrite_one_wins(self, tmp_path: Path, anonymous: bool) -> None:
        barrier = threading.Barrier(8)
        outcomes: list[bytes | None] = []

        def create(content: bytes) -> None:
            staged = staged_in(tmp_path, "a", anonymous=anonymous)
            staged.write(content)
            barrier.wait()
            try:
                staged.publish(overwrite=False)
            except FileExistsError:
                outcomes.append(None)
            else:
                outcomes.append(content)
            finally:
                staged.discard()

        threads = [threading.Thread(target=create, args=(bytes([number]),)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [content for content in outcomes if content is not None]
        assert (tmp_path / "a").read_bytes() == winner
        assert len(outcomes) == 8
        assert names(tmp_path) == ["a"]

    def test_no_device_is_replaced(self, tmp_path: Path, anonymous: bool) -> None:
        os.mkfifo(tmp_path / "pipe")
        before = names(Path("/dev/fd"))

        def replace() -> None:
            staged = staged_in(tmp_path, "pipe", anonymous=anonymous)
            try:
                staged.publish()
            finally:
                staged.discard()

        with pytest.raises(OSError) as caught:
            replace()
        assert caught.value.errno == errno.ENXIO
        assert (tmp_path / "pipe").is_fifo()
        assert names(tmp_path) == ["pipe"]
        assert names(Path("/dev/fd")) == before

    def test_directory_is_not_replaced(self, tmp_path: Path, anonymous: bool) -> None:
        (tmp_path / "a").mkdir()
        staged = staged_in(tmp_path, "a", anonymous=anonymous)
        with pytest.raises(IsADirectoryError):
            staged.publish()
        (tmp_path / "a").rmdir()
        staged.publish()
        staged.discard()
        assert names(tmp_path) == ["a"]

    def test_it_may_move_to_another_directory(self, tmp_path: Path, anonymous: bool) -> None:
        if not anonymous:
            pytest.skip("a temporary name keeps its directory from being removed")
        (tmp_path / "old").mkdir()
        staged = staged_in(tmp_path / "old", "a", anonymous=anonymous)
        staged.write(b"1")
        (tmp_path / "old").rmdir()
        with pytest.raises(FileNotFoundError):
            staged.publish()
        staged.move_to(os.open(tmp_path, os.O_RDONLY))
        staged.publish()
        staged.discard()
        assert (tmp_path / "a").read_bytes() == b"1"


class TestCopyDescriptor:
    def test_between_file_systems(self, tmp_path: Path) -> None:
        """Where the kernel refuses to copy by itself; a pipe is such a place on every machine."""
        content = os.urandom(300_000)
        reader, writer = os.pipe()

        def fill() -> None:
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(content)

        thread = threading.Thread(target=fill)
        thread.start()
        with os.fdopen(reader, "rb") as pipe, (tmp_path / "a").open("wb") as target:
            assert copy_descriptor(pipe.fileno(), target.fileno()) == len(content)
        thread.join()
        assert (tmp_path / "a").read_bytes() == content

    def test_from_the_position_to_the_end(self, tmp_path: Path) -> None:
        content = os.urandom(1_000_000)
        (tmp_path / "a").write_bytes(content)
        with (tmp_path / "a").open("rb", buffering=0) as source, (tmp_path / "b").open("wb", 0) as target:
            source.seek(10)
            target.write(b"start")
            assert copy_descriptor(source.fileno(), target.fileno()) == len(content) - 10
        assert (tmp_path / "b").read_bytes() == b"start" + content[10:]

    def test_file_that_does_not_know_its_size(self, tmp_path: Path) -> None:
        if not Path("/proc/self/status").exists():
            pytest.skip("no file of such a kind here")
        with Path("/proc/version").open("rb", buffering=0) as source, (tmp_path / "a").open("wb") as target:
            assert copy_descriptor(source.fileno(), target.fileno()) > 0
        assert (tmp_path / "a").read_bytes() == Path("/proc/version").read_bytes()


class TestWriteFile:
    def test_directories_are_created_and_failure_leaves_the_old_file(self, tmp_path: Path) -> None:
        place = tmp_path / "new" / "deep" / "file"
        write_file(place, lambda staged: staged.write(b"1"))
        assert place.read_bytes() == b"1"

        def fail(staged: StagedFile) -> None:
            staged.write(b"2")
            raise RuntimeError("half-way")

        with pytest.raises(RuntimeError, match="half-way"):
            write_file(place, fail)
        assert place.read_bytes() == b"1"
        assert names(place.parent) == ["file"]

    def test_a_symbolic_link_stays_and_what_it_leads_to_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "far").mkdir()
        target = tmp_path / "far" / "file"
        monkeypatch.chdir(tmp_path)
        for number, (name, to) in enumerate(
            {"relative": "far/file", "absolute": str(target), "over": "relative", "way": "far"}.items()
        ):
            link = tmp_path / name
            link.symlink_to(to)
            content = b"%d" % number
            if name == "absolute":
                target.unlink()  # a link to nothing yet

            def fill(staged: StagedFile, content: bytes = content) -> None:
                staged.write(content)

            write_file(link / "file" if name == "way" else name, fill)
            assert link.readlink() == Path(to)
            assert target.read_bytes() == content
            assert not target.is_symlink()
            assert names(target.parent) == ["file"]
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(OSError, match="loop") as caught:
            write_file("loop", lambda staged: staged.write(b"x"))
        assert caught.value.errno == errno.ELOOP
        # What cannot be written is no reason to replace the link.
        (tmp_path / "directory").symlink_to("far")
        with pytest.raises(IsADirectoryError):
            write_file("directory", lambda staged: staged.write(b"x"))
        assert (tmp_path / "directory").is_symlink()

    @pytest.mark.parametrize("spelt", ["fifo", "link", "/dev/fd/{}", "/proc/self/fd/{}"])
    def test_a_pipe_is_given_the_content_once_it_is_whole(self, tmp_path: Path, spelt: str) -> None:
        content = os.urandom(300_000)
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        (tmp_path / "link").symlink_to("fifo")
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
        reader.start()
        writer = os.open(fifo, os.O_WRONLY)
        os.set_blocking(writer, False)  # a descriptor that is shared may be so
        path = spelt.format(writer) if spelt[0] == "/" else tmp_path / spelt

        def fail(staged: StagedFile) -> None:
            staged.write(b"2")
            raise RuntimeError("half-way")

        with pytest.raises(RuntimeError, match="half-way"):
            write_file(path, fail)
        write_file(path, lambda staged: staged.write(content))
        os.close(writer)
        reader.join()
        assert got == [content]
        assert names(tmp_path) == ["fifo", "link"]
        assert fifo.is_fifo()

    def test_an_open_file_is_gone_on_with(self, tmp_path: Path) -> None:
        """As a shell's `>> log`, and as its `> log` with others that write to it, too."""
        with (tmp_path / "log").open("ab") as log:
            log.write(b"old,")
            log.flush()
            write_file(f"/dev/fd/{log.fileno()}", lambda staged: staged.write(b"new,"))
            log.write(b"later")
        assert (tmp_path / "log").read_bytes() == b"old,new,later"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
    def test_a_device_is_written_to_and_never_replaced(self, tmp_path: Path) -> None:
        for name, minor in (("null", 3), ("full", 7)):
            os.mknod(tmp_path / name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        (tmp_path / "link").symlink_to("null")
        for name in ("null", "link"):
            write_file(tmp_path / name, lambda staged: staged.write(b"1"))
        with pytest.raises(QuotaExceededError, match=rf"no space left for this user: {tmp_path}/full\Z"):
            write_file(tmp_path / "full", lambda staged: staged.write(b"1"))
        assert (tmp_path / "null").is_char_device()
        assert (tmp_path / "full").is_char_device()
        assert (tmp_path / "link").is_symlink()

    def test_errors_name_the_file(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk") as disk:
            with pytest.raises(
                QuotaExceededError, match=rf"no space left for this user: {disk}/big\Z"
            ) as full:
                write_file(disk / "big", lambda staged: staged.write(os.urandom(2 << 20)))
            assert full.value.errno == errno.ENOSPC
            assert names(disk) == []
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            for place in (disk / "a", disk / "d" / "a"):
                with pytest.raises(OSError, match=f"Read-only file system: '{disk}/"):
                    write_file(place, lambda staged: staged.write(b"1"))
        (tmp_path / "file").touch()
        with pytest.raises(FileExistsError, match=f"'{tmp_path}/file'"):
            write_file(tmp_path / "file" / "x", lambda staged: staged.write(b"1"))
        with pytest.raises(IsADirectoryError, match=f"'{tmp_path}/disk'"):
            write_file(tmp_path / "disk", lambda staged: staged.write(b"1"))


class TestStateDirectory:
    def test_it_is_where_the_user_says_or_below_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        for given, expected in (
            ("/state", "/state/storage-backend"),
            ("", "/home/me/.local/state/storage-backend"),
        ):
            monkeypatch.setenv("XDG_STATE_HOME", given)
            assert state_directory() == Path(expected)
        monkeypatch.delenv("XDG_STATE_HOME")
        assert state_directory() == Path(expected)

    def test_user_without_a_home_is_told_what_to_set(self) -> None:
        # A container may run as a user that no file knows.
        if os.getuid() != 0:
            pytest.skip("only root can become another user")
        program = "import os, pwd; from storage_backend.paths import state_directory; os.setuid(54321); state_directory()"
        environment = {
            name: value for name, value in os.environ.items() if name not in {"HOME", "XDG_STATE_HOME"}
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        assert "ConfigurationError: no directory for state" in done.stderr
        assert "set XDG_STATE_HOME" in done.stderr


@pytest.mark.parametrize("backend", ["memory", "local", "seven"])
def test_upload_takes_pipes_that_are_open_and_refuses_named_ones(tmp_path: Path, backend: str) -> None:
    storages: dict[str, StorageBackend] = {
        "memory": MemoryStorage(),
        "local": LocalStorage(tmp_path / "base"),
        "seven": Seven(),
    }
    storage = storages[backend]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotAFileError, match="named pipe"):
        storage.upload(tmp_path / "pipe", "a")
    assert not storage.exists("a")
    for path in ("/dev/fd/{}", "/proc/self/fd/{}"):
        reading, writing = os.pipe()
        os.write(writing, b"content")
        os.close(writing)
        try:
            assert storage.upload(path.format(reading), "a") is True
        finally:
            os.close(reading)
        assert storage.read("a") == b"content"
        storage.delete("a")


def test_pipe_in_place_of_a_cached_blob_is_not_waited_for(tmp_path: Path) -> None:
    backend = MemoryStorage()
    backend.write("a", b"content")
    with CachedStorage(backend, cache_dir=tmp_path / "cache") as cached:
        cached.read("a")
    blobs = [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file() and b"content" in path.read_bytes()
    ]
    assert blobs
    for path in blobs:
        path.unlink()
        os.mkfifo(path)
    with CachedStorage(backend, cache_dir=tmp_path / "cache") as cached:
        assert cached.read("a") == b"content"
        assert cached.open("a").read() == b"content"


ACL = "system.posix_acl_access"
# posix_acl_xattr.h: version 2, then tag, permissions and id of each entry. The group has nothing, one user all.
GROUP_WITHOUT_RIGHTS = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in [
        (1, 6, 0xFFFFFFFF),
        (2, 6, 1234),
        (4, 0, 0xFFFFFFFF),
        (16, 6, 0xFFFFFFFF),
        (32, 0, 0xFFFFFFFF),
    ]
)


def with_attribute(path: Path, name: str, value: bytes) -> None:
    if not hasattr(os, "setxattr"):
        pytest.skip("extended attributes are Linux's")
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"the file system takes no {name}: {error}")


@pytest.mark.parametrize("anonymous", [True, False])
class TestWhatAnOverwriteKeeps:
    def test_acl_and_attributes(self, tmp_path: Path, anonymous: bool) -> None:
        old = tmp_path / "a"
        old.write_bytes(b"old")
        old.chmod(0o600)
        with_attribute(old, ACL, GROUP_WITHOUT_RIGHTS)
        with_attribute(old, "user.origin", b"https://example.org")
        staged = staged_in(tmp_path, "a", anonymous=anonymous)
        staged.write(b"new")
        for name in names(tmp_path):
            # Nobody reads more than he could before, not for a moment.
            if os.getxattr(tmp_path / name, ACL) != GROUP_WITHOUT_RIGHTS:
                assert (tmp_path / name).stat().st_mode & 0o077 == 0
        staged.publish()
        staged.discard()
        assert old.read_bytes() == b"new"
        assert os.getxattr(old, ACL) == GROUP_WITHOUT_RIGHTS
        assert os.getxattr(old, "user.origin") == b"https://example.org"
        assert old.stat().st_mode & 0o777 == 0o660

    def test_no_rights_come_from_the_directory(self, tmp_path: Path, anonymous: bool) -> None:
        (tmp_path / "a").write_bytes(b"old")
        (tmp_path / "a").chmod(0o640)
        with_attribute(tmp_path, "system.posix_acl_default", GROUP_WITHOUT_RIGHTS)
        staged = staged_in(tmp_path, "a", anonymous=anonymous)
        staged.publish()
        staged.discard()
        assert ACL not in os.listxattr(tmp_path / "a")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_owner_and_group_as_root(self, tmp_path: Path, anonymous: bool) -> None:
        (tmp_path / "a").write_bytes(b"old")
        os.chown(tmp_path / "a", 1234, 5678)
        (tmp_path / "a").chmod(0o660)
        staged = staged_in(tmp_path, "a", anonymous=anonymous)
        staged.publish()
        staged.discard()
        facts = (tmp_path / "a").stat()
        assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o777) == (1234, 5678, 0o660)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a file of another group")
    def test_a_group_that_cannot_be_kept_gives_no_rights_to_ours(
        self, tmp_path_factory: pytest.TempPathFactory, anonymous: bool
    ) -> None:
        with tempfile.TemporaryDirectory() as name:  # that others can enter
            folder = Path(name)
            folder.chmod(0o777)
            (folder / "a").write_bytes(b"old")
            os.chown(folder / "a", 0, 5678)
            (folder / "a").chmod(0o664)

            def overwrite() -> None:
                staged = staged_in(folder, "a", anonymous=anonymous)
                staged.publish()
                staged.discard()

            assert as_nobody(overwrite) is None
            facts = (folder / "a").stat()
            assert (facts.st_gid, facts.st_mode & 0o777) == (NOBODY, 0o644)


class TestGuardedLinks:
    @pytest.mark.skipif(os.geteuid() != 0, reason="only root makes links of others")
    def test_a_trap_in_a_directory_of_all_is_not_followed(self, tmp_path: Path) -> None:
        guarded = Path("/proc/sys/fs/protected_symlinks")
        if not guarded.exists() or guarded.read_text().strip() != "1":
            pytest.skip("the kernel does not guard links here")
        (tmp_path / "mine").write_bytes(b"mine")
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(0o1777)
        for name, leads_to in {"trap": "../mine", "later": "../not there"}.items():
            (shared / name).symlink_to(leads_to)
            os.chown(shared / name, 1234, 1234, follow_symlinks=False)
            with pytest.raises(PermissionError):
                write_file(shared / name, lambda staged: staged.write(b"theirs"))
        assert names(tmp_path) == ["mine", "shared"]
        assert (tmp_path / "mine").read_bytes() == b"mine"


class TestHoles:
    SIZE = 64 << 20

    @pytest.fixture
    def sparse(self, tmp_path: Path) -> Path:
        path = tmp_path / "source" / "sparse"
        path.parent.mkdir()
        with path.open("wb") as file:
            for position in (0, 5 << 20, 40 << 20):
                file.seek(position)
                file.write(b"data" * 1000)
            file.truncate(self.SIZE)
        if path.stat().st_blocks * 512 > 1 << 20:
            pytest.skip("the file system has no holes")
        return path

    def test_a_copy_has_them_too(self, sparse: Path, tmp_path: Path) -> None:
        storage = LocalStorage(tmp_path)
        storage.copy("source/sparse", "copied")
        storage.upload(sparse, "uploaded")
        storage.download("source/sparse", tmp_path / "downloaded")
        for name in ("copied", "uploaded", "downloaded"):
            path = tmp_path / name
            assert path.stat().st_size == self.SIZE
            assert path.stat().st_blocks * 512 < self.SIZE // 8, name
            assert filecmp.cmp(sparse, path, shallow=False), name

    @pytest.mark.parametrize("start", [0, 10, 3 << 20, (64 << 20) - 5])
    def test_from_any_position_and_told_of(self, sparse: Path, tmp_path: Path, start: int) -> None:
        told: list[int] = []
        with sparse.open("rb", buffering=0) as source, (tmp_path / "b").open("wb", buffering=0) as target:
            source.seek(start)
            assert copy_descriptor(source.fileno(), target.fileno(), told.append) == self.SIZE - start
        assert sum(told) == self.SIZE - start
        assert (tmp_path / "b").read_bytes() == sparse.read_bytes()[start:]

    def test_into_a_pipe(self, sparse: Path) -> None:
        program = "import sys; from storage_backend.files import copy_descriptor; copy_descriptor(0, 1)"
        with sparse.open("rb") as source:
            got = subprocess.run(
                [sys.executable, "-c", program], check=True, stdin=source, capture_output=True
            )
        assert got.stdout == sparse.read_bytes()
