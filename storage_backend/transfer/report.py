"""TransferReport: the counts and failures of one transfer."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from storage_backend.errors import BatchError, is_retryable


@dataclass
class TransferReport:
    """The result of `sync`, `migrate` or `verify`. The engine updates it while it runs.

    Attributes:
        verb: "sync", "migrate" or "verify".
        source: location.
        target: location.
        planned: objects that had to be copied or compared by content.
        planned_bytes: their bytes, as far as known.
        plan_complete: whether both sides were listed to their ends.
        copied: objects stored on the target.
        compared: objects that were compared by content, and are equal.
        verified: objects of this run whose digest is the same on both sides.
        skipped: reason -> objects that needed no copy. "folder-marker" counts empty entries whose names end in "/".
        would: (dry run) action, as "copy/missing" -> objects.
        deleted: objects removed from the target, or moved to its trash.
        source_deleted: objects removed from the source.
        failed: identifier -> its error.
        differences: (verify) identifier -> "missing", "extra", "size" or "digest".
        refused: what was not done because a limit or a safety check forbids it, in sentences.
        bytes: copied or compared.
        started: time.monotonic() at the start.
        seconds: how long it took; None while it runs.
        dry_run: whether the run only planned.
    """

    verb: str
    source: str
    target: str
    planned: int = 0
    planned_bytes: int = 0
    plan_complete: bool = False
    copied: int = 0
    compared: int = 0
    verified: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    would: Counter[str] = field(default_factory=Counter)
    deleted: int = 0
    source_deleted: int = 0
    failed: dict[str, Exception] = field(default_factory=dict)
    differences: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    seconds: float | None = None
    dry_run: bool = False

    @property
    def ok(self) -> bool:
        """Whether everything was done and nothing differs."""
        return self.plan_complete and not (self.failed or self.differences or self.refused)

    @property
    def retryable(self) -> bool:
        """Whether there are failures, and another run may succeed in all of them."""
        return bool(self.failed) and all(map(is_retryable, self.failed.values()))

    @property
    def elapsed(self) -> float:
        """Seconds so far, or in total after the end."""
        return time.monotonic() - self.started if self.seconds is None else self.seconds

    def raise_for_failures(self) -> None:
        """Raise a BatchError if any object failed."""
        if self.failed:
            first, error = next(iter(self.failed.items()))
            raise BatchError(
                f"{len(self.failed):,} objects failed; the first is {first!r}: {error}",
                failures=dict(self.failed),
            )

    def progress(self) -> dict[str, Any]:
        """The fields of a "progress" event."""
        return {
            "planned": self.planned,
            "planned_bytes": self.planned_bytes,
            "plan_complete": self.plan_complete,
            "done": self.copied + self.compared + len(self.failed),
            "bytes": self.bytes,
            "copied": self.copied,
            "verified": self.verified,
            "skipped": self.skipped.total(),
            "failed": len(self.failed),
            "seconds": round(self.elapsed, 3),
        }

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values, with rates per second."""
        seconds = max(self.elapsed, 1e-9)
        return {
            "verb": self.verb,
            "source": self.source,
            "target": self.target,
            "dry_run": self.dry_run,
            "ok": self.ok,
            "plan_complete": self.plan_complete,
            "planned": self.planned,
            "planned_bytes": self.planned_bytes,
            "copied": self.copied,
            "compared": self.compared,
            "verified": self.verified,
            "skipped": dict(self.skipped),
            "would": dict(self.would),
            "deleted": self.deleted,
            "source_deleted": self.source_deleted,
            "failed": {identifier: str(error) for identifier, error in self.failed.items()},
            "retryable": self.retryable,
            "differences": dict(self.differences),
            "refused": list(self.refused),
            "bytes": self.bytes,
            "seconds": round(self.elapsed, 3),
            "objects_per_second": round((self.copied + self.compared) / seconds, 1),
            "bytes_per_second": round(self.bytes / seconds, 1),
        }
