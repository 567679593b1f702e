"""Daemon threads: single ones, worker threads and an executor; and the grace period after an interrupt."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType
from typing import Any, ParamSpec, TypeAlias, TypeVar

from typing_extensions import override

with suppress(RuntimeError):
    # Client libraries import it lazily, and it cannot be imported once the main thread has ended.
    import concurrent.futures.thread  # noqa: F401

P = ParamSpec("P")
T = TypeVar("T")

GRACE_SECONDS = 2.0  # that an interrupted caller waits for running work
_STEP = 0.5  # seconds between two checks for signals

Task: TypeAlias = Callable[[], None]


def grace() -> float | None:
    """Seconds to wait for running work, by the exception that is being handled; None for no limit.

    After KeyboardInterrupt, SystemExit and GeneratorExit the caller must end soon, and a stalled server may block for minutes.
    """
    error = sys.exception()
    return None if error is None or isinstance(error, Exception) else GRACE_SECONDS


def run_within_grace(call: Callable[[], object], name: str) -> None:
    """Run *call* in a thread; return when it is done, or after `GRACE_SECONDS`. Its errors are dropped."""
    done = threading.Event()

    def run() -> None:
        try:
            with suppress(Exception):
                call()
        finally:
            done.set()

    if start_daemon(run, name) is None:
        run()
    done.wait(GRACE_SECONDS)


def start_daemon(call: Callable[[], object], name: str) -> threading.Thread | None:
    """Start a daemon thread that runs *call*; None if the interpreter is shutting down and starts no more threads.

    Raises:
        RuntimeError: the system cannot start another thread.
    """
    thread = threading.Thread(target=call, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        if not _is_late(error):
            raise
        return None
    return thread


class WorkerThreads:
    """Up to *count* daemon threads, started on demand, that run tasks. A forked child starts its own.

    The interpreter joins the threads of concurrent.futures at exit, even if a server is stalled, and they accept no tasks from then
    on: neither in an `atexit` handler nor in a thread that outlives the main one. Submitting also costs several times as much.

    Since Python 3.12 no thread can be started while the interpreter shuts down: then the caller runs the task itself.

    Args:
        count: the maximum.
        name: of the threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._name = name
        self._crew = _Crew(name)

    def run(self, task: Task) -> None:
        """Run *task* in a thread. It must not raise, nor wait for another task.

        Raises:
            RuntimeError: the system cannot start a thread.
        """
        crew = self._crew
        if crew.pid != os.getpid():
            crew = self._crew = _Crew(self._name)
        crew.run(task, self.count)

    def close(self) -> list[threading.Thread]:
        """Let the threads end after their tasks, and return them, to be joined. Further tasks start new ones."""
        crew, self._crew = self._crew, _Crew(self._name)
        if crew.pid != os.getpid():
            return []
        crew.dismiss()
        return crew.threads


class _Crew:
    """The threads of one process, until they are dismissed.

    Attributes:
        pid: of the process.
        threads: those that were started.
    """

    def __init__(self, name: str) -> None:
        self.pid = os.getpid()
        self.threads: list[threading.Thread] = []
        self._name = name
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = threading.Semaphore(0)
        self._finalizer = weakref.finalize(self, self._tasks.put, None)
        # Tasks that are still queued at exit are abandoned.
        self._finalizer.atexit = False

    def run(self, task: Task, most: int) -> None:
        """Run *task* in one of at most *most* threads."""
        if not self._idle.acquire(blocking=False) and not self._grow(most):
            task()
            return
        self._tasks.put(task)

    def dismiss(self) -> None:
        """Let the threads end after their tasks."""
        # Not by calling it: in an atexit handler after weakref's, it does nothing.
        if self._finalizer.detach() is not None:
            self._tasks.put(None)

    def _grow(self, most: int) -> bool:
        """Start another thread, if there are fewer than *most*; return whether there are any."""
        with self._lock:
            if len(self.threads) >= most:
                return True
            thread = threading.Thread(
                target=_work, args=(self._tasks, self._idle), name=self._name, daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                # If the system cannot start another thread, the existing ones do all the work.
                if not self.threads and not _is_late(error):
                    raise
            else:
                self.threads.append(thread)
            return bool(self.threads)


def _is_late(error: RuntimeError) -> bool:
    """Whether a thread was refused because of the shutdown ("can't create new thread at interpreter shutdown")."""
    return "shutdown" in str(error)


def _work(tasks: SimpleQueue[Task | None], idle: threading.Semaphore) -> None:
    while True:
        task = tasks.get()
        if task is None:
            tasks.put(None)  # for the next one
            return
        task()
        del task
        idle.release()


def result_of(future: Future[T]) -> T:
    """The result of *future*, waited for in steps.

    A signal that arrives between Python's last check and the system's wait does not end that wait; the next check sees it.
    """
    while not wait([future], _STEP).done:
        pass
    return future.result()


class DaemonPool(Executor):
    """An Executor over `WorkerThreads`.

    As a context manager it waits for running calls at the end; after an interrupt, at most `GRACE_SECONDS`.

    Args:
        workers: the maximum of threads, started on demand.
        name: of the threads.
    """

    def __init__(self, workers: int, name: str) -> None:
        self._workers = WorkerThreads(workers, name)
        self._lock = threading.Lock()
        self._pending: set[Future[Any]] = set()
        self._ended: list[threading.Thread] = []

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        limit = grace()
        deadline = Deadline(limit)
        for thread in self._end(cancel_futures=limit is not None):
            thread.join(deadline.left)

    @override
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - raised by Future.result
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            self._pending.add(future)
        future.add_done_callback(self._forget)
        self._workers.run(task)
        return future

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when they have nothing left to do; with *wait*, return once all accepted calls are done."""
        threads = self._end(cancel_futures=cancel_futures)
        if wait:
            for thread in threads:
                thread.join()

    def _end(self, *, cancel_futures: bool) -> list[threading.Thread]:
        if cancel_futures:
            with self._lock:
                pending = list(self._pending)
            for future in pending:
                future.cancel()
        self._ended += self._workers.close()
        return self._ended

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._pending.discard(future)


class Deadline:
    """A time limit shared by several waits.

    Args:
        seconds: None for ever.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """Remaining seconds, at least 0."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())
