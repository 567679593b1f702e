"""cat, get, put, cp, mv, rm."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from storage_backend import IntegrityError, LocalStorage, MemoryStorage, open_storage
from storage_backend.cli import operands
from tests.backends.local_ways import small_disk
from tests.cli.conftest import Program

ALL = bytes(range(256)) * 5000  # some chunks


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    (place / "d/e").mkdir(parents=True)
    (place / "a").write_bytes(ALL)
    (place / "d/b").write_bytes(b"b")
    (place / "d/e/c").write_bytes(b"")
    return place


@pytest.fixture
def database(tmp_path: Path, source: Path) -> str:
    url = f"sqlite:///{tmp_path}/place.db"
    with open_storage(url, create=True) as storage, open_storage(source) as files:
        for info in files.scan():
            storage.write(info.identifier, files.read(info.identifier))
    return url


def identifiers(location: str | Path) -> list[str]:
    with open_storage(location) as storage:
        return storage.list()


def content(location: str, identifier: str) -> bytes:
    with open_storage(location) as storage:
        return storage.read(identifier)


def test_cat_writes_objects_one_after_the_other(program: Program, source: Path, database: str) -> None:
    result = program("cat", source / "a", f"{database}#d/b", "-", f"{database}#a", stdin=b"typed\r\n")
    assert result == (0, ALL + b"b" + b"typed\r\n" + ALL, "")


def test_cat_of_something_missing(program: Program, source: Path, database: str) -> None:
    for location in (source / "gone", source / "gone/x", f"{database}#gone"):
        result = program("cat", location)
        assert (result.code, result.out) == (3, b"")
    mixed = program("cat", source / "gone", source / "d/b")
    assert (mixed.code, mixed.out) == (1, b"b")
    assert program("cat", source / "d").code == 2


def test_get(program: Program, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert program("get", f"{database}#a", "got").code == 0
    assert Path("got").read_bytes() == ALL
    assert program("get", f"{database}#d/b").code == 0
    assert Path("b").read_bytes() == b"b"
    Path("folder").mkdir()
    assert program("get", f"{database}#d/b", "folder").code == 0
    assert program("get", f"{database}#d/b", "other/").code == 0
    assert Path("folder/b").read_bytes() == Path("other/b").read_bytes() == b"b"
    assert program("get", f"{database}#a", "-").out == ALL
    assert program("get", f"{database}#gone", "got").code == 3
    assert Path("got").read_bytes() == ALL


def test_get_onto_what_is_no_regular_file(
    process: Program, program: Program, database: str, tmp_path: Path
) -> None:
    """As cp does: a link stays, and pipes and open files are written to."""
    (tmp_path / "link").symlink_to("there")
    assert program("get", f"{database}#a", tmp_path / "link").code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_bytes() == ALL
    assert process("get", f"{database}#a", "/dev/stdout") == (0, ALL, "")
    with (tmp_path / "log").open("wb") as log:
        log.write(b"before,")
        log.flush()
        command = [sys.executable, "-m", "storage_backend", "get", f"{database}#d/b", "/dev/stdout"]
        subprocess.run(command, check=True, stdout=log)
        log.write(b",after")
    assert (tmp_path / "log").read_bytes() == b"before,b,after"
    command = ["bash", "-c", '"$@" >(cat > out); wait $!', "bash", *command[:-1]]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert (tmp_path / "out").read_bytes() == b"b"


@pytest.mark.parametrize("command", ["cat fifo", "put a fifo", "cp a fifo", "rm fifo", "stat fifo"])
def test_what_is_neither_object_nor_folder_is_called_so(
    program: Program, source: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(source)
    os.mkfifo("fifo")
    result = program(*command.split())
    assert (result.code, result.err) == (
        2,
        f"storage-backend: Not a regular file: 'fifo' in {source.as_uri()}\n",
    )
    assert Path("fifo").is_fifo()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_told_of_the_file_that_does_not_fit(
    program: Program, database: str, source: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        for command in (
            ("get", f"{database}#a", disk / "got"),
            ("get", source / "a", disk / "got"),
        ):
            result = program(*command)
            assert (result.code, result.err) == (
                7,
                f"storage-backend: no space left for this user: {disk}/got\n",
            )
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        result = program("migrate", "--manifest", disk / "manifest", source, tmp_path / "new")
        assert (result.code, result.err) == (
            7,
            f"storage-backend: no space left for this user: {disk}/manifest\n",
        )
        assert [path.name for path in disk.iterdir()] == ["filler"]
    (tmp_path / "link").symlink_to("there")
    assert program("migrate", "--manifest", tmp_path / "link", source, tmp_path / "new").code == 0
    assert (tmp_path / "link").is_symlink()
    assert len((tmp_path / "there").read_text().splitlines()) == 3


def test_put(program: Program, source: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    assert program("put", source / "a", url).code == 0
    assert program("put", source / "a", f"{url}#x/y").code == 0
    assert program("put", source / "a", f"{url}#x/").code == 0
    assert program("put", "-", f"{url}#typed", stdin=ALL).code == 0
    assert identifiers(url) == ["a", "typed", "x/a", "x/y"]
    assert content(url, "typed") == content(url, "x/y") == ALL
    assert program("put", source / "a", tmp_path / "fresh/deep/copy").code == 0
    assert (tmp_path / "fresh/deep/copy").read_bytes() == ALL


def test_put_of_something_missing_creates_nothing(program: Program, tmp_path: Path) -> None:
    for target in (f"sqlite:///{tmp_path}/new.db", f"{tmp_path}/new/x"):
        assert program("put", tmp_path / "gone", target).code == 3
    assert not list(tmp_path.iterdir())
    result = program("put", "-", f"sqlite:///{tmp_path}/new.db")
    assert result.code == 2
    assert "names no object" in result.err


def same(one: Path, other: Path) -> None:
    compared = filecmp.dircmp(one, other)
    todo = [compared]
    while todo:
        here = todo.pop()
        assert [*here.left_only, *here.right_only, *here.diff_files, *here.funny_files] == []
        todo += here.subdirs.values()


def test_get_r_and_put_r_move_trees(program: Program, source: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    assert program("put", "-r", source, f"{url}#in/it").code == 0
    assert identifiers(url) == ["in/it/a", "in/it/d/b", "in/it/d/e/c"]
    result = program("get", "-r", f"{url}#in/it", tmp_path / "back")
    assert result.code == 0
    assert "copied 3" in result.out.decode()
    same(source, tmp_path / "back")
    assert program("get", "-r", f"{url}#in/it", tmp_path / "back", "-q").out == b""
    told = program("get", "-r", "--json", f"{url}#in/it", tmp_path / "again").out.splitlines()
    assert json.loads(told[-1])["copied"] == 3
    assert program("get", "-r", f"sqlite:///{tmp_path}/gone.db", tmp_path / "nothing").code == 3
    assert program("put", "-r", tmp_path / "gone", f"sqlite:///{tmp_path}/gone.db").code == 3
    assert not (tmp_path / "gone.db").exists()


def test_cp_r_copies_between_any_two_places(program: Program, source: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    assert program("cp", "-r", source, f"{url}#in/it").code == 0
    result = program("cp", "-r", f"{url}#in/it", tmp_path / "back")
    assert (result.code, result.err) == (0, "")
    assert "copied 3" in result.out.decode()
    same(source, tmp_path / "back")
    again = program("cp", "-r", "--json", f"{url}#in/it", tmp_path / "back").out.splitlines()
    assert json.loads(again[-1])["copied"] == 0
    assert program("cp", "-r", source, source / "d").code == 2
    assert program("cp", "-r", f"sqlite:///{tmp_path}/gone.db", tmp_path / "nothing").code == 3


def test_paths_of_get_and_put_are_never_urls(
    program: Program, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("memory:").mkdir()
    Path("memory:/x").write_bytes(b"1")
    assert program("put", "-r", "memory:", "copy").code == 0
    assert Path("copy/x").read_bytes() == b"1"
    assert program("get", "-r", source, "sqlite:").code == 0
    assert Path("sqlite:/a").read_bytes() == ALL


def test_cp_between_places(program: Program, source: Path, database: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    assert program("cp", source / "a", f"{url}#x").code == 0
    assert program("cp", f"{database}#d/b", url).code == 0
    assert program("cp", f"{url}#x", tmp_path / "folder/x").code == 0
    assert program("cp", f"{url}#x", tmp_path / "folder").code == 0
    assert program("cp", f"{url}#x", f"{url}#y/").code == 0
    assert identifiers(url) == ["b", "x", "y/x"]
    assert content(url, "y/x") == (tmp_path / "folder/x").read_bytes() == ALL
    assert (source / "a").exists()


def test_cp_keeps_the_time(program: Program, source: Path, tmp_path: Path) -> None:
    os.utime(source / "a", (1, 1_000_000_000))
    assert program("cp", source / "a", f"sqlite:///{tmp_path}/new.db").code == 0
    assert program("cp", f"sqlite:///{tmp_path}/new.db#a", tmp_path / "back").code == 0
    assert program("cp", source / "a", tmp_path / "copy").code == 0
    assert (tmp_path / "back").stat().st_mtime == (tmp_path / "copy").stat().st_mtime == 1_000_000_000


def test_a_missing_source_creates_no_target(program: Program, source: Path, tmp_path: Path) -> None:
    for verb in ("cp", "mv"):
        for target in (f"sqlite:///{tmp_path}/new.db#x", f"{tmp_path}/new/x"):
            assert program(verb, source / "gone", target).code == 3
    assert not (tmp_path / "new.db").exists()
    assert not (tmp_path / "new").exists()


def test_mv_between_places(program: Program, source: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    assert program("mv", source / "a", f"{url}#x").code == 0
    assert not (source / "a").exists()
    assert program("mv", f"{url}#x", f"{url}#y").code == 0
    assert identifiers(url) == ["y"]
    assert program("mv", f"{url}#y", source / "a").code == 0
    assert identifiers(url) == []
    assert (source / "a").read_bytes() == ALL


def test_mv_on_one_disk_is_a_rename(program: Program, source: Path, tmp_path: Path) -> None:
    inode = (source / "a").stat().st_ino
    (tmp_path / "link").symlink_to(source)
    assert program("mv", tmp_path / "link/a", tmp_path / "elsewhere/deep/b").code == 0
    assert (tmp_path / "elsewhere/deep/b").stat().st_ino == inode
    assert not (source / "a").exists()


@pytest.mark.parametrize("verb", ["cp", "mv"])
def test_onto_itself_nothing_happens(
    program: Program, source: Path, database: str, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "link").symlink_to(source)
    assert program(verb, source / "a", source / "a").code == 0
    assert program(verb, source / "a", tmp_path / "link/a").code == 0
    assert program(verb, source / "a", source.as_uri() + "/a").code == 0
    assert program(verb, f"{database}#a", f"{database}#a").code == 0
    assert (source / "a").read_bytes() == content(database, "a") == ALL


def test_mv_through_another_name_of_the_database_loses_nothing(
    program: Program, database: str, tmp_path: Path
) -> None:
    (tmp_path / "alias.db").symlink_to(tmp_path / "place.db")
    result = program("mv", f"{database}#a", f"sqlite:///{tmp_path}/alias.db#a")
    assert content(database, "a") == ALL, result.err


class Changing(MemoryStorage):
    """An object that is written again just after it was read."""

    def stat(self, identifier: str) -> Any:
        seen = super().stat(identifier)
        self.write(identifier, b"new!")
        return seen


class Corrupting(MemoryStorage):
    """A store that loses a byte and says so when asked for the digest."""

    def write_stream(self, identifier: str, reader: Any, **keywords: Any) -> bool:
        self.write(identifier, reader.read()[:-1])
        raise IntegrityError(f"{identifier!r} is not what was sent", identifier=identifier)


@pytest.mark.parametrize(
    ("source_kind", "target_kind", "code"),
    [(Changing, MemoryStorage, 1), (MemoryStorage, Corrupting, 4)],
)
def test_mv_removes_the_source_only_if_the_copy_is_good(
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    source_kind: type[MemoryStorage],
    target_kind: type[MemoryStorage],
    code: int,
) -> None:
    one, other = source_kind(), target_kind()
    one.write("x", b"old!")
    backends = iter([one, other])
    for backend, name in ((one, "one"), (other, "other")):
        monkeypatch.setattr(type(backend), "location", f"{name}:", raising=False)
    monkeypatch.setattr(operands, "open_storage", lambda *_, **__: next(backends))
    result = program("mv", "memory:#x", "memory:#y")
    assert result.code == code
    assert one.exists("x")


def test_rm(program: Program, source: Path, database: str) -> None:
    assert program("rm", source / "a", f"{database}#d/b").code == 0
    assert identifiers(source) == ["d/b", "d/e/c"]
    assert identifiers(database) == ["a", "d/e/c"]
    result = program("rm", source / "a", source / "d/b")
    assert result.code == 1
    assert program("rm", source / "a").code == 3
    assert program("rm", source / "d").code == 2


def test_rm_r_without_a_terminal_needs_yes(program: Program, source: Path, database: str) -> None:
    for location in (source, database):
        result = program("rm", "-r", location)
        assert result.code == 2
        assert "3 objects in " in result.err
        assert "--yes" in result.err
        assert len(identifiers(location)) == 3
    result = program("rm", "-r", "--yes", f"{database}#d")
    assert (result.code, result.lines) == (0, [f"removed 2 objects from sqlite:///{database[10:]}#d"])
    assert identifiers(database) == ["a"]
    assert program("rm", "-rq", "--yes", source).out == b""
    assert identifiers(source) == []
    assert program("rm", "-r", source).code == 0


def test_rm_r_tells_of_what_it_cannot_remove(
    program: Program, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LocalStorage.delete

    def delete(self: LocalStorage, identifier: str) -> bool:
        if identifier == "d/b":
            raise PermissionError("not this one")
        return real(self, identifier)

    monkeypatch.setattr(LocalStorage, "delete", delete)
    result = program("rm", "-ry", source)
    assert result.code == 1
    assert "removed 2 objects" in result.out.decode()
    assert "cannot remove 1 object" in result.err
    assert "not this one" in result.err
    assert identifiers(source) == ["d/b"]


def test_names_that_begin_with_a_dash_or_are_not_utf8(process: Program, source: Path, soak: bool) -> None:
    for name in (b"-r", b"\xff\xfe\n", b"new\nline", b"a b")[: 4 if soak else 2]:
        place = os.fsencode(source) + b"/" + name
        assert process("put", "-", place, stdin=name).code == 0
        assert process("cat", place).out == name
        assert name in process("ls", "-0", source).out.split(b"\0")
        assert process("cp", "--", name, b"copy of " + name, cwd=source).code == 0
        assert process("rm", "--", name, b"copy of " + name, cwd=source).code == 0
        assert not os.path.lexists(place)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells a process's memory")
def test_cat_of_a_large_object_takes_little_memory(process: Program, tmp_path: Path) -> None:
    size = 300 << 20
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    seen = 0
    reader, writer = os.pipe()

    def count() -> None:
        nonlocal seen
        with os.fdopen(reader, "rb", buffering=0) as stream:
            while chunk := stream.read(1 << 20):
                seen += len(chunk)

    thread = threading.Thread(target=count)
    thread.start()
    # VmHWM, since ru_maxrss counts the memory of this process too, from before the exec.
    program = (
        "import re, sys; from pathlib import Path; from storage_backend.cli import run;"
        "code = run(['cat', sys.argv[1]]); status = Path('/proc/self/status').read_text();"
        "print(code, re.search(r'VmHWM:\\s+(\\d+)', status)[1], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "large"], stdout=writer, stderr=subprocess.PIPE, check=True
    )
    os.close(writer)
    thread.join()
    code, peak = map(int, done.stderr.split())
    assert (code, seen) == (0, size)
    assert peak < 100 << 10


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> Iterator[None]:
    yield
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".~sb-")]


def test_mv_from_a_place_too_deep_to_be_seen_from_above(program: Program, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["n" * 200] * 6)
    deep.mkdir(parents=True)
    (deep / "x").write_bytes(ALL)
    assert program("mv", deep / "x", tmp_path / "y").code == 0
    assert (tmp_path / "y").read_bytes() == ALL
    assert not (deep / "x").exists()


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == Path("/tmp").stat().st_dev,
    reason="needs two file systems",
)
def test_mv_and_cp_to_another_file_system(program: Program, source: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        assert program("cp", source / "a", f"{other}/copy").code == 0
        assert program("mv", source / "a", other).code == 0
        assert Path(other, "copy").read_bytes() == Path(other, "a").read_bytes() == ALL
    assert not (source / "a").exists()


def test_a_tilde_is_the_home_directory_in_every_place(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    Path("a").write_bytes(b"1")
    for command in (
        ("cp", "a", "~/x/1"),
        ("cp", "~/x/1", "~/x/2"),
        ("put", "~/x/1", "~/x/3"),
        ("get", "~/x/1", "~/x/4"),
        ("get", "~/x/1", "~/x/sub/"),
        ("put", "~/x/1", "~/y/"),
        ("put", "-r", "~/x", "sqlite:///~/z.db"),
        ("get", "-r", "sqlite:///~/z.db", "~/back"),
        ("mv", "~/x/2", "~/x/5"),
        ("migrate", "~/x", "~/to", "--journal", "~/j", "--manifest", "~/m"),
        ("cat", "cached+sqlite:///~/z.db?cache_dir=~/c#1"),
        ("cache", "stats", "~/c"),
    ):
        result = program(*command)
        assert result.code == 0, result.err
    assert program("ls", "~/x").lines == ["1", "3", "4", "5", "sub/"]
    assert {path.name for path in home.iterdir()} >= {"x", "y", "z.db", "back", "to", "j", "m", "c"}
    assert program("cat", "~").code == 2
    assert program("cat", "~nobody-of-that-name/x").code == 2
    assert not Path("~").exists()
