"""Compare two equal trees of 100,000 objects."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks import data, programs
from benchmarks.finding import find_program
from benchmarks.harness import (
    MEBIBYTE,
    Comparison,
    Contender,
    Pass,
    Place,
    Workload,
    expect,
    peer,
)
from benchmarks.workloads import listing

SYNC = "sync()"
MIGRATE = "migrate(), all in its journal"
PROGRAM = "storage-backend sync"


def target(place: Place) -> Path:
    """What our own verified migration made of the tree: the same names, bytes and times."""
    return place.shared / f"migrated-{place.scale.tree}"


def journal(place: Place) -> Path:
    """That migration's."""
    return place.shared / f"migrated-{place.scale.tree}.journal"


def setup(place: Place) -> None:
    listing.setup(place)
    if not target(place).exists():
        from storage_backend import LocalStorage, migrate

        report = migrate(
            LocalStorage(listing.folder(place)), LocalStorage(target(place)), journal=journal(place)
        )
        report.raise_for_failures()
        expect(report.verified == place.scale.tree, f"{report.verified} objects verified")


def ours(place: Place) -> Pass:
    from storage_backend import LocalStorage, sync

    def run() -> int:
        report = sync(LocalStorage(listing.folder(place)), LocalStorage(target(place)))
        expect(report.ok and not report.copied, f"not ok, or {report.copied} copied")
        return report.skipped.total()

    return run


def with_journal(place: Place) -> Pass:
    from storage_backend import LocalStorage, migrate

    own = shutil.copy(journal(place), place.scratch)

    def run() -> int:
        report = migrate(LocalStorage(listing.folder(place)), LocalStorage(target(place)), journal=own)
        expect(report.ok and not report.copied, f"not ok, or {report.copied} copied")
        return report.skipped["journal"]

    return run


def our_program(place: Place) -> Pass:
    return programs.storage_backend(place, "sync", "-q", str(listing.folder(place)), str(target(place)))


def fsspec(place: Place) -> Pass:
    rsync = peer("fsspec.generic").rsync
    return lambda: rsync(f"file://{listing.folder(place)}", f"file://{target(place)}")


def rclone(place: Place) -> Pass:
    return programs.rclone(place, "sync", str(listing.folder(place)), str(target(place)))


def rsync(place: Place) -> Pass:
    return programs.command(
        place, find_program("rsync") or "rsync", "-a", f"{listing.folder(place)}/", f"{target(place)}/"
    )


def check(place: Place, result: Any) -> None:
    if isinstance(result, int):
        expect(result == place.scale.tree, f"{result} skipped")
    total = place.scale.tree
    expect(data.contents(target(place)) == (total, total * data.SMALL), "the target changed")


WORKLOAD = Workload(
    title="Nothing to do, {tree:,} objects, local to local",
    what=(
        "Both trees are equal. They are compared by size and time (fsspec: by size only), or with the"
        " journal by the recorded fingerprints. Programs are timed from start to end, functions from "
        "call to return."
    ),
    contenders=(
        Contender(SYNC, ours),
        Contender(MIGRATE, with_journal),
        Contender(PROGRAM, our_program),
        Contender("fsspec.generic.rsync", fsspec, module="fsspec", result=lambda _done: None),
        Contender("rclone sync", rclone, program="rclone"),
        Contender("rsync -a", rsync, program="rsync"),
    ),
    setup=setup,
    check=check,
    rounds=5,
    comparisons=(
        Comparison(SYNC, "fsspec.generic.rsync", 2.0),
        Comparison(PROGRAM, "rclone sync", 1.0),
        Comparison(MIGRATE, "fsspec.generic.rsync"),
        Comparison(PROGRAM, "rsync -a"),
    ),
    memory=dict.fromkeys((SYNC, MIGRATE, PROGRAM), 150 * MEBIBYTE),
)
