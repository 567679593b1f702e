"""List 100,000 objects in order, names only."""

from __future__ import annotations

import os
from typing import Any

from benchmarks import data
from benchmarks.harness import OURS, Comparison, Contender, Pass, Place, Workload, expect
from benchmarks.peers import fsspec_local, obstore_local, opendal_local
from benchmarks.workloads import listing


def ours(place: Place) -> Pass:
    from storage_backend import LocalStorage

    return LocalStorage(listing.folder(place)).list


def walk(place: Place) -> Pass:
    def run() -> list[str]:
        return sorted(
            f"{parent}/{file}" for parent, _, files in os.walk(listing.folder(place)) for file in files
        )

    return run


def rglob(place: Place) -> Pass:
    return lambda: sorted(str(path) for path in listing.folder(place).rglob("*") if path.is_file())


def fsspec(place: Place) -> Pass:
    files = fsspec_local()
    return lambda: files.find(str(listing.folder(place)))


def obstore(place: Place) -> Pass:
    store = obstore_local(listing.folder(place))
    return lambda: sorted(meta["path"] for chunk in store.list() for meta in chunk)


def opendal(place: Place) -> Pass:
    operator = opendal_local(listing.folder(place))
    return lambda: sorted(
        entry.path for entry in operator.list("", recursive=True) if not entry.path.endswith("/")
    )


def check(place: Place, result: Any) -> None:
    expected = list(data.names(place.scale.tree))
    expect(len(result) == len(expected), f"{len(result)} names of {len(expected)}")
    expect(
        all(name.endswith(wanted) for name, wanted in zip(result, expected, strict=True)),
        "not the names in order",
    )


WORKLOAD = Workload(
    title="List {tree:,} objects in order, names only",
    what=(
        "100 files to a directory, 10 directories to a directory. The result is a sorted list of "
        "names. The time includes sorting, for contenders that do not sort."
    ),
    contenders=(
        Contender(OURS, ours),
        Contender("os.walk", walk),
        Contender("Path.rglob", rglob),
        Contender("fsspec find", fsspec, module="fsspec"),
        Contender("obstore list", obstore, module="obstore"),
        Contender("opendal list", opendal, module="opendal"),
    ),
    setup=listing.setup,
    check=check,
    loop=True,
    rounds=5,
    comparisons=(
        Comparison(OURS, "fsspec find", 6.0),
        *(Comparison(OURS, other) for other in ("os.walk", "Path.rglob", "obstore list", "opendal list")),
    ),
)
