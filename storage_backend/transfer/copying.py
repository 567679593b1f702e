"""Copies objects and verifies them: one as a stream, many small ones as a batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import BinaryIO, cast

from storage_backend.base import Item
from storage_backend.errors import FATAL, BatchError, IntegrityError, SourceChangedError, StorageError
from storage_backend.info import ObjectInfo
from storage_backend.streams import HashingReader, sha256
from storage_backend.transfer.fingerprint import Fingerprint, JournalRecord
from storage_backend.transfer.job import InterruptedTransferError, Outcome, TransferJob
from storage_backend.transfer.planning import Action

STAT_OBJECTS = 256  # objects of a batch that are checked for changes with one stat_many
STAT_BYTES = 4 << 20  # their bytes, held in memory meanwhile
NEAR = 100e-6  # seconds; an object that takes no longer is work of this process, not waiting


def copy_each(job: TransferJob, actions: Sequence[Action]) -> list[Outcome]:
    """Copy objects, several of them as a batch.

    Raises:
        StorageError: a fatal one; any other is in its object's outcome.
    """
    if len(actions) != 1:
        return copy_batch(job, actions) if actions else []
    try:
        return [copy_one(job, actions[0])]
    except (*FATAL, InterruptedTransferError):
        raise
    except Exception as error:  # noqa: BLE001 - it is this object's outcome
        return [Outcome(actions[0], error=error)]


def copy_one(job: TransferJob, action: Action) -> Outcome:
    """Stream one object to the target. If it changed since it was planned, retry once with its present info.

    Raises:
        SourceChangedError: it changed again.
        StorageError: it cannot be read, or stored.
    """
    info = cast(ObjectInfo, action.source)
    try:
        try:
            return _stream(job, action)
        except (SourceChangedError, IntegrityError):
            fresh = job.source_info(action.identifier)
            if Fingerprint.of(fresh) == Fingerprint.of(info):
                raise
        return _stream(job, action._replace(source=fresh, looked=time.time()))
    finally:
        job.in_flight.stop_waiting(action.identifier)


def _stream(job: TransferJob, action: Action) -> Outcome:
    info = cast(ObjectInfo, action.source)
    looked = time.time() if job.may_tear else action.looked
    verify = job.verification == "digest"
    job.in_flight.wait_for(info.identifier, job.source)
    with job.source.open(info.identifier) as opened:
        reader = HashingReader(cast(BinaryIO, _PinnedReader(opened, job, info)))
        job.in_flight.wait_for(info.identifier, job.target)
        written = job.target.write_stream(
            info.identifier, cast(BinaryIO, reader), info=_sent(info), verify=verify
        )
        if written is False:
            raise StorageError(f"the target did not store {info.identifier!r}", identifier=info.identifier)
    return _copied(job, action, reader.size, reader.hexdigest() if verify else "", looked)


def _copied(job: TransferJob, action: Action, size: int, sha256: str, looked: float) -> Outcome:
    """The outcome of a stored object; *sha256* is "" if none was verified."""
    info = cast(ObjectInfo, action.source)
    shown = job.stored(info, size)
    record = JournalRecord.verified(info, shown, size=size, sha256=sha256, looked=looked) if sha256 else None
    return Outcome(action, copied=True, size=size, record=record)


def _sent(info: ObjectInfo, sha256: str | None = None) -> ObjectInfo:
    """The info for the target: without the etag, which means nothing outside its store."""
    return ObjectInfo(
        info.identifier, info.size, info.modified, None, sha256 or info.sha256, info.content_type
    )


class _PinnedReader:
    """A reader that fails once its object is no longer the planned one, or the transfer is to stop.

    Args:
        reader: of the object.
        job: the transfer.
        info: the source's, when the object was planned.
    """

    def __init__(self, reader: BinaryIO, job: TransferJob, info: ObjectInfo) -> None:
        self._reader = reader
        self._job = job
        self._info = info
        self._size = 0

    def read(self, size: int = -1, /) -> bytes:
        """Read the next bytes.

        Raises:
            SourceChangedError: the object is longer than planned; or it changed before its end was read.
            InterruptedTransferError: the transfer is to stop.
        """
        if self._job.stop.is_set():
            raise InterruptedTransferError
        identifier, in_flight = self._info.identifier, self._job.in_flight
        in_flight.wait_for(identifier, self._job.source)
        chunk = self._reader.read(size)
        in_flight.wait_for(identifier, self._job.target)
        self._size += len(chunk)
        in_flight.moved(identifier, self._size)
        # A file that grows as fast as it is read would have no end.
        grew = self._info.size is not None and self._size > self._info.size
        if grew or ((not chunk or size < 0) and self._job.may_tear and not self._job.is_still(self._info)):
            raise SourceChangedError(
                f"{identifier!r} changed while it was read; nothing was stored", identifier=identifier
            )
        return chunk


def copy_batch(job: TransferJob, actions: Sequence[Action]) -> list[Outcome]:
    """Copy small objects: one read_many into one write_many. An object that changed meanwhile is streamed separately.

    Raises:
        StorageError: a fatal one; any other is in its object's outcome.
    """
    batch = _BatchReader(job, actions)
    failures: dict[str, Exception] = {}
    broken: Exception | None = None
    try:
        job.target.write_many(batch.items(), verify=job.verification == "digest")
    except BatchError as error:
        failures = error.failures
    except (*FATAL, InterruptedTransferError):
        raise
    except Exception as error:  # noqa: BLE001 - each object of the batch gets it as its outcome
        broken = error
    return [
        _outcome(
            job,
            action,
            batch,
            batch.unread.get(action.identifier) or failures.get(action.identifier) or broken,
        )
        for action in actions
    ]


class _BatchReader:
    """Reads the objects of one batch for `write_many`, and keeps the result for each.

    Attributes:
        looked: `time.time()` before the first was read.
        unread: identifier -> why it could not be read.
        read: identifier -> size and SHA-256 of the content passed on ("" without verify="digest").
        changed: identifiers of objects that changed while they were read; they were not passed on.
    """

    def __init__(self, job: TransferJob, actions: Sequence[Action]) -> None:
        self._job = job
        self._actions = {action.identifier: action for action in actions}
        self._key = actions[0].identifier
        self.looked = time.time()
        self.unread: dict[str, Exception] = {}
        self.read: dict[str, tuple[int, str]] = {}
        self.changed: set[str] = set()

    def items(self) -> Iterator[Item]:
        """The items to store on the target."""
        groups = _groups(self._contents())
        try:
            while (found := self._next(groups)) is not None:
                yield from found
        except BatchError as error:
            self.unread.update(error.failures)

    def _next(self, groups: Iterator[list[tuple[ObjectInfo, bytes]]]) -> list[Item] | None:
        """The items of the next group; None at the end.

        Several threads that read a near source are slower than one: each system call releases the interpreter lock, and
        acquiring it again takes longer than the call.
        """
        with self._job.near_lock if self._job.source_is_near else nullcontext():
            self._job.in_flight.wait_for(self._key, self._job.source)
            began = time.perf_counter()
            group = next(groups, None)
            if group is None:
                self._job.in_flight.wait_for(self._key, self._job.target)
                return None
            found = self._checked(group)
            self._job.source_is_near = time.perf_counter() - began < NEAR * len(group)
            self._job.in_flight.wait_for(self._key, self._job.target)
            return found

    def _checked(self, group: list[tuple[ObjectInfo, bytes]]) -> list[Item]:
        """The items of a group that did not change while they were read."""
        # One stat_many for the group: a server may be far away.
        still = self._job.still([info for info, _ in group]) if self._job.may_tear else None
        found: list[Item] = []
        for info, content in group:
            if len(content) != info.size or (still is not None and info.identifier not in still):
                self.changed.add(info.identifier)
                continue
            digest = sha256(content) if self._job.verification == "digest" else ""
            self.read[info.identifier] = (len(content), digest)
            found.append((_sent(info, digest or None), content))
        return found

    def _contents(self) -> Iterator[tuple[ObjectInfo, bytes]]:
        for identifier, content in self._job.source.read_many(list(self._actions)):
            if self._job.stop.is_set():
                raise InterruptedTransferError
            action = self._actions.get(identifier)
            if action is not None:
                self._job.in_flight.moved(identifier, len(content))
                yield cast(ObjectInfo, action.source), content


def _groups(items: Iterator[tuple[ObjectInfo, bytes]]) -> Iterator[list[tuple[ObjectInfo, bytes]]]:
    """The items in groups, also those read before an error."""
    group: list[tuple[ObjectInfo, bytes]] = []
    size = 0
    broken: BatchError | None = None
    try:
        for item in items:
            group.append(item)
            size += len(item[1])
            if len(group) == STAT_OBJECTS or size >= STAT_BYTES:
                yield group
                group, size = [], 0
    except BatchError as error:
        broken = error
    if group:
        yield group
    if broken is not None:
        raise broken


def _outcome(job: TransferJob, action: Action, batch: _BatchReader, error: Exception | None) -> Outcome:
    if error is not None:
        return Outcome(action, error=error)
    try:
        if action.identifier in batch.changed:
            return copy_one(job, action)
        if action.identifier not in batch.read:
            raise StorageError(
                f"the source's read_many left out {action.identifier!r}", identifier=action.identifier
            )
        size, digest = batch.read[action.identifier]
        return _copied(job, action, size, digest, batch.looked if job.may_tear else action.looked)
    except (*FATAL, InterruptedTransferError):
        raise
    except Exception as caught:  # noqa: BLE001 - it is this object's outcome
        return Outcome(action, error=caught)
