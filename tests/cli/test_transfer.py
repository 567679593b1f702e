"""sync, migrate, verify, plan."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_backend import (
    AccessDeniedError,
    LocalStorage,
    QuotaExceededError,
    StorageError,
    UnavailableError,
    open_storage,
)
from storage_backend.transfer.journal import Journal
from tests.cli.conftest import Program, Result

NAMES = ["a.pdf", "b.txt", "d/c.pdf", "d/e/f.txt"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    for name in NAMES:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return place


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/archive.db"


def identifiers(location: str | Path) -> list[str]:
    with open_storage(location) as storage:
        return storage.list()


def events(out: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("verb", ["sync", "migrate"])
def test_the_second_run_has_nothing_to_do(program: Program, source: Path, database: str, verb: str) -> None:
    first = program(verb, source, database)
    assert (first.code, first.err) == (0, "")
    assert first.out.decode().startswith(
        f"{verb}: copied 4 · verified {4 if verb == 'migrate' else 0} · skipped 0 · failed 0; "
    )
    second = program(verb, source, database)
    assert (second.code, second.err) == (0, "")
    assert f"{verb}: copied 0 · verified 0 · skipped 4 (" in second.out.decode()
    assert identifiers(database) == NAMES
    assert program("verify", source, database).code == 0


def test_quiet_says_nothing(program: Program, source: Path, database: str) -> None:
    for verb in ("sync", "migrate", "verify"):
        assert program(verb, "-q", source, database) == (0, b"", "")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--pattern", "*.pdf"], ["a.pdf"]),
        (["--pattern", "**/*.pdf"], ["a.pdf", "d/c.pdf"]),
        (["--include", "*.pdf", "--include", "d/e/**"], ["a.pdf", "d/e/f.txt"]),
        (["--exclude", "d/**"], ["a.pdf", "b.txt"]),
        (["--include", "**/*.txt", "--exclude", "d/**"], ["b.txt"]),
    ],
)
def test_scope(
    program: Program, source: Path, tmp_path: Path, options: list[str], expected: list[str]
) -> None:
    assert program("sync", source, tmp_path / "target", *options).code == 0
    assert identifiers(tmp_path / "target") == expected


def test_delete_and_trash(program: Program, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert program("sync", source, target).code == 0
    (source / "b.txt").unlink()
    dry = program("sync", "--delete", "--dry-run", source, target)
    assert dry.code == 0
    assert "delete/extra             b.txt" in dry.lines
    assert "would delete/extra 1" in dry.lines[-1]
    assert identifiers(target) == NAMES
    result = program("sync", "--delete", "--trash", "old/", source, target)
    assert result.code == 0
    assert "deleted 1" in result.out.decode()
    assert identifiers(target) == ["a.pdf", "d/c.pdf", "d/e/f.txt", "old/b.txt"]


def test_a_limit_is_8(program: Program, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert program("sync", source, target).code == 0
    for name in NAMES[1:]:
        (source / name).unlink()
    result = program("sync", "--delete", "--max-delete", "2", source, target)
    assert result.code == 8
    assert len(result.err.splitlines()) == 1
    assert identifiers(target) == NAMES
    (source / NAMES[0]).unlink()
    empty = program("sync", "--delete", source, target)
    assert empty.code == 8
    assert identifiers(target) == NAMES


def test_a_dry_run_into_nothing_creates_nothing(program: Program, source: Path, tmp_path: Path) -> None:
    for verb in ("sync", "migrate"):
        for target in (f"{tmp_path}/target", f"sqlite:///{tmp_path}/x.db"):
            result = program(
                verb, "-n", source, target, *(["--journal", tmp_path / "j"] if verb == "migrate" else [])
            )
            assert result.code == 0
            assert result.lines[0] == "copy/missing             a.pdf"
            assert "would copy/missing 4" in result.lines[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_plan_prints_actions_with_reasons(program: Program, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert [line.split() for line in program("plan", source, target).lines] == [
        ["copy/missing", name] for name in NAMES
    ]
    program("sync", source, target)
    (source / "b.txt").write_text("longer than it was, by far")
    (target / "extra").write_text("x")
    assert program("plan", source, target).lines == ["copy/size                b.txt"]
    everything = [line.split() for line in program("plan", "--all", "--delete", source, target).lines]
    assert everything == [
        ["skip/same-size-and-time", "a.pdf"],
        ["copy/size", "b.txt"],
        ["skip/same-size-and-time", "d/c.pdf"],
        ["skip/same-size-and-time", "d/e/f.txt"],
        ["delete/extra", "extra"],
    ]
    assert events(program("plan", "--json", source, target).out) == [
        {"identifier": "b.txt", "action": "copy/size"}
    ]
    assert program("plan", source, source / "d").code == 2


def test_verify_names_what_differs_and_exits_with_4(program: Program, source: Path, database: str) -> None:
    program("migrate", source, database)
    with open_storage(database) as storage:
        storage.write("d/c.pdf", storage.read("d/c.pdf")[:-1] + b"?")
        storage.delete("a.pdf")
        storage.write("extra", b"")
    result = program("verify", source, database)
    assert result.code == 4
    assert sorted(result.lines[:-1]) == ["digest   d/c.pdf", "extra    extra", "missing  a.pdf"]
    assert "different 3 (digest 1, extra 1, missing 1)" in result.lines[-1]
    assert program("verify", "--one-way", "--verify", "size", "--pattern", "d/**", source, database).code == 0


def test_migrate_writes_a_manifest_and_deletes_the_source(
    program: Program, source: Path, database: str, tmp_path: Path
) -> None:
    manifest, journal = tmp_path / "manifest.jsonl", tmp_path / "journal.db"
    result = program(
        "migrate", source, database, "--manifest", manifest, "--journal", journal, "--delete-source"
    )
    assert (result.code, result.err) == (0, "")
    assert "deleted from source 4" in result.out.decode()
    assert identifiers(source) == []
    assert identifiers(database) == NAMES
    assert journal.is_file()
    assert [json.loads(line)["identifier"] for line in manifest.read_text().splitlines()] == NAMES


@pytest.mark.parametrize("verb", ["sync", "migrate", "verify"])
def test_json_is_one_event_a_line(program: Program, source: Path, database: str, verb: str) -> None:
    (source / "\udcff").touch()
    result = program(verb, "--json", source, database)
    found = events(result.out)
    if verb == "verify":
        assert result.code == 3  # there is no target yet
        return
    assert result.code == 1
    assert found[0] == {
        "event": "start",
        "verb": verb,
        "source": source.as_uri(),
        "target": f"sqlite:///{database[10:]}",
    }
    assert {event["event"] for event in found} == {"start", "object", "progress", "end"}
    copied = {event["identifier"] for event in found if event.get("action") == "copy/missing"}
    assert copied == set(NAMES)
    assert [event["identifier"] for event in found if event.get("action") == "failed"] == ["\udcff"]
    end = found[-1]
    assert (end["event"], end["copied"], end["ok"], list(end["failed"])) == ("end", 4, False, ["\udcff"])


def test_a_missing_side_is_3(program: Program, source: Path, tmp_path: Path) -> None:
    for verb in ("sync", "migrate", "verify", "plan"):
        result = program(verb, tmp_path / "gone", tmp_path / "target")
        assert (result.code, len(result.err.splitlines())) == (3, 1)
        assert "gone" in result.err
        result = program(verb, f"sqlite:///{tmp_path}/gone.db", tmp_path / "target2")
        assert (result.code, len(result.err.splitlines())) == (3, 1)
    assert program("verify", source, tmp_path / "gone").code == 3
    assert program("verify", source, f"sqlite:///{tmp_path}/gone.db").code == 3
    assert not (tmp_path / "gone").exists()
    assert not (tmp_path / "gone.db").exists()


def test_a_pair_that_would_feed_on_itself_is_2(program: Program, source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for verb in ("sync", "migrate"):
        for target in (
            source,
            source / "inside/deep",
            tmp_path / "link/inside",
            tmp_path,
            f"sqlite:///{source}/x.db",
        ):
            result = program(verb, source, target)
            assert (result.code, len(result.err.splitlines())) == (2, 1)
            assert "same place" in result.err or "inside" in result.err
    assert identifiers(source) == NAMES
    assert not (source / "inside").exists()


def test_a_corrupt_database_is_7(program: Program, source: Path, tmp_path: Path) -> None:
    program("sync", source, f"sqlite:///{tmp_path}/x.db")
    (tmp_path / "x.db").write_bytes(b"This is no database, whatever it is called." * 1000)
    for arguments in (
        ["sync", f"sqlite:///{tmp_path}/x.db", tmp_path / "out"],
        ["sync", source, f"sqlite:///{tmp_path}/x.db"],
        ["ls", f"sqlite:///{tmp_path}/x.db"],
    ):
        result = program(*arguments)
        assert result.code == 7, result
        assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (QuotaExceededError("no space left", identifier="b.txt"), 7),
        (UnavailableError("come back later", identifier="b.txt"), 5),
        (AccessDeniedError("not yours", identifier="b.txt"), 1),
    ],
)
def test_what_fails_says_so_and_gives_the_code(
    program: Program, source: Path, monkeypatch: pytest.MonkeyPatch, error: StorageError, code: int
) -> None:
    def failing(name: str) -> None:
        real = getattr(LocalStorage, name)

        def method(self: LocalStorage, identifier: str, *rest: Any, **keywords: Any) -> Any:
            if identifier == "b.txt":
                raise error
            return real(self, identifier, *rest, **keywords)

        monkeypatch.setattr(LocalStorage, name, method)

    for name in ("read", "open"):
        failing(name)
    result = program("migrate", source, f"sqlite:///{source.parent}/archive.db")
    assert result.code == code
    assert len(result.err.splitlines()) == 1
    assert str(error) in result.err


def test_a_second_run_on_the_same_journal_refuses(
    process: Program, source: Path, database: str, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.db"
    with Journal(journal, source.as_uri(), f"sqlite:///{database[10:]}"):
        result = process("migrate", source, database, "--journal", journal)
    assert result.code == 5  # it may pass when tried again
    assert len(result.err.splitlines()) == 1
    assert str(journal) in result.err
    assert process("migrate", source, database, "--journal", journal).code == 0


# Interrupts itself, as Ctrl-C would, when the object number $AT is read.
INTERRUPTED = """
import itertools, os, signal, sys
from storage_backend import LocalStorage
from storage_backend.cli import main

count = itertools.count(1)
def counting(name):
    real = getattr(LocalStorage, name)
    def method(self, *arguments):
        if next(count) == int(os.environ['AT']):
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *arguments)
    setattr(LocalStorage, name, method)
counting("read")
counting("open")
main()
"""


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(
    environment: dict[str, str], process: Program, tmp_path: Path, database: str
) -> None:
    source = tmp_path / "many"
    source.mkdir()
    for number in range(2000):
        (source / f"{number:04}").write_bytes(b"%d" % number)
        os.utime(source / f"{number:04}", (1_600_000_000, 1_600_000_000))
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "migrate", "--workers", "1", source, database],
        check=False,
        capture_output=True,
        env={**environment, "AT": "1000"},
        timeout=120,
    )
    assert done.returncode == 130, done
    assert done.stderr.decode().splitlines() == [
        "storage-backend: interrupted; completed work is kept, and the same command continues from there"
    ]
    copied = len(identifiers(database))
    assert 0 < copied < 2000
    rest = process("migrate", source, database)
    assert rest.code == 0
    assert f"copied {2000 - copied:,} " in rest.out.decode()
    assert process("verify", source, database).code == 0


NOBODY = 65534
as_another_user = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")

# The other user may not even read Python's own files: all that is needed is imported before.
DEMOTED = f"""
import os, sys
from storage_backend.cli import main, run
for target in ("target", "sqlite:///warm.db"):
    assert run(["sync", "-q", "source", target]) == 0
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
main()
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that another user reaches, as pytest's own is not."""
    place = Path(tempfile.mkdtemp(prefix="storage-backend-test-"))
    place.chmod(0o755)
    (place / "source").mkdir()
    for name in ("a", "b", "c"):
        (place / "source" / name).write_text(name)
        (place / "source" / name).chmod(0o644)
    (place / "source").chmod(0o755)
    yield place
    shutil.rmtree(place)


def demoted(environment: dict[str, str], tmp_path: Path, *arguments: str | Path) -> Result:
    """Run the program as another user."""
    (tmp_path / "source").mkdir(exist_ok=True)
    (tmp_path / "source/x").touch()
    done = subprocess.run(
        [sys.executable, "-c", DEMOTED, *arguments],
        check=False,
        capture_output=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())


@as_another_user
def test_an_unreadable_file_is_reported_and_the_rest_goes_on(
    environment: dict[str, str], shared: Path, tmp_path: Path
) -> None:
    (shared / "source/b").chmod(0o600)
    (shared / "home").mkdir()
    os.chown(shared / "home", NOBODY, NOBODY)
    for target in (shared / "home/target", f"sqlite:///{shared}/home/x.db"):
        result = demoted(environment, tmp_path, "sync", shared / "source", target)
        assert result.code == 1, result
        assert len(result.err.splitlines()) == 1
        assert "failed: b: permission denied" in result.err
        assert "copied 2" in result.out.decode()


@pytest.mark.soak
@as_another_user
def test_a_read_only_target_is_told_clearly(
    environment: dict[str, str], shared: Path, tmp_path: Path
) -> None:
    with open_storage(f"sqlite:///{shared}/x.db", create=True) as storage:
        storage.write("there", b"")
    (shared / "x.db").chmod(0o444)
    (shared / "target").mkdir(mode=0o755)
    for target in (f"{shared}/target", f"sqlite:///{shared}/x.db"):
        for verb in ("sync", "cp", "put"):
            what = shared / "source" if verb == "sync" else shared / "source/b"
            result = demoted(environment, tmp_path, verb, what, target)
            assert result.code in {1, 7}, result
            assert "Traceback" not in result.err
            told = [line for line in result.err.splitlines() if ": warning: " not in line]
            # A database that may not be written to is read, so that it refuses each object as a file system does.
            assert len(told) == (3 if verb == "sync" else 1), result.err
    assert identifiers(f"sqlite:///{shared}/x.db") == ["there"]
    assert not list((shared / "target").iterdir())


def test_terminated_by_a_signal_leaves_no_temporary_name(environment: dict[str, str], tmp_path: Path) -> None:
    source, target = tmp_path / "many", tmp_path / "target"
    source.mkdir()
    for number in range(300):
        (source / f"{number:04}").write_bytes(b"%d" % number)
    program = INTERRUPTED.replace("signal.SIGINT", "signal.SIGKILL")
    done = subprocess.run(
        [sys.executable, "-c", program, "sync", source, target],
        check=False,
        env={**environment, "AT": "100"},
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    assert not [path for path in target.rglob("*") if path.name.startswith(".~sb-")]


def test_postgresql_by_its_location(
    program: Program, source: Path, tmp_path: Path, postgresql_url: str
) -> None:
    assert program("migrate", source, postgresql_url).code == 0
    assert program("verify", source, postgresql_url).code == 0
    assert program("ls", postgresql_url).lines == ["a.pdf", "b.txt", "d/"]
    place = f"{postgresql_url}#d"
    assert program("ls", "-R", place).lines == ["c.pdf", "e/f.txt"]
    assert program("cat", f"{place}/c.pdf").out == b"content of d/c.pdf"
    assert program("migrate", place, tmp_path / "back").code == 0
    assert identifiers(tmp_path / "back") == ["c.pdf", "e/f.txt"]
    assert program("rm", "-ry", place).code == 0
    assert identifiers(postgresql_url) == ["a.pdf", "b.txt"]


def test_a_postgresql_that_is_away_is_5_and_one_line(program: Program, tmp_path: Path) -> None:
    result = program("ls", f"postgresql://user@/db?host={tmp_path}")
    assert result.code == 5
    assert len(result.err.splitlines()) == 1


def test_pattern_and_include_together_are_refused(program: Program, tmp_path: Path) -> None:
    for verb in ("sync", "migrate", "verify", "plan"):
        for options in (["--pattern", "a", "--include", "b"], ["--include", "b", "--pattern", "a"]):
            result = program(verb, *options, "memory:", tmp_path / "target")
            assert result.code == 2
            assert "give every glob as --include" in result.err
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--pattern", "*.pdf"], "matches --pattern '*.pdf'; \"*\" stays inside a segment"),
        (["--pattern", "**/*.doc"], "matches --pattern '**/*.doc'"),
        (["--include", "x", "--include", "y"], "matches --include 'x' or --include 'y'"),
        (["--exclude", "**"], "is left after --exclude '**'"),
        (["--pattern", "**/a.pdf", "--exclude", "d/*"], "--pattern '**/a.pdf' and not --exclude 'd/*'"),
    ],
)
def test_where_nothing_matches_it_says_why(
    program: Program, tmp_path: Path, options: list[str], says: str
) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d/a.pdf").write_bytes(b"1")
    for verb in ("sync", "migrate", "verify", "plan"):
        journal = ["--journal", tmp_path / "journal"] if verb == "migrate" else []
        result = program(verb, *options, *journal, source, "memory:")
        assert result.code == 0
        assert f"no object of {source.as_uri()} " in result.err
        assert says in result.err
    dry = program("sync", "-n", "--delete", *options, source, "memory:", "--json")
    assert says in dry.err
    assert not program("sync", "-q", *options, source, "memory:").err


def test_an_empty_source_is_told(program: Program, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for command in (
        ("sync", tmp_path / "source", "memory:"),
        ("plan", tmp_path / "source", "memory:"),
        ("verify", tmp_path / "source", "memory:"),
        ("sync", "--dry-run", tmp_path / "source", tmp_path / "target"),
        ("put", "-r", tmp_path / "source", "memory:"),
        ("get", "-r", "memory:#p", tmp_path / "back"),
        ("checksum", "-r", tmp_path / "source"),
    ):
        result = program(*command)
        assert result.code == 0
        assert result.err.endswith(" holds no objects\n"), command


def test_where_something_matches_nothing_is_said(program: Program, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a").write_bytes(b"1")
    assert not program("sync", tmp_path / "source", tmp_path / "target").err
    assert not program("sync", tmp_path / "source", tmp_path / "target").err
    assert not program("plan", tmp_path / "source", tmp_path / "target").err
    assert not program("verify", tmp_path / "source", tmp_path / "target").err
    assert "holds no" not in program("verify", tmp_path / "source", "memory:").err
    assert not program("sync", "-n", tmp_path / "source", "memory:").err
