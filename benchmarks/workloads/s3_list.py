"""List 100,000 objects."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import data, s3
from benchmarks.harness import Comparison, Contender, Pass, Place, Workload, expect
from benchmarks.servers import NGINX

SCAN = "scan()"
LIST = "list()"
BOTO3 = "boto3 paginator"
S3FS = "s3fs find"
OBSTORE = "obstore list"
PAGE = 1000  # keys ("ListObjectsV2", Amazon S3 API Reference)


def folder(place: Place) -> Path:
    """The pages, and the name of the bucket that they are of."""
    return place.shared / f"pages-{place.scale.tree}"


def setup(place: Place) -> None:
    if folder(place).exists():
        return
    unfinished = place.shared / "pages.unfinished"
    unfinished.mkdir()
    every = list(data.names(place.scale.tree))
    starts = range(0, len(every), PAGE)
    for number, start in enumerate(starts):
        keys = every[start : start + PAGE]
        following = number + 1 if number + 1 < len(starts) else None
        (unfinished / str(number)).write_text(page(folder(place).name, keys, number, following))
    unfinished.rename(folder(place))


def page(bucket: str, keys: Sequence[str], number: int, following: int | None) -> str:
    """A page as Amazon S3 writes it today."""
    entries = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2024-01-01T00:{index // 60 % 60:02}:{index % 60:02}.000Z</LastModified>"
        f"<ETag>&quot;{hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()}&quot;</ETag>"
        "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>"
        f"<Size>{data.SMALL}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for index, key in enumerate(keys)
    )
    truncated = "false" if following is None else "true"
    token = f"<ContinuationToken>{number}</ContinuationToken>" if number else ""
    if following is not None:
        token += f"<NextContinuationToken>{following}</NextContinuationToken>"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{bucket}</Name><Prefix></Prefix>{token}'
        f"<KeyCount>{len(keys)}</KeyCount><MaxKeys>{PAGE}</MaxKeys><EncodingType>url</EncodingType>"
        f"<IsTruncated>{truncated}</IsTruncated>{entries}</ListBucketResult>"
    )


def ours(place: Place) -> Pass:
    storage = s3.ours(place, folder(place).name)
    return lambda: [info.identifier for info in storage.scan()]


def our_list(place: Place) -> Pass:
    return s3.ours(place, folder(place).name).list


def boto3(place: Place) -> Pass:
    pages = s3.boto3(place).get_paginator("list_objects_v2")
    return lambda: [
        found["Key"] for page in pages.paginate(Bucket=folder(place).name) for found in page["Contents"]
    ]


def s3fs(place: Place) -> Pass:
    files = s3.s3fs(place)
    return lambda: files.find(folder(place).name)


def obstore(place: Place) -> Pass:
    store = s3.obstore(place, folder(place).name)
    return lambda: [meta["path"] for chunk in store.list(chunk_size=PAGE) for meta in chunk]


def check(place: Place, result: Any) -> None:
    expected = list(data.names(place.scale.tree))
    # s3fs: "bucket/key".
    expect(
        [name.removeprefix(f"{folder(place).name}/") for name in result] == expected, "not the names in order"
    )


WORKLOAD = Workload(
    title="List {tree:,} objects",
    what=(
        "Pages of 1,000 keys in the format of Amazon S3, prepared in advance and served by nginx, so "
        "the clients dominate the times. Each client builds an object of each entry, with size, time "
        "and etag; the result is a list of names."
    ),
    contenders=(
        Contender(SCAN, ours, module="boto3"),
        Contender(LIST, our_list, module="boto3"),
        Contender(BOTO3, boto3, module="boto3"),
        Contender(S3FS, s3fs, module="s3fs"),
        Contender(OBSTORE, obstore, module="obstore"),
    ),
    setup=setup,
    check=check,
    loop=True,
    rounds=5,
    comparisons=tuple(
        Comparison(one, peer, at_least)
        for one in (SCAN, LIST)
        for peer, at_least in ((BOTO3, 8.0), (S3FS, 8.0), (OBSTORE, 0.4))
    ),
    server=NGINX,
)
