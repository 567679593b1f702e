"""Read 4 KiB objects, one by one."""

from __future__ import annotations

import os
from typing import Any

from benchmarks import data
from benchmarks.harness import OURS, Contender, Pass, Place, Workload, each, expect
from benchmarks.peers import fsspec_local, obstore_local, opendal_local
from benchmarks.workloads import single


def ours(place: Place) -> Pass:
    from storage_backend import LocalStorage

    return each(LocalStorage(single.folder(place)).read, single.identifiers(place))


def plain(place: Place) -> Pass:
    return each(single.plain_read, single.paths(place))


def unchecked(place: Place) -> Pass:
    def read(path: str) -> bytes:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    return each(read, single.paths(place))


def fsspec(place: Place) -> Pass:
    return each(fsspec_local().cat_file, single.paths(place))


def obstore(place: Place) -> Pass:
    store = obstore_local(single.folder(place))
    return each(lambda name: store.get(name).bytes(), single.identifiers(place))


def opendal(place: Place) -> Pass:
    return each(opendal_local(single.folder(place)).read, single.identifiers(place))


def check(_place: Place, result: Any) -> None:
    expect(len(result) == data.SMALL, f"read {len(result)} bytes")


WORKLOAD = Workload(
    title="Read a 4 KiB object",
    what=(
        "{objects:,} files, 100 to a directory, read in turn. Ours refuses names and symbolic links "
        "that lead out of the base directory; the others follow them. `os.open, fstat, read` is the "
        "lower bound: no object, no check."
    ),
    contenders=(
        Contender(OURS, ours),
        Contender(single.PLAIN, plain),
        Contender("os.open, fstat, read", unchecked),
        Contender("fsspec cat_file", fsspec, module="fsspec"),
        Contender("obstore get", obstore, module="obstore"),
        Contender("opendal read", opendal, module="opendal"),
    ),
    setup=single.setup,
    check=check,
    operations=single.operations,
    loop=True,
    rounds=9,
    comparisons=single.comparisons("fsspec cat_file", "os.open, fstat, read", "obstore get", "opendal read"),
)
