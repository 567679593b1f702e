"""MemoryStorage, broken where an object is replaced, created, read in ranges and streamed."""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections.abc import Callable
from typing import BinaryIO, Literal, cast

from typing_extensions import Buffer, override

from storage_backend import (
    MemoryStorage,
    ObjectInfo,
    PreconditionFailedError,
)
from storage_backend.streams import Content, Writer, ranged_reader, whole
from storage_backend.testing import (
    Conditions,
    Ranges,
    Replacing,
    SourceBrokeError,
    Streams,
    Writers,
)
from tests.testing.harness import Meeting, Mutant, catalogue

MUTANTS: list[Mutant] = []
caught_by = catalogue(MUTANTS)


@caught_by(Replacing, "test_readers_see_whole_versions")
class OverwritesInPlace(MemoryStorage):
    """A write shows its first half until a reader has looked."""

    def __init__(self) -> None:
        super().__init__()
        self._looks = threading.Semaphore(0)

    @override
    def read(self, identifier: str) -> bytes:
        content = super().read(identifier)
        self._looks.release()
        return content

    @override
    def write(self, identifier: str, content: Content) -> bool:
        found = whole(content)
        if self.exists(identifier):
            while self._looks.acquire(blocking=False):
                pass
            self._store(identifier, found[: len(found) // 2])
            # The second look began after the half was there.
            for _ in range(2):
                self._looks.acquire(timeout=0.2)
        return super().write(identifier, found)


@caught_by(Replacing, "test_old_object_is_seen_while_the_new_one_arrives")
class PublishesWhileItReads(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        content = b""
        while piece := reader.read(1 << 20):
            content += piece
            self._store(identifier, content)
        return True


@caught_by(Replacing, "test_old_object_is_seen_while_the_new_one_arrives")
class DeletesBeforeItWrites(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        self._entries.pop(identifier, None)
        return super().write_stream(identifier, reader, info=info, verify=verify)


@caught_by(Replacing, "test_temporary_names_are_never_listed")
class ListsTemporaryNames(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        temporary = f"{os.path.dirname(identifier)}/.~sb-0123".strip("/")  # noqa: PTH120 - not a path of this machine
        self._store(temporary, b"")
        try:
            return super().write_stream(identifier, reader, info=info, verify=verify)
        finally:
            del self._entries[temporary]


@caught_by(Replacing, "test_temporary_names_are_never_listed")
class LeavesTemporaryNamesBehind(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        try:
            return super().write_stream(identifier, reader, info=info, verify=verify)
        except SourceBrokeError:
            self._store(f"{identifier}.part", b"")
            raise


@caught_by(Replacing, "test_last_of_many_writers_wins_as_a_whole")
class MixesSimultaneousWriters(MemoryStorage):
    """All writers share one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = bytearray()
        self._meeting = Meeting()

    @override
    def write(self, identifier: str, content: Content) -> bool:
        self._buffer += whole(content)
        self._meeting.wait()
        stored, self._buffer = bytes(self._buffer), bytearray()
        return super().write(identifier, stored)


@caught_by(Conditions, "test_create_does_not_overwrite")
class CreateOverwrites(MemoryStorage):
    @override
    def create(self, identifier: str, content: Content) -> bool:
        created = not self.exists(identifier)
        self.write(identifier, content)
        return created


@caught_by(Conditions, "test_one_of_many_creators_wins")
class CreateLooksFirst(MemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self._meeting = Meeting()

    @override
    def create(self, identifier: str, content: Content) -> bool:
        if self.exists(identifier):
            return False
        self._meeting.wait()
        return self.write(identifier, content)


@caught_by(Conditions, "test_replace_needs_the_very_version")
class ReplaceIgnoresTheEtag(MemoryStorage):
    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        self._entry(identifier)
        return self._store(identifier, whole(content)).etag


@caught_by(Conditions, "test_one_of_many_replacers_wins")
class ReplaceLooksFirst(MemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self._meeting = Meeting()

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        if not self.exists(identifier) or self.stat(identifier).etag != etag:
            raise PreconditionFailedError(identifier)
        self._meeting.wait()
        return self._store(identifier, whole(content)).etag


@caught_by(Conditions, "test_replace_of_a_missing_object_fails")
class ReplaceCreates(MemoryStorage):
    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        if not self.exists(identifier):
            return self._store(identifier, whole(content)).etag
        return super().replace(identifier, content, etag)


@caught_by(Ranges, "test_range_is_what_a_slice_is")
class RangeIncludesItsEnd(MemoryStorage):
    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        return super().read_range(identifier, start, None if end is None else end + 1)


@caught_by(Ranges, "test_range_is_what_a_slice_is")
class RangeIsOffByOne(MemoryStorage):
    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        return super().read_range(identifier, start + 1, None if end is None else end + 1)


@caught_by(Ranges, "test_negative_bounds_are_refused")
class NegativeBoundsCountFromTheEnd(MemoryStorage):
    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        return self.read(identifier)[start:end]


@caught_by(Ranges, "test_range_follows_a_change")
class RangeIsStaleAfterAChange(MemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self._cached: dict[str, bytes] = {}

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        super().read_range(identifier, start, end)
        return self._cached.setdefault(identifier, self.read(identifier))[start:end]


@caught_by(Streams, "test_missing_object_is_not_found_at_open")
class OpensLate(MemoryStorage):
    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        if mode == "wb" or self.exists(identifier):
            return super().open(identifier, mode)
        return ranged_reader(lambda start, end: self.read_range(identifier, start, end), 1)


@caught_by(Streams, "test_open_reader_never_mixes_two_versions")
class MixesVersionsInOneReader(MemoryStorage):
    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        if mode == "wb":
            return super().open(identifier, mode)
        return ranged_reader(
            lambda start, end: self.read_range(identifier, start, end), self.size(identifier)
        )


class _EagerWriter(io.BytesIO):
    """An ordinary stream: whatever closes it publishes, and its finaliser closes."""

    def __init__(self, publish: Callable[[bytes], object]) -> None:
        super().__init__()
        self._publish = publish

    @override
    def close(self) -> None:
        if not self.closed:
            self._publish(self.getvalue())
        super().close()


@caught_by(Writers, "test_exception_discards")
class WriterPublishesOnAnException(MemoryStorage):
    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        if mode == "rb":
            return super().open(identifier, mode)
        return _EagerWriter(lambda content: self._store(identifier, content))


class _WriterOfInnerClose(_EagerWriter):
    """Discards on an exception, but not if something closed it before."""

    @override
    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None:
            self._publish = lambda _: None
        self.close()


@caught_by(Writers, "test_inner_close_does_not_publish")
class WriterPublishesOnAnInnerClose(MemoryStorage):
    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        if mode == "rb":
            return super().open(identifier, mode)
        return _WriterOfInnerClose(lambda content: self._store(identifier, content))


class _Stubborn:
    """A sink that publishes when it is collected."""

    def __init__(self, publish: Callable[[bytes], object]) -> None:
        self._pieces: list[bytes] = []
        pieces = self._pieces
        self._finalizer = weakref.finalize(self, lambda: publish(b"".join(pieces)))

    def write(self, data: Buffer, /) -> None:
        self._pieces.append(bytes(data))

    def publish(self) -> None:
        self._finalizer()

    def discard(self) -> None:
        self._finalizer.detach()


@caught_by(Writers, "test_collected_writer_is_discarded")
class WriterPublishesWhenItIsCollected(MemoryStorage):
    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        if mode == "rb":
            return super().open(identifier, mode)
        return cast(BinaryIO, Writer(_Stubborn(lambda content: self._store(identifier, content))))
