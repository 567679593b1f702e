"""GET 10,000 small objects: into memory, and into a folder."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import data, s3
from benchmarks.harness import Comparison, Contender, Pass, Place, Scale, Workload, expect
from benchmarks.servers import RCLONE

READ = "read_many()"
SYNC = "sync() to a folder"
BOTO3 = "boto3 get_object, 16 threads"
S3FS = "s3fs cat"
OBSTORE = "obstore get_async, 16 at a time"
S5CMD = "s5cmd cp to a folder"
RCLONE_COPY = "rclone copy to a folder"


def folder(place: Place) -> Path:
    """What is behind the objects."""
    return place.shared / f"batch-{place.scale.batch}"


def setup(place: Place) -> None:
    data.tree(folder(place), place.scale.batch)


def keys(place: Place) -> list[str]:
    return [f"{folder(place).name}/{name}" for name in data.names(place.scale.batch)]


def ours(place: Place) -> Pass:
    storage = s3.ours(place)
    wanted = keys(place)
    return lambda: counted(content for _, content in storage.read_many(wanted))


def our_sync(place: Place) -> Pass:
    from storage_backend import LocalStorage, sync

    source = s3.ours(place, prefix=folder(place).name)
    target = LocalStorage(place.scratch / "copy")

    def run() -> tuple[int, int]:
        report = sync(source, target)
        report.raise_for_failures()
        return report.copied, report.bytes

    return run


def boto3(place: Place) -> Pass:
    client = s3.boto3(place)
    wanted = keys(place)

    def get(key: str) -> bytes:
        found: bytes = client.get_object(Bucket=s3.SHARED, Key=key)["Body"].read()
        return found

    def run() -> tuple[int, int]:
        with ThreadPoolExecutor(s3.THREADS) as threads:
            return counted(threads.map(get, wanted))

    return run


def s3fs(place: Place) -> Pass:
    files = s3.s3fs(place)
    wanted = [f"{s3.SHARED}/{key}" for key in keys(place)]
    return lambda: counted(files.cat(wanted).values())


def obstore(place: Place) -> Pass:
    store = s3.obstore(place)
    wanted = iter(keys(place))
    found: list[int] = []

    async def work() -> None:
        for key in wanted:
            found.append(len(await (await store.get_async(key)).bytes_async()))  # noqa: PERF401 - its tasks share the list

    async def all_of_them() -> None:
        await asyncio.gather(*(work() for _ in range(s3.THREADS)))

    def run() -> tuple[int, int]:
        asyncio.run(all_of_them())
        return len(found), sum(found)

    return run


def s5cmd(place: Place) -> Pass:
    return s3.s5cmd(place, "cp", f"s3://{s3.SHARED}/{folder(place).name}/*", f"{place.scratch}/copy/")


def rclone(place: Place) -> Pass:
    return s3.rclone(place, "copy", f"s3:{s3.SHARED}/{folder(place).name}", f"{place.scratch}/copy")


def counted(contents: Any) -> tuple[int, int]:
    """How many there are, and their bytes. None is kept."""
    count = size = 0
    for content in contents:
        count += 1
        size += len(content)
    return count, size


def operations(scale: Scale) -> int:
    return scale.batch


def check(place: Place, result: Any) -> None:
    expected = place.scale.batch, place.scale.batch * data.SMALL
    copy = place.scratch / "copy"
    if copy.exists():
        expect(data.contents(copy) == expected, "not all is in the folder")
    expect(result in {None, expected}, f"{result} of {expected}")


WORKLOAD = Workload(
    title="GET {batch:,} objects of 4 KiB",
    what=(
        "Times are per object, from `rclone serve s3` in a process of its own. Contenders that copy "
        "into a folder also list the bucket; files of ours and rclone appear whole or not at all. "
        "Programs are timed from start to end. s5cmd has its default of 256 workers, the others have "
        "16."
    ),
    contenders=(
        Contender(READ, ours, module="boto3"),
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
        Comparison(READ, BOTO3, 5.0),
        Comparison(READ, S3FS, 5.0),
        Comparison(READ, S5CMD, 1.0),
        Comparison(READ, RCLONE_COPY, 1.5),
        Comparison(READ, OBSTORE),
        Comparison(SYNC, S5CMD),
        Comparison(SYNC, RCLONE_COPY),
    ),
    server=RCLONE,
)
