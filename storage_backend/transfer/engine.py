"""TransferEngine: runs one transfer from its plan to its report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from storage_backend.base import StorageBackend
from storage_backend.errors import IntegrityError, SourceChangedError, is_retryable
from storage_backend.hooks import hooks_of
from storage_backend.threads import GRACE_SECONDS, Deadline, grace
from storage_backend.transfer.deletion import Deletion
from storage_backend.transfer.fingerprint import JournalRecord
from storage_backend.transfer.job import Outcome, TransferJob
from storage_backend.transfer.journal import Journal
from storage_backend.transfer.listing import Planner
from storage_backend.transfer.options import TransferOptions, Verb
from storage_backend.transfer.planning import Action
from storage_backend.transfer.progress import INTERVAL, RateEstimator, StallDetector
from storage_backend.transfer.report import TransferReport
from storage_backend.transfer.spool import Spool
from storage_backend.transfer.worker_pool import WorkerPool

logger = logging.getLogger(__name__)


class TransferEngine:
    """One run of `sync`, `migrate` or `verify`."""

    def __init__(
        self,
        verb: Verb,
        source: StorageBackend,
        target: StorageBackend,
        options: TransferOptions,
        journal: Journal | None = None,
    ) -> None:
        self._job = TransferJob(verb, source, target, options, journal)
        self._planner = Planner(self._job)
        self._workers = WorkerPool(
            self._job, self._record, lambda: self._job.events.progress(self._progress_fields)
        )
        self._again: list[Action] = []
        self._rate = RateEstimator()
        self._stall = StallDetector()
        self._shown_bytes = 0

    @property
    def report(self) -> TransferReport:
        """The report, updated during the run."""
        return self._job.report

    def plan(self) -> Iterator[Action]:
        """The actions, in order. Changes nothing."""
        return self._planner.actions()

    def run(self) -> TransferReport:
        """Run the transfer.

        Raises:
            StorageError: a fatal one (quota, authentication, configuration), or a side could not be listed. Finished work
                stays, and is in the journal.
            KeyboardInterrupt: within about two seconds, even if a server does not respond. Work in progress is dropped; an
                object that was being published may be published, whole, and the next run finds it.
        """
        events, report = self._job.events, self.report
        events.emit("start", verb=report.verb, source=report.source, target=report.target)
        error = None
        try:
            with events.ticking(self._progress_fields):
                self._run()
        except BaseException as caught:
            error = f"{type(caught).__name__}: {caught}" if str(caught) else type(caught).__name__
            raise
        finally:
            report.seconds = report.elapsed
            events.progress(self._progress_fields, force=True)
            events.emit("end", **report.as_dict(), error=error)
            events.close()
        return report

    def _run(self) -> None:
        job, options, planner = self._job, self._job.options, self._planner
        work, extras = Spool(), Spool()
        try:
            planner.start(work, extras)
            self._workers.run(work.take(INTERVAL))
            planner.join()
            if planner.error is not None:
                raise planner.error
            self.report.plan_complete = True
            again, self._again = self._again, []
            self._workers.run(again)
            deletion = Deletion(job)
            if options.delete and not options.dry_run:
                deletion.delete_extras(extras)
            if options.delete_source and not options.dry_run:
                deletion.delete_sources()
            if job.journal is not None and options.manifest is not None:
                job.journal.write_manifest(options.manifest)
            if job.verb != "verify" and not options.dry_run:
                job.apart(self._tidy_up)
        except BaseException:
            job.stop.set()
            limit = grace()
            deadline = Deadline(limit)
            self._workers.wind_up(deadline)
            planner.join(GRACE_SECONDS if limit is None else deadline.left)  # it only reads
            raise
        finally:
            work.close()
            extras.close()

    def _tidy_up(self) -> None:
        """Remove markers on both sides and, if this run succeeded, temporary files of interrupted runs on the target."""
        self._job.sides.clear()
        if self.report.failed:
            return
        try:
            count = hooks_of(self._job.target).tidy()
        except Exception as error:  # noqa: BLE001 - the transfer itself is done
            logger.warning("cannot remove temporary files in %s: %s", self.report.target, error)
        else:
            if count:
                logger.info("removed %d temporary files of interrupted runs in %s", count, self.report.target)

    def _record(self, outcomes: list[Outcome]) -> None:
        """Count, report and journal the outcomes of one unit."""
        report, journal = self.report, self._job.journal
        records: list[JournalRecord] = []
        failed: list[tuple[str, Exception]] = []
        confirmed: list[str] = []
        for outcome in outcomes:
            identifier = outcome.action.identifier
            self._job.in_flight.settle(identifier)
            if outcome.error is not None:
                self._record_failure(outcome.action, outcome.error)
                if identifier in report.failed:
                    failed.append((identifier, outcome.error))
                continue
            if outcome.action.kind == "skip":
                confirmed.append(identifier)
                continue
            report.failed.pop(identifier, None)
            report.bytes += outcome.size
            if outcome.record is not None:
                report.verified += 1
                records.append(outcome.record)
            if outcome.copied:
                report.copied += 1
                self._job.events.emit(
                    "object",
                    identifier=identifier,
                    action=f"copy/{outcome.action.reason}",
                    size=outcome.size,
                    sha256=outcome.record.sha256 if outcome.record is not None else None,
                )
            else:
                report.compared += 1
                if report.verb != "verify":
                    report.skipped[outcome.action.reason] += 1
        if journal is not None:
            if records or failed:
                journal.write(records, failed)
            if confirmed:
                journal.confirm(confirmed)

    def _record_failure(self, action: Action, error: Exception) -> None:
        if self.report.verb == "verify" and isinstance(error, IntegrityError):
            self.report.compared += 1
            self._job.differ(action.identifier, "digest")
            return
        if action.identifier not in self.report.failed and (
            is_retryable(error) or isinstance(error, SourceChangedError)
        ):
            self._again.append(action)
        self._job.fail(action.identifier, error)

    def _progress_fields(self) -> dict[str, Any]:
        """The fields of a "progress" event."""
        # The report before the bytes in flight: an object that is settled in between is missed once, not counted twice.
        found = self.report.progress()
        in_flight, sides = self._job.in_flight, self._job.sides
        self._shown_bytes = max(self._shown_bytes, found["bytes"] + in_flight.bytes)
        found |= {
            "plan_complete": self._planner.complete,
            "listed": sides.source.count,
            "bytes": self._shown_bytes,
        }
        found |= self._rate.of(
            found["seconds"], self._shown_bytes, found["done"], found["planned_bytes"], found["planned"]
        )
        found["deleted"] = self.report.deleted + self.report.source_deleted
        mark = in_flight.moves, sides.source.count, sides.target.count, found["done"], found["deleted"]
        waiting = self._stall.lasting(mark, found["seconds"])
        if self.report.seconds is not None:
            return found
        if (outage := in_flight.outage()) is not None:
            found |= {"waiting_for": outage[0], "waiting": round(time.monotonic() - outage[1], 1)}
        elif waiting and (hosts := in_flight.hosts()):
            found |= {"waiting_for": hosts, "waiting": round(waiting, 1)}
        return found
