"""Runs one round of one contender in a process of its own, so that CPU time and memory are those of the contender."""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import SCALES, Place, Workload
from benchmarks.workloads import load


def main(request: dict[str, Any]) -> None:
    """Serve *request*, and write the measurement to the file that it names."""
    workload = load(request["workload"])
    place = Place(
        Path(request["root"]),
        Path(request["shared"]),
        Path(request["scratch"]),
        SCALES[request["scale"]],
        request["endpoint"],
    )
    if request["contender"] is None:
        for fewer in sorted({contender.fewer for contender in workload.contenders}):
            workload.setup(replace(place, scale=place.scale.with_fewer(fewer)))
        return
    Path(request["answer"]).write_text(json.dumps(measure(workload, request["contender"], place)))


def measure(workload: Workload, name: str, place: Place) -> dict[str, float]:
    """Seconds and CPU seconds for each operation, the peak RSS of the process or its largest child in bytes, and the facts.

    "prepared" is the peak RSS before the first pass. It is left out for programs, which start within the pass.
    """
    contender = next(contender for contender in workload.contenders if contender.name == name)
    place = replace(place, scale=place.scale.with_fewer(contender.fewer))
    run = contender.prepare(place)
    prepared = peak_rss()
    if workload.loop:
        run()
    gc.collect()
    passes, elapsed, least = 0, 0.0, place.scale.seconds if workload.loop else 0.0
    cpu, start = cpu_seconds(), time.perf_counter()
    while passes == 0 or elapsed < least:
        result = run()
        passes += 1
        elapsed = time.perf_counter() - start
    cpu = cpu_seconds() - cpu
    peak = peak_rss()
    workload.check(place, contender.result(result))
    operations = passes * workload.operations(place.scale)
    measured = {"seconds": elapsed / operations, "cpu": cpu / operations, "rss": peak}
    if not resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss:
        measured["prepared"] = prepared
    return measured | {fact: float(value) for fact, value in contender.facts(result).items()}


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_rss() -> int:
    """The peak RSS in bytes, of this process or its largest child.

    On Linux `ru_maxrss` survives exec, so it includes the harness; VmHWM (proc_pid_status(5)) does not. For children only
    `ru_maxrss` exists; the process that starts a program is smaller than the program.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, kilobytes here
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    status = Path("/proc/self/status")
    if not status.exists():
        return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, children)
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return max(int(line.split()[1]) * 1024, children)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
