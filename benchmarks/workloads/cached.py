"""Shared by the workloads of cache hits: objects of one size, and each cache with all of them in it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import caches, data
from benchmarks.caches import BLOCKCACHE, DISKCACHE, FILECACHE, MULTI_STORAGE, SIMPLECACHE
from benchmarks.harness import OURS, Comparison, Contender, Pass, Place, Scale, Workload, each, expect

PLAIN = "open().read()"
PLAIN_HANDLE = "open(), read 1 byte"

# Given the place and the objects, a function of a name.
Operation = Callable[[str], Any]
Cache = Callable[[Place, "Objects"], Operation]


@dataclass(frozen=True)
class Objects:
    """The objects of a workload.

    Attributes:
        size: of each, in bytes.
        most: how many there are, if the scale has so many.
        share: one in so many of the scale's objects.
    """

    size: int
    most: int
    share: int

    def count(self, scale: Scale) -> int:
        """How many there are at a scale."""
        return max(min(scale.objects // self.share, self.most), 2)

    def folder(self, place: Place) -> Path:
        """Where they are."""
        return place.shared / f"cached-{self.size}-{self.count(place.scale)}"

    def setup(self, place: Place) -> None:
        """Make them."""
        data.tree(self.folder(place), self.count(place.scale), self.size)

    def names(self, place: Place) -> list[str]:
        """Theirs, in an order that is none, and the same on every run."""
        found = list(data.names(self.count(place.scale)))
        random.Random(0).shuffle(found)  # noqa: S311 - the same on every run is the point
        return found


KIBIBYTE = Objects(1 << 10, 1_000, 1)
HUNDRED = Objects(100 << 10, 300, 3)
TEN_MEBIBYTES = Objects(10 << 20, 10, 100)


def plain(place: Place, objects: Objects) -> Operation:
    folder = str(objects.folder(place))

    def read(name: str) -> bytes:
        with open(f"{folder}/{name}", "rb") as file:
            return file.read()

    return read


def ours(place: Place, objects: Objects) -> Operation:
    storage = caches.ours(objects.folder(place), place.scratch / "cache")
    storage.prefetch(objects.names(place))
    return storage.read


def diskcache(place: Place, objects: Objects) -> Operation:
    get: Operation = filled_diskcache(place, objects).get
    return get


def filled_diskcache(place: Place, objects: Objects) -> Any:
    """Diskcache with all of the objects."""
    cache = caches.diskcache(place.scratch / "cache")
    for name in objects.names(place):
        caches.put(cache, name, f"{objects.folder(place)}/{name}")
    return cache


def filecache(place: Place, objects: Objects) -> Operation:
    return _whole("filecache", place, objects)


def simplecache(place: Place, objects: Objects) -> Operation:
    return _whole("simplecache", place, objects)


def _whole(kind: str, place: Place, objects: Objects) -> Operation:
    folder = objects.folder(place)
    files = filled_fsspec(kind, place, objects)
    return lambda name: files.cat_file(f"{folder}/{name}")


def filled_fsspec(kind: str, place: Place, objects: Objects) -> Any:
    """A caching file system with all of the objects; its paths are absolute."""
    files = caches.fsspec(kind, place.scratch / "cache")
    files.cat([f"{objects.folder(place)}/{name}" for name in objects.names(place)])
    return files


def blockcache(place: Place, objects: Objects) -> Operation:
    read: Operation = filled_blockcache(place, objects).cat_file
    return read


def filled_blockcache(place: Place, objects: Objects) -> Any:
    """A caching file system with all of the objects, each as one file of blocks; its paths are the names."""
    files = caches.fsspec("blockcache", place.scratch / "cache", caches.file_system(objects.folder(place)))
    for name in objects.names(place):
        files.cat_file(name)
    return files


def multi_storage(place: Place, objects: Objects) -> Operation:
    read: Operation = filled_multi_storage(place, objects).read
    return read


def filled_multi_storage(place: Place, objects: Objects) -> Any:
    """The client of multi-storage-client with all of the objects in its cache."""
    client, cache = caches.multi_storage_client(place.scratch / "cache")
    for name in objects.names(place):
        cache.set(name, (objects.folder(place) / name).read_bytes())
    return client


def workload(  # noqa: PLR0917 - one call a workload
    title: str,
    what: str,
    objects: Objects,
    contenders: tuple[tuple[str, Cache, str | None], ...],
    targets: dict[str, float],
    length: int,
) -> Workload:
    """The workload of these contenders (name, cache, module); each operation gives *length* bytes."""

    def contender(name: str, cache: Cache, module: str | None) -> Contender:
        def prepare(place: Place) -> Pass:
            return each(cache(place, objects), objects.names(place))

        return Contender(name, prepare, module=module)

    def check(_place: Place, result: Any) -> None:
        expect(len(result) == length, f"read {len(result)} bytes")

    return Workload(
        title=title,
        what=what,
        contenders=tuple(contender(*one) for one in contenders),
        setup=objects.setup,
        check=check,
        operations=objects.count,
        loop=True,
        rounds=9,
        comparisons=tuple(
            Comparison(OURS, name, targets.get(name)) for name, _, _ in contenders if name != OURS
        ),
    )


def hits(size: str, objects: Objects, targets: dict[str, float]) -> Workload:
    """The workload of reading objects that are in the cache."""
    return workload(
        f"Read a cached {size} object",
        "All objects are in the cache, a directory beside their files. Each is read whole, in random "
        "order. Ours is over LocalStorage, fsspec's over local files, and multi-storage-client's over"
        " an S3 endpoint that is never reached. diskcache records uses, for LRU eviction; fsspec and "
        "multi-storage-client record nothing on a hit.",
        objects,
        (
            (OURS, ours, None),
            (PLAIN, plain, None),
            (DISKCACHE, diskcache, "diskcache"),
            (FILECACHE, filecache, "fsspec"),
            (SIMPLECACHE, simplecache, "fsspec"),
            (BLOCKCACHE, blockcache, "fsspec"),
            (MULTI_STORAGE, multi_storage, "multistorageclient"),
        ),
        targets,
        objects.size,
    )
