"""How many calls one operation makes is counted; and the page is what the program makes of the measurements."""

from pathlib import Path

from benchmarks import calls, page
from benchmarks.results import Results
from benchmarks.workloads import GROUPS

BENCHMARKS = Path(calls.__file__).parent


def test_calls_of_local_and_cached_operations_are_counted(tmp_path: Path) -> None:
    measured = calls.measure(tmp_path, servers=False)
    assert set(measured) == {"local write", "local read", "cached miss", "cached hit", "cached write"}
    for numbers in measured.values():
        assert 0 < numbers["files"] - 1 <= numbers["moves"] < numbers["calls"]
    assert measured["cached hit"]["calls"] < measured["cached miss"]["calls"]
    # A miss or a write may find the cache's own thread at work; these find nobody.
    again = calls.measure(tmp_path / "again", servers=False)
    for name in ("local read", "local write", "cached hit"):
        assert again[name] == measured[name]


def test_page_is_made_from_the_measurements() -> None:
    made = page.page(Results(BENCHMARKS / "results"), GROUPS)
    assert (BENCHMARKS / "RESULTS.md").read_text() == made, "run python -m benchmarks --page"
