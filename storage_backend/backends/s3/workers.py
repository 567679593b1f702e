"""Workers: threads that make requests side by side for whoever asks."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeAlias, TypeVar, cast

from storage_backend.threads import Deadline, patience

T = TypeVar("T")
R = TypeVar("R")

_Task: TypeAlias = Callable[[], None]


class Workers:
    """Up to *count* threads, started as they are needed. A forked child starts its own.

    concurrent.futures would do the same at several times the cost of handing over, which counts at thousands of requests
    a second.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._crew = _Crew()

    def run(self, task: _Task) -> None:
        """Have a thread run *task*, which must not raise, nor wait for another task."""
        crew = self._crew
        if crew.pid != os.getpid():
            crew = self._crew = _Crew()
        crew.run(task, self.count)

    def close(self) -> None:
        """Let the threads end once they are done."""
        crew, self._crew = self._crew, _Crew()
        if crew.pid == os.getpid():
            crew.finalizer()


class _Crew:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = threading.Semaphore(0)
        self.finalizer = weakref.finalize(self, _dismiss, self.tasks)
        # The tasks that wait at the end of the program are nobody's any more.
        self.finalizer.atexit = False

    def run(self, task: _Task, most: int) -> None:
        if not self._idle.acquire(blocking=False):
            with self._lock:
                start = self._threads < most
                self._threads += start
            if start:
                try:
                    threading.Thread(
                        target=_work, args=(self.tasks, self._idle), daemon=True, name="storage-backend-s3"
                    ).start()
                except RuntimeError:
                    # The system has no thread to spare: those that are there do it all, if any are.
                    with self._lock:
                        self._threads -= 1
                        if not self._threads:
                            raise
        self.tasks.put(task)


def _work(tasks: SimpleQueue[_Task | None], idle: threading.Semaphore) -> None:
    while True:
        task = tasks.get()
        if task is None:
            tasks.put(None)  # for the next one
            return
        task()
        del task
        idle.release()


def _dismiss(tasks: SimpleQueue[_Task | None]) -> None:
    tasks.put(None)


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
