"""Memory: what servers were found to do, for the further connections of a process."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from storage_backend.backends.remote.probe import Facts

REMEMBERED = 600.0  # seconds


class Memory:
    """Whole facts by the server that they are of, for a while: to probe takes longer than to connect.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[Hashable, tuple[float, Facts]] = {}
        self._warned: set[Hashable] = set()

    def get(self, server: Hashable) -> Facts | None:
        """What was found less than `REMEMBERED` seconds ago."""
        found, facts = self._kept.get(server, (0.0, None))
        return facts if facts is not None and self._clock() - found < REMEMBERED else None

    def put(self, server: Hashable, facts: Facts) -> None:
        """Keep *facts*, if they are whole: a server may have been too busy to answer in time."""
        if facts.whole:
            self._kept[server] = (self._clock(), facts)

    def forget(self, server: Hashable) -> None:
        """Something did not work as it should."""
        self._kept.pop(server, None)

    def first(self, server: Hashable) -> bool:
        """Whether this is asked of *server* for the first time: a warning is for once."""
        known = server in self._warned
        self._warned.add(server)
        return not known
