"""Event: a report during a transfer; estimators of its rate, remaining time and stalls."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from storage_backend.threads import start_daemon

Kind: TypeAlias = Literal["start", "object", "progress", "end"]

INTERVAL = 0.2  # seconds between two "progress" events
WINDOW = 10.0  # seconds over which the rate is averaged
SILENCE = 3.0  # seconds without progress, after which events name the host that is being waited for


@dataclass(frozen=True, slots=True)
class Event:
    """One event, in a stable format: `as_dict` is a line of the command line's --json.

    Attributes:
        kind: "start", then any number of "object" (copied, deleted, refused, failed, different; not skipped) and
            "progress", then "end".
        fields: by kind.
            start: verb, source, target.
            object: identifier, action (as "copy/missing"), and size, sha256, error if known.
            progress: planned, planned_bytes, plan_complete, listed (source objects so far), done, bytes (read so far,
                including unfinished objects; it never decreases, and a retried object is not counted twice), copied,
                verified, skipped, deleted (on both sides), failed, seconds; rate (recent bytes per second); eta, if it
                can be estimated (seconds for the planned work; before plan_complete more may be planned); waiting_for
                (hosts, or locations without one) and waiting (seconds), if nothing has arrived for some seconds.
            end: the report, as `TransferReport.as_dict`.
    """

    kind: Kind
    fields: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """A flat dictionary of JSON values."""
        return {"event": self.kind, **self.fields}


class RateEstimator:
    """Estimates the rate and the remaining time from the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])

    def of(self, seconds: float, moved: int, done: int, total_bytes: int, total: int) -> dict[str, Any]:
        """The fields `rate` and, once it can be estimated, `eta`.

        Args:
            seconds: since the start; it grows from call to call.
            moved: bytes so far.
            done: objects so far.
            total_bytes: bytes to be moved, as far as known.
            total: objects to be done, as far as known.
        """
        while len(self._samples) > 1 and self._samples[1][0] <= seconds - WINDOW:
            self._samples.popleft()
        since, moved_then, done_then = self._samples[0]
        self._samples.append((seconds, moved, done))
        span = max(seconds - since, 1e-3)
        rate = (moved - moved_then) / span
        found: dict[str, Any] = {"rate": round(rate)}
        left, speed = (
            (total_bytes - moved, rate) if total_bytes > moved else (total - done, (done - done_then) / span)
        )
        if left > 0 and speed > 0:
            found["eta"] = round(left / speed, 1)
        return found


class StallDetector:
    """Measures for how long nothing has arrived."""

    def __init__(self) -> None:
        self._mark: object = None
        self._since = 0.0

    def lasting(self, mark: object, seconds: float) -> float:
        """Seconds since *mark* last changed; 0 below `SILENCE`.

        Args:
            mark: any value that changes when something arrives.
            seconds: of a monotonic clock.
        """
        if mark != self._mark:
            self._mark, self._since = mark, seconds
        lasted = seconds - self._since
        return lasted if lasted >= SILENCE else 0.0


class EventEmitter:
    """Calls the listener with one event at a time, and limits the rate of "progress" events."""

    def __init__(self, on_event: Callable[[Event], object] | None) -> None:
        self._on_event = on_event
        self._due = 0.0
        self._lock = threading.RLock()
        self._error: BaseException | None = None

    def emit(self, kind: Kind, **fields: Any) -> None:
        """Report one event. Fields that are None are left out.

        Raises:
            BaseException: of the listener, now or earlier in the thread of `ticking`.
        """
        if self._on_event is None:
            return
        event = Event(kind, {name: value for name, value in fields.items() if value is not None})
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._on_event is not None:
                self._on_event(event)

    def close(self) -> None:
        """Report nothing more, also from threads that are still running."""
        with self._lock:
            self._on_event = None

    def progress(self, snapshot: Callable[[], dict[str, Any]], *, force: bool = False) -> None:
        """Report progress, unless it was reported within `INTERVAL`."""
        if self._on_event is None or not (force or time.monotonic() >= self._due):
            return
        with self._lock:
            if force or time.monotonic() >= self._due:
                self._due = time.monotonic() + INTERVAL
                self.emit("progress", **snapshot())

    @contextmanager
    def ticking(self, snapshot: Callable[[], dict[str, Any]]) -> Iterator[None]:
        """While the body runs, report progress from another thread: this one may be blocked by a server."""
        if self._on_event is None:
            yield
            return
        ended = threading.Event()

        def tick() -> None:
            while not ended.wait(INTERVAL):
                try:
                    self.progress(snapshot)
                except BaseException as error:  # noqa: BLE001 - raised by the next emit
                    self._error = error
                    return

        thread = start_daemon(tick, "storage-progress")
        try:
            yield
        finally:
            ended.set()
            if thread is not None:
                thread.join()
