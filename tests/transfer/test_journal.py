import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from storage_backend import (
    ConfigurationError,
    DatabaseStorage,
    MemoryStorage,
    UnavailableError,
    migrate,
)
from storage_backend.transfer.fingerprint import Fingerprint, JournalRecord
from storage_backend.transfer.journal import Journal, default_path

pytestmark = pytest.mark.quick

PAIR = ("file:///a", "sqlite:////b.db")


def record(identifier: str, size: int = 1) -> JournalRecord:
    return JournalRecord(
        identifier, Fingerprint(size, 2, "s"), True, Fingerprint(size, 3, None), False, "d" * 64
    )


def test_what_is_verified_is_there_in_the_next_run_in_order(tmp_path: Path) -> None:
    names = ["b", "a/b", "a-b", "é", "\udcff", "new\nline"]
    with Journal(tmp_path / "j.db", *PAIR) as journal:
        journal.write(map(record, names), [("broken", ValueError("why")), ("\ud800", ValueError("odd"))])
    with Journal(tmp_path / "j.db", *PAIR) as journal:
        found = list(journal.records())
    assert [each.identifier for each in found] == ["a-b", "a/b", "b", "new\nline", "é", "\udcff"]
    assert found[0] == record("a-b")


def test_an_object_that_fails_later_is_no_longer_verified(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db", *PAIR) as journal:
        journal.write([record("a")])
        journal.write([], [("a", OSError("gone bad"))])
        assert list(journal.records()) == []
        journal.write([record("a", size=9)])
        assert [each.source.size for each in journal.records()] == [9]


def test_only_what_this_run_confirmed_is_listed_for_deletion(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db", *PAIR) as journal:
        journal.write([record("old"), record("seen")])
    with Journal(tmp_path / "j.db", *PAIR) as journal:
        journal.confirm(["seen"])
        journal.write([record("new")])
        assert [[each.identifier for each in batch] for batch in journal.confirmed(1)] == [["new"], ["seen"]]
        journal.source_deleted(["new"])
        assert [[each.identifier for each in batch] for batch in journal.confirmed(5)] == [["seen"]]
        journal.harden()
        assert journal.write_manifest(tmp_path / "manifest") == 3
    lines = [json.loads(line) for line in (tmp_path / "manifest").read_text().splitlines()]
    assert lines[0] == {"identifier": "new", "size": 1, "sha256": "d" * 64}
    assert [line["identifier"] for line in lines] == ["new", "old", "seen"]


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import sys; from storage_backend.transfer.journal import Journal;"
        f"journal = Journal({str(tmp_path / 'j.db')!r}, *{PAIR!r}); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UnavailableError, match="another run holds the journal"):
            Journal(tmp_path / "j.db", *PAIR)
    finally:
        holder.kill()
        holder.communicate()
    Journal(tmp_path / "j.db", *PAIR).close()


def test_the_journal_of_another_pair_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "j.db", *PAIR).close()
    with pytest.raises(ConfigurationError, match="belongs to file:///a"):
        Journal(tmp_path / "j.db", "file:///other", PAIR[1])
    Journal(tmp_path / "j.db", *PAIR).close()


@pytest.mark.parametrize(
    "content",
    [b"no database at all, but long enough to be taken for one" * 40, b"SQLite format 3\0" + b"x" * 2000],
)
def test_what_is_no_journal_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j.db"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="not a usable journal"):
        Journal(path, *PAIR)
    assert path.read_bytes() == content


def test_another_format_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "j.db", *PAIR).close()
    connection = sqlite3.connect(tmp_path / "j.db")
    connection.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigurationError, match="has format 99"):
        Journal(tmp_path / "j.db", *PAIR)


def test_each_pair_has_its_own_journal_beside_the_users_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = default_path(*PAIR)
    assert path.is_relative_to(tmp_path)
    assert path != default_path(*reversed(PAIR))
    with pytest.raises(ConfigurationError, match="give journal"):
        default_path("MemoryStorage", PAIR[1])
    assert not [*tmp_path.iterdir()]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no paths are wanted


def database(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE mine (x)", "INSERT INTO mine VALUES (1)"],
        ["PRAGMA journal_mode = WAL", "CREATE TABLE meta (key, value)"],
        ["CREATE TABLE meta (key TEXT, value TEXT)", "CREATE TABLE objects (identifier BLOB)"],
        ["CREATE VIEW v AS SELECT 1"],
    ],
)
def test_another_database_is_refused_and_not_touched(tmp_path: Path, statements: list[str]) -> None:
    path = tmp_path / "theirs.db"
    database(path, *statements)
    content, before = path.read_bytes(), descriptors()
    for _ in range(3):
        with pytest.raises(ConfigurationError, match="not a usable journal"):
            Journal(path, *PAIR)
    assert path.read_bytes() == content
    assert [found.name for found in tmp_path.iterdir()] == ["theirs.db"]
    assert descriptors() == before


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("name", ["journal", "manifest"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_side_itself_is_neither_journal_nor_manifest(
    exists: bool, name: str, side: str, tmp_path: Path
) -> None:
    path = tmp_path / "box.db"
    (tmp_path / "link.db").symlink_to(path)
    box, other = DatabaseStorage(f"sqlite:///{path}"), MemoryStorage()
    if exists:
        box.write("a", b"1")
        box.close()
    files = {found.name: found.read_bytes() for found in tmp_path.iterdir() if found.exists()}
    pair = (box, other) if side == "source" else (other, box)
    before = descriptors()
    for given in (path, tmp_path / "link.db"):
        with pytest.raises(ConfigurationError, match=r"itself|not a usable journal"):
            migrate(*pair, **{"journal": tmp_path / "j.db", name: given})  # type: ignore[arg-type]  # a path
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir() if found.exists()} == files
    assert descriptors() == before


def test_the_journal_is_not_the_manifest(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is the journal"):
        migrate(MemoryStorage(), MemoryStorage(), journal=tmp_path / "j.db", manifest=tmp_path / "j.db")


def test_an_empty_file_and_what_was_killed_at_its_beginning_become_a_journal(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    database(tmp_path / "begun", "PRAGMA journal_mode = WAL")
    for name in ("empty", "begun"):
        Journal(tmp_path / name, *PAIR).close()
    # All is in the log yet.
    program = (
        "import os, signal; from storage_backend.transfer.journal import Journal;"
        f"Journal({str(tmp_path / 'k.db')!r}, *{PAIR!r}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    assert (tmp_path / "k.db-wal").stat().st_size
    Journal(tmp_path / "k.db", *PAIR).close()
