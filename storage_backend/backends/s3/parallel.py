"""ParallelTasks: runs one caller's tasks on the storage's worker threads and yields results as they complete."""

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
    """Tasks of one caller, with results in the order of completion. As a context manager it calls `stop` at the end.

    Used by one thread; only *function* runs in others. It cannot be used in a forked child, which has none of the threads.

    Args:
        workers: the worker threads.
        function: called with each item; it may raise.

    Attributes:
        pending: number of tasks whose results have not been taken.
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
        """Start the task for *item*."""
        function, done, stopped = self._function, self._done, self._stopped

        def task() -> None:
            if stopped.is_set():
                done.put((item, None, None))
                return
            try:
                done.put((item, function(item), None))
            except BaseException as error:  # noqa: BLE001 - passed to the caller, who raises it
                done.put((item, None, error))

        self.pending += 1
        try:
            self._workers.run(task)
        except RuntimeError:
            # No thread can be started, so no result will come.
            self.pending -= 1
            raise

    def map(
        self, items: Iterable[T | None], window: Callable[[], int]
    ) -> Iterator[tuple[T, R, BaseException | None]]:
        """The result of each item (see `next_done`), with at most *window()* of them pending.

        A None in *items* is a marker: yield one pending result before advancing the iterator.
        """
        for item in items:
            while self.pending >= (1 if item is None else window()):
                yield self.next_done()
                if item is None:
                    break
            if item is not None:
                self.submit(item)
            del item  # do not keep it in memory while waiting for the next one
        while self.pending:
            yield self.next_done()

    def next_done(self) -> tuple[T, R, BaseException | None]:
        """Wait for a completed task: the item, its result, and the exception raised instead, if any.

        Raises:
            ValueError: this is a forked child.
        """
        return self._take(None)

    def stop(self) -> None:
        """Start no more tasks, wait for running ones (after an interrupt, only for the grace period), discard results."""
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
