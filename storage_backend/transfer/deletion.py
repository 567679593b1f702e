"""Deletion: the last phase of a transfer. Deletes extras from the target, and verified objects from the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar, cast

from storage_backend.base import StorageBackend
from storage_backend.defensive import info_of
from storage_backend.errors import (
    FATAL,
    BatchError,
    PreconditionFailedError,
    SourceChangedError,
    is_retryable,
)
from storage_backend.info import ObjectInfo
from storage_backend.transfer.digest_comparison import digests_of
from storage_backend.transfer.fingerprint import Fingerprint, JournalRecord
from storage_backend.transfer.job import InterruptedTransferError, TransferJob
from storage_backend.transfer.retry_budget import RetryBudget
from storage_backend.transfer.spool import Spool

T = TypeVar("T")

DELETED_AT_ONCE = 1000  # objects in a call; also the source's objects between two syncs of the journal
LEAST_MAX_DELETE = 100  # objects; ordinary changes easily exceed a tenth of a smaller target

Deleted: TypeAlias = tuple[str, Exception | None]  # an identifier, and why it was not deleted


class Deletion:
    """Performs the deletions of one transfer, after everything else succeeded.

    Nothing is deleted before a marker has proven that the two sides are different places.
    """

    def __init__(self, job: TransferJob) -> None:
        self._job = job
        self._two_places: bool | None = None

    def delete_extras(self, extras: Spool) -> None:
        """Delete from the target the objects that the source does not have."""
        extras.complete()
        reason = _refusal(self._job, extras.count)
        if reason is not None:
            self._job.report.refused.append(reason)
            return
        if extras.count and not self._proven_apart():
            return
        self._job.in_flight.waiting_for = self._job.target
        for batch in _batches(extras):
            delete = partial(_delete, self._job, self._job.target, trash=self._job.options.trash)
            for identifier, error in self._delete_with_retries(delete, batch, str):
                if error is not None:
                    self._job.fail(identifier, error)
                    continue
                self._job.report.deleted += 1
                self._job.events.emit("object", identifier=identifier, action="delete/extra")
        self._job.in_flight.waiting_for = None

    def delete_sources(self) -> None:
        """Delete from the source the objects that are verified on the target."""
        journal = self._job.journal
        assert journal is not None
        for batch in journal.confirmed(DELETED_AT_ONCE):
            if not self._proven_apart():
                return
            if self._job.options.flush:
                self._job.in_flight.waiting_for = self._job.target
                self._job.apart(partial(RetryBudget(self._job).run, self._job.target.flush))
            journal.harden()
            self._job.in_flight.waiting_for = self._job.source
            gone = []
            lost: list[tuple[str, Exception]] = []
            delete = partial(_delete_verified, self._job)
            for identifier, error in self._delete_with_retries(
                delete, batch, lambda record: record.identifier
            ):
                if error is not None:
                    self._job.fail(identifier, error)
                    if isinstance(error, PreconditionFailedError) and not isinstance(
                        error, SourceChangedError
                    ):
                        lost.append((identifier, error))
                    continue
                gone.append(identifier)
                self._job.events.emit("object", identifier=identifier, action="delete/verified")
            journal.source_deleted(gone)
            # As failed, these are not in the manifest, and the next run copies them again.
            journal.write((), lost)
            self._job.report.source_deleted += len(gone)

    def _proven_apart(self) -> bool:
        """Whether the two sides are proven to be different places. Checked once; if not, the report says why."""
        if self._two_places is None:
            self._job.in_flight.waiting_for = self._job.target
            check = partial(self._job.sides.one_place, source_loses=self._job.options.delete_source)
            reason = self._job.apart(partial(RetryBudget(self._job).run, check))
            self._two_places = reason is None
            if reason is not None:
                self._job.report.refused.append(reason)
        return self._two_places

    def _delete_with_retries(
        self, delete: Callable[[list[T]], list[Deleted]], batch: list[T], name: Callable[[T], str]
    ) -> list[Deleted]:
        """The results of *delete* for a batch, retried for objects with retryable errors."""

        def delete_all() -> list[Deleted]:
            budget = RetryBudget(self._job)
            attempts = budget.attempts()
            left = {name(item): item for item in batch}
            found: dict[str, Exception | None] = {}
            while True:
                found.update(budget.run(partial(delete, list(left.values()))))
                left = {key: item for key, item in left.items() if is_retryable(found[key])}
                alone = len(left) < len(found) or len(left) == 1
                if not left or not attempts.wait(cast(Exception, found[next(iter(left))]), alone=alone):
                    return list(found.items())

        return self._job.apart(delete_all)


def _refusal(job: TransferJob, extras: int) -> str | None:
    """Why the extras may not be deleted from the target, or None."""
    if extras == 0:
        return None
    if job.report.failed:
        return (
            f"nothing was deleted: {len(job.report.failed):,} objects failed, so {extras:,} extras were kept"
        )
    if job.sides.source.count == 0:
        return f"nothing was deleted: the source is empty, and {extras:,} objects would have gone"
    limit = job.options.max_delete
    if limit is None:
        limit = max(LEAST_MAX_DELETE, job.sides.target.count // 10)
    if extras > limit:
        return f"nothing was deleted: {extras:,} objects are more than max_delete={limit:,}"
    return None


def _batches(extras: Spool) -> Iterator[list[str]]:
    """The identifiers in a complete spool, in batches."""
    batch: list[str] = []
    for action in extras.take(0):
        assert action is not None
        batch.append(action.identifier)
        if len(batch) == DELETED_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _delete(
    job: TransferJob, backend: StorageBackend, batch: list[str], trash: str | None = None
) -> list[Deleted]:
    """Delete objects, or move them beneath *trash*.

    Raises:
        InterruptedTransferError: the transfer is to stop.
    """
    failures: dict[str, Exception] = {}
    if trash is None:
        try:
            backend.delete_many(_while_wanted(job, batch))
        except BatchError as error:
            failures = error.failures
    else:
        for identifier in _while_wanted(job, batch):
            try:
                backend.move(identifier, f"{trash.removesuffix('/')}/{identifier}")
            except FileNotFoundError:
                continue  # it is gone, maybe by a move whose response was lost
            except FATAL:
                raise
            except Exception as error:  # noqa: BLE001 - reported under its identifier
                failures[identifier] = error
    return [(identifier, failures.get(identifier)) for identifier in batch]


def _delete_verified(job: TransferJob, batch: list[JournalRecord]) -> list[Deleted]:
    """Delete source objects if they are unchanged since they were read, and their copies since they were verified.

    Both sides are checked again, the target last.

    Raises:
        InterruptedTransferError: the transfer is to stop.
    """
    kept: dict[str, Exception | None] = {}
    for side in (_SOURCE, _TARGET):
        standing = [record for record in batch if record.identifier not in kept]
        kept.update(_not_as_recorded(job, side, standing))
    sure = [record.identifier for record in batch if record.identifier not in kept]
    return [*kept.items(), *_delete(job, job.source, sure)]


class _SideCheck(NamedTuple):
    """How to check one side against the journal.

    Attributes:
        backend: the side of a job.
        recorded: the side's fingerprint in a record, and whether it proves "unchanged".
        absent: the error for an object that is gone; None if it counts as deleted.
        changed: the error for an object that changed.
    """

    backend: Callable[[TransferJob], StorageBackend]
    recorded: Callable[[JournalRecord], tuple[Fingerprint, bool]]
    absent: Callable[[str], Exception | None]
    changed: Callable[[str], Exception]


def _not_as_recorded(
    job: TransferJob, side: _SideCheck, batch: list[JournalRecord]
) -> Iterator[tuple[str, Exception | None]]:
    """The objects that changed on *side* since they were verified, each with its error."""
    backend = side.backend(job)
    infos = _stats(job, backend, [record.identifier for record in batch])
    doubtful: dict[str, tuple[JournalRecord, ObjectInfo]] = {}
    for record in batch:
        name, shown = record.identifier, infos[record.identifier]
        fingerprint, proves = side.recorded(record)
        if shown is None:
            yield name, side.absent(name)
        elif isinstance(shown, Exception):
            yield name, shown
        elif fingerprint.matches(shown):
            if not proves:
                doubtful[name] = record, shown
        # The size alone proves nothing: without time and etag, digests decide.
        elif fingerprint.modified is None and fingerprint.etag is None and fingerprint.size == shown.size:
            doubtful[name] = record, shown
        else:
            yield name, side.changed(name)
    if not doubtful:
        return
    digests = digests_of(job, backend, [shown for _, shown in doubtful.values()])
    for name, (record, _) in doubtful.items():
        digest = digests[name]
        if isinstance(digest, Exception):
            yield name, side.absent(name) if isinstance(digest, FileNotFoundError) else digest
        elif digest[1] != record.sha256:
            yield name, side.changed(name)


def _stats(
    job: TransferJob, backend: StorageBackend, names: list[str]
) -> dict[str, ObjectInfo | Exception | None]:
    """The present ObjectInfo of each object; None if it is absent, or the error of its stat."""
    found: dict[str, ObjectInfo | Exception | None] = dict.fromkeys(names)
    try:
        for info in backend.stat_many(_while_wanted(job, names)):
            found[info.identifier] = info
    except BatchError as error:
        found.update(error.failures)
    except (*FATAL, InterruptedTransferError):
        raise
    except Exception:  # noqa: BLE001 - it may concern one object only: stat each separately
        for name in _while_wanted(job, [name for name in names if found[name] is None]):
            try:
                found[name] = info_of(backend.stat(name), name)
            except FileNotFoundError:
                pass
            except FATAL:
                raise
            except Exception as error:  # noqa: BLE001 - reported under its identifier
                found[name] = error
    return found


def _changed(identifier: str) -> SourceChangedError:
    return SourceChangedError(
        f"{identifier!r} changed since it was copied; it was kept", identifier=identifier
    )


def _lost(identifier: str) -> PreconditionFailedError:
    return PreconditionFailedError(
        f"{identifier!r} is no longer on the target; the source object was kept, and the next run copies it again",
        identifier=identifier,
    )


def _overwritten(identifier: str) -> PreconditionFailedError:
    return PreconditionFailedError(
        f"{identifier!r} was changed on the target since it was verified; the source object was kept, and the next run "
        "compares and copies it again",
        identifier=identifier,
    )


_SOURCE = _SideCheck(
    lambda job: job.source, lambda record: (record.source, record.source_proves), lambda _: None, _changed
)
_TARGET = _SideCheck(
    lambda job: job.target, lambda record: (record.target, record.target_proves), _lost, _overwritten
)


def _while_wanted(job: TransferJob, items: Iterable[T]) -> Iterator[T]:
    """The items, until the transfer is to stop."""
    for item in items:
        if job.stop.is_set():
            raise InterruptedTransferError
        yield item
