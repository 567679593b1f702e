"""Removing: extras from the target, and from the source what is proven to have arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias, TypeVar

from storage_backend.base import StorageBackend
from storage_backend.defensive import info_of
from storage_backend.errors import FATAL, BatchError, PreconditionFailedError, SourceChangedError
from storage_backend.info import ObjectInfo
from storage_backend.transfer.comparison import digests_of
from storage_backend.transfer.copier import InterruptedTransferError, Job
from storage_backend.transfer.fingerprint import Fingerprint
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
            except FileNotFoundError:
                continue  # gone already, as `delete_many` has it; also by a move whose answer was lost
            except FATAL:
                raise
            except Exception as error:  # noqa: BLE001 - reported under its identifier
                failures[identifier] = error
    return [(identifier, failures.get(identifier)) for identifier in batch]


def remove_verified(job: Job, batch: list[Record]) -> list[Removed]:
    """Delete from the source those objects that are still what was read, and that the target still has as they were verified.

    Both sides are asked again, the target last.

    Raises:
        InterruptedTransferError: the transfer is to stop.
    """
    kept: dict[str, Exception | None] = {}
    for side in (_SOURCE, _TARGET):
        standing = [record for record in batch if record.identifier not in kept]
        kept.update(_not_as_recorded(job, side, standing))
    sure = [record.identifier for record in batch if record.identifier not in kept]
    return [*kept.items(), *remove(job, job.source, sure)]


class _Side(NamedTuple):
    """One side of a transfer, and how to ask for it."""

    backend: Callable[[Job], StorageBackend]
    recorded: Callable[[Record], tuple[Fingerprint, bool]]
    absent: Callable[[str], Exception | None]
    changed: Callable[[str], Exception]


def _not_as_recorded(job: Job, side: _Side, batch: list[Record]) -> Iterator[tuple[str, Exception | None]]:
    """Which objects are not what *side* showed when they were verified, and what to say of each."""
    backend = side.backend(job)
    looks = _looks(job, backend, [record.identifier for record in batch])
    doubtful: dict[str, tuple[Record, ObjectInfo]] = {}
    for record in batch:
        name, shown = record.identifier, looks[record.identifier]
        fingerprint, proves = side.recorded(record)
        if shown is None:
            yield name, side.absent(name)
        elif isinstance(shown, Exception):
            yield name, shown
        elif fingerprint.shown_by(shown):
            if not proves:
                doubtful[name] = record, shown
        # A backend that shows neither time nor etag cannot say it any other way.
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


def _looks(job: Job, backend: StorageBackend, names: list[str]) -> dict[str, ObjectInfo | Exception | None]:
    """What *backend* shows of each object now; None for one that is not there, and the error where that cannot be told."""
    found: dict[str, ObjectInfo | Exception | None] = dict.fromkeys(names)
    try:
        for info in backend.stat_many(_while_wanted(job, names)):
            found[info.identifier] = info
    except BatchError as error:
        found.update(error.failures)
    except (*FATAL, InterruptedTransferError):
        raise
    except Exception:  # noqa: BLE001 - of one object, maybe: the others are asked by themselves
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
        f"{identifier!r} is no longer on the target; the source's was kept, and the next run copies it again",
        identifier=identifier,
    )


def _overwritten(identifier: str) -> PreconditionFailedError:
    return PreconditionFailedError(
        f"{identifier!r} was changed on the target since it was verified; the source's was kept, and the next run "
        "compares and copies it again",
        identifier=identifier,
    )


_SOURCE = _Side(
    lambda job: job.source, lambda record: (record.source, record.source_proves), lambda _: None, _changed
)
_TARGET = _Side(
    lambda job: job.target, lambda record: (record.target, record.target_proves), _lost, _overwritten
)


def _while_wanted(job: Job, items: Iterable[T]) -> Iterator[T]:
    """The same, until the transfer is told to stop."""
    for item in items:
        if job.stop.is_set():
            raise InterruptedTransferError
        yield item
