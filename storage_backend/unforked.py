"""unforked: short steps that no fork of this process comes in the middle of.

OpenSSL takes locks in key exchanges, signatures, handshakes and while it loads certificates, and Python lets other threads run
meanwhile. A child that is forked then has those locks held for ever, and hangs in its first key exchange (seen with cryptography
50 and OpenSSL 4.0, and with Python's ssl and OpenSSL 3.0: once in some hundred forks). A module has a lock while it is imported, for
which the child waits for ever too. So whoever forks waits for these steps.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

PATIENCE = 5.0  # seconds that a fork waits for steps under way


class _Gate:
    """Lets steps pass side by side, and a fork when there are none."""

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._renew)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Run the body while nobody forks. One that is inside of another passes at once."""
        mine = self._mine
        depth = getattr(mine, "depth", 0)
        if not depth:
            with self._changed:
                while self._forking:
                    self._changed.wait()
                self._under_way += 1
        mine.depth = depth + 1
        try:
            yield
        finally:
            mine.depth = depth
            if not depth and mine is self._mine:  # else this is a child, forked in the middle
                with self._changed:
                    self._under_way -= 1
                    self._changed.notify_all()

    def _before(self) -> None:
        with self._changed:
            self._forking += 1
            # A child that is forked by a step itself has no other thread's locks to fear of it.
            own = 1 if getattr(self._mine, "depth", 0) else 0
            self._changed.wait_for(lambda: self._under_way <= own, PATIENCE)
        # Held through the fork, so that the child's copy is of no other thread.
        self._changed.acquire()

    def _after(self) -> None:
        self._forking -= 1
        self._changed.notify_all()
        self._changed.release()

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._forking = 0
        self._mine = threading.local()


@functools.cache
def _gate() -> _Gate:
    """This process's. Made when first needed, since a hook of `os` cannot be taken back."""
    return _Gate()


def unforked() -> AbstractContextManager[None]:
    """A context for a step that takes a moment: a fork waits for its end, for some seconds at most."""
    return _gate().passing()
