"""Compares objects of the same size by content: by MD5s or times that the target keeps, else by SHA-256 of both sides."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias, cast

from storage_backend.base import StorageBackend
from storage_backend.defensive import capabilities_of
from storage_backend.errors import FATAL, BatchError, IntegrityError
from storage_backend.hooks import hooks_of
from storage_backend.info import Capability, ObjectInfo, is_racy
from storage_backend.streams import sha256
from storage_backend.transfer.copying import copy_each, copy_one
from storage_backend.transfer.fingerprint import JournalRecord, microseconds, same_time
from storage_backend.transfer.job import InterruptedTransferError, Outcome, TransferJob
from storage_backend.transfer.planning import Action

READ_FIRST = 1 << 20  # bytes; reading a local file of that size takes less time than a server's response


def compare_batch(job: TransferJob, actions: Sequence[Action], *, repair: bool = True) -> list[Outcome]:
    """Compare content on both sides.

    Args:
        job: the transfer.
        actions: of objects that both sides have.
        repair: copy objects that differ; without it, a difference is an IntegrityError in the outcome.
    """
    # A journal needs SHA-256, and verify reads the bytes itself.
    outcomes = _without_reading_target(job, actions) if repair and job.journal is None else []
    known = {outcome.action.identifier for outcome in outcomes}
    actions = [action for action in actions if action.identifier not in known]
    if not actions:
        return outcomes
    looked = time.time()
    ours = digests_of(job, job.source, [cast(ObjectInfo, action.source) for action in actions])
    theirs = digests_of(job, job.target, [cast(ObjectInfo, action.target) for action in actions])
    for action in actions:
        try:
            outcomes.append(
                _compared(
                    job,
                    action,
                    ours[action.identifier],
                    theirs[action.identifier],
                    looked=looked,
                    repair=repair,
                )
            )
        except (*FATAL, InterruptedTransferError):
            raise
        except Exception as error:  # noqa: BLE001 - it is this object's outcome
            outcomes.append(Outcome(action, error=error))
    return outcomes


def _without_reading_target(job: TransferJob, actions: Sequence[Action]) -> list[Outcome]:
    """The outcomes of objects that listed MD5s, or times kept by the target, can decide."""
    source, target = hooks_of(job.source), hooks_of(job.target)
    shown = {action.identifier: target.md5_in(cast(ObjectInfo, action.target)) for action in actions}
    same: dict[str, str] = {}
    own: dict[str, str | None] = {}
    for action in actions:
        name, info = action.identifier, cast(ObjectInfo, action.source)
        if shown[name] is None:
            continue
        listed = source.md5_in(info)
        if listed is not None:
            own[name] = listed
        elif source.is_near and (info.size or 0) <= READ_FIRST:
            own[name] = _md5(job, info)
        if own.get(name) == shown[name]:
            same[name] = "checksum"
    # A different MD5 proves nothing yet: with SSE-C or SSE-KMS, an ETag is not the MD5 of the content.
    dated = {a.identifier: a for a in actions if a.reason == "not-newer" and a.identifier not in same}
    if dated:
        job.in_flight.wait_for(actions[0].identifier, job.target)
        for name, modified in target.kept_times(list(dated)):
            changed = microseconds(cast(datetime, cast(ObjectInfo, dated[name].source).modified))
            if same_time(changed, microseconds(modified)) and not is_racy(changed / 1e6, dated[name].looked):
                same[name] = "same-size-and-time"
    differ = []
    for action in actions:
        name = action.identifier
        if name in same or shown[name] is None:
            continue
        if name not in own:
            own[name] = _md5(job, cast(ObjectInfo, action.source))
        if own[name] == shown[name]:
            same[name] = "checksum"
        elif own[name] is not None:
            differ.append(action._replace(kind="copy", reason="checksum"))
    found = [
        Outcome(action._replace(reason=same[action.identifier]))
        for action in actions
        if action.identifier in same
    ]
    return found + copy_each(job, differ)


def _md5(job: TransferJob, info: ObjectInfo) -> str | None:
    """The MD5 of a source object; None if that fails: then the comparison of SHA-256s raises the error."""
    if job.stop.is_set():
        raise InterruptedTransferError
    try:
        return job.source.checksum(info.identifier, "md5")
    except FATAL:
        raise
    except Exception:  # noqa: BLE001 - see the docstring
        return None


Digest: TypeAlias = tuple[int | None, str] | Exception


def _compared(
    job: TransferJob, action: Action, ours: Digest, theirs: Digest, *, looked: float, repair: bool
) -> Outcome:
    action = action._replace(reason="checksum")
    if isinstance(ours, Exception):
        raise ours
    size, digest = ours
    # An object that is gone or broken differs; any other error says nothing about its bytes.
    if isinstance(theirs, Exception) and not isinstance(theirs, IntegrityError | FileNotFoundError):
        raise theirs
    still = not job.may_tear or job.is_still(cast(ObjectInfo, action.source))
    if still and not isinstance(theirs, Exception) and digest == theirs[1]:
        record = JournalRecord.verified(
            cast(ObjectInfo, action.source),
            cast(ObjectInfo, action.target),
            size=size,
            sha256=digest,
            looked=looked,
        )
        return Outcome(action, size=size or 0, record=record)
    if repair:
        return copy_one(job, action._replace(kind="copy"))
    raise IntegrityError(f"{action.identifier!r}: the two sides differ", identifier=action.identifier)


def digests_of(job: TransferJob, backend: StorageBackend, infos: Sequence[ObjectInfo]) -> dict[str, Digest]:
    """Size and SHA-256 of each object, or its error: computed by the store if it can, else read in a batch or one by one."""
    job.in_flight.wait_for(infos[0].identifier, backend)
    found: dict[str, Digest] = {}
    if len(infos) > 1 and Capability.CHECKSUM in capabilities_of(backend):
        sizes = {info.identifier: info.size for info in infos}
        for identifier, digest in hooks_of(backend).sha256_many(sizes):
            found[identifier] = (sizes[identifier], digest)
            job.in_flight.moves += 1
    elif len(infos) > 1:
        by_name = {info.identifier: info for info in infos}
        try:
            for identifier, content in backend.read_many(list(by_name)):
                if job.stop.is_set():
                    raise InterruptedTransferError
                found[identifier] = (len(content), sha256(content))
                if identifier in by_name:
                    _count_half(job, backend, by_name[identifier], len(content))
        except BatchError as error:
            found.update(error.failures)
    for info in infos:
        if info.identifier not in found:
            found[info.identifier] = _digest(job, backend, info)
    return found


def _count_half(job: TransferJob, backend: StorageBackend, info: ObjectInfo, size: int) -> None:
    """Count *size* bytes of an object for the progress, half of them: it is read on both sides, on the source first."""
    before = 0 if backend is job.source else info.size or 0
    job.in_flight.moved(info.identifier, (before + size) // 2)


def _digest(job: TransferJob, backend: StorageBackend, info: ObjectInfo) -> Digest:
    if job.stop.is_set():
        raise InterruptedTransferError
    size = 0

    def moved(more: int) -> None:
        nonlocal size
        size += more
        _count_half(job, backend, info, size)

    try:
        return info.size, hooks_of(backend).checksum(info.identifier, "sha256", moved)
    except FATAL:
        raise
    except Exception as error:  # noqa: BLE001 - it is this object's outcome
        return error
