"""LocalStorage, broken in one way each: what is easy to get wrong over a file system."""

from __future__ import annotations

import glob
import os
import shutil
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from typing_extensions import Buffer, override

from storage_backend import Capability, LocalStorage, NotAFileError, NotFoundError, ObjectInfo, identifiers
from storage_backend.base import Identifiers
from storage_backend.scanning import OnSkip
from storage_backend.streams import Content, Writer, chunks, ranged_reader, whole
from storage_backend.testing import (
    Capabilities,
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
    Reading,
    Replacing,
    Scanning,
    Streams,
    Verifying,
    Writers,
    Writing,
)
from tests.testing.harness import Meeting, Mutant, catalogue

MUTANTS: list[Mutant] = []
caught_by = catalogue(MUTANTS)


class _Local(LocalStorage):
    """What the mutants share."""

    def file(self, identifier: str) -> Path:
        path = Path(self.get_path(identifier))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@caught_by(Reading, "test_size_is_that_of_the_content")
class TellsTheSizeOnDisk(_Local):
    @override
    def size(self, identifier: str) -> int:
        super().size(identifier)
        return self.file(identifier).stat().st_blocks * 512


@caught_by(Reading, "test_a_prefix_is_no_object")
class ExistsForADirectory(_Local):
    @override
    def exists(self, identifier: str) -> bool:
        return identifiers.is_valid(identifier) and Path(self.get_path(identifier)).exists()


@caught_by(Writing, "test_no_byte_is_changed")
class ReadsInTextMode(_Local):
    @override
    def read(self, identifier: str) -> bytes:
        super().read(identifier)
        return self.file(identifier).read_text("latin-1").encode("latin-1")


@caught_by(Writing, "test_overwrite_leaves_nothing_of_the_old")
class OverwritesWithoutTruncating(_Local):
    @override
    def write(self, identifier: str, content: Content) -> bool:
        if not self.exists(identifier):
            return super().write(identifier, content)
        with self.file(identifier).open("r+b") as file:
            file.write(whole(content))
        return True


@caught_by(Writing, "test_source_that_breaks_changes_nothing")
class LeavesWhatItHadWhenASourceBreaks(_Local):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        with self.file(identifier).open("wb") as file:
            for chunk in chunks(reader):
                file.write(chunk)
        return True


@caught_by(Verifying, "test_time_is_kept")
class LosesTheTime(_Local):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        known = info and ObjectInfo(identifier, info.size, sha256=info.sha256)
        return super().write_stream(identifier, reader, info=known, verify=verify)


@caught_by(Verifying, "test_time_is_now_when_none_is_given")
class KeepsTheTimeOfWhatWasThere(_Local):
    @override
    def write(self, identifier: str, content: Content) -> bool:
        before = Path(self.get_path(identifier)).stat() if self.exists(identifier) else None
        super().write(identifier, content)
        if before is not None:
            os.utime(self.get_path(identifier), ns=(before.st_atime_ns, before.st_mtime_ns))
        return True


@caught_by(Replacing, "test_readers_see_whole_versions")
class TruncatesFirst(_Local):
    """A write shows an empty file until a reader has looked."""

    looks = threading.Semaphore(0)

    @override
    def read(self, identifier: str) -> bytes:
        content = super().read(identifier)
        self.looks.release()
        return content

    @override
    def write(self, identifier: str, content: Content) -> bool:
        with self.file(identifier).open("wb") as file:
            while self.looks.acquire(blocking=False):
                pass
            # The second look began after the file was emptied.
            for _ in range(2):
                self.looks.acquire(timeout=0.2)
            file.write(whole(content))
        return True


@caught_by(Replacing, "test_old_object_is_seen_while_the_new_one_arrives")
class WritesInPlace(_Local):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        with self.file(identifier).open("wb") as file:
            for chunk in chunks(reader):
                file.write(chunk)
        return True


@caught_by(Replacing, "test_temporary_names_are_never_listed")
class ListsItsTemporaryFiles(_Local):
    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        place = self.file(identifier)
        temporary = place.with_name(f".{place.name}.tmp")
        try:
            with temporary.open("wb") as file:
                for chunk in chunks(reader):
                    file.write(chunk)
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
        return True


@caught_by(Replacing, "test_temporary_names_are_never_listed")
class TellsOfItsTemporaryFiles(_Local):
    """Hides them from the list, and bothers whoever asked to hear of what is no object."""

    _tmpfile = False

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        for path in sorted(self.base_dir.rglob(f"{identifiers.RESERVED}*")):
            if on_skip is not None:
                on_skip(NotAFileError(f"{path} is a temporary file"))
        return super().scan(prefix, on_skip=on_skip)


class _FixedName:
    """A sink whose temporary file is called the same for all."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._file = place.with_name(".~sb-tmp").open("ab")

    def write(self, data: Buffer, /) -> object:
        written = self._file.write(data)
        self._file.flush()
        return written

    def publish(self) -> None:
        self._file.close()
        Path(self._file.name).replace(self._place)

    def discard(self) -> None:
        self._file.close()
        with suppress(FileNotFoundError):
            Path(self._file.name).unlink()


@caught_by(Writers, "test_two_writers_of_one_object_do_not_mix")
class WritersShareOneTemporaryName(_Local):
    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        if mode == "rb":
            return super().open(identifier, mode)
        return cast(BinaryIO, Writer(_FixedName(self.file(identifier))))


@caught_by(Writers, "test_exception_discards")
class WritersAreFiles(_Local):
    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        return super().open(identifier, mode) if mode == "rb" else self.file(identifier).open("wb")


@caught_by(Streams, "test_open_reader_never_mixes_two_versions")
class OpensTheFileForEachPiece(_Local):
    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        if mode == "wb":
            return super().open(identifier, mode)
        return ranged_reader(
            lambda start, end: self.read_range(identifier, start, end), self.size(identifier)
        )


@caught_by(Conditions, "test_one_of_many_creators_wins")
class CreateLooksFirst(_Local):
    meeting = Meeting()

    @override
    def create(self, identifier: str, content: Content) -> bool:
        if self.exists(identifier):
            return False
        self.meeting.wait()
        return self.write(identifier, content)


@caught_by(Conditions, "test_create_is_whole_when_it_is_seen")
class CreateShowsAnEmptyFileFirst(_Local):
    @override
    def create(self, identifier: str, content: Content) -> bool:
        try:
            with self.file(identifier).open("xb") as file:
                file.write(whole(content))
        except FileExistsError:
            return False
        return True


@caught_by(Deleting, "test_siblings_stay_when_the_last_of_a_folder_goes")
class DeletesTheFolderToo(_Local):
    @override
    def delete(self, identifier: str) -> bool:
        super().delete(identifier)
        if "/" in identifier:
            shutil.rmtree(self.base_dir / identifier.split("/", maxsplit=1)[0])
        return True


@caught_by(Copying, "test_copy_overwrites")
class CopiesOverTheStart(_Local):
    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        if source_id == dest_id or not self.exists(dest_id):
            return super().copy(source_id, dest_id)
        with self.file(dest_id).open("r+b") as file:
            file.write(self.read(source_id))
        return True


@caught_by(Copying, "test_copy_onto_itself_changes_nothing")
class CopyOntoItselfEmpties(_Local):
    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        with self.open(source_id) as reader, self.file(dest_id).open("wb") as file:
            shutil.copyfileobj(reader, file)
        return True


@caught_by(Moving, "test_move_onto_itself_keeps_the_object")
class MovesByCopyAndUnlink(_Local):
    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        self.copy(source_id, dest_id)
        return self.delete(source_id)


@caught_by(Moving, "test_moved_object_has_the_same_bytes")
class MoveLeavesALink(_Local):
    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        super().move(source_id, dest_id)
        if source_id != dest_id:
            Path(self.get_path(source_id)).symlink_to(self.get_path(dest_id))
        return True


@caught_by(Listing, "test_list_is_everything_sorted")
class ListsTheTopLevelOnly(_Local):
    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        return super().list("*" if pattern is None else pattern)


@caught_by(Listing, "test_patterns_find_what_the_table_says")
class ListsByTheStandardLibrary(_Local):
    """The dialect of the standard library, to which dot files are not there."""

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        if pattern is None:
            return super().list()
        identifiers.glob(pattern)
        found = glob.glob(pattern, root_dir=self.base_dir, recursive=True)  # noqa: PTH207 - as a user would
        return sorted({name for name in found if (self.base_dir / name).is_file()})


@caught_by(Scanning, "test_order_is_that_of_the_encoded_bytes")
class ScansFilesBeforeFolders(_Local):
    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        found = super().scan(prefix, on_skip=on_skip)
        return iter(sorted(found, key=lambda info: ("/" in info.identifier, info.identifier)))


@caught_by(Directories, "test_directory_is_no_object")
class CallsADirectoryMissing(_Local):
    @override
    def read(self, identifier: str) -> bytes:
        try:
            return super().read(identifier)
        except NotAFileError as error:
            raise NotFoundError(str(error), identifier=identifier, backend=self.location) from None


@caught_by(Directories, "test_empty_directory_is_no_obstacle")
class StumblesOverEmptyDirectories(_Local):
    @override
    def write(self, identifier: str, content: Content) -> bool:
        if Path(self.get_path(identifier)).is_dir():
            raise NotAFileError(identifier)
        return super().write(identifier, content)


@caught_by(Directories, "test_write_onto_a_directory")
class ReplacesFullDirectories(_Local):
    @override
    def write(self, identifier: str, content: Content) -> bool:
        if Path(self.get_path(identifier)).is_dir():
            shutil.rmtree(self.get_path(identifier))
        return super().write(identifier, content)


@caught_by(Directories, "test_objects_beneath_an_object")
class ReplacesObjectsByDirectories(_Local):
    @override
    def write(self, identifier: str, content: Content) -> bool:
        for parent in Path(identifier).parents[:-1]:
            if self.exists(str(parent)):
                self.delete(str(parent))
        return super().write(identifier, content)


@caught_by(InvalidIdentifiers, "test_every_method_refuses")
class ResolvesParents(_Local):
    """Lets ".." pass where it stays beneath the base."""

    @override
    def read(self, identifier: str) -> bytes:
        return super().read(os.path.normpath(identifier))


@caught_by(InvalidIdentifiers, "test_every_method_refuses")
class GivesPathsOutside(_Local):
    @override
    def get_path(self, identifier: str) -> str:
        return str(self.base_dir / identifier)


@caught_by(ErrorClasses, "test_missing_object_has_its_own_class")
class RaisesWhatTheSystemRaises(_Local):
    @override
    def size(self, identifier: str) -> int:
        return Path(self.get_path(identifier)).stat().st_size


@caught_by(Pickling, "test_pickled_instance_works")
class PicklesItsBaseAway(_Local):
    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self.base_dir.parent),)


class _EagerlyRemoved(_FixedName):
    """Whoever ends removes the temporary file, also a forked child that only inherited it."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._finalizer = weakref.finalize(self, _remove, self._file.name)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        Path(path).unlink()


@caught_by(Processes, "test_child_that_ends_in_the_ordinary_way_hurts_nothing")
class ChildrenRemoveWhatTheParentWrites(_Local):
    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        if mode == "rb":
            return super().open(identifier, mode)
        return cast(BinaryIO, Writer(_EagerlyRemoved(self.file(identifier))))


@caught_by(Capabilities, "test_url_gives_the_object")
class DoesNotQuoteUrls(_Local):
    @override
    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        return f"file://{self.get_path(identifier)}"


@caught_by(Capabilities, "test_flag_and_override_go_together")
class ClaimsToReplace(_Local):
    @property
    @override
    def capabilities(self) -> Capability:
        return super().capabilities | Capability.REPLACE


@caught_by(Files, "test_downloaded_file_is_an_ordinary_one")
class DownloadsPrivately(_Local):
    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        super().download(identifier, path)
        Path(path).chmod(0o600)
        return True
