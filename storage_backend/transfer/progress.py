"""Event: what a transfer tells while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["start", "object", "progress", "end"]

INTERVAL = 0.2  # seconds between two "progress" events


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, as a stable record: `as_dict` is a line of the command line's --json.

    Attributes:
        kind: "start", then any number of "object" (copied, deleted, refused, failed, different; not what is skipped)
            and "progress", then "end".
        fields: by kind.
            start: verb, source, target.
            object: identifier, action (as "copy/missing"), and size, sha256, error where there is one.
            progress: planned, planned_bytes, plan_complete, done, bytes, copied, verified, skipped, failed, seconds.
            end: the report, as `TransferReport.as_dict` gives it.
    """

    kind: Kind
    fields: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """A flat dictionary of JSON values."""
        return {"event": self.kind, **self.fields}


class Emitter:
    """Hands events on, and limits how often progress is told."""

    def __init__(self, on_event: Callable[[Event], object] | None) -> None:
        self._on_event = on_event
        self._due = 0.0
        self._lock = threading.Lock()

    def emit(self, kind: Kind, **fields: Any) -> None:
        """Tell of one event; fields that are None are left out."""
        if self._on_event is not None:
            event = Event(kind, {name: value for name, value in fields.items() if value is not None})
            with self._lock:
                if self._on_event is not None:
                    self._on_event(event)

    def close(self) -> None:
        """Tell no more: what a thread that was left behind does is nobody's concern."""
        with self._lock:
            self._on_event = None

    def progress(self, snapshot: Callable[[], dict[str, Any]], *, force: bool = False) -> None:
        """Tell how far it is, if it was not told just now."""
        now = time.monotonic()
        if self._on_event is not None and (force or now >= self._due):
            self._due = now + INTERVAL
            self.emit("progress", **snapshot())
