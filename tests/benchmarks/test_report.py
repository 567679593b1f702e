"""What is printed from the numbers."""

from pathlib import Path
from typing import Any

from benchmarks import page, report
from benchmarks.results import Measurement, Results


def measurement(name: str = "one", **changes: Any) -> Measurement:
    def rounds(*seconds: float) -> list[dict[str, float]]:
        return [{"seconds": second, "cpu": second, "rss": 50 << 20} for second in seconds]

    return {
        "workload": name,
        "title": "A title",
        "what": "What.",
        "measured": "2026-01-01 00:00 UTC",
        "scale": "default",
        "machine": {"processor": "p", "memory": "m", "kernel": "k", "python": "y", "files": "tmpfs"},
        "versions": {"SQLite": "3"},
        "others": 0.0,
        "contenders": [
            {"name": "ours", "absent": None, "rounds": rounds(1.0, 2.0, 4.0)},
            {"name": "peer", "absent": None, "rounds": rounds(2.0, 2.0, 16.0)},
            {"name": "copy --checksum", "absent": "not installed", "rounds": []},
        ],
        "comparisons": [
            {"ours": "ours", "peer": "peer", "at_least": 3.0},
            {"ours": "ours", "peer": "copy --checksum", "at_least": 1.0},
        ],
        "memory": {"ours": 40 << 20},
        **changes,
    }


def test_ratio_is_the_median_of_paired_rounds() -> None:
    # The medians' ratio would be 1, that of the best times 2 as well.
    assert report.ratios_of(measurement(), "ours", "peer") == [2.0, 1.0, 4.0]
    assert (
        "| ours | peer | **2.00x** | 1.00 to 4.00 | 2.00x | >= 3x | missed by 33%, rounds differ |"
        in report.section(measurement())
    )


def test_absent_peer_has_no_number() -> None:
    text = report.section(measurement())
    assert "| ours | copy --checksum | - | - | - | >= 1x | not measured |" in text
    assert "| copy --checksum | not installed |  |  |  |  |  |  |" in text


def test_memory_target_is_judged_by_the_worst_round() -> None:
    rows = {row.what: row for row in report.targets([measurement()])}
    assert rows["peak RSS of ours"].measured == "50 MiB"
    assert rows["peak RSS of ours"].verdict == "missed by 20%"


def test_noisy_run_says_so() -> None:
    assert "**Noisy.**" in report.section(measurement())
    quiet = measurement(
        contenders=[{"name": "ours", "absent": None, "rounds": [{"seconds": 1.0, "cpu": 1.0, "rss": 1}]}]
    )
    assert "**Noisy.**" not in report.section(quiet)
    assert "**Noisy.**" in report.section({**quiet, "others": 0.5})
    assert "One round shows no spread." in report.section(quiet)


def test_new_measurement_replaces_only_its_own(tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    results.keep(measurement())
    results.keep(measurement("two"))
    results.keep(measurement("two", title="New"))
    assert results.on_disk() == {}
    assert results.in_memory() == {"one": measurement(), "two": measurement("two", title="New")}


def test_page_has_memory_and_disk_apart(tmp_path: Path) -> None:
    results = Results(tmp_path)
    disk = measurement(machine={**measurement()["machine"], "files": "ext4"}, memory={})
    results.keep(measurement())
    results.keep(disk)
    results.keep_calls({"commit": "a", "operations": {"read": {"calls": 3, "files": 2, "moves": 1}}})
    text = page.page(results, {"First": ("two", "one")})
    row = "| one\\*: A title | ours | 2 s | **2.00x** (target 3x) peer; not measured copy --checksum |\n"
    assert text.count(row) == 2
    assert text.index("## First\n") < text.index(row) < text.index("## First, on a disk\n") < text.rindex(row)
    assert "| one | peak RSS of ours | 50 MiB | < 40 MiB | missed by 20% |" in text
    assert "0 are met and 3 are missed" in text
    assert "| read | 3 | 2 | 1 |" in text


def test_memory_above_the_client_is_judged_by_the_worst_round() -> None:
    rounds = [{"seconds": 1.0, "cpu": 1.0, "rss": 70 << 20, "prepared": left << 20} for left in (60, 50)]
    changed = measurement(
        contenders=[{"name": "ours", "absent": None, "rounds": rounds}], growth={"ours": 16 << 20}
    )
    rows = {row.what: row for row in report.targets([changed])}
    assert rows["RSS of ours above its client's"].measured == "20 MiB"
    assert rows["RSS of ours above its client's"].verdict == "missed by 20%"


def test_cpu_is_judged_by_what_it_is_above_the_yardstick() -> None:
    def row(above: float) -> report.Target:
        limit = {"ours": "ours", "yardstick": "peer", "above": above}
        (found,) = report.targets([measurement(memory={}, comparisons=[], cpu=[limit])])
        return found

    # Ours took 1, 2 and 4 s, the peer 2, 2 and 16.
    assert row(0.5) == ("one", "CPU of ours above that of peer", "0 us", "< 500 ms", "met", False)
    assert row(-2.0).verdict == "missed by 1 s, rounds differ"
    assert row(-20.0).verdict == "missed by 19 s"
