"""Removing: extras from the target, and from the source what is proven to have arrived."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias, TypeVar

from storage_backend.base import StorageBackend
from storage_backend.errors import FATAL, BatchError, SourceChangedError
from storage_backend.transfer.copier import InterruptedTransferError, Job
from storage_backend.transfer.guards import most_deletes
from storage_backend.transfer.options import TransferOptions
from storage_backend.transfer.planning import Record
from storage_backend.transfer.report import TransferReport
from storage_backend.transfer.spool import Spool

T = TypeVar("T")

BATCH = 1000  # identifiers

Removed: TypeAlias = tuple[str, Exception | None]  # an identifier, and why it was not removed


def refusal(
    options: TransferOptions, report: TransferReport, extras: int, source_objects: int, target_objects: int
) -> str | None:
    """Why nothing may be deleted from the target, or None."""
    if extras == 0:
        return None
    if report.failed:
        return f"nothing was deleted: {len(report.failed):,} objects failed, so {extras:,} extras were kept"
    if source_objects == 0:
        return f"nothing was deleted: the source is empty, and {extras:,} objects would have gone"
    limit = most_deletes(options.max_delete, target_objects)
    if extras > limit:
        return f"nothing was deleted: {extras:,} objects are more than max_delete={limit:,}"
    return None


def batches(extras: Spool) -> Iterator[list[str]]:
    """The identifiers of a complete spool."""
    batch: list[str] = []
    for action in extras.take(0):
        assert action is not None
        batch.append(action.identifier)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def remove(job: Job, backend: StorageBackend, batch: list[str], trash: str | None = None) -> list[Removed]:
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
            except FATAL:
                raise
            except Exception as error:  # noqa: BLE001 - reported under its identifier
                failures[identifier] = error
    return [(identifier, failures.get(identifier)) for identifier in batch]


def remove_verified(job: Job, batch: list[Record]) -> list[Removed]:
    """Delete from the source those objects that are still what was read.

    Raises:
        InterruptedTransferError: the transfer is to stop.
    """
    sure: list[str] = []
    found: list[Removed] = []
    for record in _while_wanted(job, batch):
        try:
            if _is_what_was_read(job, record):
                sure.append(record.identifier)
            else:
                changed = SourceChangedError(
                    f"{record.identifier!r} changed since it was copied; it was kept",
                    identifier=record.identifier,
                )
                found.append((record.identifier, changed))
        except FileNotFoundError:
            found.append((record.identifier, None))
        except FATAL:
            raise
        except Exception as error:  # noqa: BLE001 - reported under its identifier
            found.append((record.identifier, error))
    return found + remove(job, job.source, sure)


def _while_wanted(job: Job, items: Iterable[T]) -> Iterator[T]:
    """The same, until the transfer is told to stop."""
    for item in items:
        if job.stop.is_set():
            raise InterruptedTransferError
        yield item


def _is_what_was_read(job: Job, record: Record) -> bool:
    if not record.source.shown_by(job.look(record.identifier)):
        # A backend that shows neither time nor etag cannot say so any other way.
        if record.source.modified is not None or record.source.etag is not None:
            return False
    elif record.source_proves:
        return True
    return job.source.checksum(record.identifier) == record.sha256
