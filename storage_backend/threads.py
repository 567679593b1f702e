"""Threads that work beside their caller, and how long they are waited for when it is interrupted."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, ParamSpec, TypeAlias, TypeVar

from typing_extensions import override

P = ParamSpec("P")
T = TypeVar("T")

GRACE_SECONDS = 2.0  # that an interrupted caller waits for what is under way

_Task: TypeAlias = Callable[[], None]


def patience() -> float | None:
    """How many seconds to wait for what is under way, by the exception that is being handled; None for as long as it takes.

    KeyboardInterrupt, SystemExit and GeneratorExit come from somebody who wants to be gone, and a silent server may hold
    up its caller for minutes.
    """
    error = sys.exception()
    return None if error is None or isinstance(error, Exception) else GRACE_SECONDS


def attend(call: Callable[[], object], name: str) -> None:
    """Run *call* in a thread, and return once it is done, at the latest after `GRACE_SECONDS`. What it raises is dropped."""
    done = threading.Event()

    def run() -> None:
        try:
            with suppress(Exception):
                call()
        finally:
            done.set()

    threading.Thread(target=run, name=name, daemon=True).start()
    done.wait(GRACE_SECONDS)


class DaemonPool(Executor):
    """Runs calls in up to *workers* threads, as ThreadPoolExecutor does, but its threads keep no process alive.

    The interpreter joins those of a ThreadPoolExecutor at its exit, however long a server is silent.

    Used as a context manager it waits for what is under way: to its end, and after an interrupt `GRACE_SECONDS`.

    Args:
        workers: how many threads, started as they are needed.
        name: of the threads.
    """

    def __init__(self, workers: int, name: str) -> None:
        self._workers = workers
        self._name = name
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._pending: set[Future[Any]] = set()

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        limit = patience()
        self.shutdown(wait=False, cancel_futures=limit is not None)
        deadline = Deadline(limit)
        for thread in self._threads:
            thread.join(deadline.left)

    @override
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            self._pending.add(future)
        future.add_done_callback(self._forget)
        self._tasks.put(task)
        if not self._idle.acquire(blocking=False):
            self._grow()
        return future

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with *wait*, return once all that were taken are done."""
        if cancel_futures:
            with self._lock:
                pending = list(self._pending)
            for future in pending:
                future.cancel()
        self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._pending.discard(future)

    def _grow(self) -> None:
        if len(self._threads) < self._workers:
            thread = threading.Thread(
                target=_work, args=(self._tasks, self._idle), name=self._name, daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                # The system has no thread to spare, or the interpreter ends, which some of 3.12 start none for: those that are
                # there do it all, or else the caller.
                if not self._threads and (task := self._tasks.get()) is not None:
                    task()
            else:
                self._threads.append(thread)


def _work(tasks: SimpleQueue[_Task | None], idle: threading.Semaphore) -> None:
    while True:
        task = tasks.get()
        if task is None:
            tasks.put(None)  # for the next one
            return
        task()
        del task
        idle.release()


class Deadline:
    """Some seconds from now, divided among several waits.

    Args:
        seconds: None for ever.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """Seconds that are left, at least 0."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())
