"""A migration that is killed at any instant goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from storage_backend import DatabaseStorage, LocalStorage, StorageBackend, migrate
from storage_backend.transfer.journal import Journal
from tests.transfer.samples import OLD, contents

COUNT = 1200
# Per cent of the objects journalled. Of the rest, the batches that wait for a worker may be published before the end comes.
FRACTIONS = (5, 15, 25, 35, 45, 55, 65, 75, 85, 90)
FEW = (5, 45, 90)

# Kills itself, from a second thread at any point of the first, once that many objects are verified in the journal. A
# little past that the first thread waits for it, or it might be done before.
PROGRAM = """
import json, os, signal, sqlite3, sys, threading
from storage_backend import migrate, open_storage

source, target, journal, log, most = sys.argv[1:]
copied = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
told = 0

def verified():
    return connection.execute("SELECT count(*) FROM objects WHERE state = 'verified'").fetchone()[0]

def watch():
    while verified() < int(most):
        pass
    os.kill(os.getpid(), signal.SIGKILL)

def tell(event):
    global told
    if event.kind == "start":
        threading.Thread(target=watch, daemon=True).start()
    if event.kind == "object":
        os.write(copied, json.dumps(event.as_dict()).encode() + b"\\n")
        told += 1
        if before + told > int(most) + 20:
            threading.Event().wait()

connection = sqlite3.connect(f"file:{journal}?mode=ro", uri=True, timeout=60, check_same_thread=False)
before = verified()
migrate(open_storage(source), open_storage(target, create=True), journal=journal, batch_objects=7, workers=3, on_event=tell)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for number in range(COUNT):
        path = folder / f"{number % 10}" / f"{number:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * (number % 50))
        os.utime(path, (OLD.timestamp(), OLD.timestamp()))
    return folder


def verified(journal: Path) -> set[str]:
    connection = sqlite3.connect(journal)
    try:
        rows = connection.execute("SELECT identifier FROM objects WHERE state = 'verified'").fetchall()
    finally:
        connection.close()
    return {identifier.decode() for (identifier,) in rows}


def copied(log: Path) -> set[str]:
    return {json.loads(line)["identifier"] for line in log.read_text().splitlines()}


@pytest.mark.parametrize("kind", ["local", pytest.param("sqlite", marks=pytest.mark.soak)])
def test_killed_again_and_again_it_ends_exact_and_copies_nothing_twice(
    kind: str, folder: Path, tmp_path: Path, soak: bool
) -> None:
    target: StorageBackend
    if kind == "sqlite":
        location = f"sqlite:///{tmp_path / 'target.db'}"
        target = DatabaseStorage(location)
    else:
        location = str(tmp_path / "target")
        target = LocalStorage(location)
    journal, log = tmp_path / "journal.db", tmp_path / "copied"
    Journal(journal, LocalStorage(folder).location, target.location).close()
    before: set[str] = set()
    for fraction in FRACTIONS if soak else FEW:
        most = COUNT * fraction // 100
        command = [sys.executable, "-c", PROGRAM, str(folder), location, str(journal), str(log), str(most)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        after = verified(journal)
        assert len(after) >= most
        assert before <= after
        assert not copied(log) & before
        before = after
    assert len(before) < COUNT
    report = migrate(LocalStorage(folder), target, journal=journal)
    assert report.ok
    assert report.skipped["journal"] == len(before)
    # Some may have been published in the instant before the journal heard of it: these are compared.
    assert report.copied + report.compared == COUNT - len(before)
    assert report.copied > 0
    assert contents(target) == contents(LocalStorage(folder))
    again = migrate(LocalStorage(folder), target, journal=journal)
    assert (again.copied, again.skipped["journal"]) == (0, COUNT)
