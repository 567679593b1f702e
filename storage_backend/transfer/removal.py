"""Removal: the last phase of a transfer, once the two sides are proven to be different places."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from storage_backend.errors import PreconditionFailedError, SourceChangedError, is_retryable
from storage_backend.transfer import deletion
from storage_backend.transfer.deletion import Removed
from storage_backend.transfer.spool import Spool

if TYPE_CHECKING:
    from storage_backend.transfer.engine import TransferEngine

T = TypeVar("T")

JOURNAL_PAGE = 1000  # objects deleted from the source between two syncs


class Removal:
    """What one run deletes.

    Args:
        engine: of the run, which has done all else.
    """

    def __init__(self, engine: TransferEngine) -> None:
        self._engine = engine
        self._job = engine.job
        self._options = engine.options
        self._report = engine.report
        self._two_places: bool | None = None

    def of_extras(self, extras: Spool) -> None:
        """Remove from the target what the source does not have."""
        extras.complete()
        reason = deletion.refusal(
            self._options, self._report, extras.count, self._engine.source_count, self._engine.target_count
        )
        if reason is not None:
            self._report.refused.append(reason)
            return
        if extras.count and not self._differ_for_certain():
            return
        self._job.in_flight.waiting_for = self._job.target
        for batch in deletion.batches(extras):
            remove = partial(deletion.remove, self._job, self._job.target, trash=self._options.trash)
            for identifier, error in self._removed(remove, batch, str):
                if error is not None:
                    self._engine.fail(identifier, error)
                    continue
                self._report.deleted += 1
                self._engine.events.emit("object", identifier=identifier, action="delete/extra")
        self._job.in_flight.waiting_for = None

    def of_sources(self) -> None:
        """Remove from the source what this run knows to be verified on the target."""
        journal = self._engine.journal
        assert journal is not None
        for batch in journal.confirmed(JOURNAL_PAGE):
            if not self._differ_for_certain():
                return
            if self._options.flush:
                self._job.in_flight.waiting_for = self._job.target
                self._engine.apart(partial(self._engine.retry_budget().run, self._job.target.flush))
            journal.harden()
            self._job.in_flight.waiting_for = self._job.source
            gone = []
            lost: list[tuple[str, Exception]] = []
            remove = partial(deletion.remove_verified, self._job)
            for identifier, error in self._removed(remove, batch, lambda record: record.identifier):
                if error is not None:
                    self._engine.fail(identifier, error)
                    if isinstance(error, PreconditionFailedError) and not isinstance(
                        error, SourceChangedError
                    ):
                        lost.append((identifier, error))
                    continue
                gone.append(identifier)
                self._engine.events.emit("object", identifier=identifier, action="delete/verified")
            journal.source_deleted(gone)
            # What the target has not any more as it was verified is in no manifest, and is looked at anew by the next run.
            journal.write((), lost)
            self._report.source_deleted += len(gone)

    def _differ_for_certain(self) -> bool:
        """Whether the two sides are proven to be different places; tried once, and if not, the report says why."""
        if self._two_places is None:
            self._job.in_flight.waiting_for = self._job.target
            tried = partial(self._engine.sides.one_place, source_loses=self._options.delete_source)
            reason = self._engine.apart(partial(self._engine.retry_budget().run, tried))
            self._two_places = reason is None
            if reason is not None:
                self._report.refused.append(reason)
        return self._two_places

    def _removed(
        self, remove: Callable[[list[T]], list[Removed]], batch: list[T], name: Callable[[T], str]
    ) -> list[Removed]:
        """What *remove* came to, with those tried again for which the connection failed."""

        def removed() -> list[Removed]:
            budget = self._engine.retry_budget()
            attempts = budget.attempts()
            left = {name(item): item for item in batch}
            found: dict[str, Exception | None] = {}
            while True:
                found.update(budget.run(partial(remove, list(left.values()))))
                left = {key: item for key, item in left.items() if is_retryable(found[key])}
                alone = len(left) < len(found) or len(left) == 1
                if not left or not attempts.wait(cast(Exception, found[next(iter(left))]), alone=alone):
                    return list(found.items())

        return self._engine.apart(removed)
