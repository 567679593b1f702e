"""The progress line and the summary."""

import io
from typing import Any

import pytest

from storage_backend import NotFoundError, TransferReport
from storage_backend.cli.progress import (
    MOST_ALIKE,
    PIPED_INTERVAL,
    Display,
    Progress,
    duration,
    summarize,
)
from storage_backend.transfer import Event

pytestmark = pytest.mark.quick

GIB = 1 << 30


def fields(**changes: Any) -> dict[str, Any]:
    found = {
        "planned": 0,
        "planned_bytes": 0,
        "plan_complete": True,
        "done": 0,
        "bytes": 0,
        "copied": 0,
        "verified": 0,
        "skipped": 0,
        "failed": 0,
        "seconds": 0.0,
    }
    return {**found, **changes}


def test_the_line_is_as_designed() -> None:
    progress = Progress("migrate")
    found = fields(
        planned=99_988,
        planned_bytes=int(733.1 * GIB),
        done=61_192,
        bytes=int(412.6 * GIB),
        copied=61_190,
        verified=61_190,
        skipped=12,
        failed=2,
        seconds=315.0,
    )
    assert progress.line(found) == (
        "61,204/100,000 objects · 412.6/733.1 GiB · 1.31 GiB/s · ETA 4m05s · verified 61,190 · skipped 12 · failed 2"
    )


def test_the_rate_is_of_the_last_seconds() -> None:
    progress = Progress("sync")
    progress.line(fields(seconds=100.0, bytes=100 * GIB, planned_bytes=200 * GIB))
    progress.line(fields(seconds=110.0, bytes=100 * GIB, planned_bytes=200 * GIB))
    line = progress.line(fields(seconds=115.0, bytes=105 * GIB, planned_bytes=200 * GIB))
    assert "· 1.00 GiB/s ·" in line or "· 341 MiB/s ·" in line


def test_there_is_no_eta_before_all_is_planned() -> None:
    line = Progress("sync").line(fields(planned=10, done=5, copied=5, plan_complete=False, seconds=1.0))
    assert line.startswith("5/10 objects")
    assert "planning" in line
    assert "ETA" not in line


def test_an_eta_without_bytes_goes_by_objects() -> None:
    line = Progress("sync").line(fields(planned=10, done=5, copied=5, seconds=5.0))
    assert "ETA 5s" in line
    assert "ETA ?" in Progress("sync").line(fields(planned=10, seconds=1.0))


@pytest.mark.parametrize(("verb", "total"), [("migrate", "10/10"), ("verify", "12/12")])
def test_what_was_compared_is_counted_once(verb: str, total: str) -> None:
    # migrate counts what it compared and found equal as skipped too; verify does not
    line = Progress(verb).line(fields(planned=8, done=8, copied=6, skipped=4, seconds=1.0))
    assert line.startswith(f"{total} objects")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0.5214, "0.52s"),
        (3.0, "3s"),
        (12.4, "12s"),
        (59.7, "1m00s"),
        (247, "4m07s"),
        (3725, "1h02m"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    display = Display(stream=stream)
    display(Event("start", {"verb": "sync", "source": "a", "target": "b"}))
    for seconds in (1.0, 2.0):
        display(Event("progress", fields(planned=10, done=1, copied=1, seconds=seconds)))
    display(Event("end", {}))
    text = stream.getvalue()
    assert "\n" not in text
    assert text.endswith("\r\x1b[K")
    shown = [part for part in text.replace("\x1b[K", "").split("\r") if part]
    assert len(shown) == 2
    assert all(len(part) < 40 for part in shown)


def test_elsewhere_there_is_a_line_now_and_then() -> None:
    stream = io.StringIO()
    display = Display(stream=stream)
    display(Event("start", {"verb": "sync"}))
    for tenth in range(650):
        display(Event("progress", fields(seconds=tenth / 10)))
    display(Event("end", {}))
    assert len(stream.getvalue().splitlines()) == int(65 / PIPED_INTERVAL)


def test_quiet_shows_no_progress() -> None:
    stream = Terminal()
    display = Display(quiet=True, stream=stream)
    display(Event("start", {"verb": "sync"}))
    display(Event("progress", fields(seconds=100.0)))
    assert not stream.getvalue()


def test_the_summary_has_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    report = TransferReport(
        "migrate", "a", "b", copied=10, verified=12, bytes=20 << 20, seconds=2.0, deleted=3
    )
    report.skipped.update({"journal": 5, "checksum": 2})
    report.failed["x\n"] = NotFoundError("it is gone")
    report.refused.append("too many to delete")
    summarize(report)
    out, err = capsys.readouterr()
    assert out == (
        "migrate: copied 10 · verified 12 · skipped 7 (checksum 2, journal 5) · deleted 3 · failed 1; "
        "20.0 MiB in 2s (5 objects/s, 10.0 MiB/s)\n"
    )
    assert err.splitlines() == [
        "storage-backend: failed: $'x\\n': it is gone",
        "storage-backend: too many to delete",
    ]


def test_the_summary_of_verify_counts_differences(capsys: pytest.CaptureFixture[str]) -> None:
    report = TransferReport("verify", "a", "b", compared=4, seconds=1.0)
    report.differences.update({"x": "digest", "y": "missing", "z": "missing"})
    summarize(report)
    assert capsys.readouterr().out.startswith(
        "verify: compared 4 · different 3 (digest 1, missing 2) · failed 0; "
    )


def test_a_great_many_failures_are_not_all_told(capsys: pytest.CaptureFixture[str]) -> None:
    report = TransferReport("sync", "a", "b", seconds=1.0)
    report.failed.update({f"x{number}": NotFoundError(f"no 'x{number}'") for number in range(MOST_ALIKE + 7)})
    report.failed["y"] = NotFoundError("another reason")
    summarize(report, quiet=True)
    out, err = capsys.readouterr()
    assert not out
    lines = err.splitlines()
    assert len(lines) == MOST_ALIKE + 2
    assert "'y': another" not in lines[-2]
    assert lines[-2].endswith("y: another reason")
    assert "7 more for the same reasons" in lines[-1]
