"""Migrate 10,000 small objects and a large one into SQLite, verified."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import data, programs
from benchmarks.harness import MEBIBYTE, Comparison, Contender, Pass, Place, Workload, expect, peer

MIGRATE = "migrate() to SQLite, verified"
PROGRAM = "storage-backend migrate to SQLite, verified"
TO_FOLDER = "migrate() to a folder, verified"
EACH = "sqlite3, a transaction an object, unverified"
ONE = "sqlite3, one transaction, unverified"
VERIFIED = "sqlite3, one transaction, read back"
FSSPEC = "fsspec.generic.rsync to a folder, unverified"
RCLONE = "rclone copy --checksum to a folder, verified"

# sqlite3 takes no value beyond 1,000,000,000 bytes (SQLITE_MAX_LENGTH, "Limits In SQLite"), so an object has parts.
SCHEMA = "CREATE TABLE parts (name TEXT, part INTEGER, content BLOB, PRIMARY KEY (name, part)) WITHOUT ROWID"
PART = MEBIBYTE


def folder(place: Place) -> Path:
    """The source."""
    return place.shared / f"mixed-{place.scale.batch}-{place.scale.large}"


def setup(place: Place) -> None:
    data.tree(folder(place), place.scale.batch)
    data.large(folder(place) / "large.bin", place.scale.large)


def ours(place: Place) -> Pass:
    from storage_backend import DatabaseStorage

    return migrating(place, DatabaseStorage(f"sqlite:///{place.scratch}/archive.db"))


def to_folder(place: Place) -> Pass:
    from storage_backend import LocalStorage

    return migrating(place, LocalStorage(place.scratch / "copy"))


def migrating(place: Place, target: Any) -> Pass:
    from storage_backend import LocalStorage, migrate

    source = LocalStorage(folder(place))

    def run() -> tuple[int, int]:
        report = migrate(source, target, journal=place.scratch / "journal")
        report.raise_for_failures()
        expect(report.ok and report.verified == report.copied, f"{report.verified} verified")
        return report.verified, report.bytes

    return run


def our_program(place: Place) -> Pass:
    return programs.storage_backend(
        place, "migrate", "-q", str(folder(place)), f"sqlite:///{place.scratch}/archive.db"
    )


def stored_by_our_program(place: Place) -> tuple[int, int]:
    """What is in the database, as our own interface shows it."""
    from storage_backend import DatabaseStorage

    with DatabaseStorage(f"sqlite:///{place.scratch}/archive.db") as storage:
        sizes = [info.size or 0 for info in storage.scan()]
    return len(sizes), sum(sizes)


def a_transaction_an_object(place: Place) -> Pass:
    return scripted(place, one_transaction=False)


def one_transaction(place: Place) -> Pass:
    return scripted(place, one_transaction=True)


def one_transaction_verified(place: Place) -> Pass:
    return scripted(place, one_transaction=True, read_back=True)


def scripted(place: Place, *, one_transaction: bool, read_back: bool = False) -> Pass:
    """What a script of twenty lines would do, with SQLite's defaults."""

    def run() -> tuple[int, int]:
        database = sqlite3.connect(place.scratch / "archive.db", isolation_level=None)
        database.execute(SCHEMA)
        database.execute("BEGIN")
        digests = {}
        for path in files(folder(place)):
            name = path.relative_to(folder(place)).as_posix()
            digest = hashlib.sha256()
            with path.open("rb") as file:
                for number, part in enumerate(iter(lambda file=file: file.read(PART), b"")):  # type: ignore[misc]  # mypy does not infer a lambda's default
                    if read_back:
                        digest.update(part)
                    database.execute("INSERT INTO parts VALUES (?, ?, ?)", (name, number, part))
            digests[name] = digest.hexdigest()
            if not one_transaction:
                database.execute("COMMIT")
                database.execute("BEGIN")
        database.execute("COMMIT")
        if read_back:
            for name, expected in digests.items():
                digest = hashlib.sha256()
                for (part,) in database.execute(
                    "SELECT content FROM parts WHERE name = ? ORDER BY part", (name,)
                ):
                    digest.update(part)
                expect(digest.hexdigest() == expected, f"{name} differs")
        stored: tuple[int, int] = database.execute(
            "SELECT count(DISTINCT name), sum(length(content)) FROM parts"
        ).fetchone()
        database.close()
        return stored

    return run


def files(root: Path) -> Iterator[Path]:
    """All files beneath *root*."""
    return (Path(parent, name) for parent, _, names in os.walk(root) for name in names)


def fsspec(place: Place) -> Pass:
    rsync = peer("fsspec.generic").rsync
    return lambda: rsync(f"file://{folder(place)}", f"file://{place.scratch}/copy")


def rclone(place: Place) -> Pass:
    return programs.rclone(place, "copy", "--checksum", str(folder(place)), f"{place.scratch}/copy")


def check(place: Place, result: Any) -> None:
    if result is None:
        copy = place.scratch / "copy"
        result = data.contents(copy) if copy.exists() else stored_by_our_program(place)
    expected = place.scale.batch + 1, place.scale.batch * data.SMALL + place.scale.large
    expect(result == expected, f"{result} stored of {expected}")


WORKLOAD = Workload(
    title="{batch:,} x 4 KiB and one large object, local to SQLite, verified",
    what=(
        "The large object has {large} (`--full`: 1 GiB). Ours reads back each object, compares its "
        "SHA-256 before it is published, and keeps a journal. No peer can write to SQLite. Contenders"
        " are three scripts with sqlite3 (default settings) and, for reference, a copy into a folder "
        "by ours, fsspec and rclone. rclone compares the MD5 of both files; fsspec compares nothing."
    ),
    contenders=(
        Contender(MIGRATE, ours),
        Contender(PROGRAM, our_program),
        Contender(TO_FOLDER, to_folder),
        Contender(EACH, a_transaction_an_object),
        Contender(ONE, one_transaction),
        Contender(VERIFIED, one_transaction_verified),
        Contender(FSSPEC, fsspec, module="fsspec", result=lambda _done: None),
        Contender(RCLONE, rclone, program="rclone"),
    ),
    setup=setup,
    check=check,
    rounds=3,
    comparisons=(
        Comparison(MIGRATE, VERIFIED),
        Comparison(MIGRATE, EACH),
        Comparison(MIGRATE, ONE),
        Comparison(TO_FOLDER, FSSPEC),
        Comparison(TO_FOLDER, RCLONE),
        Comparison(PROGRAM, RCLONE),
    ),
    memory={MIGRATE: 150 * MEBIBYTE, PROGRAM: 150 * MEBIBYTE, TO_FOLDER: 150 * MEBIBYTE},
)
