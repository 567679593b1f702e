"""List 100,000 objects in order, with sizes and times."""

from __future__ import annotations

import os
from typing import Any

from benchmarks import data
from benchmarks.harness import OURS, Comparison, Contender, Pass, Place, Workload, expect
from benchmarks.peers import fsspec_local, obstore_local, opendal_local
from benchmarks.workloads import listing


def ours(place: Place) -> Pass:
    from storage_backend import LocalStorage

    storage = LocalStorage(listing.folder(place))
    return lambda: [(info.identifier, info.size, info.modified) for info in storage.scan()]


def walk(place: Place) -> Pass:
    def run() -> list[tuple[str, int, float]]:
        paths = sorted(
            f"{parent}/{file}" for parent, _, files in os.walk(listing.folder(place)) for file in files
        )
        looks = ((path, os.stat(path)) for path in paths)
        return [(path, look.st_size, look.st_mtime) for path, look in looks]

    return run


def rglob(place: Place) -> Pass:
    def run() -> list[tuple[str, int, float]]:
        looks = ((path, path.stat()) for path in sorted(listing.folder(place).rglob("*.bin")))
        return [(str(path), look.st_size, look.st_mtime) for path, look in looks]

    return run


def fsspec(place: Place) -> Pass:
    files = fsspec_local()

    def run() -> list[tuple[str, int, float]]:
        found = files.find(str(listing.folder(place)), detail=True)
        return [(path, info["size"], info["mtime"]) for path, info in found.items()]

    return run


def obstore(place: Place) -> Pass:
    store = obstore_local(listing.folder(place))
    return lambda: sorted(
        (meta["path"], meta["size"], meta["last_modified"]) for chunk in store.list() for meta in chunk
    )


def opendal(place: Place) -> Pass:
    operator = opendal_local(listing.folder(place))
    return lambda: sorted(
        (entry.path, entry.metadata.content_length, entry.metadata.last_modified)
        for entry in operator.list("", recursive=True)
        if not entry.path.endswith("/")
    )


def check(place: Place, result: Any) -> None:
    expected = list(data.names(place.scale.tree))
    expect(len(result) == len(expected), f"{len(result)} names of {len(expected)}")
    for (name, size, modified), wanted in zip(result, expected, strict=True):
        expect(name.endswith(wanted) and size == data.SMALL, f"{name}, {size} bytes, is not {wanted}")
        seconds = modified if isinstance(modified, float) else modified.timestamp()
        expect(seconds == data.MODIFIED, f"{name} changed at {modified}")


WORKLOAD = Workload(
    title="List {tree:,} objects in order, with size and time",
    what=(
        "The same tree. The result is a sorted list of (name, size, time); the time includes building"
        " it. Ours and `os.walk` could also be consumed lazily."
    ),
    contenders=(
        Contender(OURS, ours),
        Contender("os.walk, os.stat", walk),
        Contender("Path.rglob, stat", rglob),
        Contender("fsspec find(detail=True)", fsspec, module="fsspec"),
        Contender("obstore list", obstore, module="obstore"),
        Contender("opendal list", opendal, module="opendal"),
    ),
    setup=listing.setup,
    check=check,
    loop=True,
    rounds=5,
    comparisons=(
        Comparison(OURS, "fsspec find(detail=True)", 1.4),
        *(
            Comparison(OURS, other)
            for other in ("os.walk, os.stat", "Path.rglob, stat", "obstore list", "opendal list")
        ),
    ),
)
