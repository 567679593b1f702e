"""Delete 10,000 small objects."""

from __future__ import annotations

from typing import Any

from benchmarks import data, s3
from benchmarks.harness import OURS, Comparison, Contender, Pass, Place, Scale, Workload, expect
from benchmarks.servers import RCLONE

BOTO3 = "boto3 delete_objects"
S3FS = "s3fs rm"
OBSTORE = "obstore delete"
FOLDER = "doomed"
BATCH = 1000  # keys that one request takes ("DeleteObjects", Amazon S3 API Reference)


def keys(place: Place) -> list[str]:
    """Of the objects, which are made here, beneath the server, before it looks."""
    data.tree(place.scratch / FOLDER, place.scale.batch, 1 << 3)
    return [f"{FOLDER}/{name}" for name in data.names(place.scale.batch)]


def ours(place: Place) -> Pass:
    storage = s3.ours(place, s3.SCRATCH)
    doomed = keys(place)
    return lambda: storage.delete_many(doomed)


def boto3(place: Place) -> Pass:
    client = s3.boto3(place)
    doomed = keys(place)

    def run() -> None:
        for start in range(0, len(doomed), BATCH):
            batch = [{"Key": key} for key in doomed[start : start + BATCH]]
            client.delete_objects(Bucket=s3.SCRATCH, Delete={"Objects": batch, "Quiet": True})

    return run


def s3fs(place: Place) -> Pass:
    files = s3.s3fs(place)
    doomed = [f"{s3.SCRATCH}/{key}" for key in keys(place)]
    return lambda: files.rm(doomed)


def obstore(place: Place) -> Pass:
    store = s3.obstore(place, s3.SCRATCH)
    doomed = keys(place)
    return lambda: store.delete(doomed)


def operations(scale: Scale) -> int:
    return scale.batch


def setup(_place: Place) -> None:
    pass


def check(place: Place, _result: Any) -> None:
    left, _ = data.contents(place.scratch / FOLDER)
    expect(left == 0, f"{left} objects are left")


WORKLOAD = Workload(
    title="Delete {batch:,} objects",
    what="Times are per object; `rclone serve s3` in a process of its own. 1,000 keys a request.",
    contenders=(
        Contender(OURS, ours, module="boto3"),
        Contender(BOTO3, boto3, module="boto3"),
        Contender(S3FS, s3fs, module="s3fs"),
        Contender(OBSTORE, obstore, module="obstore"),
    ),
    setup=setup,
    check=check,
    operations=operations,
    rounds=5,
    comparisons=(Comparison(OURS, BOTO3, 1.0), Comparison(OURS, S3FS), Comparison(OURS, OBSTORE)),
    server=RCLONE,
)
