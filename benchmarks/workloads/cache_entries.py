"""The cost of many entries: a cache of a thousand, and one of a hundred thousand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import caches
from benchmarks.harness import OURS, Comparison, Contender, Fact, Pass, Place, Scale, Workload, expect

FEW, MANY = f"{OURS}, few entries", f"{OURS}, many entries"
OPENING, HIT = "opening", "a hit"
SETS = 500
CONTENT = b"x" * 1000


class Took(NamedTuple):
    """Seconds."""

    opening: float
    hit: float
    entries: int


def few(scale: Scale) -> int:
    return max(scale.objects, 10)


def many(scale: Scale) -> int:
    return max(scale.tree, 100)


def contender(name: str, count: Any) -> Contender:
    def prepare(place: Place) -> Pass:
        from storage_backend import MemoryStorage

        backend, cache = MemoryStorage(), place.scratch / "cache"
        entries = count(place.scale)
        filled = caches.ours(cache, cache, backend=backend)
        for number in range(entries):
            filled.write(f"{number}", CONTENT)
        filled.close()
        began = time.perf_counter()
        storage = caches.ours(cache, cache, backend=backend)
        found = storage.get_cache_stats()["file_count"]
        opening = time.perf_counter() - began
        for number in range(SETS):
            backend.write(f"new {number}", CONTENT)
        for _ in range(2):
            began = time.perf_counter()
            for number in range(SETS):
                storage.read(f"{number * entries // SETS}")
            hit = (time.perf_counter() - began) / SETS

        def run() -> Took:
            for number in range(SETS):
                storage.read(f"new {number}")
            return Took(opening, hit, found)

        return run

    def facts(took: Took) -> dict[str, float]:
        return {OPENING: took.opening * 1e3, HIT: took.hit * 1e6}

    return Contender(name, prepare, facts=facts)


def setup(place: Place) -> None:
    Path(place.shared).mkdir(parents=True, exist_ok=True)


def check(place: Place, result: Took) -> None:
    expect(result.entries in {few(place.scale), many(place.scale)}, f"{result.entries} entries")


WORKLOAD = Workload(
    title="Bring 1,000-byte objects into a cache that has few entries, and one that has many",
    what="{objects:,} and {tree:,} entries. Before the loop, outside its time, the directory is "
    "opened and some of its entries are read.",
    contenders=(contender(MANY, many), contender(FEW, few)),
    setup=setup,
    check=check,
    operations=lambda _scale: SETS,
    rounds=3,
    comparisons=(Comparison(MANY, FEW, 1 / 1.5),),
    facts=(Fact(OPENING, "{:,.1f} ms", targets={MANY: 50.0}), Fact(HIT, "{:,.1f} us")),
)
