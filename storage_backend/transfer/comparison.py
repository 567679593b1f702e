"""Objects of the same size on both sides: are they the same, by what the target keeps of them, or by their digests?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias, cast

from storage_backend.base import StorageBackend
from storage_backend.defensive import capabilities_of
from storage_backend.errors import FATAL, BatchError, IntegrityError
from storage_backend.hooks import hooks_of
from storage_backend.info import Capability, ObjectInfo
from storage_backend.streams import sha256
from storage_backend.transfer.batches import copy_batch
from storage_backend.transfer.copier import (
    InterruptedTransferError,
    Job,
    Outcome,
    copy_one,
    verified_record,
)
from storage_backend.transfer.fingerprint import is_racy, microseconds, same_time
from storage_backend.transfer.planning import Action

READ_FIRST = 1 << 20  # bytes; a near file of that size is read sooner than a server answers


def compare_batch(job: Job, actions: Sequence[Action], *, repair: bool = True) -> list[Outcome]:
    """Compare digests on both sides.

    Args:
        job: the transfer.
        actions: of objects that both sides have.
        repair: copy what differs; without it, a difference is an IntegrityError in the outcome.
    """
    # A journal wants a SHA-256, and verify its own look at the bytes.
    outcomes = _at_sight(job, actions) if repair and not job.journalled else []
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


def _at_sight(job: Job, actions: Sequence[Action]) -> list[Outcome]:
    """What becomes of those that can be told apart, or not, without reading the target."""
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
    # What has another MD5 may be the same still: encrypted with a key of its own, it has none to show.
    dated = {a.identifier: a for a in actions if a.reason == "not-newer" and a.identifier not in same}
    if dated:
        job.flow.ask(actions[0].identifier, job.target)
        for name, modified in target.kept_times(list(dated)):
            changed = microseconds(cast(datetime, cast(ObjectInfo, dated[name].source).modified))
            if same_time(changed, microseconds(modified)) and not is_racy(changed, dated[name].looked):
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
    if len(differ) == 1:
        return found + _copied(job, differ[0])
    return found + (copy_batch(job, differ) if differ else [])


def _copied(job: Job, action: Action) -> list[Outcome]:
    try:
        return [copy_one(job, action)]
    except (*FATAL, InterruptedTransferError):
        raise
    except Exception as error:  # noqa: BLE001 - it is this object's outcome
        return [Outcome(action, error=error)]


def _md5(job: Job, info: ObjectInfo) -> str | None:
    """The MD5 of a source's object; None where it cannot be had, which the comparison of digests will tell."""
    if job.stop.is_set():
        raise InterruptedTransferError
    try:
        return job.source.checksum(info.identifier, "md5")
    except FATAL:
        raise
    except Exception:  # noqa: BLE001 - as above
        return None


Digest: TypeAlias = tuple[int | None, str] | Exception


def _compared(
    job: Job, action: Action, ours: Digest, theirs: Digest, *, looked: float, repair: bool
) -> Outcome:
    action = action._replace(reason="checksum")
    if isinstance(ours, Exception):
        raise ours
    size, digest = ours
    # What cannot be read back whole is not what was stored; any other failure says nothing about the bytes.
    if isinstance(theirs, Exception) and not isinstance(theirs, IntegrityError | FileNotFoundError):
        raise theirs
    still = not job.may_tear or job.is_still(cast(ObjectInfo, action.source))
    if still and not isinstance(theirs, Exception) and digest == theirs[1]:
        record = verified_record(action, size, digest, cast(ObjectInfo, action.target), looked)
        return Outcome(action, size=size or 0, record=record)
    if repair:
        return copy_one(job, action._replace(kind="copy"))
    raise IntegrityError(f"{action.identifier!r}: the two sides differ", identifier=action.identifier)


def digests_of(job: Job, backend: StorageBackend, infos: Sequence[ObjectInfo]) -> dict[str, Digest]:
    """Size and SHA-256 of each object, or why it has none; the smaller of the work: by the store, in a batch, or one by one."""
    job.flow.ask(infos[0].identifier, backend)
    found: dict[str, Digest] = {}
    if len(infos) > 1 and Capability.CHECKSUM in capabilities_of(backend):
        sizes = {info.identifier: info.size for info in infos}
        for identifier, digest in hooks_of(backend).sha256_many(sizes):
            found[identifier] = (sizes[identifier], digest)
            job.flow.moves += 1
    elif len(infos) > 1:
        by_name = {info.identifier: info for info in infos}
        try:
            for identifier, content in backend.read_many(list(by_name)):
                if job.stop.is_set():
                    raise InterruptedTransferError
                found[identifier] = (len(content), sha256(content))
                if identifier in by_name:
                    _half(job, backend, by_name[identifier], len(content))
        except BatchError as error:
            found.update(error.failures)
    for info in infos:
        if info.identifier not in found:
            found[info.identifier] = _digest(job, backend, info)
    return found


def _half(job: Job, backend: StorageBackend, info: ObjectInfo, size: int) -> None:
    """Count *size* bytes read of an object that is read on both sides, on the source first."""
    before = 0 if backend is job.source else info.size or 0
    job.flow.moved(info.identifier, (before + size) // 2)


def _digest(job: Job, backend: StorageBackend, info: ObjectInfo) -> Digest:
    if job.stop.is_set():
        raise InterruptedTransferError
    size = 0

    def moved(more: int) -> None:
        nonlocal size
        size += more
        _half(job, backend, info, size)

    try:
        return info.size, hooks_of(backend).checksum(info.identifier, "sha256", moved)
    except FATAL:
        raise
    except Exception as error:  # noqa: BLE001 - it is this object's outcome
        return error
