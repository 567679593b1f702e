"""Display: shows the progress of a command, live on a terminal, elsewhere as a line now and then."""

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

if TYPE_CHECKING:  # at run time they are imported by the commands that use them, once something is shown
    from storage_backend.cli.live_display import LiveDisplay
    from storage_backend.transfer.progress import Event

SHOWN_FROM = 0.5  # seconds; what is done by then needs no display
PIPED_INTERVAL = 30.0  # seconds between two lines where no terminal is
STDIN = "standard input"
TICK = 0.2  # seconds between two looks at a Meter


def is_terminal(stream: TextIO) -> bool:
    """Whether *stream* is a terminal on which text can be overwritten."""
    return stream.isatty() and os.environ.get("TERM", "") not in {"", "dumb", "unknown"}


class Display:
    """Shows a transfer's events: a live display on a terminal, else a line now and then; what differs or would be done.

    A terminal that is called "dumb" is none. Whatever else is written to the terminal by the loggers comes between.

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
        self._lock = threading.RLock()  # logs come from any thread
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
        """Erase the live display before each log line, so that it is drawn again below."""
        for handler in logging.getLogger("storage_backend").handlers:
            if self._make_room not in handler.filters:
                handler.addFilter(self._make_room)

    def _make_room(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - a filter's
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
    """Shows the progress of a command without a transfer, while its `with` block runs.

    What is done within half a second is not shown, and costs next to nothing.

    Args:
        verb: of the command.
        quiet: show nothing.
        places: who is waited for while nothing moves, unless a reader is.
        size: bytes in all, if known; or what asks for it, once there is something to show.
        planned: objects in all, if known.
        many: objects are counted, too.
    """

    def __init__(
        self,
        verb: str,
        *places: StorageBackend,
        quiet: bool,
        size: int | Callable[[], int] | None = None,
        planned: int | None = None,
        many: bool = False,
    ) -> None:
        self._verb = verb
        self._places = places
        self._quiet = quiet
        self._ask = size if callable(size) else None
        self._size = None if callable(size) else size
        self._planned = planned
        self._many = many or planned is not None
        self._lock = threading.Lock()
        self._bytes = 0
        self._done = 0
        self._moves = 0
        self._asked: StorageBackend | str | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def moved(self, size: int) -> None:
        """Count *size* more bytes. Safe to call from any thread."""
        with self._lock:
            self._bytes += size
            self._moves += 1

    def done(self, objects: int = 1) -> None:
        """Count so many more objects as done."""
        with self._lock:
            self._done += objects
            self._moves += 1

    def reader(self, reader: BinaryIO, place: StorageBackend | str) -> BinaryIO:
        """Wrap *reader* so that its bytes are counted, and *place* is shown while a read waits."""
        return cast(BinaryIO, _Metered(reader, self, place))

    def ask(self, place: StorageBackend | str | None) -> None:
        """Set the place that is shown while nothing moves; None for those given to the constructor."""
        self._asked = place

    def __enter__(self) -> Self:
        if not self._quiet:
            display = Display()
            from storage_backend.threads import start_daemon  # not needed by commands that show nothing

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

        if self._ask is not None:
            # Not waited for: the command may be done before there is an answer.
            start_daemon(partial(self._learn, self._ask), "storage-size")
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
                asked = self._places if self._asked is None else (self._asked,)
                if waiting and asked:
                    names = (
                        place if isinstance(place, str) else host_of(location_of(place)) for place in asked
                    )
                    fields |= {"waiting_for": " and ".join(dict.fromkeys(names)), "waiting": waiting}
                display.show(fields)
        finally:
            display.clear()

    def _learn(self, ask: Callable[[], int]) -> None:
        with suppress(Exception):  # the command itself says what is wrong
            self._size = ask()


class _Metered:
    """A reader that counts its bytes in a meter. From standard input it returns what is available without waiting for more."""

    def __init__(self, reader: BinaryIO, meter: Meter, place: StorageBackend | str) -> None:
        self._read = reader.read1 if isinstance(reader, io.BufferedReader) and place == STDIN else reader.read
        self._meter = meter
        self._place = place

    def read(self, size: int = -1, /) -> bytes:
        """Read as the wrapped reader does."""
        self._meter.ask(self._place)
        chunk = self._read(size)
        self._meter.ask(None)
        self._meter.moved(len(chunk))
        return chunk
