"""RESULTS.md: a section a workload, printed from its record, which the section carries along as a comment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]

HEAD = """\
# Results

Written by `python -m benchmarks`, which measured it; nothing here is typed by hand. Each contender runs in a process of
its own, in turns with the others (A B C A B C ...); the first turn does not count. "Speed" is the peer's time divided by
ours in the same round, the median of all rounds with the lowest and the highest: above 1 we are faster. CPU is user and
system time of the process and its children, in the first table again the peer's divided by ours: it moves less than time
does where the machine is busy. "Of it by the work" is by how much the peak RSS grew after the client had been made. Spread is (max - min) / median: where it is large, or others kept processors busy, believe
only large differences.
"""
NOISY_SPREAD = 0.5
NOISY_OTHERS = 0.1


def page(records: Sequence[Record]) -> str:
    """The whole file."""
    sections = "\n".join(section(record) for record in records)
    return f"{HEAD}\n## Targets\n\n{_table(_TARGETS, map(_cells, targets(records)))}\n{sections}"


def records_of(text: str) -> dict[str, Record]:
    """The records that a page carries, by workload."""
    found = [json.loads(line) for line in re.findall(r"^<!-- (\{.*\}) -->$", text, re.MULTILINE)]
    return {record["workload"]: record for record in found}


def merged(old: dict[str, Record], new: dict[str, Record], order: Iterable[str]) -> list[Record]:
    """The new records, the old ones of all other workloads, in that order."""
    both = {**old, **new}
    return [both[name] for name in order if name in both]


def section(record: Record) -> str:
    """One workload: ratios first, then times, then the record itself."""
    machine, found = record["machine"], record["versions"]
    ratios = [_ratio_cells(record, pair) for pair in record["comparisons"]]
    return "\n".join(
        (
            f"## {record['workload']}: {record['title']}",
            "",
            record["what"],
            "",
            _table(("ours", "against", "speed", "lowest to highest", "CPU", "target", ""), ratios),
            _table(
                ("contender", "median", "min", "max", "spread", "CPU", "peak RSS", "of it by the work"),
                map(_contender_cells, record["contenders"]),
            ),
            *_fact_tables(record),
            f"{_noise(record)}",
            "",
            f"{record['measured']}, scale {record['scale']}; {machine['processor']}, {machine['memory']}, "
            f"{machine['kernel']}, {machine['python']}, files on {machine['files']}; "
            + ", ".join(f"{name} {version}" for name, version in found.items())
            + ".",
            "",
            f"<!-- {_quiet(json.dumps(record))} -->",
            "",
        )
    )


def _quiet(text: str) -> str:
    """JSON that is the same and has no "--", which ends a comment for some readers of HTML."""
    return text.replace("--", "-\\u002d")


def targets(records: Iterable[Record]) -> list[dict[str, str]]:
    """What was aimed at, and whether it was reached."""
    rows = []
    for record in records:
        name = record["workload"]
        for pair in record["comparisons"]:
            if pair["at_least"] is not None:
                ours, peer, speed, _, _, target, verdict = _ratio_cells(record, pair)
                rows.append(_row(name, f"{ours} against {peer}", speed, target, verdict))
        for contender, most in record["memory"].items():
            peak = max((one["rss"] for one in _rounds(record, contender)), default=None)
            rows.append(
                _row(
                    name,
                    f"peak RSS of {contender}",
                    "-" if peak is None else _mebibytes(peak),
                    f"< {_mebibytes(most)}",
                    "not measured" if peak is None else _verdict(most / peak, 1.0, ()),
                )
            )
        for contender, most in record.get("growth", {}).items():
            grown = _growth(_rounds(record, contender))
            rows.append(
                _row(
                    name,
                    f"RSS of {contender} above its client's",
                    "-" if grown is None else _mebibytes(grown),
                    f"< {_mebibytes(most)}",
                    "not measured" if grown is None else _verdict(most / max(grown, 1), 1.0, ()),
                )
            )
        rows += [_cpu_row(record, limit) for limit in record.get("cpu", ())]
        rows += [_time_row(record, name, most) for name, most in record.get("limits", {}).items()]
        for fact in record.get("facts", ()):
            rows += [_fact_row(record, fact, contender) for contender in fact["targets"]]
    return rows


def _cpu_row(record: Record, limit: dict[str, Any]) -> dict[str, str]:
    what = f"CPU of {limit['ours']} above that of {limit['yardstick']}"
    pairs = zip(_rounds(record, limit["ours"]), _rounds(record, limit["yardstick"]), strict=False)
    above = [one["cpu"] - other["cpu"] for one, other in pairs]
    most = limit["above"]
    if not above:
        return _row(record["workload"], what, "-", f"< {_duration(most)}", "not measured")
    middle = median(above)
    verdict = "met" if middle <= most else f"missed by {_duration(middle - most)}"
    undecided = min(above) <= most < max(above)
    return _row(
        record["workload"],
        what,
        _duration(max(middle, 0.0)),
        f"< {_duration(most)}",
        f"{verdict}, rounds differ" if undecided else verdict,
    )


def _time_row(record: Record, contender: str, most: float) -> dict[str, str]:
    times = [one["seconds"] for one in _rounds(record, contender)]
    verdict = _verdict(most / median(times), 1.0, [most / one for one in times]) if times else "not measured"
    measured = _duration(median(times)) if times else "-"
    return _row(record["workload"], f"time of {contender}", measured, f"< {_duration(most)}", verdict)


def _fact_row(record: Record, fact: dict[str, Any], contender: str) -> dict[str, str]:
    target, more = fact["targets"][contender], fact["more_is_better"]
    worst = _worst(fact, _rounds(record, contender))
    if worst is None:
        verdict = "not measured"
    elif worst >= target if more else worst <= target:
        verdict = "met"
    else:
        verdict = f"missed by {_said(fact, abs(worst - target))}"
    return _row(
        record["workload"],
        f"{fact['name']} of {contender}",
        "-" if worst is None else _said(fact, worst),
        f"{'>=' if more else '<='} {_said(fact, target)}",
        verdict,
    )


def _fact_tables(record: Record) -> list[str]:
    """One, or none: what was counted beside the time, the worst of all rounds."""
    facts = record.get("facts", ())
    rows = []
    for entry in record["contenders"]:
        found = [_worst(fact, entry["rounds"]) for fact in facts]
        if any(value is not None for value in found):
            said = (
                "-" if value is None else _said(fact, value) for fact, value in zip(facts, found, strict=True)
            )
            rows.append((entry["name"], *said))
    head = ("counted, worst round", *(fact["name"] for fact in facts))
    return [_table(head, rows)] if rows else []


def _worst(fact: dict[str, Any], rounds: Iterable[dict[str, float]]) -> float | None:
    found = [one[fact["name"]] for one in rounds if fact["name"] in one]
    if not found:
        return None
    return min(found) if fact["more_is_better"] else max(found)


def _said(fact: dict[str, Any], value: float) -> str:
    form: str = fact["form"]
    return form.format(value)


_TARGETS = ("workload", "what", "measured", "target", "")


def _row(*cells: str) -> dict[str, str]:
    return dict(zip(_TARGETS, cells, strict=True))


def _cells(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row.values())


def ratios_of(record: Record, ours: str, peer: str, what: str = "seconds") -> list[float]:
    """The peer's time (or "cpu", or "rss") divided by ours, round by round; nothing if either was not measured."""
    pairs = zip(_rounds(record, ours), _rounds(record, peer), strict=False)
    return [other[what] / one[what] for one, other in pairs if one[what]]


def _rounds(record: Record, name: str) -> list[dict[str, float]]:
    return next((entry["rounds"] for entry in record["contenders"] if entry["name"] == name), [])


def _ratio_cells(record: Record, pair: dict[str, Any]) -> tuple[str, ...]:
    ratios = ratios_of(record, pair["ours"], pair["peer"])
    target = "" if pair["at_least"] is None else f">= {pair['at_least']:g}x"
    if not ratios:
        return pair["ours"], pair["peer"], "-", "-", "-", target, "not measured"
    middle = median(ratios)
    verdict = "" if pair["at_least"] is None else _verdict(middle, pair["at_least"], ratios)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    cpu = ratios_of(record, pair["ours"], pair["peer"], "cpu")
    less = f"{median(cpu):.2f}x" if cpu else "-"
    return pair["ours"], pair["peer"], f"**{middle:.2f}x**", spread, less, target, verdict


def _verdict(value: float, at_least: float, ratios: Sequence[float]) -> str:
    found = "met" if value >= at_least else f"missed by {1 - value / at_least:.0%}"
    undecided = bool(ratios) and min(ratios) < at_least <= max(ratios)
    return f"{found}, rounds differ" if undecided else found


def _contender_cells(entry: dict[str, Any]) -> tuple[str, ...]:
    rounds = entry["rounds"]
    if entry["absent"] is not None or not rounds:
        # A failure's message may hold what a table's cell cannot.
        reason = " ".join((entry["absent"] or "not measured").replace("|", "/").split())
        return entry["name"], reason, "", "", "", "", "", ""
    times = [one["seconds"] for one in rounds]
    return (
        entry["name"],
        _duration(median(times)),
        _duration(min(times)),
        _duration(max(times)),
        f"{_spread(times):.0%}" if len(times) > 1 else "-",
        _duration(median(one["cpu"] for one in rounds)),
        _mebibytes(max(one["rss"] for one in rounds)),
        "-" if (grown := _growth(rounds)) is None else _mebibytes(grown),
    )


def _growth(rounds: Iterable[dict[str, float]]) -> float | None:
    """By how many bytes the peak RSS grew at most; None where that is not known, as of a program."""
    return max((one["rss"] - one["prepared"] for one in rounds if "prepared" in one), default=None)


def _noise(record: Record) -> str:
    spreads = {
        entry["name"]: _spread([one["seconds"] for one in entry["rounds"]])
        for entry in record["contenders"]
        if len(entry["rounds"]) > 1
    }
    widest = max(spreads, key=lambda name: spreads[name], default=None)
    others = record["others"]
    said = "" if others is None else f"Others kept {others:.2f} processors busy meanwhile. "
    said += (
        "One round shows no spread."
        if widest is None
        else f"The widest spread is {spreads[widest]:.0%} ({widest})."
    )
    noisy = (others or 0.0) > NOISY_OTHERS or any(spread > NOISY_SPREAD for spread in spreads.values())
    return f"**Noisy.** {said}" if noisy else said


def _spread(times: Sequence[float]) -> float:
    return (max(times) - min(times)) / median(times)


def _duration(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _mebibytes(size: float) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
