"""Open cached objects of 100 KiB, and read one byte of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import caches
from benchmarks.caches import BLOCKCACHE, DISKCACHE, FILECACHE, MULTI_STORAGE, SIMPLECACHE
from benchmarks.harness import OURS, Place
from benchmarks.workloads import cached
from benchmarks.workloads.cached import Objects, Operation


def first_byte(opened: Callable[[str], Any]) -> Operation:
    def read(name: str) -> bytes:
        with opened(name) as reader:
            found: bytes = reader.read(1)
        return found

    return read


def ours(place: Place, objects: Objects) -> Operation:
    storage = caches.ours(objects.folder(place), place.scratch / "cache")
    storage.prefetch(objects.names(place))
    return first_byte(storage.open)


def plain(place: Place, objects: Objects) -> Operation:
    folder = str(objects.folder(place))
    return first_byte(lambda name: open(f"{folder}/{name}", "rb"))


def diskcache(place: Place, objects: Objects) -> Operation:
    return first_byte(cached.filled_diskcache(place, objects).read)


def filecache(place: Place, objects: Objects) -> Operation:
    files, folder = cached.filled_fsspec("filecache", place, objects), objects.folder(place)
    return first_byte(lambda name: files.open(f"{folder}/{name}", "rb"))


def simplecache(place: Place, objects: Objects) -> Operation:
    files, folder = cached.filled_fsspec("simplecache", place, objects), objects.folder(place)
    return first_byte(lambda name: files.open(f"{folder}/{name}", "rb"))


def blockcache(place: Place, objects: Objects) -> Operation:
    files = cached.filled_blockcache(place, objects)
    return first_byte(lambda name: files.open(name, "rb"))


def multi_storage(place: Place, objects: Objects) -> Operation:
    client = cached.filled_multi_storage(place, objects)
    return first_byte(lambda name: client.open(name, "rb"))


WORKLOAD = cached.workload(
    "Open a cached 100 KiB object and read one byte",
    "All objects are in the cache. Each is opened, one byte is read, and it is closed. No contender "
    "reads more than a buffer.",
    cached.HUNDRED,
    (
        (OURS, ours, None),
        (cached.PLAIN_HANDLE, plain, None),
        (DISKCACHE, diskcache, "diskcache"),
        (FILECACHE, filecache, "fsspec"),
        (SIMPLECACHE, simplecache, "fsspec"),
        (BLOCKCACHE, blockcache, "fsspec"),
        (MULTI_STORAGE, multi_storage, "multistorageclient"),
    ),
    {},
    1,
)
