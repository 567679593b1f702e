"""`python -m benchmarks.calls`: counts the functions and files of the package that one warm operation enters."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeAlias

import storage_backend
from benchmarks import page, s3, ssh
from benchmarks.data import content
from benchmarks.harness import SCALES, Place
from benchmarks.machine import now, package_commit
from benchmarks.results import Results, write
from benchmarks.servers import OPENSSH, RCLONE
from benchmarks.workloads import GROUPS
from storage_backend import CachedStorage, LocalStorage, MemoryStorage

HERE = Path(__file__).parent
PACKAGE = f"{Path(storage_backend.__file__).parent}{os.sep}"
WARM_UPS = 5  # after these, connections are open and lookups are cached
TRACES = 5
Operations: TypeAlias = dict[str, dict[str, int]]
NAME = "folder/object"


@dataclass
class Trace:
    """The calls of one operation within the package, in the thread that called it.

    Attributes:
        calls: Python functions entered; a generator counts each time it is resumed.
        moves: pairs of consecutive calls that are in different files.
        files: the files entered, relative to the package.
    """

    calls: int = 0
    moves: int = 0
    files: set[str] = field(default_factory=set)
    _last: str = ""

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        """Count an event of `sys.setprofile`."""
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(PACKAGE):
            return
        self.calls += 1
        self.moves += self._last not in {"", file}
        self.files.add(file.removeprefix(PACKAGE))
        self._last = file


def traced(operation: Callable[[], object]) -> Trace:
    """The trace of *operation* after warm-up.

    It is the shortest of several traces: one may loop once more than another while it waits for a response.
    """
    for _ in range(WARM_UPS):
        operation()
    traces = []
    for _ in range(TRACES):
        trace = Trace()
        sys.setprofile(trace)
        try:
            operation()
        finally:
            sys.setprofile(None)
        traces.append(trace)
    return min(traces, key=lambda trace: trace.calls)


def local_operations(folder: Path) -> Iterator[tuple[str, Trace]]:
    """Traces of LocalStorage, and of CachedStorage over MemoryStorage, which adds few calls."""
    data = content()
    local = LocalStorage(folder / "local")
    yield "local write", traced(lambda: local.write(NAME, data))
    yield "local read", traced(lambda: local.read(NAME))
    memory = MemoryStorage()
    names = [f"{NAME}-{number}" for number in range(WARM_UPS + TRACES)]
    memory.write_many((name, data) for name in names)
    with CachedStorage(memory, folder / "cache") as cached:
        uncached = iter(names)
        yield "cached miss", traced(lambda: cached.read(next(uncached)))
        yield "cached hit", traced(lambda: cached.read(names[0]))
        yield "cached write", traced(lambda: cached.write(names[0], data))


def server_operations(root: Path) -> Iterator[tuple[str, Trace]]:
    """Traces of S3Storage and RemoteStorage, if their servers are installed."""
    for name, server in (("S3", RCLONE), ("SSH", OPENSSH)):
        if server.path is None:
            continue
        with server.running(root, root / "server") as endpoint:
            place = Place(root, root / s3.SHARED, root / s3.SCRATCH, SCALES["quick"], endpoint)
            place.shared.mkdir(exist_ok=True)
            storage = s3.ours(place) if server is RCLONE else ssh.ours(place, place.shared)
            with storage:
                yield f"{name} write", traced(partial(storage.write, NAME, content()))
                yield f"{name} read", traced(partial(storage.read, NAME))


def measure(folder: Path, *, servers: bool = True) -> Operations:
    """The counts of each operation, by its name."""
    traces = [*local_operations(folder), *(server_operations(folder) if servers else ())]
    return {
        name: {"calls": trace.calls, "files": len(trace.files), "moves": trace.moves}
        for name, trace in traces
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calls",
        description="Count the functions and the files of the package that one warm operation enters.",
    )
    parser.add_argument(
        "--keep", action="store_true", help="add the table to results/calls.json and to RESULTS.md"
    )
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        operations = measure(Path(folder))
    measured = {"commit": package_commit(), "measured": now(), "operations": operations}
    sys.stdout.write(page.calls_table([measured]))
    if chosen.keep:
        results = Results(HERE / "results")
        results.keep_calls(measured)
        write(page.page(results, GROUPS), HERE / "RESULTS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
