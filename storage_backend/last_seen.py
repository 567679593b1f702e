"""LastSeen: the info from each thread's last read, kept until `Hooks.last_read` takes it."""

from __future__ import annotations

import threading
from typing import Any

from storage_backend.info import ObjectInfo


class LastSeen:
    """The info from each thread's last read through one backend. Not pickled."""

    def __init__(self) -> None:
        self._local = threading.local()

    def note(self, info: ObjectInfo | None) -> None:
        """Remember the info from a read; None at its start, because it may end without any."""
        self._local.info = info

    def take(self, identifier: str) -> ObjectInfo | None:
        """The info from the last read of this thread, if it was of this object; returned once."""
        info: ObjectInfo | None = getattr(self._local, "info", None)
        self._local.info = None
        return info if info is not None and info.identifier == identifier else None

    def __reduce__(self) -> tuple[Any, ...]:
        return LastSeen, ()
