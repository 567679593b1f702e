"""Download one large object into a file."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path
from typing import Any

from benchmarks import data, s3
from benchmarks.harness import MEBIBYTE, Comparison, Contender, Pass, Place, Workload, expect
from benchmarks.servers import RCLONE, Server

DOWNLOAD = "download()"
OPEN = "open(), copyfileobj"
BOTO3 = "boto3 download_file"
OBSTORE = "obstore get, a file written"
S5CMD = "s5cmd cp"
RCLONE_COPY = "rclone copyto"


def source(place: Place) -> Path:
    """What is behind the object."""
    return place.shared / f"large-{place.scale.large}.bin"


def copy(place: Place) -> str:
    return f"{place.scratch}/copy.bin"


def setup(place: Place) -> None:
    data.large(source(place), place.scale.large)


def ours(place: Place) -> Pass:
    storage = s3.ours(place)
    return lambda: storage.download(source(place).name, copy(place))


def opened(place: Place) -> Pass:
    storage = s3.ours(place)

    def run() -> None:
        with storage.open(source(place).name) as reader, open(copy(place), "wb") as writer:
            shutil.copyfileobj(reader, writer)

    return run


def boto3(place: Place) -> Pass:
    client = s3.boto3(place)
    return lambda: client.download_file(s3.SHARED, source(place).name, copy(place))


def obstore(place: Place) -> Pass:
    store = s3.obstore(place)

    def run() -> None:
        with open(copy(place), "wb") as writer:
            writer.writelines(store.get(source(place).name).stream())

    return run


def s5cmd(place: Place) -> Pass:
    return s3.s5cmd(place, "cp", f"s3://{s3.SHARED}/{source(place).name}", copy(place))


def rclone(place: Place) -> Pass:
    return s3.rclone(place, "copyto", f"s3:{s3.SHARED}/{source(place).name}", copy(place))


def check(place: Place, _result: Any) -> None:
    expect(filecmp.cmp(source(place), copy(place), shallow=False), "the copy holds other bytes")


def workload(title: str, what: str, server: Server) -> Workload:
    """The workload, against that server."""
    return Workload(
        title=title,
        what=what,
        contenders=(
            Contender(DOWNLOAD, ours, module="boto3"),
            Contender(OPEN, opened, module="boto3"),
            Contender(BOTO3, boto3, module="boto3"),
            Contender(OBSTORE, obstore, module="obstore"),
            Contender(S5CMD, s5cmd, program="s5cmd"),
            Contender(RCLONE_COPY, rclone, program="rclone"),
        ),
        setup=setup,
        check=check,
        rounds=5,
        comparisons=(
            Comparison(DOWNLOAD, BOTO3, 1.3),
            *(Comparison(DOWNLOAD, other) for other in (OBSTORE, S5CMD, RCLONE_COPY)),
            Comparison(OPEN, OBSTORE),
        ),
        growth=dict.fromkeys((DOWNLOAD, OPEN), 32 * MEBIBYTE),
        server=server,
    )


WORKLOAD = workload(
    "Download a large object",
    (
        "{large} (`--full`: 1 GiB) into a file, from `rclone serve s3` in a process of its own. Files"
        " of ours, boto3, s5cmd and rclone appear whole or not at all."
    ),
    RCLONE,
)
