"""`python -m benchmarks`: measures workloads, writes results/*.json, and makes RESULTS.md of all of them."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import page, report, rounds
from benchmarks.harness import SCALES, Scale
from benchmarks.results import Results, write
from benchmarks.workloads import GROUPS, NAMES, load

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Returns:
        The exit code: 1 if a contender or the data of a workload failed. A missed target is a result, not a failure.
    """
    chosen = _parser().parse_args(arguments)
    scale = _scale(chosen)
    output = chosen.output or (HERE if scale.name != "quick" else None)
    results = Results((output or HERE) / "results")
    if chosen.show:
        return _show(results, chosen.workloads)
    directory = Path(tempfile.mkdtemp(prefix="benchmarks-", dir=chosen.directory or _fast_directory()))
    started, failed = time.monotonic(), []
    try:
        for name in chosen.workloads or NAMES:
            try:
                measurement = rounds.run(name, load(name), directory, scale, _tell)
            except rounds.FailedError as error:
                failed.append(f"{name}: {error}")
                continue
            failed += [
                f"{name}: {entry['name']} {entry['absent']}"
                for entry in measurement["contenders"]
                if (entry["absent"] or "").startswith("failed")
            ]
            sys.stdout.write(f"{report.section(measurement)}\n")
            sys.stdout.flush()
            if output is not None:
                results.keep(measurement)
                write(page.page(results, GROUPS), output / "RESULTS.md")
    finally:
        shutil.rmtree(directory)
    _tell(f"{time.monotonic() - started:.0f} s" + (f", written to {output}" if output is not None else ""))
    for line in failed:
        _tell(line)
    return 1 if failed else 0


def _show(results: Results, names: Sequence[str]) -> int:
    memory, disk = results.in_memory(), results.on_disk()
    for name in names or NAMES:
        for measurement in (memory.get(name), disk.get(name)):
            if measurement is not None:
                sys.stdout.write(f"{report.section(measurement)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure storage-backend side by side with its peers. Peers that are not installed are left out "
        '(pip install -e ".[bench]" installs all but rsync and nginx).',
    )
    parser.add_argument(
        "workloads", nargs="*", metavar="workload", help=f"all, or some of: {', '.join(NAMES)}"
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it works; writes no results"
    )
    sizes.add_argument("--full", action="store_true", help="a large object of 1 GiB, longer loops")
    parser.add_argument("--rounds", type=int, help="rounds that count, instead of each workload's own")
    parser.add_argument(
        "--directory",
        type=Path,
        help="where data is made; default: /dev/shm, else the folder for temporary files",
    )
    parser.add_argument("--output", type=Path, help=f"the folder of RESULTS.md and results/; default: {HERE}")
    parser.add_argument(
        "--show", action="store_true", help="measure nothing; print earlier measurements in full"
    )
    return parser


def _scale(chosen: argparse.Namespace) -> Scale:
    unknown = [name for name in chosen.workloads if name not in NAMES]
    if unknown:
        _parser().error(f"unknown workload {unknown[0]!r}; known: {', '.join(NAMES)}")
    if chosen.rounds is not None and chosen.rounds < 1:
        _parser().error("--rounds must be at least 1")
    if chosen.directory is not None and not chosen.directory.is_dir():
        _parser().error(f"no such directory: {chosen.directory}")
    scale = SCALES["quick" if chosen.quick else "full" if chosen.full else "default"]
    return scale if chosen.rounds is None else dataclasses.replace(scale, rounds=chosen.rounds)


def _fast_directory() -> str | None:
    """The folder of a file system in memory, if there is one: a disk would add noise."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - mkdtemp makes a private one in it


def _tell(message: str) -> None:
    sys.stderr.write(f"{message}\n")


if __name__ == "__main__":
    # SIGTERM runs the clean-up of data and servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
