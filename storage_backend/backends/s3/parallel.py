"""ParallelTasks: what one caller has the worker threads of a storage do, and the results as they come."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, Self, TypeVar, cast

from storage_backend.threads import Deadline, WorkerThreads, grace

T = TypeVar("T")
R = TypeVar("R")


class ParallelTasks(Generic[T, R]):
    """Tasks of one caller, whose results come in the order in which they are done. As a context manager it stops at the end.

    Used by one thread; only the work itself is done in others. A forked child has none of those: its parent's tasks stay
    the parent's.

    Args:
        workers: the threads.
        function: what to do with each item. It may raise.

    Attributes:
        pending: tasks whose results were not taken.
    """

    def __init__(self, workers: WorkerThreads, function: Callable[[T], R]) -> None:
        self._workers = workers
        self._function = function
        self._done: SimpleQueue[tuple[T, R | None, BaseException | None]] = SimpleQueue()
        self._pid = os.getpid()
        self._stopped = threading.Event()
        self.pending = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def submit(self, item: T) -> None:
        """Begin the work on *item*."""
        function, done, stopped = self._function, self._done, self._stopped

        def task() -> None:
            if stopped.is_set():
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
            # No thread can be started: no result will come, and nobody may wait for one.
            self.pending -= 1
            raise

    def map(
        self, items: Iterable[T | None], window: Callable[[], int]
    ) -> Iterator[tuple[T, R, BaseException | None]]:
        """The result of each item (see `next_done`), with at most *window()* of them pending.

        None among *items* is no item: it says that the next one may depend on a result that has not been taken.
        """
        for item in items:
            while self.pending >= (1 if item is None else window()):
                yield self.next_done()
                if item is None:
                    break
            if item is not None:
                self.submit(item)
            del item  # what is done is not held while the next one is awaited
        while self.pending:
            yield self.next_done()

    def next_done(self) -> tuple[T, R, BaseException | None]:
        """Wait for a task that is done: the item, its result, or what was raised instead.

        Raises:
            ValueError: this is a forked child.
        """
        return self._take(None)

    def stop(self) -> None:
        """Begin no more, wait until nothing is under way, after an interrupt only for a moment, and forget the results."""
        self._stopped.set()
        deadline = Deadline(grace())
        with suppress(Empty):
            while self.pending and self._pid == os.getpid():
                self._take(deadline.left)

    def _take(self, seconds: float | None) -> tuple[T, R, BaseException | None]:
        if self._pid != os.getpid():
            raise ValueError(f"these tasks belong to process {self._pid}, not to its child")
        item, result, error = self._done.get(timeout=seconds)
        self.pending -= 1
        return item, cast(R, result), error
