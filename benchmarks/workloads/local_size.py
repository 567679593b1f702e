"""Ask for the sizes of objects, one by one."""

from __future__ import annotations

import os
from typing import Any

from benchmarks import data
from benchmarks.harness import OURS, Contender, Pass, Place, Workload, each, expect
from benchmarks.peers import fsspec_local, obstore_local, opendal_local
from benchmarks.workloads import single


def ours(place: Place) -> Pass:
    from storage_backend import LocalStorage

    return each(LocalStorage(single.folder(place)).size, single.identifiers(place))


def plain_read(place: Place) -> Pass:
    def size(path: str) -> int:
        return len(single.plain_read(path))

    return each(size, single.paths(place))


def plain(place: Place) -> Pass:
    def size(path: str) -> int:
        return os.stat(path).st_size

    return each(size, single.paths(place))


def fsspec(place: Place) -> Pass:
    return each(fsspec_local().size, single.paths(place))


def obstore(place: Place) -> Pass:
    store = obstore_local(single.folder(place))
    return each(lambda name: store.head(name)["size"], single.identifiers(place))


def opendal(place: Place) -> Pass:
    operator = opendal_local(single.folder(place))
    return each(lambda name: operator.stat(name).content_length, single.identifiers(place))


def check(_place: Place, result: Any) -> None:
    expect(result == data.SMALL, f"a size of {result}")


WORKLOAD = Workload(
    title="The size of an object",
    what="{objects:,} files, 100 to a directory. `open().read()` is in the target; `os.stat` (no "
    "checks) is for comparison.",
    contenders=(
        Contender(OURS, ours),
        Contender(single.PLAIN, plain_read),
        Contender("os.stat", plain),
        Contender("fsspec size", fsspec, module="fsspec"),
        Contender("obstore head", obstore, module="obstore"),
        Contender("opendal stat", opendal, module="opendal"),
    ),
    setup=single.setup,
    check=check,
    operations=single.operations,
    loop=True,
    rounds=9,
    comparisons=single.comparisons("fsspec size", "os.stat", "obstore head", "opendal stat"),
)
