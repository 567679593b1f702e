"""ForkGuard: SQLite files have no open connection while this process forks.

SQLite counts the locks of a file once for the whole process, and a child inherits the count but not the locks: it would
believe that it holds what it does not, and lose its writes when the parent closes the file ("How To Corrupt An SQLite
Database File", 2.6; seen here). It need not touch an inherited connection for that: opening a new one is enough. So the
idle connections are closed before each fork, after those in use have come to rest.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from typing import Protocol


class Forkable(Protocol):
    """What can be brought to rest."""

    def before_fork(self) -> None:
        """Come to rest, close what a child must not inherit, and let nobody begin."""

    def after_fork(self) -> None:
        """Go on, in the parent."""


class ForkGuard:
    """Brings its members to rest before this process forks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: weakref.WeakSet[Forkable] = weakref.WeakSet()
        self._resting: list[Forkable] = []
        os.register_at_fork(
            before=self._before, after_in_parent=self._after_in_parent, after_in_child=self._after_in_child
        )

    def add(self, member: Forkable) -> None:
        """Bring *member* to rest, too, for as long as it lives."""
        with self._lock:
            self._members.add(member)

    def _before(self) -> None:
        self._lock.acquire()
        self._resting = list(self._members)
        for member in self._resting:
            member.before_fork()

    def _after_in_parent(self) -> None:
        for member in self._resting:
            member.after_fork()
        self._resting = []
        self._lock.release()

    def _after_in_child(self) -> None:
        # The members are left as they are: each belongs to the process that made it.
        self._members = weakref.WeakSet()
        self._resting = []
        self._lock = threading.Lock()


@functools.cache
def guard() -> ForkGuard:
    """This process's guard. There is one, made when first needed, since a hook of `os` cannot be taken back."""
    return ForkGuard()


@functools.cache
def inherited() -> list[object]:
    """What this process has from its parent, and keeps to its end: finalised, it would say or close something in the parent's name."""
    return []
