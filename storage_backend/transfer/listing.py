"""Planner: lists both sides and plans, ahead of the work, in its own thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from storage_backend.base import StorageBackend
from storage_backend.defensive import info_of
from storage_backend.errors import StorageError, is_retryable
from storage_backend.hooks import hooks_of
from storage_backend.info import ObjectInfo
from storage_backend.scanning import FolderMarkerError
from storage_backend.threads import start_daemon
from storage_backend.transfer.job import TransferJob
from storage_backend.transfer.planning import Action, actions, comes_before, merge
from storage_backend.transfer.retry_budget import FIRST_CONTACT, RetryBudget
from storage_backend.transfer.spool import Spool
from storage_backend.transfer.unchanged import ComparisonRules


class Planner:
    """Lists both sides of a job and decides what to do with each object.

    Attributes:
        complete: both sides were listed to their ends.
        error: why planning ended early.
    """

    def __init__(self, job: TransferJob) -> None:
        self.complete = False
        self.error: BaseException | None = None
        self._job = job
        self._last_marker: str | None = None
        self._thread: threading.Thread | None = None

    def start(self, work: Spool, extras: Spool) -> None:
        """Start planning. If no thread can be started, plan to the end first.

        Args:
            work: gets the actions to be done.
            extras: gets the objects that only the target has.
        """

        def run() -> None:
            try:
                if self._job.verb == "verify":
                    self._plan_verify(work)
                else:
                    self._plan(work, extras)
                self.complete = not self._job.stop.is_set()
            except BaseException as error:  # noqa: BLE001 - raised by the engine
                self.error = error
            finally:
                work.complete()

        self._thread = start_daemon(run, "storage-planner")
        if self._thread is None:
            run()

    def join(self, seconds: float | None = None) -> None:
        """Wait for the end, at most *seconds*."""
        if self._thread is not None:
            self._thread.join(seconds)

    def actions(self) -> Iterator[Action]:
        """The actions of sync or migrate, ascending by identifier."""
        job = self._job
        rules = ComparisonRules(
            prove=job.verb == "migrate",
            keeps_time=job.keeps_time,
            keeps=hooks_of(job.target).keeps_time,
            timed=job.source.keeps_modified is True,
            content=job.options.checksum,
            stored_time=not job.keeps_time,
        )
        records = job.journal.records() if job.journal is not None else None
        for action in actions(self._pairs(), rules, records=records):
            if action.kind != "delete" or job.options.delete:
                yield action

    def _plan(self, work: Spool, extras: Spool) -> None:
        """Count skipped objects; spool the actions to be done."""
        job = self._job
        for action in self.actions():
            if job.stop.is_set():
                return
            if action.kind == "skip" and not job.options.dry_run:
                job.report.skipped[action.reason] += 1
                if job.options.delete_source:
                    work.put(action)
            elif job.options.dry_run:
                job.report.would[str(action)] += 1
                if action.kind != "skip":
                    job.events.emit("object", identifier=action.identifier, action=str(action))
            elif action.kind == "delete":
                extras.put(action)
            else:
                self._put(work, action)

    def _plan_verify(self, work: Spool) -> None:
        job = self._job
        for one, other in self._pairs():
            if job.stop.is_set():
                return
            if one is None or other is None:
                if one is not None:
                    job.differ(one.identifier, "missing")
                elif other is not None and not job.options.one_way:
                    job.differ(other.identifier, "extra")
            elif one.size is not None and other.size is not None and one.size != other.size:
                job.differ(one.identifier, "size")
            elif job.verification == "digest":
                self._put(work, Action(one.identifier, "compare", "digest", one, other, time.time()))
            else:
                job.report.skipped["same-size"] += 1

    def _put(self, work: Spool, action: Action) -> None:
        self._job.report.planned += 1
        self._job.report.planned_bytes += (action.source.size or 0) if action.source is not None else 0
        work.put(action)

    def _pairs(self) -> Iterator[tuple[ObjectInfo | None, ObjectInfo | None]]:
        """The merged listings of both sides, with the sizes that a comparison needs."""
        job, options = self._job, self._job.options
        one, other = job.sides.source, job.sides.target
        source = one.watched(self._listed(job.source, on_skip=self._on_skip), other)
        target = other.watched(self._listed(job.target), one)
        if options.trash is not None:
            trash = f"{options.trash.removesuffix('/')}/"
            target = (info for info in target if not info.identifier.startswith(trash))
        if not options.everything:
            source = (info for info in source if options.in_scope(info.identifier))
            target = (info for info in target if options.in_scope(info.identifier))
        for ours, theirs in merge(source, target):
            if ours is not None:
                one.count += 1
            if theirs is not None:
                other.count += 1
            # stat only if the listing has no size, and only if the size matters.
            if ours is not None and ours.size is None:
                yield (_with_size(job.source, ours), theirs and _with_size(job.target, theirs))
            elif ours is not None and theirs is not None and theirs.size is None:
                yield ours, _with_size(job.target, theirs)
            else:
                yield ours, theirs

    def _listed(self, backend: StorageBackend, **keywords: Any) -> Iterator[ObjectInfo]:
        """The listing of *backend*, restarted after a connection failure and resumed after the last object."""
        in_flight = self._job.in_flight
        budget = RetryBudget(self._job, at_first=FIRST_CONTACT)
        attempts = budget.attempts()
        last: str | None = None
        in_flight.waiting_for = backend
        while True:
            known = last
            try:
                for info in backend.scan(self._job.options.stem, **keywords):
                    if known is not None:
                        if not comes_before(known, info.identifier):
                            continue
                        known = None
                        attempts = budget.attempts()
                    last = info.identifier
                    budget.worked()
                    in_flight.waiting_for = None
                    yield info
                    in_flight.waiting_for = backend
                break
            except Exception as error:
                if not (is_retryable(error) and attempts.wait(error)):
                    raise
        in_flight.waiting_for = None

    def _on_skip(self, error: StorageError) -> None:
        """Report an entry of the source's listing that is not an object, once: a restarted listing repeats them."""
        report = self._job.report
        if error.identifier is not None and not self._job.options.concerns(error.identifier):
            return
        if isinstance(error, FolderMarkerError):
            name = error.identifier or ""  # listings ascend
            if self._last_marker is None or name > self._last_marker:
                self._last_marker = name
                report.skipped["folder-marker"] += 1
        elif (name := error.identifier or str(error)) not in report.failed:
            self._job.fail(name, error)


def _with_size(backend: StorageBackend, info: ObjectInfo) -> ObjectInfo:
    """*info*, completed by a stat if it has no size. If the object is gone meanwhile, reading it raises the error."""
    if info.size is not None:
        return info
    try:
        return info_of(backend.stat(info.identifier), info.identifier)
    except FileNotFoundError:
        return info
