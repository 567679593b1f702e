"""Migrate 10,000 small objects and a large one to S3, verified."""

from __future__ import annotations

from typing import Any

from benchmarks import data, s3
from benchmarks.harness import MEBIBYTE, Comparison, Contender, Pass, Place, Workload, expect
from benchmarks.servers import RCLONE
from benchmarks.workloads.local_to_sqlite import folder, migrating, setup

MIGRATE = "migrate(), verified"
S5CMD = "s5cmd cp, unverified"
RCLONE_COPY = "rclone copy --checksum"
FSSPEC = "s3fs put, unverified"
COPY = "copy"


def ours(place: Place) -> Pass:
    return migrating(place, s3.ours(place, s3.SCRATCH, COPY))


def s5cmd(place: Place) -> Pass:
    return s3.s5cmd(place, "cp", f"{folder(place)}/", f"s3://{s3.SCRATCH}/{COPY}/")


def rclone(place: Place) -> Pass:
    return s3.rclone(place, "copy", "--checksum", str(folder(place)), f"s3:{s3.SCRATCH}/{COPY}")


def fsspec(place: Place) -> Pass:
    files = s3.s3fs(place)

    def run() -> None:
        files.put(f"{folder(place)}/", f"{s3.SCRATCH}/{COPY}/", recursive=True)

    return run


def check(place: Place, _result: Any) -> None:
    found = data.contents(place.scratch / COPY)
    expected = place.scale.batch + 1, place.scale.batch * data.SMALL + place.scale.large
    expect(found == expected, f"{found} stored of {expected}")


WORKLOAD = Workload(
    title="{batch:,} x 4 KiB and one large object, local to S3, verified",
    what=(
        "The large object has {large} (`--full`: 1 GiB). The server is `rclone serve s3` in a process"
        " of its own. Ours verifies each object by the MD5 that the server computed of what it "
        "stored, or reads it back, and keeps a journal. rclone sends the MD5 of each object or part "
        "for the server to check, with 16 transfers. s5cmd and s3fs verify nothing."
    ),
    contenders=(
        Contender(MIGRATE, ours, module="boto3"),
        Contender(S5CMD, s5cmd, program="s5cmd"),
        Contender(RCLONE_COPY, rclone, program="rclone"),
        Contender(FSSPEC, fsspec, module="s3fs"),
    ),
    setup=setup,
    check=check,
    rounds=3,
    comparisons=(
        Comparison(MIGRATE, S5CMD, 1.0),
        Comparison(MIGRATE, RCLONE_COPY, 1.5),
        Comparison(MIGRATE, FSSPEC, 5.0),
    ),
    memory={MIGRATE: 150 * MEBIBYTE},
    server=RCLONE,
)
