"""MemoryStorage, broken where bytes go in, come out, are copied, moved and deleted."""

from __future__ import annotations

import io
from contextlib import suppress
from datetime import datetime
from typing import BinaryIO, cast

from typing_extensions import override

from storage_backend import (
    MemoryStorage,
    ObjectInfo,
)
from storage_backend.streams import Content, read_all, whole
from storage_backend.testing import (
    Copying,
    Deleting,
    Moving,
    Reading,
    SourceBrokeError,
    Threads,
    Verifying,
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


@caught_by(Threads, "test_one_of_many_deletions_finds_the_object")
class DeleteLooksFirst(MemoryStorage):
    def __init__(self) -> None:
        super().__init__()
        self._meeting = Meeting()

    @override
    def delete(self, identifier: str) -> bool:
        self._entry(identifier)
        self._meeting.wait()
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
