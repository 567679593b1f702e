"""Actions at a fork of this process. All state of the process itself, not of an object, is here.

* `guard()`: closes SQLite connections before a fork.
* `no_fork()`: delays a fork during a short step, such as a key exchange.
* `inherited()`: keeps objects that a child must not finalise.

Each is created when first needed and stays, because a hook of `os.register_at_fork` cannot be removed.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

PATIENCE = 5.0  # seconds that a fork waits for steps in progress


class Forkable(Protocol):
    """An object that can be paused for a fork."""

    def before_fork(self) -> None:
        """Finish work in progress, close what a child must not inherit, and block new work."""

    def after_fork(self) -> None:
        """Resume, in the parent."""


class ForkGuard:
    """Pauses its members before this process forks.

    SQLite counts the locks of a file per process, and a child inherits the count but not the locks: it would assume locks that it
    does not hold, and lose its writes when the parent closes the file ("How To Corrupt An SQLite Database File", 2.6; observed
    here). It need not use an inherited connection for that: opening a new one is enough. So idle connections are closed before
    each fork, and those in use are waited for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: weakref.WeakSet[Forkable] = weakref.WeakSet()
        self._resting: list[Forkable] = []
        os.register_at_fork(
            before=self._before, after_in_parent=self._after_in_parent, after_in_child=self._after_in_child
        )

    def add(self, member: Forkable) -> None:
        """Add a member, for as long as it lives."""
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
        # The members are left alone: each belongs to the process that created it.
        self._members = weakref.WeakSet()
        self._resting = []
        self._lock = threading.Lock()


class _ForkBarrier:
    """Lets steps run concurrently, and a fork only while there are none.

    OpenSSL takes locks in key exchanges, signatures, handshakes and while it loads certificates, and Python lets other
    threads run meanwhile. A child that is forked meanwhile inherits those locks held for ever, and hangs in its first key exchange
    (observed with cryptography 50 and OpenSSL 4.0, and with Python's ssl and OpenSSL 3.0: about once in some hundred forks).
    The same holds for the lock of a module that is being imported.
    """

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._renew)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run the body while no thread forks. A nested step starts at once."""
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
            # A fork by the step's own thread need not wait for that step.
            own = 1 if getattr(self._mine, "depth", 0) else 0
            self._changed.wait_for(lambda: self._under_way <= own, PATIENCE)
        # Held during the fork, so that no other thread holds the lock in the child.
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
def guard() -> ForkGuard:
    """This process's guard of SQLite connections."""
    return ForkGuard()


@functools.cache
def _barrier() -> _ForkBarrier:
    return _ForkBarrier()


def no_fork() -> AbstractContextManager[None]:
    """A context for a short step: a fork waits for its end, for `PATIENCE` seconds at most."""
    return _barrier().step()


@functools.cache
def inherited() -> list[object]:
    """Objects of the parent that this child keeps until its end: finalising them would close connections of the parent."""
    return []
