"""What is printed from the numbers."""

from typing import Any

from benchmarks import report


def record(name: str = "one", **changes: Any) -> report.Record:
    def rounds(*seconds: float) -> list[dict[str, float]]:
        return [{"seconds": second, "cpu": second, "rss": 50 << 20} for second in seconds]

    return {
        "workload": name,
        "title": "A title",
        "what": "What.",
        "measured": "2026-01-01 00:00 UTC",
        "scale": "default",
        "machine": {"processor": "p", "memory": "m", "kernel": "k", "python": "y", "files": "f"},
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
    assert report.ratios_of(record(), "ours", "peer") == [2.0, 1.0, 4.0]
    assert (
        "| ours | peer | **2.00x** | 1.00 to 4.00 | 2.00x | >= 3x | missed by 33%, rounds differ |"
        in report.section(record())
    )


def test_absent_peer_has_no_number() -> None:
    text = report.section(record())
    assert "| ours | copy --checksum | - | - | - | >= 1x | not measured |" in text
    assert "| copy --checksum | not installed |  |  |  |  |  |  |" in text


def test_memory_target_is_judged_by_the_worst_round() -> None:
    rows = {row["what"]: row for row in report.targets([record()])}
    assert rows["peak RSS of ours"]["measured"] == "50 MiB"
    assert rows["peak RSS of ours"][""] == "missed by 20%"


def test_noisy_run_says_so() -> None:
    assert "**Noisy.**" in report.section(record())
    quiet = record(
        contenders=[{"name": "ours", "absent": None, "rounds": [{"seconds": 1.0, "cpu": 1.0, "rss": 1}]}]
    )
    assert "**Noisy.**" not in report.section(quiet)
    assert "**Noisy.**" in report.section({**quiet, "others": 0.5})
    assert "One round shows no spread." in report.section(quiet)


def test_page_carries_its_records() -> None:
    page = report.page([record(), record("two")])
    assert report.records_of(page) == {"one": record(), "two": record("two")}
    comments = [line for line in page.splitlines() if line.startswith("<!--")]
    assert all("--" not in line[4:-3] for line in comments)
    assert len(comments) == 2


def test_new_records_replace_only_their_own() -> None:
    old = {"one": record(), "two": record("two")}
    new = record("two", title="New")
    assert report.merged(old, {"two": new}, ("two", "one", "three")) == [new, record()]


def test_memory_above_the_client_is_judged_by_the_worst_round() -> None:
    rounds = [{"seconds": 1.0, "cpu": 1.0, "rss": 70 << 20, "prepared": left << 20} for left in (60, 50)]
    changed = record(
        contenders=[{"name": "ours", "absent": None, "rounds": rounds}], growth={"ours": 16 << 20}
    )
    rows = {row["what"]: row for row in report.targets([changed])}
    assert rows["RSS of ours above its client's"]["measured"] == "20 MiB"
    assert rows["RSS of ours above its client's"][""] == "missed by 20%"


def test_cpu_is_judged_by_what_it_is_above_the_yardstick() -> None:
    def row(above: float) -> dict[str, str]:
        limit = {"ours": "ours", "yardstick": "peer", "above": above}
        rows = report.targets([record(memory={}, comparisons=[], cpu=[limit])])
        return rows[0]

    # Ours took 1, 2 and 4 s, the peer 2, 2 and 16.
    assert row(0.5) == {
        "workload": "one",
        "what": "CPU of ours above that of peer",
        "measured": "0 us",
        "target": "< 500 ms",
        "": "met",
    }
    assert row(-2.0)[""] == "missed by 1 s, rounds differ"
    assert row(-20.0)[""] == "missed by 19 s"
