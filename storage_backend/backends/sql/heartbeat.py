"""Heartbeat: keeps uploads alive while their sources are slow, and discards those that were dropped."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Sequence

from storage_backend.threads import start_daemon


class Heartbeat:
    """Beats for the uploads of one process, on a thread that lives while there are any.

    Args:
        beat: a method that shows the database that these versions are alive; its object is not kept alive.
        discard: a method of the same object, which deletes a version.
        interval: seconds between two beats.
    """

    def __init__(
        self, beat: Callable[[Sequence[bytes]], None], discard: Callable[[bytes], None], interval: float
    ) -> None:
        self._beat_once = weakref.WeakMethod(beat)
        self._discard = weakref.WeakMethod(discard)
        self._interval = interval
        self._live: set[bytes] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Its put() may be called by a finaliser, which runs at any place of any thread, even inside put().
        self._dropped: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def add(self, version: bytes) -> None:
        """Keep this upload alive."""
        with self._lock:
            self._live.add(version)
            if self._thread is None:
                self._thread = start_daemon(self._beat, "storage-backend-heartbeat")

    def remove(self, version: bytes) -> None:
        """This upload is done."""
        with self._lock:
            self._live.discard(version)

    def drop(self, version: bytes) -> None:
        """This upload will never be done. Safe in a finaliser."""
        self._dropped.put(version)

    def rest(self) -> None:
        """End the thread, if nothing is under way. Safe in a finaliser."""
        self._dropped.put(b"")

    def _beat(self) -> None:
        while True:
            version: bytes | None
            try:
                version = self._dropped.get(timeout=self._interval)
            except queue.Empty:
                version = None  # it is time
            beat, discard = self._beat_once(), self._discard()
            if beat is None or discard is None:
                return
            with self._lock:
                if version:
                    self._live.discard(version)
                alive = list(self._live)
                if not alive and not version:
                    self._thread = None
                    return
            if version:
                discard(version)
            elif version is None:
                beat(alive)
            del beat, discard
