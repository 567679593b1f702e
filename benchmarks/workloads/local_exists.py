"""Ask whether objects exist, one by one."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.harness import OURS, Contender, Pass, Place, Workload, each, expect
from benchmarks.peers import fsspec_local, obstore_local, opendal_local
from benchmarks.workloads import single


def ours(place: Place) -> Pass:
    from storage_backend import LocalStorage

    return each(LocalStorage(single.folder(place)).exists, single.identifiers(place))


def plain_read(place: Place) -> Pass:
    return each(single.plain_read, single.paths(place))


def plain(place: Place) -> Pass:
    return each(os.path.exists, single.paths(place))


def fsspec(place: Place) -> Pass:
    return each(fsspec_local().exists, single.paths(place))


def obstore(place: Place) -> Pass:
    return each(obstore_local(single.folder(place)).head, single.identifiers(place))


def opendal(place: Place) -> Pass:
    return each(opendal_local(single.folder(place)).exists, single.identifiers(place))


def check(_place: Place, result: Any) -> None:
    expect(bool(result), "an object was not found")


WORKLOAD = Workload(
    title="Whether an object exists",
    what=(
        "{objects:,} files, 100 to a directory; all exist. `open().read()` is in the target; "
        "`os.path.exists` (no checks, and any error counts as absent) is for comparison. obstore has "
        "no `exists`: `head`."
    ),
    contenders=(
        Contender(OURS, ours),
        Contender(single.PLAIN, plain_read),
        Contender("os.path.exists", plain),
        Contender("fsspec exists", fsspec, module="fsspec"),
        Contender("obstore head", obstore, module="obstore"),
        Contender("opendal exists", opendal, module="opendal"),
    ),
    setup=single.setup,
    check=check,
    operations=single.operations,
    loop=True,
    rounds=9,
    comparisons=single.comparisons("fsspec exists", "os.path.exists", "obstore head", "opendal exists"),
)
