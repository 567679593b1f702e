"""Shared by the workloads of single local writes: 4 KiB written by each contender."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

from benchmarks import data
from benchmarks.harness import OURS, Comparison, Contender, Pass, Place, Scale, Workload, expect
from benchmarks.peers import fsspec_local, obstore_local, opendal_local

CONTENT = data.content()
FSSPEC = "fsspec pipe_file (not atomic)"
RENAME = "temporary name, os.replace"
IN_PLACE = "open().write() (not atomic)"

# Given the place, a function that writes CONTENT to a name beneath the scratch folder.
Writer = Callable[[Place], Callable[[str], object]]


def ours(place: Place) -> Callable[[str], object]:
    from storage_backend import LocalStorage

    storage = LocalStorage(place.scratch)
    return lambda name: storage.write(name, CONTENT)


def in_place(place: Place) -> Callable[[str], object]:
    def write(name: str) -> None:
        with open(f"{place.scratch}/{name}", "wb") as file:
            file.write(CONTENT)

    return write


def rename(place: Place) -> Callable[[str], object]:
    def write(name: str) -> None:
        path = f"{place.scratch}/{name}"
        temporary = f"{path}.temporary"
        with open(temporary, "wb") as file:
            file.write(CONTENT)
        os.replace(temporary, path)

    return write


def fsspec(place: Place) -> Callable[[str], object]:
    files = fsspec_local()
    return lambda name: files.pipe_file(f"{place.scratch}/{name}", CONTENT)


def obstore(place: Place) -> Callable[[str], object]:
    store = obstore_local(place.scratch)
    return lambda name: store.put(name, CONTENT)


def opendal(place: Place) -> Callable[[str], object]:
    operator = opendal_local(place.scratch, atomic_write_dir=f"{place.scratch}/staging")
    return lambda name: operator.write(name, CONTENT)


def workload(title: str, what: str, *, fresh: bool) -> Workload:
    """The workload; *fresh* writes names that are not there yet."""

    def contender(name: str, writer: Writer, module: str | None = None) -> Contender:
        return Contender(name, lambda place: passes(place, writer(place), fresh=fresh), module=module)

    return Workload(
        title=title,
        what=what,
        contenders=(
            contender(OURS, ours),
            contender(RENAME, rename),
            contender(IN_PLACE, in_place),
            contender(FSSPEC, fsspec, "fsspec"),
            contender("obstore put", obstore, "obstore"),
            contender("opendal write, atomic_write_dir", opendal, "opendal"),
        ),
        setup=lambda _place: None,
        check=check,
        operations=operations,
        loop=True,
        rounds=9,
        comparisons=(
            Comparison(OURS, FSSPEC, 1.0),
            Comparison(OURS, RENAME),
            Comparison(OURS, IN_PLACE),
            Comparison(OURS, "obstore put"),
            Comparison(OURS, "opendal write, atomic_write_dir"),
        ),
    )


def operations(scale: Scale) -> int:
    """One write an object."""
    return scale.objects


def passes(place: Place, write: Callable[[str], object], *, fresh: bool) -> Pass:
    """A pass writes one directory of objects, each time a new one if *fresh*; it returns the directory's name."""
    numbers = itertools.count() if fresh else itertools.repeat(0)
    if not fresh:
        (place.scratch / "0").mkdir()
        for index in range(place.scale.objects):
            (place.scratch / f"0/{index:06}.bin").write_bytes(b"old")

    def run() -> str:
        number = next(numbers)
        if fresh:
            os.mkdir(f"{place.scratch}/{number}")
        for index in range(place.scale.objects):
            write(f"{number}/{index:06}.bin")
        return str(number)

    return run


def check(place: Place, result: Any) -> None:
    folder = place.scratch / result
    expect(
        data.contents(folder) == (place.scale.objects, place.scale.objects * data.SMALL), "not all is there"
    )
    expect(all(path.read_bytes() == CONTENT for path in folder.iterdir()), "other bytes than those written")
