"""MemoryStorage, broken in one way each."""

from __future__ import annotations

import fnmatch
import io
import itertools
import os
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from typing_extensions import override

from storage_backend import (
    AlreadyExistsError,
    Capability,
    MemoryStorage,
    NotFoundError,
    ObjectInfo,
    PreconditionFailedError,
)
from storage_backend.base import Identifiers, Item, OnSkip
from storage_backend.identifiers import encode, glob
from storage_backend.streams import Content, ranged_reader, read_all, whole
from storage_backend.testing import (
    AwkwardIdentifiers,
    Batches,
    Capabilities,
    Closing,
    Conditions,
    Copying,
    Deleting,
    Directories,
    ErrorClasses,
    Files,
    InvalidIdentifiers,
    Listing,
    Moving,
    Pickling,
    Processes,
    Ranges,
    Reading,
    Replacing,
    Scanning,
    SourceBrokeError,
    Streams,
    Threads,
    Verifying,
    Writers,
    Writing,
)
from tests.testing.harness import Meeting, Mutant, catalogue

MUTANTS: list[Mutant] = []
caught_by = catalogue(MUTANTS)


@caught_by(Writing, "test_every_size_round_trips")
class DropsTheLastByte(MemoryStorage):
    @override
    def write(self, identifier: str, content: Content) -> bool:
        return super().write(identifier, whole(content)[:-1])


@caught_by(Writing, "test_every_size_round_trips_as_a_stream")
class DropsTheLastByteOfAStream(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        content = read_all(reader)
        return super().write_stream(identifier, io.BytesIO(content[:-1]), info=info, verify=verify)


@caught_by(Writing, "test_no_byte_is_changed")
class ManglesLineEnds(MemoryStorage):
    @override
    def write(self, identifier: str, content: Content) -> bool:
        return super().write(identifier, whole(content).replace(b"\r\n", b"\n"))


@caught_by(Writing, "test_no_byte_is_changed")
class StopsAtNul(MemoryStorage):
    @override
    def read(self, identifier: str) -> bytes:
        return super().read(identifier).split(b"\0")[0]


@caught_by(Writing, "test_source_that_breaks_changes_nothing")
class SwallowsTheSourcesErrorAndCommits(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        pieces = []
        with suppress(SourceBrokeError):
            while piece := reader.read(65_536):
                pieces.append(piece)
        return super().write_stream(identifier, io.BytesIO(b"".join(pieces)), info=info, verify=verify)


@caught_by(Writing, "test_source_that_breaks_changes_nothing")
class CommitsWhatASourceGaveBeforeItBroke(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        pieces = []
        try:
            while piece := reader.read(65_536):
                pieces.append(piece)
        except SourceBrokeError:
            super().write_stream(identifier, io.BytesIO(b"".join(pieces)))
            raise
        return super().write_stream(identifier, io.BytesIO(b"".join(pieces)), info=info, verify=verify)


@caught_by(Writing, "test_reader_is_consumed_from_where_it_is_and_left_open")
class ClosesTheReader(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        super().write_stream(identifier, reader, info=info, verify=verify)
        if isinstance(reader, io.IOBase):
            reader.close()
        return True


@caught_by(Writing, "test_reader_is_consumed_from_where_it_is_and_left_open")
class ReadsFromTheStart(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        if isinstance(reader, io.IOBase):
            reader.seek(0)
        return super().write_stream(identifier, reader, info=info, verify=verify)


@caught_by(Writing, "test_reader_needs_only_read")
class TakesAShortReadForTheEnd(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        pieces = [reader.read(1 << 20)]
        while len(pieces[-1]) == 1 << 20:
            pieces.append(reader.read(1 << 20))
        return super().write_stream(identifier, io.BytesIO(b"".join(pieces)), info=info, verify=verify)


@caught_by(Writing, "test_text_is_refused_before_anything_is_touched")
class TakesText(MemoryStorage):
    @override
    def write(self, identifier: str, content: Content) -> bool:
        return super().write(identifier, content.encode() if isinstance(content, str) else content)


@caught_by(Writing, "test_written_bytes_are_not_shared_with_the_caller")
class KeepsTheCallersBuffer(MemoryStorage):
    @override
    def write(self, identifier: str, content: Content) -> bool:
        if isinstance(content, bytearray):
            self._store(identifier, cast(bytes, content))
            return True
        return super().write(identifier, content)


@caught_by(Verifying, "test_promised_size_is_checked")
class IgnoresThePromisedSize(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        return super().write_stream(identifier, reader, verify=verify)


@caught_by(Verifying, "test_promised_size_is_checked")
class ChecksAfterItPublished(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        content = read_all(reader)
        self._store(identifier, content)
        return super().write_stream(identifier, io.BytesIO(content), info=info, verify=verify)


@caught_by(Verifying, "test_promised_digest_is_checked")
class VerifiesNothing(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        return super().write_stream(identifier, reader, info=info)


@caught_by(Verifying, "test_time_is_kept")
class ForgetsTheTime(MemoryStorage):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        size = info.size if info else None
        return super().write_stream(identifier, reader, info=ObjectInfo(identifier, size), verify=verify)


@caught_by(Reading, "test_missing_object_is_not_found")
class ReadsWhatIsMissingAsEmpty(MemoryStorage):
    @override
    def read(self, identifier: str) -> bytes:
        return super().read(identifier) if self.exists(identifier) else b""


@caught_by(Reading, "test_size_is_that_of_the_content")
class SizeIsOffByOne(MemoryStorage):
    @override
    def size(self, identifier: str) -> int:
        return super().size(identifier) + 1


@caught_by(Reading, "test_size_follows_an_overwrite")
class RemembersTheFirstSize(MemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[str, int] = {}

    @override
    def size(self, identifier: str) -> int:
        return self._sizes.setdefault(identifier, super().size(identifier))

    @override
    def write(self, identifier: str, content: Content) -> bool:
        super().write(identifier, content)
        self.size(identifier)
        return True


@caught_by(Reading, "test_a_prefix_is_no_object")
class ExistsForAPrefix(MemoryStorage):
    @override
    def exists(self, identifier: str) -> bool:
        return any(name.startswith(identifier) for name in self._entries)


@caught_by(Reading, "test_a_prefix_is_no_object")
class ExistsForAFolder(MemoryStorage):
    @override
    def exists(self, identifier: str) -> bool:
        return any(name == identifier or name.startswith(f"{identifier}/") for name in self._entries)


@caught_by(Reading, "test_stat_tells_the_truth")
class GivesALocalTime(MemoryStorage):
    @override
    def stat(self, identifier: str) -> ObjectInfo:
        info = super().stat(identifier)
        return ObjectInfo(identifier, info.size, datetime.now(), info.etag)  # noqa: DTZ005 - the fault


@caught_by(Reading, "test_equal_etags_mean_equal_content")
class TakesTheSizeForAnEtag(MemoryStorage):
    @override
    def stat(self, identifier: str) -> ObjectInfo:
        info = super().stat(identifier)
        return ObjectInfo(identifier, info.size, info.modified, str(info.size))


@caught_by(Reading, "test_checksum_is_that_of_the_content")
class ShoutsChecksums(MemoryStorage):
    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        return super().checksum(identifier, algorithm).upper()


@caught_by(Deleting, "test_only_that_object_goes")
class DeletesThePrefix(MemoryStorage):
    @override
    def delete(self, identifier: str) -> bool:
        super().delete(identifier)
        for name in [name for name in self._entries if name.startswith(identifier)]:
            del self._entries[name]
        return True


@caught_by(Deleting, "test_only_that_object_goes")
class DeletesWhatIsBeneath(MemoryStorage):
    @override
    def delete(self, identifier: str) -> bool:
        super().delete(identifier)
        for name in [name for name in self._entries if name.startswith(f"{identifier}/")]:
            del self._entries[name]
        return True


@caught_by(Deleting, "test_missing_object_is_not_deleted")
class AcceptsDeletingWhatIsMissing(MemoryStorage):
    @override
    def delete(self, identifier: str) -> bool:
        return self._entries.pop(identifier, None) is None or True


@caught_by(Copying, "test_copy_has_the_same_bytes")
class CopyTruncates(MemoryStorage):
    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        return self.write(dest_id, self.read(source_id)[:65_536])


@caught_by(Copying, "test_copy_has_the_same_bytes")
class CopyDoesNothing(MemoryStorage):
    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        return self.size(source_id) >= 0


@caught_by(Copying, "test_copy_is_independent")
class CopyIsALink(MemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self._links: dict[str, str] = {}

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        super().copy(source_id, dest_id)
        self._links[dest_id] = source_id
        return True

    @override
    def read(self, identifier: str) -> bytes:
        return super().read(self._links.get(identifier, identifier))


@caught_by(Moving, "test_moved_object_has_the_same_bytes")
class MoveKeepsTheSource(MemoryStorage):
    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        return self.copy(source_id, dest_id)


@caught_by(Moving, "test_move_onto_itself_keeps_the_object")
class MoveOntoItselfDeletes(MemoryStorage):
    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        self.copy(source_id, dest_id)
        return self.delete(source_id)


@caught_by(Moving, "test_move_overwrites")
class MoveKeepsTheDestination(MemoryStorage):
    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        if self.exists(dest_id):
            return True
        return super().move(source_id, dest_id)


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


@caught_by(Listing, "test_more_than_a_page_is_listed")
class ListIsCapped(MemoryStorage):
    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        return super().list(pattern)[:1000]


@caught_by(Listing, "test_more_than_a_page_is_listed")
class ScanForgetsTheFirstOfAPage(MemoryStorage):
    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        found = super().scan(prefix, on_skip=on_skip)
        return (info for number, info in enumerate(found) if number != 1000)


@caught_by(Listing, "test_list_is_everything_sorted")
class ListRepeats(MemoryStorage):
    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        return sorted(super().list(pattern) + super().list(pattern)[:1], key=encode)


@caught_by(Listing, "test_list_is_everything_sorted")
class ListSkipsWhatIsNested(MemoryStorage):
    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        return [name for name in super().list(pattern) if "/" not in name]


@caught_by(Listing, "test_list_is_everything_sorted")
class ListHidesDotFiles(MemoryStorage):
    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        return [name for name in super().list(pattern) if not name.startswith(".") and "/." not in name]


@caught_by(Listing, "test_patterns_find_what_the_table_says")
class StarCrossesTheSlash(MemoryStorage):
    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        if pattern is not None:
            glob(pattern)
        return [name for name in super().list() if pattern is None or fnmatch.fnmatchcase(name, pattern)]


@caught_by(Listing, "test_patterns_find_what_the_table_says")
class PatternsFoldCase(MemoryStorage):
    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        lowered = glob(pattern.lower()) if pattern is not None else None
        return [name for name in super().list() if lowered is None or lowered.matches(name.lower())]


@caught_by(Listing, "test_bad_patterns_are_refused")
class BadPatternsFindNothing(MemoryStorage):
    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        try:
            return super().list(pattern)
        except ValueError:
            return []


@caught_by(Scanning, "test_order_is_that_of_the_encoded_bytes")
class ScansFoldersTogether(MemoryStorage):
    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        return iter(sorted(super().scan(prefix), key=lambda info: info.identifier.split("/")))


@caught_by(Scanning, "test_order_is_that_of_the_encoded_bytes")
class ScansInUtf16Order(MemoryStorage):
    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        return iter(sorted(super().scan(prefix), key=lambda info: info.identifier.encode("utf-16-be")))


@caught_by(Scanning, "test_prefix_is_a_literal_string")
class TakesThePrefixForAPattern(MemoryStorage):
    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        like = prefix.replace("_", "?").replace("%", "*") + "*"
        return (info for info in super().scan() if fnmatch.fnmatchcase(info.identifier, like))


@caught_by(Scanning, "test_prefix_is_a_literal_string")
class TakesThePrefixForAFolder(MemoryStorage):
    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        return super().scan(folder)


@caught_by(Scanning, "test_scan_is_an_iterator_that_may_be_left")
class ScanIsAList(MemoryStorage):
    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        return cast(Iterator[ObjectInfo], [*super().scan(prefix)])


@caught_by(Scanning, "test_what_stays_is_found_while_others_come_and_go")
class ScansByPosition(MemoryStorage):
    """Pages by offset: what goes meanwhile moves the rest."""

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        for position in itertools.count():
            rest = [*itertools.islice(super().scan(prefix), position, position + 1)]
            if not rest:
                return
            yield rest[0]


@caught_by(Batches, "test_missing_objects_are_reported_after_the_others")
class ReadManyLeavesOutWhatIsMissing(MemoryStorage):
    @override
    def read_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        return super().read_many(name for name in identifiers if self.exists(name))


@caught_by(Batches, "test_missing_objects_are_reported_after_the_others")
class ReadManyStopsAtTheFirstFailure(MemoryStorage):
    @override
    def read_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        for name in identifiers:
            yield name, self.read(name)


@caught_by(Batches, "test_bad_items_are_reported_after_the_others")
class WriteManyStopsAtTheFirstFailure(MemoryStorage):
    @override
    def write_many(self, items: Iterable[Item], *, verify: bool = False) -> int:
        count = 0
        for key, content in items:
            info = key if isinstance(key, ObjectInfo) else ObjectInfo(key)
            self.write_stream(info.identifier, io.BytesIO(content), info=info, verify=verify)
            count += 1
        return count


@caught_by(Batches, "test_last_of_a_repeated_identifier_stays")
class FirstOfARepeatedIdentifierStays(MemoryStorage):
    @override
    def write_many(self, items: Iterable[Item], *, verify: bool = False) -> int:
        return super().write_many(reversed(list(items)), verify=verify)


@caught_by(Batches, "test_items_are_taken_lazily")
class GathersTheWholeBatch(MemoryStorage):
    @override
    def write_many(self, items: Iterable[Item], *, verify: bool = False) -> int:
        return super().write_many(list(items), verify=verify)


@caught_by(Batches, "test_repeated_and_absent_identifiers_are_deleted_once")
class DeleteManyCountsCalls(MemoryStorage):
    @override
    def delete_many(self, identifiers: Iterable[str]) -> int:
        count = 0
        for name in identifiers:
            self._entries.pop(name, None)
            count += 1
        return count


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


@caught_by(Writers, "test_collected_writer_is_discarded")
class WriterPublishesWhenItIsCollected(MemoryStorage):
    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        if mode == "rb":
            return super().open(identifier, mode)
        return _WriterOfInnerClose(lambda content: self._store(identifier, content))


@caught_by(AwkwardIdentifiers, "test_two_spellings_are_two_objects")
class FoldsCase(MemoryStorage):
    @override
    def _entry(self, identifier: str) -> Any:
        by_fold = {name.casefold(): name for name in self._entries}
        return super()._entry(by_fold.get(identifier.casefold(), identifier))

    @override
    def _store(self, identifier: str, *args: Any, **kwargs: Any) -> Any:
        by_fold = {name.casefold(): name for name in self._entries}
        return super()._store(by_fold.get(identifier.casefold(), identifier), *args, **kwargs)


@caught_by(AwkwardIdentifiers, "test_two_spellings_are_two_objects")
class Normalises(MemoryStorage):
    @override
    def _store(self, identifier: str, *args: Any, **kwargs: Any) -> Any:
        return super()._store(unicodedata.normalize("NFC", identifier), *args, **kwargs)

    @override
    def _entry(self, identifier: str) -> Any:
        return super()._entry(unicodedata.normalize("NFC", identifier))


@caught_by(AwkwardIdentifiers, "test_awkward_identifiers_round_trip")
class StripsSpaces(MemoryStorage):
    @override
    def _store(self, identifier: str, *args: Any, **kwargs: Any) -> Any:
        return super()._store(identifier.strip() or "_", *args, **kwargs)

    @override
    def _entry(self, identifier: str) -> Any:
        return super()._entry(identifier.strip() or "_")


@caught_by(InvalidIdentifiers, "test_every_method_refuses")
class RepairsIdentifiers(MemoryStorage):
    @override
    def read(self, identifier: str) -> bytes:
        return super().read("/".join(part for part in identifier.split("/") if part) or "_")


@caught_by(InvalidIdentifiers, "test_every_method_refuses")
class TakesParentsInBatches(MemoryStorage):
    @override
    def delete_many(self, identifiers: Iterable[str]) -> int:
        return len([self._entries.pop(name, None) for name in set(identifiers)])


@caught_by(InvalidIdentifiers, "test_refused_identifiers_do_not_exist")
class ExistsAfterNormalising(MemoryStorage):
    @override
    def exists(self, identifier: str) -> bool:
        return os.path.normpath(identifier) in self._entries


@caught_by(Directories, "test_objects_beneath_an_object")
class RefusesWhatIsBeneathAnObject(MemoryStorage):
    @override
    def write(self, identifier: str, content: Content) -> bool:
        if any(f"{identifier}/".startswith(f"{name}/") for name in self._entries if name != identifier):
            raise AlreadyExistsError(identifier)
        return super().write(identifier, content)


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
