"""Heart: shows that uploads are alive while their sources are slow, and clears away those that were dropped."""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from typing import TYPE_CHECKING

from storage_backend.errors import StorageError
from storage_backend.threads import start_daemon

if TYPE_CHECKING:
    from storage_backend.backends.sql.database import Database

logger = logging.getLogger(__name__)


class Heart:
    """Beats for the uploads of one process, on a thread that lives while there are any.

    Args:
        database: whose uploads; the heart does not keep it alive.
        interval: seconds between two beats.
    """

    def __init__(self, database: weakref.ref[Database], interval: float) -> None:
        self._database = database
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
                self._thread = start_daemon(self._beat, "storage-backend-heart")

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
            database = self._database()
            if database is None:
                return
            with self._lock:
                if version:
                    self._live.discard(version)
                alive = list(self._live)
                if not alive and not version:
                    self._thread = None
                    return
            if version:
                database.discard(version)
            elif version is None:
                _keep(database, alive)
            del database


def _keep(database: Database, versions: list[bytes]) -> None:
    try:
        database.transact(lambda connection: database.catalog.beat(connection, versions))
    except StorageError as error:
        logger.warning("uploads could not be kept alive: %s", error)
