"""Prints one measurement in full, and judges measurements by their targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.results import Measurement

NOISY_SPREAD = 0.5
NOISY_OTHERS = 0.1  # processors


class Target(NamedTuple):
    """A target and its verdict, as a table shows them."""

    workload: str
    what: str
    measured: str
    target: str
    verdict: str
    is_ratio: bool = False


def section(measurement: Measurement) -> str:
    """One workload: ratios first, then times, then the machine."""
    machine, found = measurement["machine"], measurement["versions"]
    ratios = [_ratio_cells(measurement, pair) for pair in measurement["comparisons"]]
    return "\n".join(
        (
            f"## {measurement['workload']}: {measurement['title']}",
            "",
            measurement["what"],
            "",
            table(("ours", "against", "speed", "lowest to highest", "CPU", "target", ""), ratios),
            table(
                ("contender", "median", "min", "max", "spread", "CPU", "peak RSS", "of it by the work"),
                map(_contender_cells, measurement["contenders"]),
            ),
            *_fact_tables(measurement),
            f"{_noise(measurement)}",
            "",
            f"{measurement['measured']}, scale {measurement['scale']}; {machine['processor']}, {machine['memory']}, "
            f"{machine['kernel']}, {machine['python']}, files on {machine['files']}; "
            + ", ".join(f"{name} {version}" for name, version in found.items())
            + ".",
            "",
        )
    )


def targets(measurements: Iterable[Measurement]) -> list[Target]:
    """All targets, each with its verdict."""
    rows = []
    for measurement in measurements:
        name = measurement["workload"]
        for pair in measurement["comparisons"]:
            if pair["at_least"] is not None:
                ours, peer, speed, _, _, target, verdict = _ratio_cells(measurement, pair)
                rows.append(Target(name, f"{ours} against {peer}", speed, target, verdict, is_ratio=True))
        for contender, most in measurement["memory"].items():
            peak = max((one["rss"] for one in rounds_of(measurement, contender)), default=None)
            rows.append(
                Target(
                    name,
                    f"peak RSS of {contender}",
                    "-" if peak is None else _mebibytes(peak),
                    f"< {_mebibytes(most)}",
                    "not measured" if peak is None else _verdict(most / peak, 1.0, ()),
                )
            )
        for contender, most in measurement.get("growth", {}).items():
            grown = _growth(rounds_of(measurement, contender))
            rows.append(
                Target(
                    name,
                    f"RSS of {contender} above its client's",
                    "-" if grown is None else _mebibytes(grown),
                    f"< {_mebibytes(most)}",
                    "not measured" if grown is None else _verdict(most / max(grown, 1), 1.0, ()),
                )
            )
        rows += [_cpu_row(measurement, limit) for limit in measurement.get("cpu", ())]
        rows += [_time_row(measurement, name, most) for name, most in measurement.get("limits", {}).items()]
        for fact in measurement.get("facts", ()):
            rows += [_fact_row(measurement, fact, contender) for contender in fact["targets"]]
    return rows


def _cpu_row(measurement: Measurement, limit: dict[str, Any]) -> Target:
    what = f"CPU of {limit['ours']} above that of {limit['yardstick']}"
    pairs = zip(
        rounds_of(measurement, limit["ours"]), rounds_of(measurement, limit["yardstick"]), strict=False
    )
    above = [one["cpu"] - other["cpu"] for one, other in pairs]
    most = limit["above"]
    if not above:
        return Target(measurement["workload"], what, "-", f"< {duration(most)}", "not measured")
    middle = median(above)
    verdict = "met" if middle <= most else f"missed by {duration(middle - most)}"
    undecided = min(above) <= most < max(above)
    return Target(
        measurement["workload"],
        what,
        duration(max(middle, 0.0)),
        f"< {duration(most)}",
        f"{verdict}, rounds differ" if undecided else verdict,
    )


def _time_row(measurement: Measurement, contender: str, most: float) -> Target:
    times = [one["seconds"] for one in rounds_of(measurement, contender)]
    verdict = _verdict(most / median(times), 1.0, [most / one for one in times]) if times else "not measured"
    measured = duration(median(times)) if times else "-"
    return Target(measurement["workload"], f"time of {contender}", measured, f"< {duration(most)}", verdict)


def _fact_row(measurement: Measurement, fact: dict[str, Any], contender: str) -> Target:
    target, more = fact["targets"][contender], fact["more_is_better"]
    worst = _worst(fact, rounds_of(measurement, contender))
    if worst is None:
        verdict = "not measured"
    elif worst >= target if more else worst <= target:
        verdict = "met"
    else:
        verdict = f"missed by {_said(fact, abs(worst - target))}"
    return Target(
        measurement["workload"],
        f"{fact['name']} of {contender}",
        "-" if worst is None else _said(fact, worst),
        f"{'>=' if more else '<='} {_said(fact, target)}",
        verdict,
    )


def _fact_tables(measurement: Measurement) -> list[str]:
    """A table of the facts, the worst of all rounds; no table without facts."""
    facts = measurement.get("facts", ())
    rows = []
    for entry in measurement["contenders"]:
        found = [_worst(fact, entry["rounds"]) for fact in facts]
        if any(value is not None for value in found):
            said = (
                "-" if value is None else _said(fact, value) for fact, value in zip(facts, found, strict=True)
            )
            rows.append((entry["name"], *said))
    head = ("counted, worst round", *(fact["name"] for fact in facts))
    return [table(head, rows)] if rows else []


def _worst(fact: dict[str, Any], rounds: Iterable[dict[str, float]]) -> float | None:
    found = [one[fact["name"]] for one in rounds if fact["name"] in one]
    if not found:
        return None
    return min(found) if fact["more_is_better"] else max(found)


def _said(fact: dict[str, Any], value: float) -> str:
    form: str = fact["form"]
    return form.format(value)


def ratios_of(measurement: Measurement, ours: str, peer: str, what: str = "seconds") -> list[float]:
    """The peer's time (or "cpu", or "rss") divided by ours, round by round; nothing if either was not measured."""
    pairs = zip(rounds_of(measurement, ours), rounds_of(measurement, peer), strict=False)
    return [other[what] / one[what] for one, other in pairs if one[what]]


def rounds_of(measurement: Measurement, name: str) -> list[dict[str, float]]:
    """The rounds of a contender; empty if it was absent."""
    return next((entry["rounds"] for entry in measurement["contenders"] if entry["name"] == name), [])


def _ratio_cells(measurement: Measurement, pair: dict[str, Any]) -> tuple[str, ...]:
    ratios = ratios_of(measurement, pair["ours"], pair["peer"])
    target = "" if pair["at_least"] is None else f">= {pair['at_least']:g}x"
    if not ratios:
        return pair["ours"], pair["peer"], "-", "-", "-", target, "not measured"
    middle = median(ratios)
    verdict = "" if pair["at_least"] is None else _verdict(middle, pair["at_least"], ratios)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    cpu = ratios_of(measurement, pair["ours"], pair["peer"], "cpu")
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
        duration(median(times)),
        duration(min(times)),
        duration(max(times)),
        f"{_spread(times):.0%}" if len(times) > 1 else "-",
        duration(median(one["cpu"] for one in rounds)),
        _mebibytes(max(one["rss"] for one in rounds)),
        "-" if (grown := _growth(rounds)) is None else _mebibytes(grown),
    )


def _growth(rounds: Iterable[dict[str, float]]) -> float | None:
    """The largest growth of the peak RSS in bytes; None for programs, of which it is unknown."""
    return max((one["rss"] - one["prepared"] for one in rounds if "prepared" in one), default=None)


def _noise(measurement: Measurement) -> str:
    spreads, others = _spreads(measurement), measurement["others"]
    widest = max(spreads, key=lambda name: spreads[name], default=None)
    said = "" if others is None else f"Others kept {others:.2f} processors busy meanwhile. "
    said += (
        "One round shows no spread."
        if widest is None
        else f"The widest spread is {spreads[widest]:.0%} ({widest})."
    )
    return f"**Noisy.** {said}" if is_noisy(measurement) else said


def is_noisy(measurement: Measurement) -> bool:
    """Whether small differences mean nothing."""
    widest = max(_spreads(measurement).values(), default=0.0)
    return (measurement["others"] or 0.0) > NOISY_OTHERS or widest > NOISY_SPREAD


def _spreads(measurement: Measurement) -> dict[str, float]:
    """By contender, (max - min) / median of its times."""
    return {
        entry["name"]: _spread([one["seconds"] for one in entry["rounds"]])
        for entry in measurement["contenders"]
        if len(entry["rounds"]) > 1
    }


def _spread(times: Sequence[float]) -> float:
    return (max(times) - min(times)) / median(times)


def duration(seconds: float) -> str:
    """Seconds as text, in s, ms or us."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _mebibytes(size: float) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
