"""What goes wrong on real disks and databases: a clear line, the right exit code, nothing lost, and a way to go on."""

from __future__ import annotations

import ctypes
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import pytest
from typing_extensions import override

from storage_backend import LocalStorage, MemoryStorage, SourceChangedError, sync

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2  # linux/prctl.h, linux/capability.h


@dataclass
class Ended:
    """What a run of the program came to."""

    code: int
    lines: list[str]
    report: dict[str, Any]


class Runner:
    """Runs the program as a user would, with a journal of its own."""

    def __init__(self, directory: Path) -> None:
        self.environment = {**os.environ, "XDG_STATE_HOME": str(directory / "state")}

    def __call__(
        self, *arguments: str | Path, prepare: Callable[[], None] | None = None, for_people: bool = False
    ) -> Ended:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "storage_backend",
                *map(str, arguments),
                *([] if for_people else ["--json"]),
            ],
            env=self.environment,
            capture_output=True,
            check=False,
            preexec_fn=prepare,
        )
        output = done.stdout.decode().splitlines()
        errors = done.stderr.decode(errors="surrogateescape").splitlines()
        assert not [line for line in errors if "Traceback" in line], errors
        if for_people:
            return Ended(done.returncode, output + errors, {})
        events = [json.loads(line) for line in output]
        return Ended(done.returncode, errors, events[-1] if events else {})


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three hundred old files, 24 MiB."""
    source = tmp_path / "source"
    for number in range(300):
        path = source / f"{number % 3}" / f"{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{number:03}".encode() * 27_000)
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return source


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 15 MiB; `mount -o remount,size=...` makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=15m", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def as_someone_else() -> None:
    """In a child, before it starts the program: give up root's right to read what its mode forbids."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_one_byte_changed_in_the_database_is_found_and_named(
    run: Runner, folder: Path, tmp_path: Path
) -> None:
    target = f"sqlite:///{tmp_path}/archive.db"
    assert run("migrate", folder, target).code == 0
    connection = sqlite3.connect(tmp_path / "archive.db")
    with connection:
        ((rowid, data),) = connection.execute(
            "SELECT c.rowid, c.data FROM sb_chunks c JOIN sb_objects o ON o.version = c.version WHERE o.name = ?",
            (b"1/100",),
        ).fetchall()
        changed = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
        connection.execute("UPDATE sb_chunks SET data = ? WHERE rowid = ?", (changed, rowid))
    connection.close()
    done = run("verify", folder, target)
    assert done.code == 4
    assert done.report["differences"] == {"1/100": "digest"}
    told = run("verify", folder, target, for_people=True)
    assert told.code == 4
    assert len([line for line in told.lines if "1/100" in line]) == 1


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["folder", "database"])
def test_a_full_disk_stops_at_once_and_the_next_run_goes_on(
    kind: str, run: Runner, folder: Path, small_disk: Path
) -> None:
    place = small_disk / "target"
    target: str | Path = place if kind == "folder" else f"sqlite:///{place}"
    first = LocalStorage(folder).list()[0]
    small = folder.parent / "small"
    (small / first).parent.mkdir(parents=True)
    (small / first).write_bytes(b"what was there before")
    assert run("sync", small, target).code == 0
    done = run("migrate", folder, target)
    assert done.code == 7
    assert len(done.lines) <= 2
    assert "space" in done.lines[0] or "full" in done.lines[0]
    assert 0 < done.report["copied"] < 300
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    rest = run("migrate", folder, target)
    assert rest.code == 0
    assert rest.report["skipped"]["journal"] >= done.report["verified"]
    assert rest.report["copied"] + rest.report["compared"] + rest.report["skipped"]["journal"] >= 300
    assert run("verify", folder, target).code == 0


@pytest.mark.parametrize("kind", ["folder", "database"])
def test_a_full_disk_leaves_the_old_object(kind: str, run: Runner, small_disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    target: str | Path = small_disk / "target" if kind == "folder" else f"sqlite:///{small_disk / 'target'}"
    (source / "a").write_bytes(b"old")
    assert run("sync", source, target).code == 0
    (source / "a").write_bytes(b"new" * 8_000_000)
    assert run("sync", source, target).code == 7
    (source / "a").write_bytes(b"old")
    assert run("verify", source, target).code == 0


def test_a_file_that_may_not_be_read_is_reported_and_the_rest_goes_on(
    run: Runner, folder: Path, tmp_path: Path
) -> None:
    (folder / "1" / "100").chmod(0)
    done = run("migrate", folder, f"sqlite:///{tmp_path}/archive.db", prepare=as_someone_else)
    assert done.code == 1
    assert list(done.report["failed"]) == ["1/100"]
    assert "denied" in done.report["failed"]["1/100"]
    assert done.report["copied"] == 299
    told = run("sync", folder, f"sqlite:///{tmp_path}/archive.db", prepare=as_someone_else, for_people=True)
    assert told.code == 1
    assert [line for line in told.lines if "1/100" in line and "denied" in line]


def test_a_directory_that_may_not_be_listed_stops_the_migration(
    run: Runner, folder: Path, tmp_path: Path
) -> None:
    (folder / "2").chmod(0)
    done = run("sync", folder, tmp_path / "target", "--delete", prepare=as_someone_else)
    (folder / "2").chmod(0o755)
    assert done.code in {1, 7}
    assert len(done.lines) == 1
    assert "2" in done.lines[0]
    assert done.report["plan_complete"] is False
    assert done.report["deleted"] == 0


def test_a_target_that_may_not_be_written(run: Runner, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o555)
    done = run("sync", folder, target, prepare=as_someone_else)
    assert done.code == 1
    assert len(done.report["failed"]) == 300
    assert len(done.lines) < 50


def test_a_database_that_may_not_be_written(run: Runner, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "closed"
    place.mkdir()
    assert run("sync", folder, f"sqlite:///{place}/a.db", "--include", "0/**").code == 0
    (place / "a.db").chmod(0o444)
    place.chmod(0o555)
    done = run("sync", folder, f"sqlite:///{place}/a.db", prepare=as_someone_else)
    place.chmod(0o755)
    # It can be read, so the plan is made; what is written is refused, and said of each object.
    assert done.code == 1
    assert done.report["failed"]
    assert all("is not writable" in str(reason) for reason in done.report["failed"].values()), done.report


@pytest.mark.parametrize(
    "content", [b"not a database at all " * 500, b"SQLite format 3\0" + bytes(range(256)) * 40]
)
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_corrupt_database_is_one_line_and_stays_as_it_is(
    side: str, content: bytes, run: Runner, folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(content)
    pair = (folder, f"sqlite:///{broken}") if side == "target" else (f"sqlite:///{broken}", tmp_path / "out")
    done = run("migrate", *pair)
    assert done.code in {4, 7}
    assert len(done.lines) == 1
    assert "broken.db" in done.lines[0]
    assert broken.read_bytes() == content


@pytest.mark.soak
def test_names_that_the_target_refuses_are_reported_and_kept_where_they_can_be(
    run: Runner, folder: Path, tmp_path: Path
) -> None:
    name = os.fsencode(folder) + b"/not-utf8-\xff"
    with open(name, "wb") as file:  # noqa: PTH123 - no Path has such a name without help
        file.write(b"kept")
    done = run("migrate", folder, f"sqlite:///{tmp_path}/archive.db")
    assert done.code == 1
    assert len(done.report["failed"]) == 1
    assert done.report["copied"] == 300
    told = run("migrate", folder, f"sqlite:///{tmp_path}/archive.db", for_people=True)
    assert told.code == 1
    assert [line for line in told.lines if "not-utf8-" in line and "xff" in line]
    assert run("migrate", folder, tmp_path / "copy").code == 0
    assert (tmp_path / "copy" / os.fsdecode(b"not-utf8-\xff")).read_bytes() == b"kept"


class GrowingStorage(LocalStorage):
    """Somebody writes to the end of "log" whenever it is read, however the processor's time is shared out."""

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        reader = super().open(identifier, mode)
        if identifier == "log":
            with Path(self.get_path("log")).open("ab") as log:
                log.write(b"y")
        return reader


def test_a_file_that_grows_all_the_time_is_reported_and_not_stored(tmp_path: Path) -> None:
    source = GrowingStorage(tmp_path / "source")
    source.write("log", b"x" * (32 << 20))
    source.write("other", b"still")
    target = MemoryStorage()
    report = sync(source, target)
    tries = source.size("log") - (32 << 20)
    assert 2 <= tries <= 4  # tried again as it then was, but not for ever
    assert list(report.failed) == ["log"]
    assert isinstance(report.failed["log"], SourceChangedError)
    assert target.list() == ["other"]


Trouble: TypeAlias = tuple[Runner, Path]


@pytest.fixture
def trouble(run: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Trouble:
    """The program and the folder `source`, which is in the current directory."""
    monkeypatch.chdir(folder.parent)
    return run, folder


@pytest.mark.parametrize(
    ("source", "target", "code", "says"),
    [
        ("nowhere", "target", 3, "nowhere"),
        ("sqlite:///nowhere.db", "target", 3, "nowhere.db"),
        ("source", "s4://bucket", 2, "unknown scheme"),
        ("source", "sqlite:///x.db?cache=shared", 2, "parameter"),
        ("source", "source", 2, "same place"),
        ("source", "source/inner", 2, "inside"),
        ("source/0", "source", 2, "inside"),
        ("source", "sqlite:///source/x.db", 2, "inside"),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(
    source: str, target: str, code: int, says: str, trouble: Trouble
) -> None:
    run, folder = trouble
    done = run("migrate", source, target)
    assert done.code == code
    assert len(done.lines) == 1
    assert says in done.lines[0]
    assert len(LocalStorage(folder).list()) == 300
    assert not Path("x.db").exists()


def test_the_second_of_two_migrations_of_one_pair_refuses(run: Runner, folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "gate"
    os.mkfifo(pipe)
    # A progress line is waited for: the first run is inside the migration for as long as we hold the pipe.
    program = (
        "import sys; from storage_backend import migrate, open_storage\n"
        "gate = open(sys.argv[3])\n"
        "migrate(open_storage(sys.argv[1]), open_storage(sys.argv[2], create=True), on_event=lambda event: gate.read())"
    )
    target = f"sqlite:///{tmp_path}/archive.db"
    first = subprocess.Popen([sys.executable, "-c", program, folder, target, pipe], env=run.environment)
    with pipe.open("w"):
        while not list((tmp_path / "state").rglob("*.db")):
            assert first.poll() is None
        second = run("migrate", folder, target)
        assert second.code == 5
        assert len(second.lines) == 1
        assert "another run holds the journal" in second.lines[0]
    assert first.wait() == 0
    again = run("migrate", folder, target)
    assert again.code == 0
    assert again.report["skipped"] == {"journal": 300}
