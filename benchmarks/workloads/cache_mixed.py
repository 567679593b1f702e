"""Four processes read and write through one cache directory, nine reads to a write."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import caches
from benchmarks.caches import DISKCACHE
from benchmarks.harness import OURS, Comparison, Contender, Fact, Pass, Place, Scale, Workload, expect

PROCESSES = 4
KEYS = 300
ALL, THIRD = 16 << 20, 4 << 20  # bytes; all objects have about 11 MiB
SIZES = (1 << 10, 8 << 10, 100 << 10)
PIECE = 64  # bytes, which a value repeats
TORN, ERRORS, SLOWEST = "torn values", "errors", "p99.9 of a read"


class Told(NamedTuple):
    """What one process has to tell."""

    operations: int
    torn: int
    errors: int
    slow: float


def operations(scale: Scale) -> int:
    """Of all processes."""
    return max(scale.objects * 8, 200)


def value(key: str, chance: random.Random) -> bytes:
    """A value whose parts cannot be confused with those of another value, and that is cheap to make and to check."""
    size = chance.choice(SIZES)
    return f"{key} {size} {chance.getrandbits(64):016x}".encode().ljust(PIECE) * (size // PIECE)


def whole(key: str, found: bytes) -> bool:
    """Whether it is a value of *key*, all of it and nothing else."""
    piece = found[:PIECE]
    name, _, rest = piece.partition(b" ")
    return name == key.encode() and found == piece * (int(rest.partition(b" ")[0]) // PIECE)


def ours(place: Place, limit: int) -> tuple[Callable[[str], bytes | None], Callable[[str, bytes], object]]:
    storage = caches.ours(place.scratch / "base", place.scratch / "cache", limit)

    def get(key: str) -> bytes | None:
        try:
            return storage.read(key)
        except FileNotFoundError:
            return None

    return get, storage.write


def diskcache(
    place: Place, limit: int
) -> tuple[Callable[[str], bytes | None], Callable[[str, bytes], object]]:
    """As ours: what is not in the cache comes from a file, and what is written goes to both."""
    from storage_backend import LocalStorage

    cache, base = caches.diskcache(place.scratch / "cache", limit), LocalStorage(place.scratch / "base")

    def get(key: str) -> bytes | None:
        found: bytes | None = cache.get(key)
        if found is None:
            try:
                found = base.read(key)
            except FileNotFoundError:
                return None
            cache.set(key, found)
        return found

    def put(key: str, content: bytes) -> None:
        base.write(key, content)
        cache.set(key, content)

    return get, put


OPENED = {OURS: ours, DISKCACHE: diskcache}


def work(  # noqa: PLR0917 - as a process is given them
    name: str, place: Place, limit: int, seed: int, count: int, start: Any, told: Any
) -> None:
    """One process."""
    get, put = OPENED[name](place, limit)
    chance = random.Random(seed)  # noqa: S311 - the same on every run is the point
    torn = errors = 0
    taken = []
    start.wait()
    for _ in range(count):
        key = f"k{chance.randrange(KEYS)}"
        try:
            if chance.random() < 0.9:
                began = time.perf_counter()
                found = get(key)
                taken.append(time.perf_counter() - began)
                torn += found is not None and not whole(key, found)
            else:
                put(key, value(key, chance))
        except Exception:  # noqa: BLE001 - counted, and a target says how many there may be
            errors += 1
    taken.sort()
    told.put(Told(count, torn, errors, taken[int(len(taken) * 0.999)]))


def contender(name: str, module: str | None, limit: int) -> Contender:
    def prepare(place: Place) -> Pass:
        context = multiprocessing.get_context("spawn")
        start, told = context.Barrier(PROCESSES + 1), context.Queue()
        count = operations(place.scale) // PROCESSES
        _, put = OPENED[name](place, limit)
        chance = random.Random(0)  # noqa: S311 - as above
        for number in range(KEYS):
            put(f"k{number}", value(f"k{number}", chance))
        children = [
            context.Process(target=work, args=(name, place, limit, seed, count, start, told))
            for seed in range(PROCESSES)
        ]
        for child in children:
            child.start()
        start.wait()

        def run() -> list[Told]:
            found = [told.get() for _ in children]
            for child in children:
                child.join()
            return found

        return run

    def facts(found: list[Told]) -> dict[str, float]:
        return {
            TORN: sum(one.torn for one in found),
            ERRORS: sum(one.errors for one in found),
            SLOWEST: max(one.slow for one in found) * 1e3,
        }

    return Contender(name, prepare, module=module, facts=facts)


def setup(place: Place) -> None:
    Path(place.shared).mkdir(parents=True, exist_ok=True)


def check(place: Place, result: list[Told]) -> None:
    done = sum(one.operations for one in result)
    expect(done == operations(place.scale) // PROCESSES * PROCESSES, f"{done} operations")


def workload(title: str, limit: int, target: float | None) -> Workload:
    """The workload of a cache that holds *limit* bytes."""
    return Workload(
        title=f"Four processes, nine reads to a write, one cache directory, {title}",
        what="Objects of 1, 8 and 100 KiB; all bytes of each value are checked. A miss reads a local "
        "file, and a write also writes it. (diskcache makes no promise about a fill that is "
        "concurrent with a write.)",
        contenders=(contender(OURS, None, limit), contender(DISKCACHE, "diskcache", limit)),
        setup=setup,
        check=check,
        operations=operations,
        rounds=5,
        comparisons=(Comparison(OURS, DISKCACHE, target),),
        facts=(
            Fact(TORN, targets={OURS: 0}),
            Fact(ERRORS, targets={OURS: 0}),
            Fact(SLOWEST, "{:,.1f} ms"),
        ),
    )


WORKLOAD = workload("which holds all", ALL, 2.0)
