"""What a person sees of a transfer: the progress line, and the summary at its end."""

from __future__ import annotations

import shutil
import sys
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, TextIO

from storage_backend.cli.output import Lines, complain, quoted
from storage_backend.cli.units import amount, in_unit_of, unit_of
from storage_backend.transfer.progress import Event
from storage_backend.transfer.report import TransferReport

WINDOW = 10.0  # seconds that the rate is taken over
PIPED_INTERVAL = 30.0  # seconds between two lines where no terminal is
MOST_ALIKE = 10  # failures for the same reason told one by one at the end; --json has all


class Progress:
    """Says how far it is: "61,204/100,000 objects · 412.6/733.1 GiB · 1.31 GiB/s · ETA 4m07s · verified ..."."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._samples: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])

    def line(self, fields: Mapping[str, Any]) -> str:
        """The line for a "progress" event."""
        done, total = self._objects(fields)
        seconds, moved, planned = fields["seconds"], fields["bytes"], fields["planned_bytes"]
        while len(self._samples) > 1 and self._samples[1][0] <= seconds - WINDOW:
            self._samples.popleft()
        since, moved_then, done_then = self._samples[0]
        self._samples.append((seconds, moved, fields["done"]))
        span = max(seconds - since, 1e-9)
        rate = (moved - moved_then) / span
        if not fields["plan_complete"]:
            eta = "planning"
        else:
            waiting = (
                (planned - moved, rate)
                if planned > moved
                else (total - done, (fields["done"] - done_then) / span)
            )
            eta = f"ETA {duration(waiting[0] / waiting[1] if waiting[1] > 0 else None)}"
        size = max(moved, planned)
        return " · ".join(
            (
                f"{done:,}/{total:,} objects",
                f"{in_unit_of(moved, size)}/{in_unit_of(size, size)} {unit_of(size)}",
                f"{amount(rate)}/s",
                eta,
                f"verified {fields['verified']:,}",
                f"skipped {fields['skipped']:,}",
                f"failed {fields['failed']:,}",
            )
        )

    def _objects(self, fields: Mapping[str, Any]) -> tuple[int, int]:
        """How many are settled, and of how many."""
        without_work = fields["skipped"]
        if self._verb != "verify":  # what was compared and found equal is among both
            without_work -= fields["done"] - fields["copied"] - fields["failed"]
        done = fields["done"] + without_work
        return done, max(done, fields["planned"] + without_work)


class Display:
    """Shows a transfer's events: a live line on a terminal, else a line now and then; what differs or would be done.

    Attributes:
        started: whether the transfer began.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        as_json: bool = False,
        dry_run: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._lines = Lines()
        self._json = as_json
        self._dry_run = dry_run
        self._quiet = quiet or as_json
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._due = PIPED_INTERVAL
        self._progress = Progress("")
        self._dirty = False
        self.started = False

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self.started = True
        if self._json:
            self._lines.record(event.as_dict())
            if event.kind != "object":
                self._lines.flush()
        elif event.kind == "start":
            self._progress = Progress(event.fields["verb"])
        elif event.kind == "object":
            self._object(event.fields)
        elif event.kind == "progress" and not self._quiet:
            self._show(event.fields)
        elif event.kind == "end":
            self.clear()

    def clear(self) -> None:
        """Remove the live line."""
        if self._dirty:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._dirty = False

    def _object(self, fields: Mapping[str, Any]) -> None:
        action = fields["action"]
        if action.startswith("differs/"):
            self.clear()
            self._lines.difference(action.removeprefix("differs/"), fields["identifier"])
        elif self._dry_run and not self._quiet and action != "failed":
            self.clear()
            self._lines.name(fields["identifier"], before=f"{action:<24} ")

    def _show(self, fields: Mapping[str, Any]) -> None:
        if self._live:
            columns = shutil.get_terminal_size().columns
            self._stream.write(f"\r{self._progress.line(fields)[: columns - 1]}\x1b[K")
            self._stream.flush()
            self._dirty = True
        elif fields["seconds"] >= self._due:
            self._due = fields["seconds"] + PIPED_INTERVAL
            self._stream.write(self._progress.line(fields) + "\n")
            self._stream.flush()


def summarize(report: TransferReport, *, quiet: bool = False) -> None:
    """What was done on stdout, what was not on stderr."""
    _tell_failures(report)
    for reason in report.refused:
        complain(reason)
    if quiet:
        return
    seconds = max(report.elapsed, 1e-9)
    objects = report.copied + report.compared
    lines = Lines()
    lines.text(
        f"{report.verb}{' (dry run)' if report.dry_run else ''}: {' · '.join(_counts(report))}; "
        f"{amount(report.bytes)} in {duration(report.elapsed)} "
        f"({objects / seconds:,.0f} objects/s, {amount(report.bytes / seconds)}/s)"
    )


def _tell_failures(report: TransferReport) -> None:
    alike: Counter[str] = Counter()
    for identifier, error in report.failed.items():
        reason = f"{type(error).__name__}: {error}".replace(repr(identifier), "")
        alike[reason] += 1
        if alike[reason] <= MOST_ALIKE:
            complain(f"failed: {quoted(identifier)}: {error}")
    more = sum(max(0, count - MOST_ALIKE) for count in alike.values())
    if more:
        complain(f"... and {more:,} more for the same reasons; --json tells of each")


def _counts(report: TransferReport) -> list[str]:
    counts = []
    if report.dry_run:
        counts += [f"would {action} {count:,}" for action, count in sorted(report.would.items())] or [
            "nothing to do"
        ]
    elif report.verb == "verify":
        different = ", ".join(
            f"{name} {_count_of(report, name):,}" for name in sorted(set(report.differences.values()))
        )
        counts.append(f"compared {report.compared:,}")
        counts.append(f"different {len(report.differences):,}" + (f" ({different})" if different else ""))
    else:
        counts += [f"copied {report.copied:,}", f"verified {report.verified:,}"]
    skipped = ", ".join(f"{reason} {count:,}" for reason, count in sorted(report.skipped.items()))
    if report.verb != "verify" or skipped:
        counts.append(f"skipped {report.skipped.total():,}" + (f" ({skipped})" if skipped else ""))
    if report.deleted:
        counts.append(f"deleted {report.deleted:,}")
    if report.source_deleted:
        counts.append(f"deleted from source {report.source_deleted:,}")
    counts.append(f"failed {len(report.failed):,}")
    return counts


def _count_of(report: TransferReport, difference: str) -> int:
    return sum(found == difference for found in report.differences.values())


def duration(seconds: float | None) -> str:
    """Seconds as "12s", "4m07s", "1h02m"; "?" for None. Short ones as "0.52s"."""
    if seconds is None:
        return "?"
    if seconds < 10:
        return f"{seconds:.2f}s".replace(".00s", "s")
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600:,}h{whole % 3600 // 60:02}m"
