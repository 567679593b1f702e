"""How far it is, in words, and the summary."""

import io
from typing import Any

import pytest

from storage_backend import NotFoundError, TransferReport
from storage_backend.cli.display import PIPED_INTERVAL, Display
from storage_backend.cli.progress import (
    MOST_ALIKE,
    Status,
    duration,
    summarize,
)
from storage_backend.transfer import Event
from tests.cli.terminal import Screen

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


MIGRATION = fields(
    planned=99_988,
    planned_bytes=int(733.1 * GIB),
    done=61_192,
    bytes=int(412.6 * GIB),
    copied=61_190,
    verified=61_190,
    skipped=12,
    failed=2,
    seconds=315.0,
    rate=int(1.31 * GIB),
    eta=247.0,
)


def test_the_line_is_as_designed() -> None:
    assert Status("migrate", MIGRATION).line() == (
        "61,204/100,000 objects · 412.6/733.1 GiB · 56% · 1.31 GiB/s · ETA 4m07s · verified 61,190 · skipped 12 · failed 2"
    )
    assert Status("sync", {**MIGRATION, "deleted": 7}).line().endswith(" · skipped 12 · deleted 7 · failed 2")
    waiting = {**MIGRATION, "waiting_for": "db.example", "waiting": 12.3}
    assert Status("migrate", waiting).line().endswith(" · failed 2 · waiting for db.example, 12 s")


@pytest.mark.parametrize("width", [25, 40, 80, 200])
def test_lines_fit_and_leave_nothing_out(width: int) -> None:
    lines = Status("migrate", MIGRATION).lines(width)
    assert max(map(len, lines)) <= width
    assert " · ".join(lines).replace(" · ", " ").split() == (
        [
            "61,204/100,000",
            "objects",
            "412.6/733.1",
            "GiB",
            "1.31",
            "GiB/s",
            "verified",
            "61,190",
            "skipped",
            "12",
            "failed",
            "2",
        ]
    )


def test_before_all_is_planned_an_eta_is_called_an_estimate() -> None:
    planning = {**MIGRATION, "plan_complete": False, "listed": 123_456}
    status = Status("sync", planning)
    assert status.percent is None
    assert status.eta == "planning, 123,456 listed, estimated 4m07s or more"
    assert "%" not in status.line()
    del planning["eta"]
    assert Status("sync", planning).eta == "planning, 123,456 listed"


def test_a_percentage_goes_by_bytes_and_without_them_by_objects() -> None:
    assert Status("sync", fields(planned=2, planned_bytes=1000, bytes=999, done=1)).percent == 99
    assert Status("sync", fields(planned=8, done=6, copied=6)).percent == 75
    assert Status("sync", fields()).percent is None


def test_what_is_not_known_is_not_told() -> None:
    assert (
        Status("put", {"bytes": 5 << 20, "seconds": 1.0, "plan_complete": False}).line() == "5.00 MiB · 0 B/s"
    )
    assert (
        Status("rm", {"bytes": 0, "done": 5, "planned": 10, "plan_complete": True})
        .line()
        .startswith("5/10 objects · ")
    )


@pytest.mark.parametrize(("verb", "total"), [("migrate", "10/10"), ("verify", "12/12")])
def test_what_was_compared_is_counted_once(verb: str, total: str) -> None:
    # migrate counts what it compared and found equal as skipped too; verify does not
    line = Status(verb, fields(planned=8, done=8, copied=6, skipped=4, seconds=1.0)).line()
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


@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_terminal_there_is_a_line_now_and_then(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb" if terminal else "xterm")
    stream = Terminal() if terminal else io.StringIO()
    display = Display(stream=stream)
    display(Event("start", {"verb": "sync"}))
    for tenth in range(650):
        display(Event("progress", fields(seconds=tenth / 10)))
    display(Event("end", {}))
    assert len(stream.getvalue().splitlines()) == int(65 / PIPED_INTERVAL)
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_shows_all_lines_and_clears_them(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    output = io.BytesIO()
    stream = io.TextIOWrapper(output, encoding=encoding, write_through=True)
    monkeypatch.setattr(stream, "isatty", lambda: True)
    display = Display(stream=stream)
    display(Event("start", {"verb": "migrate", "source": "a", "target": "b"}))
    display(Event("progress", {**MIGRATION, "seconds": 0.1}))
    assert not output.getvalue()  # it may be done at once
    display(Event("progress", {**MIGRATION, "waiting_for": f"{'db.' * 20}example", "waiting": 12.3}))
    screen = Screen(39).feed(output.getvalue().decode(encoding).replace("\n", "\r\n"))
    text = "\n".join(screen.lines)
    assert text.startswith("56% ETA 4m07s ━━━" if encoding == "utf-8" else "56% ETA 4m07s ---")
    assert "61,204/100,000 objects\n412.6/733.1 GiB " in text
    assert text.replace("\n", "").endswith("example, 12 s")
    display(Event("end", {}))
    assert Screen(39).feed(output.getvalue().decode(encoding).replace("\n", "\r\n")).lines == []


def test_quiet_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
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
