"""Heartbeat: keeps uploads alive while their sources are slow, and discards abandoned ones."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Sequence

from storage_backend.threads import start_daemon


class Heartbeat:
    """Records heartbeats of the uploads of one process, on a thread that runs while there are any.

    Args:
        beat: a method that records a heartbeat of versions. Weakly referenced.
        discard: a method of the same object that deletes a version.
        interval: seconds between two heartbeats.
    """

    def __init__(
        self, beat: Callable[[Sequence[bytes]], None], discard: Callable[[bytes], None], interval: float
    ) -> None:
        self._record = weakref.WeakMethod(beat)
        self._discard = weakref.WeakMethod(discard)
        self._interval = interval
        self._live: set[bytes] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # A finalizer, which may run at any point of any thread, calls put(); SimpleQueue.put() is reentrant.
        self._dropped: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def add(self, version: bytes) -> None:
        """Keep this upload alive."""
        with self._lock:
            self._live.add(version)
            if self._thread is None:
                self._thread = start_daemon(self._beat, "storage-backend-heartbeat")

    def remove(self, version: bytes) -> None:
        """End the heartbeats of a published or discarded upload."""
        with self._lock:
            self._live.discard(version)

    def drop(self, version: bytes) -> None:
        """Discard an upload that was garbage-collected. Safe in a finalizer."""
        self._dropped.put(version)

    def rest(self) -> None:
        """End the thread if there are no uploads. Safe in a finalizer."""
        self._dropped.put(b"")

    def _beat(self) -> None:
        while True:
            version: bytes | None
            try:
                version = self._dropped.get(timeout=self._interval)
            except queue.Empty:
                version = None  # a heartbeat is due
            beat, discard = self._record(), self._discard()
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
