"""Files that appear whole or not at all, and copying by the kernel where it can."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from storage_backend.errors import QuotaExceededError
from storage_backend.files import StagedFile, copy_descriptor, state_directory, write_file
from tests.backends.local_ways import small_disk

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
                write_file(disk / "big", lambda staged: staged.write(bytes(2 << 20)))
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
        program = "import os, pwd; from storage_backend.files import state_directory; os.setuid(54321); state_directory()"
        environment = {
            name: value for name, value in os.environ.items() if name not in {"HOME", "XDG_STATE_HOME"}
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        assert "ConfigurationError: nowhere to keep state" in done.stderr
        assert "set XDG_STATE_HOME" in done.stderr
