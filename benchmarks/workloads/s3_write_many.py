"""PUT 10,000 small objects: from memory, and from a folder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks import data, s3
from benchmarks.harness import Comparison, Contender, Pass, Place, Workload, expect
from benchmarks.servers import RCLONE
from benchmarks.workloads.s3_read_many import folder, operations, setup

WRITE = "write_many()"
VERIFIED = "write_many(verify=True)"
SYNC = "sync() of a folder"
BOTO3 = "boto3 put_object, 16 threads"
S3FS = "s3fs pipe"
OBSTORE = "obstore put_async, 16 at a time"
S5CMD = "s5cmd cp of a folder"
RCLONE_COPY = "rclone copy of a folder"
COPY = "copy"


def items(place: Place) -> Iterator[tuple[str, bytes]]:
    """Name and content of each object."""
    block = data.content()
    names = data.names(place.scale.batch)
    return ((f"{COPY}/{name}", index.to_bytes(8, "big") + block[8:]) for index, name in enumerate(names))


def ours(place: Place) -> Pass:
    storage = s3.ours(place, s3.SCRATCH)
    given = [*items(place)]
    return lambda: storage.write_many(given)


def our_verified(place: Place) -> Pass:
    storage = s3.ours(place, s3.SCRATCH)
    given = [*items(place)]
    return lambda: storage.write_many(given, verify=True)


def our_sync(place: Place) -> Pass:
    from storage_backend import LocalStorage, sync

    source = LocalStorage(folder(place))
    target = s3.ours(place, s3.SCRATCH, COPY)
    return lambda: sync(source, target).raise_for_failures()


def boto3(place: Place) -> Pass:
    client = s3.boto3(place)
    given = [*items(place)]

    def put(item: tuple[str, bytes]) -> None:
        key, content = item
        client.put_object(Bucket=s3.SCRATCH, Key=key, Body=content)

    def run() -> None:
        with ThreadPoolExecutor(s3.THREADS) as threads:
            for _ in threads.map(put, given):
                pass

    return run


def s3fs(place: Place) -> Pass:
    files = s3.s3fs(place)
    given = {f"{s3.SCRATCH}/{key}": content for key, content in items(place)}
    return lambda: files.pipe(given)


def obstore(place: Place) -> Pass:
    store = s3.obstore(place, s3.SCRATCH)
    given = iter([*items(place)])

    async def work() -> None:
        for key, content in given:
            await store.put_async(key, content)

    async def all_of_them() -> None:
        await asyncio.gather(*(work() for _ in range(s3.THREADS)))

    return lambda: asyncio.run(all_of_them())


def s5cmd(place: Place) -> Pass:
    return s3.s5cmd(place, "cp", f"{folder(place)}/", f"s3://{s3.SCRATCH}/{COPY}/")


def rclone(place: Place) -> Pass:
    return s3.rclone(place, "copy", str(folder(place)), f"s3:{s3.SCRATCH}/{COPY}")


def check(place: Place, _result: Any) -> None:
    found = data.contents(place.scratch / COPY)
    expect(found == (place.scale.batch, place.scale.batch * data.SMALL), f"{found} stored")


WORKLOAD = Workload(
    title="PUT {batch:,} objects of 4 KiB",
    what=(
        "Times are per object, to `rclone serve s3` in a process of its own. Ours and rclone send an "
        "MD5, which the server checks. Contenders that copy a folder also read it and, except s5cmd, "
        "list the bucket. Programs are timed from start to end. s5cmd has its default of 256 workers,"
        " the others have 16."
    ),
    contenders=(
        Contender(WRITE, ours, module="boto3"),
        Contender(VERIFIED, our_verified, module="boto3"),
        Contender(SYNC, our_sync, module="boto3"),
        Contender(BOTO3, boto3, module="boto3"),
        Contender(S3FS, s3fs, module="s3fs"),
        Contender(OBSTORE, obstore, module="obstore"),
        Contender(S5CMD, s5cmd, program="s5cmd"),
        Contender(RCLONE_COPY, rclone, program="rclone"),
    ),
    setup=setup,
    check=check,
    operations=operations,
    rounds=5,
    comparisons=(
        Comparison(WRITE, BOTO3, 5.0),
        Comparison(WRITE, S3FS, 5.0),
        Comparison(WRITE, S5CMD, 1.0),
        Comparison(WRITE, RCLONE_COPY, 1.5),
        Comparison(WRITE, OBSTORE),
        Comparison(VERIFIED, BOTO3),
        Comparison(SYNC, S5CMD),
        Comparison(SYNC, RCLONE_COPY),
    ),
    server=RCLONE,
)
