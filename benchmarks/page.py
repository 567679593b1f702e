"""RESULTS.md: one page of tables, made from the measurements in `results/`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.report import duration, is_noisy, ratios_of, rounds_of, table, targets
from benchmarks.results import Measurement, Results

HEAD = """\
# Results

`python -m benchmarks` measured this and wrote this page; nothing here is typed by hand. The raw measurements are in
[results/](results); `python -m benchmarks --show WORKLOAD` prints one in full: what exactly was done, the lowest and the
highest ratio, CPU time, peak memory, versions.

A ratio is the peer's time divided by ours: above 1 we are faster. It is the median over the rounds, in which the
contenders take turns, each in a process of its own. A target stands beside a ratio that misses it. Noisy (\\*): the times
of one contender differ by more than half of their median, or other processes kept a tenth of a processor busy.
"""


def page(results: Results, groups: Mapping[str, Sequence[str]]) -> str:
    """The page. *groups* has the names of the workloads under each heading."""
    order = [name for names in groups.values() for name in names]
    memory, disk = (
        {name: found[name] for name in order if name in found}
        for found in (results.in_memory(), results.on_disk())
    )
    parts = [HEAD]
    for heading, names in groups.items():
        parts += _ratios(heading, [memory[name] for name in names if name in memory])
        parts += _ratios(f"{heading}, on a disk", [disk[name] for name in names if name in disk])
    parts += _limits(memory, disk)
    parts += _calls(results.calls())
    parts += _machines([*memory.values(), *disk.values()])
    return "\n".join(parts)


def _ratios(heading: str, measurements: Sequence[Measurement]) -> list[str]:
    rows = [row for one in measurements for row in _ratio_rows(one)]
    head = ("workload", "ours", "time", "ratio to each peer")
    return [f"## {heading}\n", table(head, rows)] if rows else []


def _ratio_rows(measurement: Measurement) -> Iterator[tuple[str, ...]]:
    """A row for each contender of ours that is compared."""
    noisy = r"\*" if is_noisy(measurement) else ""
    title = f"{measurement['workload']}{noisy}: {measurement['title']}"
    pairs = measurement["comparisons"]
    for ours in dict.fromkeys(pair["ours"] for pair in pairs):
        times = [one["seconds"] for one in rounds_of(measurement, ours)]
        ratios = "; ".join(_ratio(measurement, pair) for pair in pairs if pair["ours"] == ours)
        yield title, ours, duration(median(times)) if times else "-", ratios
        title = ""


def _ratio(measurement: Measurement, pair: Mapping[str, Any]) -> str:
    ratios = ratios_of(measurement, pair["ours"], pair["peer"])
    if not ratios:
        return f"not measured {pair['peer']}"
    ratio, target = median(ratios), pair["at_least"]
    missed = f" (target {target:g}x)" if target is not None and ratio < target else ""
    return f"**{ratio:.2f}x**{missed} {pair['peer']}"


def _limits(memory: Mapping[str, Measurement], disk: Mapping[str, Measurement]) -> list[str]:
    """The targets that are not ratios, and how many of all targets are met."""
    rows, met, missed = [], 0, 0
    for where, measurements in (("", memory), (", on a disk", disk)):
        for row in targets(measurements.values()):
            met += row.verdict.startswith("met")
            missed += row.verdict.startswith("missed")
            if not row.is_ratio:
                rows.append((f"{row.workload}{where}", row.what, row.measured, row.target, row.verdict))
    head = ("workload", "what", "measured", "target", "")
    said = f"Of all targets, those of ratios too, {met} are met and {missed} are missed.\n"
    return ["## Other targets\n", said, table(head, rows)]


def _calls(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    if not tables:
        return []
    return [
        "## Calls\n",
        "`python -m benchmarks.calls`: how many Python functions of the package one call of a public method enters in its\n"
        "own thread, in how many files they are, and how many times the next is in another file than the one before.\n"
        "Cached operations are over MemoryStorage.\n",
        calls_table([tables[0], *tables[1:][-1:]]),
    ]


def calls_table(tables: Sequence[Mapping[str, Any]]) -> str:
    """Tables of `benchmarks.calls` side by side."""
    numbers = ("calls", "files", "moves")
    head = ["one warm operation", *(f"{number}, {one['commit']}" for one in tables for number in numbers)]
    rows = [
        [
            name,
            *(str(one["operations"].get(name, {}).get(number, "-")) for one in tables for number in numbers),
        ]
        for name in tables[-1]["operations"]
    ]
    return table(head, rows)


def _machines(measurements: Iterable[Measurement]) -> list[str]:
    machines: dict[str, list[str]] = {}
    versions: dict[str, set[str]] = {}
    for one in measurements:
        machine = one["machine"]
        said = ", ".join(machine[key] for key in ("processor", "memory", "kernel", "python"))
        machines.setdefault(f"{said}, files on {machine['files']}, scale {one['scale']}", []).append(
            one["measured"]
        )
        for name, version in one["versions"].items():
            versions.setdefault(name, set()).add(version)
    lines = [f"* {said}: {min(when)} to {max(when)}" for said, when in sorted(machines.items())]
    found = "; ".join(f"{name} {', '.join(sorted(those))}" for name, those in versions.items())
    return ["## Machines and versions\n", "\n".join(lines), f"\n{found}.\n"]
