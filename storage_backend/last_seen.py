"""LastSeen: what a thread's last read saw of its object, kept until somebody asks (`Hooks.last_read`)."""

from __future__ import annotations

import threading
from typing import Any

from storage_backend.info import ObjectInfo


class LastSeen:
    """What each thread's last read through one backend saw. A pickle of it is empty."""

    def __init__(self) -> None:
        self._local = threading.local()

    def note(self, info: ObjectInfo | None) -> None:
        """Remember what the read that ends has seen; None at the beginning of one, which may end without knowing."""
        self._local.info = info

    def take(self, identifier: str) -> ObjectInfo | None:
        """What the last read of this thread saw, if it was of this object; told once."""
        info: ObjectInfo | None = getattr(self._local, "info", None)
        self._local.info = None
        return info if info is not None and info.identifier == identifier else None

    def __reduce__(self) -> tuple[Any, ...]:
        return LastSeen, ()
