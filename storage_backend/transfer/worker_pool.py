"""WorkerPool: groups actions into units of work and runs them on a bounded pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeAlias, cast

from storage_backend.errors import is_retryable
from storage_backend.threads import DaemonPool, Deadline
from storage_backend.transfer.copying import copy_each
from storage_backend.transfer.digest_comparison import compare_batch
from storage_backend.transfer.job import InterruptedTransferError, Outcome, TransferJob
from storage_backend.transfer.planning import Action
from storage_backend.transfer.progress import INTERVAL
from storage_backend.transfer.retry_budget import RetryBudget

Unit: TypeAlias = list[Action]


class WorkerPool:
    """Executes planned actions.

    Args:
        job: the transfer.
        record: called with the outcomes of each unit, in the thread that calls `run`.
        tick: called at least every `INTERVAL` seconds, in the same thread.
    """

    def __init__(
        self, job: TransferJob, record: Callable[[list[Outcome]], None], tick: Callable[[], None]
    ) -> None:
        self._job = job
        self._record = record
        self._tick = tick
        self._budget = RetryBudget(job)
        self._pending: set[Future[list[Outcome]]] = set()

    def run(self, planned: Iterable[Action | None]) -> None:
        """Execute all actions; None among them means that the next one is not planned yet.

        The queue is short: as many units as keep the pool busy.
        """
        workers = self._job.options.workers
        pool = DaemonPool(workers, "storage-transfer")
        try:
            for unit in self._units(planned):
                if unit is not None:
                    self._pending.add(pool.submit(self._work, unit))
                self._collect(0)
                while len(self._pending) >= 2 * workers:
                    self._collect(INTERVAL)
            while self._pending:
                self._collect(INTERVAL)
        finally:
            pool.shutdown(wait=not self._pending)

    def wind_up(self, deadline: Deadline) -> None:
        """Start nothing more, wait for running units until the deadline, and record those that finished.

        A unit that is still running may publish an object, whole. It touches neither journal nor report.
        """
        for future in self._pending:
            future.cancel()
        for future in wait(self._pending, deadline.left).done:
            if not future.cancelled() and future.exception() is None:
                self._record(future.result())

    def _collect(self, seconds: float) -> None:
        for future in wait(self._pending, seconds, FIRST_COMPLETED).done:
            self._pending.discard(future)
            self._record(future.result())
        self._tick()

    def _units(self, planned: Iterable[Action | None]) -> Iterator[Unit | None]:
        """Batches of small objects of one kind; each larger object by itself."""
        options = self._job.options
        groups: dict[str, Unit] = {"copy": [], "compare": [], "skip": []}
        sizes = dict.fromkeys(groups, 0)
        small = options.batch_bytes // 4
        for action in planned:
            if action is None:
                for group in groups.values():
                    if group:
                        yield group.copy()
                        group.clear()
                yield None
                continue
            size = action.source.size if action.source is not None else None
            if size is None or size > small:
                yield [action]
                continue
            group = groups[action.kind]
            if group and sizes[action.kind] + size > options.batch_bytes:
                yield group.copy()
                group.clear()
            sizes[action.kind] = size + (sizes[action.kind] if group else 0)
            group.append(action)
            if len(group) >= options.batch_objects:
                yield group.copy()
                group.clear()
        yield from filter(None, groups.values())

    def _work(self, unit: Unit) -> list[Outcome]:
        """Execute one unit; retry its objects with retryable errors. Runs in the pool."""
        attempts = self._budget.attempts()
        done: list[Outcome] = []
        while True:
            try:
                outcomes = self._outcomes(unit)
            finally:
                self._job.in_flight.stop_waiting(unit[0].identifier)
            broken = [outcome for outcome in outcomes if is_retryable(outcome.error)]
            if len(broken) < len(outcomes):
                self._budget.worked()
            alone = len(broken) < len(outcomes) or len(broken) == 1
            if not broken or not attempts.wait(cast(Exception, broken[0].error), alone=alone or bool(done)):
                return done + outcomes
            done += [outcome for outcome in outcomes if not is_retryable(outcome.error)]
            unit = [outcome.action for outcome in broken]

    def _outcomes(self, unit: Unit) -> list[Outcome]:
        if self._job.stop.is_set():
            raise InterruptedTransferError
        if unit[0].kind == "skip":
            return [Outcome(action) for action in unit]
        if unit[0].kind == "compare":
            return compare_batch(self._job, unit, repair=self._job.verb != "verify")
        return copy_each(self._job, unit)
