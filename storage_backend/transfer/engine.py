"""Engine: runs a plan on a bounded pool, collects what fails, and tries that again at the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeAlias, TypeVar, cast

from storage_backend.base import StorageBackend
from storage_backend.defensive import info_of, location_of
from storage_backend.errors import FATAL, IntegrityError, SourceChangedError, StorageError, is_retryable
from storage_backend.hooks import hooks_of
from storage_backend.info import ObjectInfo
from storage_backend.scanning import FolderMarkerError
from storage_backend.threads import GRACE_SECONDS, DaemonPool, Deadline, beside, patience, result_of
from storage_backend.transfer.batches import copy_batch
from storage_backend.transfer.comparison import compare_batch
from storage_backend.transfer.copier import InterruptedTransferError, Job, Outcome, copy_one
from storage_backend.transfer.journal import Journal
from storage_backend.transfer.options import TransferOptions, Verb
from storage_backend.transfer.outages import FIRST_CONTACT, Outage
from storage_backend.transfer.own import own_names, own_paths
from storage_backend.transfer.planning import Action, Record, Rules, actions, comes_before, merge
from storage_backend.transfer.progress import INTERVAL, Emitter, Pace, Silence
from storage_backend.transfer.removal import Removal
from storage_backend.transfer.report import TransferReport
from storage_backend.transfer.sides import Sides
from storage_backend.transfer.spool import Spool

logger = logging.getLogger(__name__)

T = TypeVar("T")

Unit: TypeAlias = list[Action]


class Engine:
    """One run of `sync`, `migrate` or `verify`."""

    def __init__(
        self,
        verb: Verb,
        source: StorageBackend,
        target: StorageBackend,
        options: TransferOptions,
        journal: Journal | None = None,
    ) -> None:
        self.verb = verb
        self.options = options
        self.journal = journal
        self.report = TransferReport(verb, location_of(source), location_of(target), dry_run=options.dry_run)
        self.job = Job(source, target, options.verification(verb), journalled=journal is not None)
        self.sides = Sides(source, target, options.stem)
        own = own_paths(source, target, None if journal is None else journal.path, options.manifest)
        for side in (self.sides.source, self.sides.target):
            side.left_out = own_names(side.backend, own)
        self._working = self.outage()
        self.events = Emitter(options.on_event)
        self._pace = Pace()
        self._silence = Silence()
        self._shown_bytes = 0
        self.planned = False  # to the end; the report says so once all of it was tried
        self._again: list[Action] = []
        self._pending: set[Future[list[Outcome]]] = set()
        self._last_marker: str | None = None
        self.source_count = 0
        self.target_count = 0

    def run(self) -> TransferReport:
        """Do it all.

        Raises:
            StorageError: a fatal one (quota, authentication, configuration), or a side could not be listed. What was
                finished before stays, and is in the journal.
            KeyboardInterrupt: within about two seconds, however silent a server is. What was under way was dropped; what
                was being published that moment may be published, whole, and the next run finds it.
        """
        self.events.emit("start", verb=self.verb, source=self.report.source, target=self.report.target)
        error = None
        try:
            with self.events.ticking(self._progress):
                self._run()
        except BaseException as caught:
            error = f"{type(caught).__name__}: {caught}" if str(caught) else type(caught).__name__
            raise
        finally:
            self.report.seconds = self.report.elapsed
            self.events.progress(self._progress, force=True)
            self.events.emit("end", **self.report.as_dict(), error=error)
            self.events.close()
        return self.report

    def plan(self) -> Iterator[Action]:
        """What would be done, in order; nothing is touched."""
        rules = Rules(
            prove=self.verb == "migrate",
            keeps_time=self.job.keeps_time,
            keeps=hooks_of(self.job.target).keeps_time,
            timed=self.job.source.keeps_modified is True,
            content=self.options.checksum,
            stored_time=not self.job.keeps_time,
        )
        records = self.journal.records() if self.journal is not None else None
        for action in actions(self._pairs(), rules, records=records):
            if action.kind != "delete" or self.options.delete:
                yield action

    def _progress(self) -> dict[str, Any]:
        """The fields of a "progress" event."""
        # The report first: what is settled meanwhile is then missed once, and not counted twice.
        found = self.report.progress()
        flow = self.job.flow
        self._shown_bytes = max(self._shown_bytes, found["bytes"] + flow.bytes)
        found |= {"plan_complete": self.planned, "listed": self.source_count, "bytes": self._shown_bytes}
        found |= self._pace.of(
            found["seconds"], self._shown_bytes, found["done"], found["planned_bytes"], found["planned"]
        )
        found["deleted"] = self.report.deleted + self.report.source_deleted
        mark = flow.moves, self.source_count, self.target_count, found["done"], found["deleted"]
        waiting = self._silence.lasting(mark, found["seconds"])
        if self.report.seconds is not None:
            return found
        if (outage := flow.outage()) is not None:
            found |= {"waiting_for": outage[0], "waiting": round(time.monotonic() - outage[1], 1)}
        elif waiting and (hosts := flow.hosts()):
            found |= {"waiting_for": hosts, "waiting": round(waiting, 1)}
        return found

    def _run(self) -> None:
        with_extras = self.options.delete and not self.options.dry_run
        spool, extras = Spool(), Spool()
        planner = _Planner(self, spool, extras)
        try:
            planner.start()
            self._work(self._units(spool.take(INTERVAL)), self._unit)
            planner.join()
            if planner.error is not None:
                raise planner.error
            self.report.plan_complete = True
            again, self._again = self._again, []
            self._work(self._units(iter(again)), self._unit)
            removal = Removal(self)
            if with_extras:
                removal.of_extras(extras)
            if self.options.delete_source and not self.options.dry_run:
                removal.of_sources()
            if self.journal is not None and self.options.manifest is not None:
                self.journal.write_manifest(self.options.manifest)
            if self.verb != "verify" and not self.options.dry_run:
                self.apart(self._tidy_up)
        except BaseException:
            self._wind_up(planner)
            raise
        finally:
            spool.close()
            extras.close()

    def _tidy_up(self) -> None:
        """Remove what broken runs left on the target, if this one succeeded, and markers on either side."""
        self.sides.clear()
        if self.report.failed:
            return
        try:
            count = hooks_of(self.job.target).tidy()
        except Exception as error:  # noqa: BLE001 - the transfer itself is done
            logger.warning("%s is not tidied up: %s", self.report.target, error)
        else:
            if count:
                logger.info("%d files that broken runs left in %s were removed", count, self.report.target)

    def _wind_up(self, planner: _Planner) -> None:
        """Begin nothing more, and wait for what is under way: to its end, and after an interrupt for a moment.

        What is left behind then may still publish an object, whole; it touches neither journal nor report.
        """
        self.job.stop.set()
        limit = patience()
        deadline = Deadline(limit)
        for future in self._pending:
            future.cancel()
        # What was finished while we were stopped is as good as the rest.
        for future in wait(self._pending, deadline.left).done:
            if not future.cancelled() and future.exception() is None:
                self._record(future.result())
        planner.join(GRACE_SECONDS if limit is None else deadline.left)  # it only reads

    def _pairs(self) -> Iterator[tuple[ObjectInfo | None, ObjectInfo | None]]:
        """What both sides show, with the sizes that both sides need."""
        one, other = self.sides.source, self.sides.target
        source = one.watched(self._listed(self.job.source, on_skip=self._on_skip), other)
        target = other.watched(self._listed(self.job.target), one)
        in_scope = self.options.in_scope
        if self.options.trash is not None:
            trash = f"{self.options.trash.removesuffix('/')}/"
            target = (info for info in target if not info.identifier.startswith(trash))
        if not self.options.everything:
            source = (info for info in source if in_scope(info.identifier))
            target = (info for info in target if in_scope(info.identifier))
        for ours, theirs in merge(source, target):
            if ours is not None:
                self.source_count += 1
            if theirs is not None:
                self.target_count += 1
            # Only a scan that knows no sizes costs a second look, and only where the size matters.
            if ours is not None and ours.size is None:
                yield (
                    self._completed(self.job.source, ours),
                    theirs and self._completed(self.job.target, theirs),
                )
            elif ours is not None and theirs is not None and theirs.size is None:
                yield ours, self._completed(self.job.target, theirs)
            else:
                yield ours, theirs

    def _listed(self, backend: StorageBackend, **keywords: Any) -> Iterator[ObjectInfo]:
        """What *backend* lists; it is known when that is waited for."""
        flow = self.job.flow
        outage = Outage(self.job, self.options.retry_for, at_first=FIRST_CONTACT)
        tries = outage.tries()
        last: str | None = None
        flow.waiting_for = backend
        while True:
            known = last
            try:
                for info in backend.scan(self.options.stem, **keywords):
                    # Begun anew, it goes on after what it has shown before it broke.
                    if known is not None:
                        if not comes_before(known, info.identifier):
                            continue
                        known = None
                        tries = outage.tries()
                    last = info.identifier
                    outage.worked()
                    flow.waiting_for = None
                    yield info
                    flow.waiting_for = backend
                break
            except Exception as error:
                if not (is_retryable(error) and tries.wait(error)):
                    raise
        flow.waiting_for = None

    def _completed(self, backend: StorageBackend, info: ObjectInfo) -> ObjectInfo:
        """What a scan without sizes left out; an object that vanished meanwhile is left to its reader."""
        if info.size is not None:
            return info
        try:
            return info_of(backend.stat(info.identifier), info.identifier)
        except FileNotFoundError:
            return info

    def _on_skip(self, error: StorageError) -> None:
        name = error.identifier or str(error)
        if error.identifier is not None and not self.options.concerns(error.identifier):
            return
        # A listing that is begun anew tells of all again.
        if isinstance(error, FolderMarkerError):
            at = error.identifier or ""  # listings ascend
            if self._last_marker is None or at > self._last_marker:
                self._last_marker = at
                self.report.skipped["folder-marker"] += 1
        elif name not in self.report.failed:
            self.fail(name, error)

    def outage(self) -> Outage:
        """For one kind of work with both sides."""
        source = self.sides.source
        return Outage(self.job, self.options.retry_for, known=lambda: source.first)

    def fail(self, identifier: str, error: Exception) -> None:
        """Take note that an object failed."""
        error.__traceback__ = None  # it would keep the frames, and the bytes in them, until the end
        self.report.failed[identifier] = error
        self.events.emit("object", identifier=identifier, action="failed", error=str(error))

    def sort_out(self, spool: Spool, extras: Spool) -> None:
        """Plan to the end: count what is skipped, spool what needs work."""
        if self.verb == "verify":
            self._sort_out_verify(spool)
            return
        for action in self.plan():
            if self.job.stop.is_set():
                return
            if action.kind == "skip" and not self.options.dry_run:
                self.report.skipped[action.reason] += 1
                if self.options.delete_source:
                    spool.put(action)
            elif self.options.dry_run:
                self.report.would[str(action)] += 1
                if action.kind != "skip":
                    self.events.emit("object", identifier=action.identifier, action=str(action))
            elif action.kind == "delete":
                extras.put(action)
            else:
                self._plan_one(spool, action)

    def _sort_out_verify(self, spool: Spool) -> None:
        for one, other in self._pairs():
            if self.job.stop.is_set():
                return
            if one is None or other is None:
                if one is not None:
                    self._differ(one.identifier, "missing")
                elif other is not None and not self.options.one_way:
                    self._differ(other.identifier, "extra")
            elif one.size is not None and other.size is not None and one.size != other.size:
                self._differ(one.identifier, "size")
            elif self.job.verification == "digest":
                self._plan_one(spool, Action(one.identifier, "compare", "digest", one, other, time.time()))
            else:
                self.report.skipped["same-size"] += 1

    def _plan_one(self, spool: Spool, action: Action) -> None:
        self.report.planned += 1
        self.report.planned_bytes += (action.source.size or 0) if action.source is not None else 0
        spool.put(action)

    def _differ(self, identifier: str, reason: str) -> None:
        self.report.differences[identifier] = reason
        self.events.emit("object", identifier=identifier, action=f"differs/{reason}")

    def _units(self, planned: Iterable[Action | None]) -> Iterator[Unit | None]:
        """Batches of small objects of one kind, larger objects by themselves; None when there is nothing to do yet."""
        groups: dict[str, Unit] = {"copy": [], "compare": [], "skip": []}
        sizes = dict.fromkeys(groups, 0)
        small = self.options.batch_bytes // 4
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
            if group and sizes[action.kind] + size > self.options.batch_bytes:
                yield group.copy()
                group.clear()
            sizes[action.kind] = size + (sizes[action.kind] if group else 0)
            group.append(action)
            if len(group) >= self.options.batch_objects:
                yield group.copy()
                group.clear()
        yield from filter(None, groups.values())

    def _unit(self, unit: Unit) -> list[Outcome]:
        """The work on one unit; runs in a worker."""
        tries = self._working.tries()
        done: list[Outcome] = []
        while True:
            try:
                outcomes = self._outcomes(unit)
            finally:
                self.job.flow.answered(unit[0].identifier)
            broken = [outcome for outcome in outcomes if is_retryable(outcome.error)]
            if len(broken) < len(outcomes):
                self._working.worked()
            alone = len(broken) < len(outcomes) or len(broken) == 1
            if not broken or not tries.wait(cast(Exception, broken[0].error), alone=alone or bool(done)):
                return done + outcomes
            done += [outcome for outcome in outcomes if not is_retryable(outcome.error)]
            unit = [outcome.action for outcome in broken]

    def _outcomes(self, unit: Unit) -> list[Outcome]:
        if self.job.stop.is_set():
            raise InterruptedTransferError
        if unit[0].kind == "skip":
            return [Outcome(action) for action in unit]
        if unit[0].kind == "compare":
            return compare_batch(self.job, unit, repair=self.verb != "verify")
        if len(unit) > 1:
            return copy_batch(self.job, unit)
        try:
            return [copy_one(self.job, unit[0])]
        except (*FATAL, InterruptedTransferError):
            raise
        except Exception as error:  # noqa: BLE001 - it is this object's outcome
            return [Outcome(unit[0], error=error)]

    def _work(self, units: Iterable[Unit | None], work: Callable[[Unit], list[Outcome]]) -> None:
        """Run the units on a pool, no more of them waiting than it takes to keep it busy."""
        pool = DaemonPool(self.options.workers, "storage-transfer")
        try:
            for unit in units:
                if unit is not None:
                    self._pending.add(pool.submit(work, unit))
                self._collect(0)
                while len(self._pending) >= 2 * self.options.workers:
                    self._collect(INTERVAL)
            while self._pending:
                self._collect(INTERVAL)
        finally:
            pool.shutdown(wait=not self._pending)

    def _collect(self, seconds: float) -> None:
        for future in wait(self._pending, seconds, FIRST_COMPLETED).done:
            self._pending.discard(future)
            self._record(future.result())
        self.events.progress(self._progress)

    def apart(self, call: Callable[[], T]) -> T:
        """What *call* gives, made by a thread: here, a silent server could hold up an interrupt."""
        with DaemonPool(1, "storage-transfer") as pool:
            try:
                return result_of(pool.submit(call))
            except BaseException:
                self.job.stop.set()
                raise

    def _record(self, outcomes: list[Outcome]) -> None:
        """Count, tell and journal what a unit came to."""
        records: list[Record] = []
        failed: list[tuple[str, Exception]] = []
        confirmed: list[str] = []
        for outcome in outcomes:
            identifier = outcome.action.identifier
            self.job.flow.settle(identifier)
            if outcome.error is not None:
                self._record_failure(outcome, outcome.error)
                if identifier in self.report.failed:
                    failed.append((identifier, outcome.error))
                continue
            if outcome.action.kind == "skip":
                confirmed.append(identifier)
                continue
            self.report.failed.pop(identifier, None)
            self.report.bytes += outcome.size
            if outcome.record is not None:
                self.report.verified += 1
                records.append(outcome.record)
            if outcome.copied:
                self.report.copied += 1
                self._tell(outcome)
            else:
                self.report.compared += 1
                if self.verb != "verify":
                    self.report.skipped[outcome.action.reason] += 1
        if self.journal is not None:
            if records or failed:
                self.journal.write(records, failed)
            if confirmed:
                self.journal.confirm(confirmed)

    def _record_failure(self, outcome: Outcome, error: Exception) -> None:
        action = outcome.action
        if self.verb == "verify" and isinstance(error, IntegrityError):
            self.report.compared += 1
            self._differ(action.identifier, "digest")
            return
        if action.identifier not in self.report.failed and (
            is_retryable(error) or isinstance(error, SourceChangedError)
        ):
            self._again.append(action)
        self.fail(action.identifier, error)

    def _tell(self, outcome: Outcome) -> None:
        self.events.emit(
            "object",
            identifier=outcome.action.identifier,
            action=f"copy/{outcome.action.reason}",
            size=outcome.size,
            sha256=outcome.record.sha256 if outcome.record is not None else None,
        )


class _Planner:
    """Lists both sides ahead of the work, in a thread of its own."""

    def __init__(self, engine: Engine, spool: Spool, extras: Spool) -> None:
        self._engine = engine
        self._spool = spool
        self._extras = extras
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin; where no thread can be started, plan to the end first."""
        self._thread = beside(self._run, "storage-planner")
        if self._thread is None:
            self._run()

    def join(self, seconds: float | None = None) -> None:
        """Return when it is done, or that much later."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        """Plan to the end, and keep what goes wrong for the thread that waits."""
        try:
            self._engine.sort_out(self._spool, self._extras)
            self._engine.planned = not self._engine.job.stop.is_set()
        except BaseException as error:  # noqa: BLE001 - raised by the engine
            self.error = error
        finally:
            self._spool.complete()
