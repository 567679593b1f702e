"""Zipf-distributed reads through a cache that holds a tenth of all bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import caches, lru
from benchmarks.caches import DISKCACHE
from benchmarks.harness import OURS, Comparison, Contender, Fact, Pass, Place, Scale, Workload, expect

IDEAL = "ideal LRU (no bytes)"
RATE, OVER = "hit rate", "peak over the limit"
LEAST, MOST = 1 << 10, 1 << 20
EVERY = 50  # reads between two looks at what the directory holds


class Seen(NamedTuple):
    """What a pass has seen."""

    hits: int
    reads: int
    peak: int
    limit: int


def objects(scale: Scale) -> int:
    return max(scale.objects // 2, 20)


def reads(scale: Scale) -> int:
    return objects(scale) * 8


def folder(place: Place) -> Path:
    return place.shared / f"zipf-{objects(place.scale)}"


def setup(place: Place) -> None:
    if folder(place).exists():
        return
    folder(place).mkdir(parents=True)
    for number, size in enumerate(lru.sizes(objects(place.scale), LEAST, MOST)):
        (folder(place) / f"{number}").write_bytes(os.urandom(size))


def limit(place: Place) -> int:
    return sum(lru.sizes(objects(place.scale), LEAST, MOST)) // 10


def order(place: Place) -> list[int]:
    return lru.zipf(objects(place.scale), reads(place.scale))


def held(beneath: Path, suffixes: tuple[str, ...] = ("",)) -> int:
    """Bytes of the files beneath a folder."""
    return sum(
        os.stat(f"{root}/{name}").st_size
        for root, _, names in os.walk(beneath)
        for name in names
        if name.endswith(suffixes)
    )


def ours(place: Place) -> Pass:
    storage = caches.ours(folder(place), place.scratch / "cache", limit(place))

    def look() -> int:
        size: float = storage.get_cache_stats()["size_mb"]
        return round(size * 2**20)

    return _pass(place, storage.read, look, lambda: int(storage.get_cache_stats()["hits"]))


def diskcache(place: Place) -> Pass:
    cache = caches.diskcache(place.scratch / "cache", limit(place))
    hits = 0

    def read(name: str) -> bytes:
        nonlocal hits
        found: bytes | None = cache.get(name)
        if found is not None:
            hits += 1
            return found
        content = (folder(place) / name).read_bytes()
        cache.set(name, content)
        return content

    return _pass(place, read, lambda: held(place.scratch / "cache", (".val",)), lambda: hits)


def ideal(place: Place) -> Pass:
    cache = lru.IdealLru[str](limit(place))
    sizes = lru.sizes(objects(place.scale), LEAST, MOST)
    return _pass(
        place, lambda name: cache.read(name, sizes[int(name)]), lambda: cache.peak, lambda: cache.hits
    )


def _pass(
    place: Place, read: Callable[[str], object], look: Callable[[], int], hits: Callable[[], int]
) -> Pass:
    names = [f"{number}" for number in order(place)]

    def run() -> Seen:
        peak = 0
        for number, name in enumerate(names):
            read(name)
            if number % EVERY == 0:
                peak = max(peak, look())
        return Seen(hits(), len(names), max(peak, look()), limit(place))

    return run


def facts(seen: Seen) -> dict[str, float]:
    return {RATE: seen.hits / seen.reads, OVER: seen.peak / seen.limit}


def check(place: Place, result: Any) -> None:
    expect(result.reads == reads(place.scale), f"{result.reads} reads")


WORKLOAD = Workload(
    title="Zipf-distributed reads through a cache of a tenth of all bytes",
    what="Objects of 1 KiB to 1 MiB (log-uniform) on the local disk, read with a Zipf distribution of"
    " exponent 0.9. The ideal LRU is simulated with the same reads and the same limit in bytes. "
    "The size of the directory is checked every 50 reads, within the time.",
    contenders=(
        Contender(OURS, ours, facts=facts),
        Contender(DISKCACHE, diskcache, module="diskcache", facts=facts),
        Contender(IDEAL, ideal, facts=facts),
    ),
    setup=setup,
    check=check,
    operations=reads,
    rounds=3,
    comparisons=(Comparison(OURS, DISKCACHE),),
    facts=(
        Fact(RATE, "{:.4f}", more_is_better=True),
        Fact(OVER, "{:.3f}x", targets={OURS: 1.0}),
    ),
)
