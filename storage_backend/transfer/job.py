"""TransferJob: the state shared by all parts of one transfer; Outcome: the result for one object."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from storage_backend.base import StorageBackend
from storage_backend.defensive import capabilities_of, info_of, location_of
from storage_backend.errors import BatchError, IntegrityError
from storage_backend.hooks import hooks_of
from storage_backend.info import Capability, ObjectInfo
from storage_backend.threads import DaemonPool, result_of
from storage_backend.transfer.fingerprint import Fingerprint, JournalRecord, is_kept_everywhere, microseconds
from storage_backend.transfer.in_flight import InFlight
from storage_backend.transfer.journal import Journal
from storage_backend.transfer.marker_probe import SidePair
from storage_backend.transfer.options import TransferOptions, Verb
from storage_backend.transfer.own_files import own_names, own_paths
from storage_backend.transfer.planning import Action
from storage_backend.transfer.progress import EventEmitter
from storage_backend.transfer.report import TransferReport

T = TypeVar("T")


class InterruptedTransferError(Exception):
    """The transfer is to stop. Work in progress was dropped, not published."""


class TransferJob:
    """The state shared by all parts of one transfer. Used from many threads.

    Attributes:
        verb: "sync", "migrate" or "verify".
        source: read from.
        target: written to.
        sides: the same two, with what is known from their listings.
        options: of the caller.
        verification: how stored objects are checked.
        journal: of migrate; None for other operations.
        report: counts what was done.
        events: go to the caller's `on_event`.
        in_flight: the bytes of unfinished objects.
        stop: set when the transfer is to end early.
        may_tear: the source's objects can change while they are read, as files can.
        keeps_time: the target stores the source's modification time, so its fingerprint is known without a request.
        near_lock: serializes reads of batches from a source that is near.
        source_is_near: the source last returned an object within microseconds.
    """

    def __init__(
        self,
        verb: Verb,
        source: StorageBackend,
        target: StorageBackend,
        options: TransferOptions,
        journal: Journal | None = None,
    ) -> None:
        self.verb = verb
        self.source = source
        self.target = target
        self.options = options
        self.verification = options.verification(verb)
        self.journal = journal
        self.report = TransferReport(verb, location_of(source), location_of(target), dry_run=options.dry_run)
        self.events = EventEmitter(options.on_event)
        self.in_flight = InFlight()
        self.stop = threading.Event()
        self.may_tear = Capability.DIRECTORIES in capabilities_of(source)
        self.target_hooks = hooks_of(target)
        self.keeps_time = target.keeps_modified is True
        self.near_lock = threading.Lock()
        self.source_is_near = False
        self.sides = SidePair(source, target, options.stem)
        own = own_paths(source, target, None if journal is None else journal.path, options.manifest)
        for side in (self.sides.source, self.sides.target):
            side.left_out = own_names(side.backend, own)

    def source_info(self, identifier: str) -> ObjectInfo:
        """The present ObjectInfo of the source object."""
        return info_of(self.source.stat(identifier), identifier)

    def is_still(self, info: ObjectInfo) -> bool:
        """Whether the source's object still has the fingerprint of *info*."""
        return Fingerprint.of(self.source_info(info.identifier)) == Fingerprint.of(info)

    def still(self, infos: Sequence[ObjectInfo]) -> set[str]:
        """The identifiers of the objects for which `is_still` holds."""
        then = {info.identifier: info for info in infos}
        found = set()
        # An object whose stat fails counts as changed. It is then copied separately, which raises the error.
        with suppress(BatchError):
            for shown in self.source.stat_many(then):
                info = then.get(shown.identifier)
                if info is not None and Fingerprint.of(shown) == Fingerprint.of(info):
                    found.add(shown.identifier)
        return found

    def stored(self, info: ObjectInfo, size: int) -> ObjectInfo:
        """The target's ObjectInfo of the object of *size* bytes just stored from *info*.

        Raises:
            IntegrityError: the target has another size.
        """
        kept = (
            self.keeps_time and info.modified is not None and is_kept_everywhere(microseconds(info.modified))
        )
        if self.verification != "size" and (kept or self.journal is None):
            return ObjectInfo(info.identifier, size, info.modified)
        found = self.target_hooks.last_written(info.identifier) or self.target.stat(info.identifier)
        shown = info_of(found, info.identifier)
        if shown.size is not None and shown.size != size:
            raise IntegrityError(
                f"{info.identifier!r}: the target has {shown.size:,} bytes, {size:,} were sent",
                identifier=info.identifier,
            )
        return shown

    def fail(self, identifier: str, error: Exception) -> None:
        """Report an object as failed."""
        error.__traceback__ = None  # it would keep the frames, and the bytes in them, until the end
        self.report.failed[identifier] = error
        self.events.emit("object", identifier=identifier, action="failed", error=str(error))

    def differ(self, identifier: str, reason: str) -> None:
        """Report an object as different on the two sides."""
        self.report.differences[identifier] = reason
        self.events.emit("object", identifier=identifier, action=f"differs/{reason}")

    def apart(self, call: Callable[[], T]) -> T:
        """The result of *call*, run in another thread: in this one, a stalled server would delay an interrupt."""
        with DaemonPool(1, "storage-transfer") as pool:
            try:
                return result_of(pool.submit(call))
            except BaseException:
                self.stop.set()
                raise


class Outcome(NamedTuple):
    """The result for one object.

    Attributes:
        action: the planned action; its reason is "checksum" if a comparison decided.
        copied: whether the object was stored; else it was only compared.
        size: bytes read.
        record: for the journal, once verified.
        error: why it failed.
    """

    action: Action
    copied: bool = False
    size: int = 0
    record: JournalRecord | None = None
    error: Exception | None = None
