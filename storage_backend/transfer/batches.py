"""Many small objects at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import cast

from storage_backend.base import Item
from storage_backend.errors import FATAL, BatchError, StorageError
from storage_backend.info import ObjectInfo
from storage_backend.streams import sha256
from storage_backend.transfer.copying import (
    InterruptedTransferError,
    Outcome,
    TransferJob,
    copy_one,
    expected,
    verified_record,
)
from storage_backend.transfer.planning import Action

LOOKED_AT = 256  # objects of a batch that are looked at again together
LOOKED_AT_BYTES = 4 << 20  # bytes of them that are held meanwhile
NEAR = 100e-6  # seconds; what takes no longer for an object is work of this process, not waiting


def copy_batch(job: TransferJob, actions: Sequence[Action]) -> list[Outcome]:
    """Copy small objects: one read_many into one write_many. What changed meanwhile is streamed by itself.

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
    """The items of one batch, and what became of each while it was read."""

    def __init__(self, job: TransferJob, actions: Sequence[Action]) -> None:
        self.job = job
        self.key = actions[0].identifier
        self.looked = time.time()
        self.actions = {action.identifier: action for action in actions}
        self.unread: dict[str, Exception] = {}
        self.read: dict[str, tuple[int, str]] = {}
        self.changed: set[str] = set()

    def items(self) -> Iterator[Item]:
        groups = _groups(self._read())
        try:
            while (found := self._next(groups)) is not None:
                yield from found
        except BatchError as error:
            self.unread.update(error.failures)

    def _next(self, groups: Iterator[list[tuple[ObjectInfo, bytes]]]) -> list[Item] | None:
        """What is to be stored of the next group; None at the end.

        Threads that read a near source at the same time are slower than one: each system call gives the interpreter away, and
        to get it back takes longer than the call.
        """
        with self.job.turn if self.job.near else nullcontext():
            self.job.in_flight.ask(self.key, self.job.source)
            began = time.perf_counter()
            group = next(groups, None)
            if group is None:
                self.job.in_flight.ask(self.key, self.job.target)
                return None
            found = self._checked(group)
            self.job.near = time.perf_counter() - began < NEAR * len(group)
            self.job.in_flight.ask(self.key, self.job.target)
            return found

    def _checked(self, group: list[tuple[ObjectInfo, bytes]]) -> list[Item]:
        """Of a group, what did not change while it was read."""
        # After the reading, and for many at a time: a server may be far away.
        still = self.job.still([info for info, _ in group]) if self.job.may_tear else None
        found: list[Item] = []
        for info, content in group:
            if len(content) != info.size or (still is not None and info.identifier not in still):
                self.changed.add(info.identifier)
                continue
            digest = sha256(content) if self.job.verification == "digest" else ""
            self.read[info.identifier] = (len(content), digest)
            found.append((expected(info, digest or None), content))
        return found

    def _read(self) -> Iterator[tuple[ObjectInfo, bytes]]:
        for identifier, content in self.job.source.read_many(list(self.actions)):
            if self.job.stop.is_set():
                raise InterruptedTransferError
            action = self.actions.get(identifier)
            if action is not None:
                self.job.in_flight.moved(identifier, len(content))
                yield cast(ObjectInfo, action.source), content


def _groups(items: Iterator[tuple[ObjectInfo, bytes]]) -> Iterator[list[tuple[ObjectInfo, bytes]]]:
    """The same in groups; what was read before an error is a group, too."""
    group: list[tuple[ObjectInfo, bytes]] = []
    size = 0
    broken: BatchError | None = None
    try:
        for item in items:
            group.append(item)
            size += len(item[1])
            if len(group) == LOOKED_AT or size >= LOOKED_AT_BYTES:
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
        shown = job.stored(cast(ObjectInfo, action.source), size)
        looked = batch.looked if job.may_tear else action.looked
        record = verified_record(action, size, digest, shown, looked) if digest else None
        return Outcome(action, copied=True, size=size, record=record)
    except (*FATAL, InterruptedTransferError):
        raise
    except Exception as caught:  # noqa: BLE001 - it is this object's outcome
        return Outcome(action, error=caught)
