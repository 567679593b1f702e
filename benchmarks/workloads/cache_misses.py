"""A hundred threads read one object that is not in the cache, from a slow backend."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import caches
from benchmarks.caches import DISKCACHE, FILECACHE, SIMPLECACHE
from benchmarks.harness import OURS, Comparison, Contender, Fact, Pass, Place, Workload, expect

THREADS = 100
TAKES = 0.05  # seconds, of the backend
SIZE = 1 << 20
NAME = "object"
ASKED, SHORT, ERRORS = "reads of the backend", "short reads", "errors"

Opened = Callable[[Place, Callable[[], object]], Callable[[], bytes]]


class Told(NamedTuple):
    """What all threads have to tell."""

    asked: int
    short: int
    errors: int


def folder(place: Place) -> Path:
    return place.shared / "misses"


def setup(place: Place) -> None:
    folder(place).mkdir(parents=True, exist_ok=True)
    (folder(place) / NAME).write_bytes(b"x" * SIZE)


def ours(place: Place, asked: Callable[[], object]) -> Callable[[], bytes]:
    from storage_backend import LocalStorage

    class Slow(LocalStorage):
        def read(self, identifier: str) -> bytes:
            asked()
            return super().read(identifier)

    storage = caches.ours(folder(place), place.scratch / "cache", backend=Slow(folder(place)))
    return lambda: storage.read(NAME)


def diskcache(place: Place, asked: Callable[[], object]) -> Callable[[], bytes]:
    """As one writes it: look, else read and set."""
    cache = caches.diskcache(place.scratch / "cache")

    def read() -> bytes:
        found: bytes | None = cache.get(NAME)
        if found is None:
            asked()
            found = (folder(place) / NAME).read_bytes()
            cache.set(NAME, found)
        return found

    return read


def filecache(place: Place, asked: Callable[[], object]) -> Callable[[], bytes]:
    return _fsspec("filecache", place, asked)


def simplecache(place: Place, asked: Callable[[], object]) -> Callable[[], bytes]:
    return _fsspec("simplecache", place, asked)


def _fsspec(kind: str, place: Place, asked: Callable[[], object]) -> Callable[[], bytes]:
    files = caches.fsspec(kind, place.scratch / "cache", caches.file_system(folder(place), asked))

    def read() -> bytes:
        content: bytes = files.cat_file(NAME)
        return content

    return read


def contender(name: str, opened: Opened, module: str | None = None) -> Contender:
    def prepare(place: Place) -> Pass:
        numbers = itertools.count()

        def asked() -> None:
            next(numbers)
            time.sleep(TAKES)

        read = opened(place, asked)
        start = threading.Barrier(THREADS)

        def one(_number: int) -> int:
            start.wait()
            try:
                return len(read())
            except Exception:  # noqa: BLE001 - counted, and a target says how many there may be
                return -1

        def run() -> Told:
            with ThreadPoolExecutor(THREADS) as pool:
                lengths = list(pool.map(one, range(THREADS)))
            errors = lengths.count(-1)
            return Told(next(numbers), THREADS - lengths.count(SIZE) - errors, errors)

        return run

    def facts(told: Told) -> dict[str, float]:
        return {ASKED: told.asked, SHORT: told.short, ERRORS: told.errors}

    return Contender(name, prepare, module=module, facts=facts)


def check(_place: Place, result: Any) -> None:
    expect(result.asked >= 1, "nothing was asked of the backend")


WORKLOAD = Workload(
    title="A hundred threads read one object that is not in the cache yet",
    what="The object has 1 MiB. Each read of the backend takes 50 ms and is counted. diskcache is "
    "used in the usual way: get, and on a miss read and set. A short read returned less than the"
    " object.",
    contenders=(
        contender(OURS, ours),
        contender(DISKCACHE, diskcache, "diskcache"),
        contender(FILECACHE, filecache, "fsspec"),
        contender(SIMPLECACHE, simplecache, "fsspec"),
    ),
    setup=setup,
    check=check,
    rounds=3,
    comparisons=(
        Comparison(OURS, DISKCACHE),
        Comparison(OURS, FILECACHE),
        Comparison(OURS, SIMPLECACHE),
    ),
    facts=(
        Fact(ASKED, targets={OURS: 1}),
        Fact(SHORT, targets={OURS: 0}),
        Fact(ERRORS, targets={OURS: 0}),
    ),
)
