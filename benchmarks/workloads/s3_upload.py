"""Upload one large file, and one stream."""

from __future__ import annotations

import filecmp
import hashlib
from typing import Any

from benchmarks import s3
from benchmarks.harness import MEBIBYTE, Comparison, Contender, CpuLimit, Pass, Place, Workload, expect
from benchmarks.servers import RCLONE
from benchmarks.workloads.s3_download import setup, source

UPLOAD = "upload()"
STREAM = "write_stream()"
BOTO3 = "boto3 upload_file"
BOTO3_STREAM = "boto3 upload_fileobj"
OBSTORE = "obstore put of a file"
S5CMD = "s5cmd cp"
RCLONE_COPY = "rclone copyto"
MD5 = "the file's MD5, nothing sent"
COPY = "copy.bin"


def ours(place: Place) -> Pass:
    storage = s3.ours(place, s3.SCRATCH)
    return lambda: storage.upload(source(place), COPY)


def our_stream(place: Place) -> Pass:
    storage = s3.ours(place, s3.SCRATCH)

    def run() -> None:
        with source(place).open("rb") as reader:
            storage.write_stream(COPY, reader)

    return run


def boto3(place: Place) -> Pass:
    client = s3.boto3(place)
    return lambda: client.upload_file(str(source(place)), s3.SCRATCH, COPY)


def boto3_stream(place: Place) -> Pass:
    client = s3.boto3(place)

    def run() -> None:
        with source(place).open("rb") as reader:
            client.upload_fileobj(reader, s3.SCRATCH, COPY)

    return run


def obstore(place: Place) -> Pass:
    store = s3.obstore(place, s3.SCRATCH)
    return lambda: store.put(COPY, source(place))


def s5cmd(place: Place) -> Pass:
    return s3.s5cmd(place, "cp", str(source(place)), f"s3://{s3.SCRATCH}/{COPY}")


def rclone(place: Place) -> Pass:
    return s3.rclone(place, "copyto", str(source(place)), f"s3:{s3.SCRATCH}/{COPY}")


def md5(place: Place) -> Pass:
    def run() -> str:
        with source(place).open("rb") as reader:
            return hashlib.file_digest(reader, "md5").hexdigest()

    return run


def check(place: Place, result: Any) -> None:
    if not isinstance(result, str):  # the MD5's
        expect(
            filecmp.cmp(source(place), place.scratch / COPY, shallow=False),
            "what is stored holds other bytes",
        )


WORKLOAD = Workload(
    title="Upload a large object",
    what=(
        "{large} (`--full`: 1 GiB) to `rclone serve s3` in a process of its own, in parts, several at"
        " a time. Ours and rclone send an MD5 of each part, which the server checks; the others send "
        "none. The last row is the time of the MD5 alone."
    ),
    contenders=(
        Contender(UPLOAD, ours, module="boto3"),
        Contender(STREAM, our_stream, module="boto3"),
        Contender(BOTO3, boto3, module="boto3"),
        Contender(BOTO3_STREAM, boto3_stream, module="boto3"),
        Contender(OBSTORE, obstore, module="obstore"),
        Contender(S5CMD, s5cmd, program="s5cmd"),
        Contender(RCLONE_COPY, rclone, program="rclone"),
        Contender(MD5, md5),
    ),
    setup=setup,
    check=check,
    rounds=5,
    comparisons=(
        Comparison(UPLOAD, BOTO3, 1.3),
        Comparison(STREAM, BOTO3_STREAM, 1.3),
        *(Comparison(UPLOAD, other) for other in (OBSTORE, S5CMD, RCLONE_COPY)),
    ),
    growth=dict.fromkeys((UPLOAD, STREAM), 32 * MEBIBYTE),
    cpu=(CpuLimit(UPLOAD, MD5, 0.4),),
    server=RCLONE,
)
