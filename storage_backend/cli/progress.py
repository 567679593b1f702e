"""Formats the progress of a transfer, and prints its summary."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from storage_backend.cli.output import Lines, print_error, quoted
from storage_backend.cli.units import amount, in_unit_of, unit_of

if TYPE_CHECKING:  # imported by the commands that use it
    from storage_backend.transfer.report import TransferReport

MOST_ALIKE = 10  # failures for the same reason that the summary lists; --json has all
SEPARATOR = " · "


class Status:
    """The progress of a command, from the fields of a "progress" event. Missing fields are left out.

    Args:
        verb: of the command.
        fields: of the event.
    """

    def __init__(self, verb: str, fields: Mapping[str, Any]) -> None:
        self._verb = verb
        self._fields = fields

    def line(self) -> str:
        """Everything in one line, as "61,204/100,000 objects · 412.6/733.1 GiB · 56% · 1.31 GiB/s · ETA 4m07s · verified ..."."""
        percent = "" if self.percent is None else f"{self.percent}%"
        parts = (*self._amounts(), percent, self._rate(), self.eta, *self._counts(), self.waiting)
        return SEPARATOR.join(filter(None, parts))

    def lines(self, width: int) -> list[str]:
        """As `line`, but without percentage, ETA and waiting, wrapped to *width* characters."""
        lines: list[str] = []
        for part in (*self._amounts(), self._rate(), *self._counts()):
            if lines and len(lines[-1]) + len(SEPARATOR) + len(part) <= width:
                lines[-1] += SEPARATOR + part
            else:
                lines += textwrap.wrap(part, width)
        return lines

    @property
    def percent(self) -> int | None:
        """Percentage of the bytes, or of the objects if there are no bytes; None until the plan is complete."""
        if not self._fields.get("plan_complete"):
            return None
        done, total = self._fields["bytes"], self._fields.get("planned_bytes")
        if not total:
            done, total = self._objects()
        return min(100, 100 * done // total) if total else None

    @property
    def eta(self) -> str:
        """The remaining time; marked as an estimate until the plan is complete."""
        left = self._fields.get("eta")
        left = None if left is None else float(math.ceil(left))
        if self._fields.get("plan_complete"):
            return f"ETA {duration(left)}" if left is not None else ""
        if "listed" not in self._fields:
            return ""
        listed = f"planning, {self._fields['listed']:,} listed"
        return listed if left is None else f"{listed}, estimated {duration(left)} or more"

    @property
    def waiting(self) -> str:
        """The side that the transfer waits for, and since when."""
        if "waiting_for" not in self._fields:
            return ""
        return f"waiting for {quoted(self._fields['waiting_for'])}, {self._fields['waiting']:.0f} s"

    def _amounts(self) -> list[str]:
        fields = self._fields
        parts = []
        done, total = self._objects()
        if "planned" in fields:
            parts.append(f"{done:,}/{total:,} objects")
        elif "done" in fields:
            parts.append(f"{done:,} objects")
        moved, planned = fields["bytes"], fields.get("planned_bytes")
        size = max(moved, planned or 0)
        if planned is None:
            parts.append(amount(moved))
        else:
            parts.append(f"{in_unit_of(moved, size)}/{in_unit_of(size, size)} {unit_of(size)}")
        return parts

    def _rate(self) -> str:
        return f"{amount(self._fields.get('rate', 0))}/s"

    def _counts(self) -> list[str]:
        counted = ["verified", "skipped", "deleted", "failed"]
        if not self._fields.get("deleted"):
            counted.remove("deleted")
        return [f"{name} {self._fields[name]:,}" for name in counted if name in self._fields]

    def _objects(self) -> tuple[int, int]:
        """The numbers of finished objects and of all objects."""
        fields = self._fields
        done = fields.get("done", 0)
        without_work = fields.get("skipped", 0)
        if (
            without_work and self._verb != "verify"
        ):  # objects that were compared and found equal count in both
            without_work -= done - fields["copied"] - fields["failed"]
        done += without_work
        return done, max(done, fields.get("planned", 0) + without_work)


def summarize(report: TransferReport, *, quiet: bool = False) -> None:
    """Print the counts on stdout, and failures on stderr."""
    _tell_failures(report)
    for reason in report.refused:
        print_error(reason)
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
            print_error(f"failed: {quoted(identifier)}: {error}")
    more = sum(max(0, count - MOST_ALIKE) for count in alike.values())
    if more:
        print_error(f"... and {more:,} more for the same reasons; --json lists all")


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
