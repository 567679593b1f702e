"""Workers: threads that make requests side by side for whoever asks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

from storage_backend.threads import Crew, Deadline, Task, patience

T = TypeVar("T")
R = TypeVar("R")

_NAME = "storage-backend-s3"


class Workers:
    """Up to *count* threads, started as they are needed. A forked child starts its own.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._crew = Crew(_NAME)

    def run(self, task: Task) -> None:
        """Have a thread run *task*, which must not raise, nor wait for another task."""
        crew = self._crew
        if crew.pid != os.getpid():
            crew = self._crew = Crew(_NAME)
        crew.run(task, self.count)

    def close(self) -> None:
        """Let the threads end once they are done."""
        crew, self._crew = self._crew, Crew(_NAME)
        if crew.pid == os.getpid():
            crew.dismiss()


class Answers(Generic[T, R]):
    """The results of one caller's tasks, in the order in which they are done.

    Used by one thread; only the work itself is done in others. A forked child has none of those: what was under way there
    stays the parent's.

    Args:
        workers: that do it.
        function: what to do with each item. It may raise.
    """

    def __init__(self, workers: Workers, function: Callable[[T], R]) -> None:
        self._workers = workers
        self._function = function
        self._done: SimpleQueue[tuple[T, R | None, BaseException | None]] = SimpleQueue()
        self._pid = os.getpid()
        self._over = threading.Event()
        self.pending = 0

    def ask(self, item: T) -> None:
        """Begin the work on *item*."""
        function, done, over = self._function, self._done, self._over

        def task() -> None:
            if over.is_set():
                done.put((item, None, None))
                return
            try:
                done.put((item, function(item), None))
            except BaseException as error:  # noqa: BLE001 - it is the caller's, who raises it
                done.put((item, None, error))

        self.pending += 1
        try:
            self._workers.run(task)
        except RuntimeError:
            # No thread can be started: nothing will come of it, and nobody may wait for it.
            self.pending -= 1
            raise

    def take(self) -> tuple[T, R, BaseException | None]:
        """Wait for one that is done: the item, its result, or what was raised instead.

        Raises:
            ValueError: this is a forked child.
        """
        return self._take(None)

    def settle(self) -> None:
        """Begin no more, wait until nothing is under way, after an interrupt only for a moment, and forget the results."""
        self._over.set()
        deadline = Deadline(patience())
        with suppress(Empty):
            while self.pending and self._pid == os.getpid():
                self._take(deadline.left)

    def _take(self, seconds: float | None) -> tuple[T, R, BaseException | None]:
        if self._pid != os.getpid():
            raise ValueError(f"this was begun by process {self._pid}, and does not go on in its child")
        item, result, error = self._done.get(timeout=seconds)
        self.pending -= 1
        return item, cast(R, result), error
