"""Read 100 KiB objects that are not in the cache yet."""

from __future__ import annotations

from collections import deque
from typing import Any

from benchmarks import caches
from benchmarks.caches import DISKCACHE, FILECACHE, SIMPLECACHE
from benchmarks.harness import OURS, Comparison, Contender, Pass, Place, Workload, each, expect
from benchmarks.workloads.cached import HUNDRED

BATCH = "read_many()"


def setup(place: Place) -> None:
    HUNDRED.setup(place)


def ours(place: Place) -> Pass:
    storage = caches.ours(HUNDRED.folder(place), place.scratch / "cache")
    return each(storage.read, HUNDRED.names(place))


def batch(place: Place) -> Pass:
    """All of them by one call."""
    storage = caches.ours(HUNDRED.folder(place), place.scratch / "cache")
    names = HUNDRED.names(place)
    return lambda: deque(storage.read_many(names), maxlen=1)[0][1]


def plain(place: Place) -> Pass:
    """Read the file, and write it elsewhere."""
    folder, to = HUNDRED.folder(place), place.scratch
    names = {name: f"{to}/{number}" for number, name in enumerate(HUNDRED.names(place))}

    def copy(name: str) -> bytes:
        with open(f"{folder}/{name}", "rb") as file:
            content = file.read()
        with open(names[name], "wb") as file:
            file.write(content)
        return content

    return each(copy, names)


def diskcache(place: Place) -> Pass:
    cache, folder = caches.diskcache(place.scratch / "cache"), HUNDRED.folder(place)

    def read(name: str) -> Any:
        found = cache.get(name)
        if found is None:
            with open(f"{folder}/{name}", "rb") as file:
                found = file.read()
            cache.set(name, found)
        return found

    return each(read, HUNDRED.names(place))


def filecache(place: Place) -> Pass:
    return _fsspec("filecache", place)


def simplecache(place: Place) -> Pass:
    return _fsspec("simplecache", place)


def _fsspec(kind: str, place: Place) -> Pass:
    files, folder = caches.fsspec(kind, place.scratch / "cache"), HUNDRED.folder(place)
    return each(lambda name: files.cat_file(f"{folder}/{name}"), HUNDRED.names(place))


def check(_place: Place, result: Any) -> None:
    expect(len(result) == HUNDRED.size, f"read {len(result)} bytes")


WORKLOAD = Workload(
    title="Read a 100 KiB object that is not in the cache yet",
    what="The backend is the local disk, so the cache dominates the times: a lookup, the read, a file"
    " written, and an index update. `open() twice` reads a file and writes another. "
    "`read_many()` fetches and stores in batches.",
    contenders=(
        Contender(OURS, ours),
        Contender(BATCH, batch),
        Contender("open() twice", plain),
        Contender(DISKCACHE, diskcache, module="diskcache"),
        Contender(FILECACHE, filecache, module="fsspec"),
        Contender(SIMPLECACHE, simplecache, module="fsspec"),
    ),
    setup=setup,
    check=check,
    operations=HUNDRED.count,
    rounds=9,
    comparisons=(
        Comparison(OURS, "open() twice"),
        Comparison(OURS, DISKCACHE),
        Comparison(OURS, FILECACHE),
        Comparison(OURS, SIMPLECACHE),
        Comparison(BATCH, "open() twice"),
        Comparison(BATCH, DISKCACHE),
        Comparison(BATCH, FILECACHE),
        Comparison(BATCH, SIMPLECACHE),
    ),
)
