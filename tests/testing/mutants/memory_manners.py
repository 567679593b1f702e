"""MemoryStorage, broken in its errors, among threads and processes, and in what it claims."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from typing_extensions import override

from storage_backend import (
    Capability,
    MemoryStorage,
    NotFoundError,
    ObjectInfo,
)
from storage_backend.streams import Content
from storage_backend.testing import (
    Capabilities,
    Closing,
    ErrorClasses,
    Files,
    Pickling,
    Processes,
    Threads,
)
from tests.testing.harness import Meeting, Mutant, catalogue

MUTANTS: list[Mutant] = []
caught_by = catalogue(MUTANTS)


class _LostNotFoundError(NotFoundError):
    """Comes back from a pickle as something else."""

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return OSError, (self.errno, str(self))


@caught_by(ErrorClasses, "test_errors_keep_class_and_fields_through_pickle")
class ErrorsLoseTheirClassThroughPickle(MemoryStorage):
    @override
    def read(self, identifier: str) -> bytes:
        try:
            return super().read(identifier)
        except NotFoundError as error:
            raise _LostNotFoundError(str(error), identifier=identifier, backend=self.location) from None


@caught_by(ErrorClasses, "test_missing_object_has_its_own_class")
class RaisesTheBuiltInError(MemoryStorage):
    @override
    def size(self, identifier: str) -> int:
        try:
            return super().size(identifier)
        except NotFoundError as error:
            raise FileNotFoundError(2, str(error), identifier) from None


@caught_by(ErrorClasses, "test_error_names_the_identifier_and_the_place")
class ErrorsNameNothing(MemoryStorage):
    @override
    def stat(self, identifier: str) -> ObjectInfo:
        try:
            return super().stat(identifier)
        except NotFoundError as error:
            raise NotFoundError(str(error)) from None


@caught_by(Threads, "test_threads_work_side_by_side")
class KeepsTheLastObjectPerInstance(MemoryStorage):
    """What one thread reads comes from where another one just wrote."""

    def __init__(self) -> None:
        super().__init__()
        self._current = ""
        self._meeting = Meeting()

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        self._current = source_id
        self._meeting.wait()
        return super().copy(self._current, dest_id)


@caught_by(Pickling, "test_pickled_instance_works")
class PickleLosesTheObjects(MemoryStorage):
    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_entries": {}}


@caught_by(Pickling, "test_unused_instance_pickles")
class DoesNotPickle(MemoryStorage):
    @override
    def __getstate__(self) -> dict[str, Any]:
        raise AssertionError("cannot pickle a lock")


@caught_by(Processes, "test_fork_amid_busy_threads")
class KeepsItsLockThroughAFork(MemoryStorage):
    """A thread holds its lock whenever another one forks."""

    _one_lock = threading.RLock()
    _parent = os.getpid()

    @override
    def read(self, identifier: str) -> bytes:
        if os.getpid() != self._parent:
            with self._one_lock:
                return super().read(identifier)
        return super().read(identifier)

    @override
    def write(self, identifier: str, content: Content) -> bool:
        if identifier == "busy":
            self._one_lock.acquire()
        return super().write(identifier, content)


@caught_by(Closing, "test_closed_instance_can_be_used_again")
class ClosesForGood(MemoryStorage):
    @override
    def close(self) -> None:
        self._entries.clear()


@caught_by(Capabilities, "test_flag_and_override_go_together")
class ClaimsTooMuch(MemoryStorage):
    @property
    @override
    def capabilities(self) -> Capability:
        return super().capabilities | Capability.CHECKSUM


@caught_by(Capabilities, "test_method_works_where_the_flag_is_set_and_is_refused_elsewhere")
class ClaimsTooLittle(MemoryStorage):
    @property
    @override
    def capabilities(self) -> Capability:
        return super().capabilities & ~Capability.CREATE


@caught_by(Files, "test_missing_object_leaves_the_file_alone")
class DownloadsInPlace(MemoryStorage):
    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        with Path(path).open("wb") as file:
            file.write(self.read(identifier))
        return True
