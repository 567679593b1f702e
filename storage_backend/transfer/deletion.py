"""Removing: extras from the target, and from the source what is proven to have arrived."""

from __future__ import annotations

from collections.abc import Iterator

from storage_backend.base import StorageBackend
from storage_backend.errors import FATAL, BatchError, SourceChangedError
from storage_backend.transfer.copier import Job
from storage_backend.transfer.guards import most_deletes
from storage_backend.transfer.options import TransferOptions
from storage_backend.transfer.planning import Record
from storage_backend.transfer.report import TransferReport
from storage_backend.transfer.spool import Spool

BATCH = 1000  # identifiers


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


def remove(
    backend: StorageBackend, batch: list[str], trash: str | None = None
) -> Iterator[tuple[str, Exception | None]]:
    """Delete objects, or move them beneath *trash*; each identifier with its error, or None."""
    failures: dict[str, Exception] = {}
    if trash is None:
        try:
            backend.delete_many(batch)
        except BatchError as error:
            failures = error.failures
    else:
        for identifier in batch:
            try:
                backend.move(identifier, f"{trash.removesuffix('/')}/{identifier}")
            except FATAL:
                raise
            except Exception as error:  # noqa: BLE001 - reported under its identifier
                failures[identifier] = error
    for identifier in batch:
        yield identifier, failures.get(identifier)


def remove_verified(job: Job, batch: list[Record]) -> Iterator[tuple[str, Exception | None]]:
    """Delete from the source those objects that are still what was read; each identifier with its error, or None."""
    sure: list[str] = []
    for record in batch:
        try:
            if _is_what_was_read(job, record):
                sure.append(record.identifier)
            else:
                changed = SourceChangedError(
                    f"{record.identifier!r} changed since it was copied; it was kept",
                    identifier=record.identifier,
                )
                yield record.identifier, changed
        except FileNotFoundError:
            yield record.identifier, None
        except FATAL:
            raise
        except Exception as error:  # noqa: BLE001 - reported under its identifier
            yield record.identifier, error
    yield from remove(job.source, sure)


def _is_what_was_read(job: Job, record: Record) -> bool:
    if not record.source.shown_by(job.look(record.identifier)):
        # A backend that shows neither time nor etag cannot say so any other way.
        if record.source.modified is not None or record.source.etag is not None:
            return False
    elif record.source_proves:
        return True
    return job.source.checksum(record.identifier) == record.sha256
