"""Display and Meter: show the progress of a command, live on a terminal, else as a line from time to time."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TextIO, cast

import click

from storage_backend.base import StorageBackend
from storage_backend.cli.output import DISPLAY, Lines
from storage_backend.cli.progress import Status
from storage_backend.defensive import location_of

if TYPE_CHECKING:  # imported when something is shown
    from storage_backend.cli.live_display import LiveDisplay
    from storage_backend.transfer.progress import Event

SHOWN_FROM = 0.5  # seconds before the first display
PIPED_INTERVAL = 30.0  # seconds between two lines without a terminal
STDIN = "standard input"
TICK = 0.2  # seconds between two updates of a Meter


def is_terminal(stream: TextIO) -> bool:
    """Whether *stream* is a terminal that can overwrite text."""
    return stream.isatty() and os.environ.get("TERM", "") not in {"", "dumb", "unknown"}


class Display:
    """Shows the events of a transfer: its progress, and with `verify` and dry runs a line for each object.

    Log messages appear above the live display.

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
        self._is_terminal = is_terminal(self._stream)
        self._due = PIPED_INTERVAL
        self._verb = ""
        self._live: LiveDisplay | None = None
        self._lock = threading.RLock()  # any thread may log
        self.started = False
        context = click.get_current_context(silent=True)
        if context is not None:
            context.meta[DISPLAY] = self

    def __call__(self, event: Event) -> None:
        """Show one event."""
        with self._lock:
            self.started = True
            if self._json:
                self._lines.record(event.as_dict())
                if event.kind != "object":
                    self._lines.flush()
            elif event.kind == "start":
                self._verb = event.fields["verb"]
            elif event.kind == "object":
                self._object(event.fields)
            elif event.kind == "progress" and not self._quiet:
                self.show(event.fields)
            elif event.kind == "end":
                self.clear()

    def show(self, fields: Mapping[str, Any]) -> None:
        """Show the progress."""
        with self._lock:
            status = Status(self._verb, fields)
            if not self._is_terminal:
                if fields["seconds"] >= self._due:
                    self._due = fields["seconds"] + PIPED_INTERVAL
                    self._stream.write(status.line() + "\n")
                    self._stream.flush()
            elif self._live is not None or fields["seconds"] >= SHOWN_FROM:
                if self._live is None:
                    from storage_backend.cli.live_display import LiveDisplay

                    self._live = LiveDisplay(self._stream)
                    self._watch_logs()
                self._live.show(status)

    def clear(self) -> None:
        """Erase the live display; the next event draws it again."""
        with self._lock:
            if self._live is not None:
                live, self._live = self._live, None
                live.close()

    def _watch_logs(self) -> None:
        """Erase the live display before each log message; it is drawn again below."""
        for handler in logging.getLogger("storage_backend").handlers:
            if self._make_room not in handler.filters:
                handler.addFilter(self._make_room)

    def _make_room(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - the signature of a logging filter
        self.clear()
        return True

    def _object(self, fields: Mapping[str, Any]) -> None:
        action = fields["action"]
        if action.startswith("differs/"):
            self.clear()
            self._lines.difference(action.removeprefix("differs/"), fields["identifier"])
        elif self._dry_run and not self._quiet and action != "failed":
            self.clear()
            self._lines.name(fields["identifier"], before=f"{action:<24} ")


class Meter:
    """Shows the progress of a command other than a transfer, while its `with` block runs.

    Nothing is shown in the first half second.

    Args:
        verb: name of the command.
        backends: backends that the command waits for while no bytes arrive, unless a reader waits.
        quiet: show nothing.
        size: total bytes, if known; or a function that returns them, called when the display starts.
        planned: total objects, if known.
        many: count objects, too.
    """

    def __init__(
        self,
        verb: str,
        *backends: StorageBackend,
        quiet: bool,
        size: int | Callable[[], int] | None = None,
        planned: int | None = None,
        many: bool = False,
    ) -> None:
        self._verb = verb
        self._backends = backends
        self._quiet = quiet
        self._size_function = size if callable(size) else None
        self._size = None if callable(size) else size
        self._planned = planned
        self._many = many or planned is not None
        self._lock = threading.Lock()
        self._bytes = 0
        self._done = 0
        self._moves = 0
        self._waiting_for: StorageBackend | str | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def moved(self, size: int) -> None:
        """Count *size* more bytes. Safe to call from any thread."""
        with self._lock:
            self._bytes += size
            self._moves += 1

    def done(self, objects: int = 1) -> None:
        """Count *objects* more objects as done."""
        with self._lock:
            self._done += objects
            self._moves += 1

    def reader(self, reader: BinaryIO, source: StorageBackend | str) -> BinaryIO:
        """Wrap *reader*: count its bytes, and show *source* while a read waits."""
        return cast(BinaryIO, _Metered(reader, self, source))

    def set_waiting_for(self, source: StorageBackend | str | None) -> None:
        """Set the source that is shown while no bytes arrive; None for those given to the constructor."""
        self._waiting_for = source

    def __enter__(self) -> Self:
        if not self._quiet:
            display = Display()
            from storage_backend.threads import start_daemon  # not imported by commands that show nothing

            self._thread = start_daemon(partial(self._tick, display), "storage-meter")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _tick(self, display: Display) -> None:
        began = time.monotonic()
        if self._ended.wait(SHOWN_FROM):
            return
        from storage_backend.threads import start_daemon
        from storage_backend.transfer.in_flight import host_of
        from storage_backend.transfer.progress import Event, RateEstimator, StallDetector

        if self._size_function is not None:
            # In a thread: the command may end before the size is known.
            start_daemon(partial(self._learn_size, self._size_function), "storage-size")
        pace, silence = RateEstimator(), StallDetector()
        display(Event("start", {"verb": self._verb}))
        try:
            while not self._ended.wait(TICK):
                seconds = time.monotonic() - began
                fields: dict[str, Any] = {"seconds": seconds, "bytes": self._bytes}
                fields["plan_complete"] = self._size is not None or self._planned is not None
                fields |= {"planned_bytes": self._size} if self._size is not None else {}
                fields |= {"done": self._done} if self._many else {}
                fields |= {"planned": self._planned} if self._planned is not None else {}
                fields |= pace.of(seconds, self._bytes, self._done, self._size or 0, self._planned or 0)
                waiting = silence.lasting(self._moves, seconds)
                waited = self._backends if self._waiting_for is None else (self._waiting_for,)
                if waiting and waited:
                    names = (
                        source if isinstance(source, str) else host_of(location_of(source))
                        for source in waited
                    )
                    fields |= {"waiting_for": " and ".join(dict.fromkeys(names)), "waiting": waiting}
                display.show(fields)
        finally:
            display.clear()

    def _learn_size(self, function: Callable[[], int]) -> None:
        with suppress(Exception):  # the command itself fails and reports it
            self._size = function()


class _Metered:
    """A reader that counts its bytes in a meter. From standard input it returns what is available."""

    def __init__(self, reader: BinaryIO, meter: Meter, source: StorageBackend | str) -> None:
        self._read = (
            reader.read1 if isinstance(reader, io.BufferedReader) and source == STDIN else reader.read
        )
        self._meter = meter
        self._source = source

    def read(self, size: int = -1, /) -> bytes:
        """Read as the wrapped reader does."""
        self._meter.set_waiting_for(self._source)
        chunk = self._read(size)
        self._meter.set_waiting_for(None)
        self._meter.moved(len(chunk))
        return chunk
