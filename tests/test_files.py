from __future__ import annotations

import errno
import gc
import os
import socket
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage_backend import files
from storage_backend.files import StagedFile, copy_descriptor, entry_mode, temporary_name, write_file
from storage_backend.identifiers import RESERVED, is_valid

CONTENT = bytes(range(256)) * 300


HAS_ANONYMOUS_FILES = hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir()
needs_anonymous_files = pytest.mark.skipif(
    not HAS_ANONYMOUS_FILES, reason="this system has no files without a name"
)


@pytest.fixture(
    params=[True, False] if HAS_ANONYMOUS_FILES else [False],
    ids=lambda value: "anonymous" if value else "named",
)
def anonymous(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "folder"
    place.mkdir()
    return place


@pytest.fixture
def stage(folder: Path, anonymous: bool) -> Iterator[Callable[[str], StagedFile]]:
    """Makes staged files in the folder; on the way out they are discarded, and no descriptor is left."""
    before = descriptors()
    made: list[StagedFile] = []

    def make(name: str) -> StagedFile:
        made.append(StagedFile(directory_of(folder), name, anonymous=anonymous))
        return made[-1]

    yield make
    for staged in made:
        staged.discard()
    made.clear()
    gc.collect()
    assert descriptors() == before


def directory_of(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208 - its own included


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def publish(staged: StagedFile) -> None:
    try:
        staged.publish()
    finally:
        staged.discard()


Stage = Callable[[str], StagedFile]


class TestStagedFile:
    def test_it_appears_whole_when_it_is_published(self, stage: Stage, folder: Path, anonymous: bool) -> None:
        staged = stage("file")
        for start in range(0, len(CONTENT), 1000):
            staged.write(CONTENT[start : start + 1000])
        visible = listing(folder)
        assert "file" not in visible
        assert all(not is_valid(name) for name in visible)
        # Without a name where the file system can, so that a crash leaves nothing.
        assert len(visible) == (0 if anonymous else 1)
        staged.publish()
        staged.discard()
        assert listing(folder) == ["file"]
        assert (folder / "file").read_bytes() == CONTENT

    def test_old_file_stays_until_then(self, stage: Stage, folder: Path) -> None:
        (folder / "file").write_bytes(b"old")
        staged = stage("file")
        staged.write(b"new")
        with (folder / "file").open("rb") as reader:
            assert reader.read(1) == b"o"
            staged.publish()
            assert reader.read() == b"ld"
        assert (folder / "file").read_bytes() == b"new"
        staged.discard()
        assert listing(folder) == ["file"]

    def test_discarded_file_was_never_there(self, stage: Stage, folder: Path) -> None:
        (folder / "old").write_bytes(b"old")
        for name in ("new", "old"):
            staged = stage(name)
            staged.write(CONTENT)
            staged.discard()
            staged.discard()
        assert listing(folder) == ["old"]
        assert (folder / "old").read_bytes() == b"old"

    def test_discarded_after_publishing_stays(self, stage: Stage, folder: Path) -> None:
        staged = stage("file")
        staged.write(b"content")
        assert staged.size == 7
        staged.publish()
        staged.discard()
        staged.discard()
        assert (folder / "file").read_bytes() == b"content"

    def test_taken_name_stops_what_must_not_overwrite(self, stage: Stage, folder: Path) -> None:
        (folder / "file").write_bytes(b"old")
        staged = stage("file")
        staged.write(b"new")
        with pytest.raises(FileExistsError):
            staged.publish(overwrite=False)
        assert (folder / "file").read_bytes() == b"old"
        staged.discard()
        assert listing(folder) == ["file"]
        free = stage("free")
        free.write(b"new")
        free.publish(overwrite=False)
        free.discard()
        assert (folder / "free").read_bytes() == b"new"
        assert listing(folder) == ["file", "free"]

    def test_one_of_many_gets_the_name(self, folder: Path, anonymous: bool) -> None:
        barrier = threading.Barrier(8)
        won: list[int] = []

        def create(number: int) -> None:
            staged = StagedFile(directory_of(folder), "file", anonymous=anonymous)
            staged.write(b"%d" % number)
            barrier.wait()
            try:
                staged.publish(overwrite=False)
                won.append(number)
            except FileExistsError:
                pass
            finally:
                staged.discard()

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert (folder / "file").read_bytes() == b"%d" % won[0]
        assert listing(folder) == ["file"]

    def test_name_taken_meanwhile_is_replaced(self, stage: Stage, folder: Path) -> None:
        staged = stage("file")
        staged.write(b"new")
        (folder / "file").write_bytes(b"somebody else's")
        staged.publish()
        staged.discard()
        assert (folder / "file").read_bytes() == b"new"
        assert listing(folder) == ["file"]

    def test_replaced_file_passes_its_mode_on(self, stage: Stage, folder: Path) -> None:
        (folder / "plain").touch()
        ordinary = (folder / "plain").stat().st_mode
        for name, mode in (("private", 0o600), ("program", 0o755), ("open", 0o666)):
            (folder / name).touch()
            (folder / name).chmod(mode)
            staged = stage(name)
            staged.write(b"new")
            for path in folder.glob(f"{RESERVED}*"):
                assert (
                    stat.S_IMODE(path.stat().st_mode) == mode
                )  # a named one shows nothing to others before, either
            staged.publish()
            assert stat.S_IMODE((folder / name).stat().st_mode) == mode
        new = stage("new")
        new.publish()
        assert (folder / "new").stat().st_mode == ordinary

    def test_umask_holds_for_new_files(self, stage: Stage, folder: Path) -> None:
        old = os.umask(0o027)
        try:
            staged = stage("file")
        finally:
            os.umask(old)
        staged.publish()
        assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o640

    def test_symlink_itself_is_replaced(self, stage: Stage, folder: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.write_bytes(b"outside")
        outside.chmod(0o600)
        (folder / "link").symlink_to(outside)
        staged = stage("link")
        staged.write(b"new")
        staged.publish()
        assert outside.read_bytes() == b"outside"
        assert not (folder / "link").is_symlink()
        assert (folder / "link").read_bytes() == b"new"
        assert stat.S_IMODE((folder / "link").stat().st_mode) != 0o600

    def test_directory_is_not_replaced(self, stage: Stage, folder: Path) -> None:
        (folder / "sub").mkdir()
        staged = stage("sub")
        with pytest.raises(IsADirectoryError):
            staged.publish()
        # It may be tried again once the directory is gone.
        (folder / "sub").rmdir()
        staged.write(b"late")
        staged.publish()
        staged.discard()
        assert (folder / "sub").read_bytes() == b"late"
        assert listing(folder) == ["sub"]

    def test_pipes_and_sockets_are_not_replaced(self, folder: Path, anonymous: bool) -> None:
        os.mkfifo(folder / "pipe")
        with socket.socket(socket.AF_UNIX) as listener:
            here = Path.cwd()
            os.chdir(folder)  # the path of a socket has 108 bytes at most
            try:
                listener.bind("socket")
            finally:
                os.chdir(here)
        before = descriptors()
        for name in ("pipe", "socket"):
            with pytest.raises(OSError, match="not a regular file") as caught:
                publish(StagedFile(directory_of(folder), name, anonymous=anonymous))
            assert caught.value.errno == errno.ENXIO
            gc.collect()
        assert listing(folder) == ["pipe", "socket"]
        assert descriptors() == before

    def test_every_buffer_is_written(self, stage: Stage, folder: Path) -> None:
        staged = stage("file")
        for data in (b"a", bytearray(b"b"), memoryview(b"cc")[1:], memoryview(b"dddd").cast("I"), b""):
            staged.write(data)
        staged.publish()
        assert (folder / "file").read_bytes() == b"abcdddd"

    def test_short_writes_go_on(self, stage: Stage, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, memoryview(data)[:1000]))
        staged = stage("file")
        staged.write(CONTENT)
        monkeypatch.undo()
        staged.publish()
        assert (folder / "file").read_bytes() == CONTENT

    def test_failed_write_leaves_nothing(
        self, stage: Stage, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "file").write_bytes(b"old")
        staged = stage("file")

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="full"):
            staged.write(b"new")
        monkeypatch.undo()
        staged.discard()
        assert listing(folder) == ["file"]
        assert (folder / "file").read_bytes() == b"old"

    def test_forked_child_undoes_nothing_of_its_parents(
        self, stage: Stage, folder: Path, anonymous: bool
    ) -> None:
        staged = stage("file")
        staged.write(b"half ")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            staged.discard()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert len(listing(folder)) == (0 if anonymous else 1)
        staged.write(b"whole")
        staged.publish()
        assert (folder / "file").read_bytes() == b"half whole"


@needs_anonymous_files
@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL])
def test_file_system_without_anonymous_files_gets_named_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    opened = os.open
    asked = 0

    def refuse(path: str, flags: int, *arguments: int, **keywords: int) -> int:
        nonlocal asked
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            asked += 1
            raise OSError(error, os.strerror(error))
        return opened(path, flags, *arguments, **keywords)

    directory = directory_of(folder)
    monkeypatch.setattr(os, "open", refuse)
    staged = StagedFile(directory, "file")
    staged.write(CONTENT)
    names = listing(folder)
    staged.publish()
    staged.discard()
    assert asked == 1
    assert len(names) == 1
    assert names[0].startswith(RESERVED)
    assert listing(folder) == ["file"]
    assert (folder / "file").read_bytes() == CONTENT


def test_other_trouble_with_anonymous_files_is_raised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = directory_of(folder)
    before = descriptors()

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EDQUOT, "over quota")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="over quota"):
        StagedFile(directory, "file")
    monkeypatch.undo()
    # The directory's descriptor was handed over, and is closed.
    assert descriptors() == before - 1
    assert listing(folder) == []


@needs_anonymous_files
def test_it_can_appear_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    before = descriptors()
    staged = StagedFile(directory_of(folder), "file")
    staged.write(b"moved")
    folder.rmdir()
    with pytest.raises(FileNotFoundError):
        staged.publish()
    staged.move_to(directory_of(tmp_path / "other"))
    publish(staged)
    assert (tmp_path / "other" / "file").read_bytes() == b"moved"
    assert listing(tmp_path / "other") == ["file"]
    assert descriptors() == before


def test_temporary_names_are_reserved_and_unique() -> None:
    names = {temporary_name() for _ in range(1000)}
    assert len(names) == 1000
    assert all(name.startswith(RESERVED) and not is_valid(name) and "/" not in name for name in names)


def test_entry_mode_tells_kinds(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "sub").mkdir()
    (folder / "link").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    fd = directory_of(folder)
    try:
        assert entry_mode(fd, "absent") is None
        assert stat.S_ISREG(entry_mode(fd, b"file") or 0)
        assert stat.S_ISDIR(entry_mode(fd, "sub") or 0)
        assert stat.S_ISLNK(entry_mode(fd, "link") or 0)
        with pytest.raises(OSError, match="not a regular file"):
            entry_mode(fd, "pipe")
    finally:
        os.close(fd)


class TestCopyDescriptor:
    @pytest.fixture(params=["kernel", "hand"])
    def _way(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        if request.param == "hand":
            monkeypatch.setattr(os, "copy_file_range", self.refuse, raising=False)

    @staticmethod
    def refuse(*_: int) -> int:
        raise OSError(errno.EXDEV, "another device")

    @pytest.mark.usefixtures("_way")
    @pytest.mark.parametrize("size", [0, 1, 300_000, (3 << 20) + 1])
    def test_everything_from_the_position_is_appended(self, tmp_path: Path, size: int) -> None:
        content = os.urandom(size)
        (tmp_path / "source").write_bytes(b"before" + content)
        with (tmp_path / "source").open("rb", buffering=0) as source:
            source.seek(6)
            with (tmp_path / "target").open("wb", buffering=0) as target:
                target.write(b"start")
                assert copy_descriptor(source.fileno(), target.fileno()) == size
        assert (tmp_path / "target").read_bytes() == b"start" + content

    @pytest.mark.usefixtures("_way")
    def test_files_that_do_not_know_their_size_are_copied(self, tmp_path: Path) -> None:
        target = os.open(tmp_path / "target", os.O_WRONLY | os.O_CREAT)
        with Path("/proc/self/status").open("rb", buffering=0) as source:
            copied = copy_descriptor(source.fileno(), target)
        os.close(target)
        assert copied == (tmp_path / "target").stat().st_size > 100

    def test_kernel_that_gives_up_half_way_is_helped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = os.urandom(100_000)
        (tmp_path / "source").write_bytes(content)
        real = os.copy_file_range
        calls = 0

        def tires(source: int, target: int, count: int) -> int:
            nonlocal calls
            calls += 1
            if calls > 2:
                raise OSError(errno.EINVAL, "no more")
            return real(source, target, min(count, 30_000))

        monkeypatch.setattr(os, "copy_file_range", tires)
        with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb") as target:
            assert copy_descriptor(source.fileno(), target.fileno()) == 100_000
        assert (tmp_path / "target").read_bytes() == content

    def test_full_target_is_an_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "source").write_bytes(CONTENT)

        def full(*_: int) -> int:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "copy_file_range", full)
        target = os.open(tmp_path / "target", os.O_WRONLY | os.O_CREAT)
        with (tmp_path / "source").open("rb") as source, pytest.raises(OSError, match="full"):
            copy_descriptor(source.fileno(), target)
        os.close(target)


class TestWriteFile:
    def test_folders_are_made_and_files_replaced(self, tmp_path: Path) -> None:
        place = tmp_path / "one" / "two" / "file"
        for content in (b"first and long", b"second"):
            write_file(place, lambda staged, content=content: staged.write(content))  # type: ignore[misc] # a default binds the loop's name
            assert place.read_bytes() == content
        assert listing(place.parent) == ["file"]
        write_file(str(tmp_path / "text path"), lambda staged: staged.write(b"x"))
        assert (tmp_path / "text path").read_bytes() == b"x"

    def test_error_leaves_the_old_file_alone(self, tmp_path: Path) -> None:
        place = tmp_path / "file"
        place.write_bytes(b"old")
        before = descriptors()

        def fill(staged: StagedFile) -> None:
            staged.write(b"half")
            raise KeyboardInterrupt

        for path in (place, tmp_path / "new"):
            with pytest.raises(KeyboardInterrupt):
                write_file(path, fill)
        assert listing(tmp_path) == ["file"]
        assert place.read_bytes() == b"old"
        assert descriptors() == before

    def test_relative_path_is_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        write_file("file", lambda staged: staged.write(b"x"))
        assert (tmp_path / "file").read_bytes() == b"x"


def test_without_proc_files_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_can_name_descriptors", lambda: False)
    staged = StagedFile(directory_of(folder), "file")
    assert len(listing(folder)) == 1
    staged.publish()
    staged.discard()
    assert listing(folder) == ["file"]
