"""Migrate 10,000 small objects to an SSH server 20 ms away, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import data, ssh
from benchmarks.harness import MEBIBYTE, Comparison, Contender, Pass, Place, Scale, Workload, expect
from benchmarks.servers import OPENSSH_20_MS
from benchmarks.workloads.ssh_many import slow, with_part

MIGRATE = "migrate(), verified"
SYNC = 'sync(verify="digest")'
RSYNC = "rsync -W"
RCLONE = "rclone copy"
FEWER = {RCLONE: 50}
COPY = "copy"


def folder(place: Place) -> Path:
    return place.shared / f"batch-{place.scale.batch}"


def setup(place: Place) -> None:
    data.tree(folder(place), place.scale.batch)


def ours(place: Place) -> Pass:
    from storage_backend import LocalStorage, migrate

    source, target = LocalStorage(folder(place)), ssh.ours(place, place.scratch / COPY)

    def run() -> None:
        report = migrate(source, target, journal=place.scratch / "journal")
        report.raise_for_failures()
        expect(report.ok and report.verified == report.copied, f"{report.verified} verified")

    return run


def our_sync(place: Place) -> Pass:
    from storage_backend import LocalStorage, sync

    source, target = LocalStorage(folder(place)), ssh.ours(place, place.scratch / COPY)

    def run() -> None:
        report = sync(source, target, verify="digest")
        report.raise_for_failures()
        expect(report.ok and report.verified == report.copied, f"{report.verified} verified")

    return run


def rsync(place: Place) -> Pass:
    return ssh.rsync(place, f"{folder(place)}/", f"{ssh.remote(place.scratch / COPY)}/")


def rclone(place: Place) -> Pass:
    return ssh.rclone(place, "copy", str(folder(place)), f"ssh:{place.scratch}/{COPY}")


def operations(scale: Scale) -> int:
    return scale.batch


def check(place: Place, _result: Any) -> None:
    found = data.contents(place.scratch / COPY)
    expect(found == (place.scale.batch, place.scale.batch * data.SMALL), f"{found} stored")


WORKLOAD = Workload(
    title="{batch:,} x 4 KiB, local to SSH at 20 ms, verified",
    what=(
        "Times are per file. OpenSSH's sshd on this machine, behind a relay that adds 20 ms to each "
        "round trip. Ours verifies each object by a digest of what the server stored; migrate() also "
        "keeps a journal. rsync compares a checksum of what it received, rclone the MD5 of both "
        "files. rclone has 16 transfers and one in 50 of the files, because all would take minutes."
    ),
    contenders=(
        Contender(MIGRATE, ours, module="paramiko"),
        Contender(SYNC, our_sync, module="paramiko"),
        Contender(RSYNC, rsync, program="rsync"),
        slow(FEWER, RCLONE, rclone, program="rclone"),
    ),
    setup=setup,
    check=check,
    operations=operations,
    rounds=3,
    comparisons=tuple(
        Comparison(one, other, at_least)
        for one in (MIGRATE, SYNC)
        for other, at_least in ((RSYNC, 1.0), (with_part(RCLONE, FEWER[RCLONE]), 20.0))
    ),
    memory={MIGRATE: 150 * MEBIBYTE},
    server=OPENSSH_20_MS,
)
