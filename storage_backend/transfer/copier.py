"""One object, copied and verified; and what every unit of work has in common."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, cast

from storage_backend.base import StorageBackend
from storage_backend.defensive import capabilities_of, info_of
from storage_backend.errors import BatchError, IntegrityError, SourceChangedError, StorageError
from storage_backend.hooks import hooks_of
from storage_backend.info import Capability, ObjectInfo
from storage_backend.streams import HashingReader
from storage_backend.transfer.fingerprint import Fingerprint, is_kept_everywhere, microseconds
from storage_backend.transfer.flow import Flow
from storage_backend.transfer.options import Verification
from storage_backend.transfer.planning import Action, Record


class InterruptedTransferError(Exception):
    """The transfer was told to stop; what is under way is dropped, and nothing of it was published."""


@dataclass(slots=True)
class Job:
    """What all units of one transfer share. Used from many threads.

    Attributes:
        source: read from.
        target: written to.
        verification: how what is stored is checked.
        journalled: the target's fingerprint is wanted for each object.
        stop: set when the transfer is to end early.
        may_tear: the source's objects can change while they are read, as files do.
        keeps_time: the target keeps the source's time, so that its fingerprint is known without asking.
        turn: held while a batch is read from a source that is near.
        near: whether the source last gave an object within microseconds.
        flow: how far what is under way has come.
        outages: whether a connection failed.
    """

    source: StorageBackend
    target: StorageBackend
    verification: Verification
    journalled: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    may_tear: bool = False
    keeps_time: bool = False
    turn: threading.Lock = field(default_factory=threading.Lock)
    near: bool = False
    flow: Flow = field(default_factory=Flow)
    outages: bool = False

    def __post_init__(self) -> None:
        self.keeps_time = self.target.keeps_modified is True
        self.may_tear = Capability.DIRECTORIES in capabilities_of(self.source)

    def look(self, identifier: str) -> ObjectInfo:
        """What the source shows of the object now."""
        return info_of(self.source.stat(identifier), identifier)

    def is_still(self, info: ObjectInfo) -> bool:
        """Whether the source shows the same as when *info* was taken."""
        return _same(self.look(info.identifier), info)

    def still(self, infos: Sequence[ObjectInfo]) -> set[str]:
        """Of which objects the source shows the same as when *infos* were taken: their identifiers."""
        then = {info.identifier: info for info in infos}
        found = set()
        # One that cannot be looked at is tried by itself, which tells why.
        with suppress(BatchError):
            for shown in self.source.stat_many(then):
                if (info := then.get(shown.identifier)) is not None and _same(shown, info):
                    found.add(shown.identifier)
        return found

    def stored(self, info: ObjectInfo, size: int) -> ObjectInfo:
        """What the target shows of an object of *size* bytes that was just stored from *info*.

        Raises:
            IntegrityError: it has another size.
        """
        kept = (
            self.keeps_time and info.modified is not None and is_kept_everywhere(microseconds(info.modified))
        )
        if self.verification != "size" and (kept or not self.journalled):
            return ObjectInfo(info.identifier, size, info.modified)
        found = hooks_of(self.target).last_written(info.identifier) or self.target.stat(info.identifier)
        shown = info_of(found, info.identifier)
        if shown.size is not None and shown.size != size:
            raise IntegrityError(
                f"{info.identifier!r}: the target has {shown.size:,} bytes, {size:,} were sent",
                identifier=info.identifier,
            )
        return shown


class Outcome(NamedTuple):
    """How it went with one object.

    Attributes:
        action: what was to be done; its reason is "checksum" where a comparison decided.
        copied: whether the object was stored; else it was only compared.
        size: bytes read.
        record: for the journal, once verified.
        error: what went wrong.
    """

    action: Action
    copied: bool = False
    size: int = 0
    record: Record | None = None
    error: Exception | None = None


def _same(one: ObjectInfo, other: ObjectInfo) -> bool:
    """Whether both have the same fingerprint."""
    return (one.size, one.modified, one.etag) == (other.size, other.modified, other.etag)


class PinnedReader:
    """Passes a reader through while the object is the one that was planned, and the transfer goes on.

    Args:
        reader: of the object.
        job: the transfer.
        info: what the source showed.
    """

    def __init__(self, reader: BinaryIO, job: Job, info: ObjectInfo) -> None:
        self._reader = reader
        self._job = job
        self._info = info
        self._size = 0

    def read(self, size: int = -1, /) -> bytes:
        """Read on.

        Raises:
            SourceChangedError: the object is longer, or at its end is no longer what it was.
            InterruptedTransferError: the transfer is to stop.
        """
        if self._job.stop.is_set():
            raise InterruptedTransferError
        flow = self._job.flow
        flow.ask(self._info.identifier, self._job.source)
        chunk = self._reader.read(size)
        flow.ask(self._info.identifier, self._job.target)
        self._size += len(chunk)
        flow.moved(self._info.identifier, self._size)
        # A file that grows as fast as it is read would have no end.
        grew = self._info.size is not None and self._size > self._info.size
        if grew or ((not chunk or size < 0) and self._job.may_tear and not self._job.is_still(self._info)):
            raise changed(self._info.identifier)
        return chunk


def changed(identifier: str) -> SourceChangedError:
    """The error for a source that changed while it was read."""
    return SourceChangedError(
        f"{identifier!r} changed while it was read; nothing was stored", identifier=identifier
    )


def copy_one(job: Job, action: Action) -> Outcome:
    """Stream one object to the target. If it changed since it was planned, it is tried once more as it now is.

    Raises:
        SourceChangedError: it goes on changing.
        StorageError: it cannot be read, or stored.
    """
    info = cast(ObjectInfo, action.source)
    try:
        try:
            return _stream(job, replace_source(action, info))
        except (SourceChangedError, IntegrityError):
            fresh = job.look(action.identifier)
            if _same(fresh, info):
                raise
        return _stream(job, replace_source(action, fresh))
    finally:
        job.flow.answered(action.identifier)


def replace_source(action: Action, info: ObjectInfo) -> Action:
    """The same action, of the object as it shows now."""
    return action if info is action.source else action._replace(source=info, looked=time.time())


def expected(info: ObjectInfo, sha256: str | None = None) -> ObjectInfo:
    """What the target is told of an object: all that is not the source's own."""
    return ObjectInfo(
        info.identifier, info.size, info.modified, None, sha256 or info.sha256, info.content_type
    )


def verified_record(
    action: Action, size: int | None, sha256: str, shown: ObjectInfo, looked: float
) -> Record:
    """The journal's record of an object whose digest is the same on both sides.

    Args:
        action: with the source as it was read.
        size: bytes read.
        sha256: of both sides.
        shown: what the target shows.
        looked: `time.time()` before the source was read.
    """
    source = Fingerprint.of(cast(ObjectInfo, action.source))._replace(size=size)
    target = Fingerprint.of(shown)
    return Record(
        action.identifier, source, source.proves(looked), target, target.proves(time.time()), sha256
    )


def _stream(job: Job, action: Action) -> Outcome:
    info = cast(ObjectInfo, action.source)
    looked = time.time() if job.may_tear else action.looked
    job.flow.ask(info.identifier, job.source)
    with job.source.open(info.identifier) as reader:
        source = HashingReader(cast(BinaryIO, PinnedReader(reader, job, info)))
        verify = job.verification == "digest"
        job.flow.ask(info.identifier, job.target)
        if (
            job.target.write_stream(
                info.identifier, cast(BinaryIO, source), info=expected(info), verify=verify
            )
            is False
        ):
            raise StorageError(f"the target did not store {info.identifier!r}", identifier=info.identifier)
    shown = job.stored(info, source.size)
    record = verified_record(action, source.size, source.hexdigest(), shown, looked) if verify else None
    return Outcome(action, copied=True, size=source.size, record=record)
