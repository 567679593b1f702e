"""MemoryStorage, broken where objects are named, listed and taken many at once."""

from __future__ import annotations

import fnmatch
import io
import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, cast

from typing_extensions import override

from storage_backend import (
    AlreadyExistsError,
    MemoryStorage,
    ObjectInfo,
)
from storage_backend.base import Identifiers, Item
from storage_backend.counted import Progress
from storage_backend.identifiers import encode, glob
from storage_backend.scanning import OnSkip
from storage_backend.streams import Content
from storage_backend.testing import (
    AwkwardIdentifiers,
    Batches,
    Directories,
    InvalidIdentifiers,
    Listing,
    Scanning,
)
from tests.testing.harness import Mutant, catalogue

MUTANTS: list[Mutant] = []
caught_by = catalogue(MUTANTS)


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


@caught_by(Scanning, "test_a_level_has_its_objects_and_the_folders_of_the_others")
class LevelRepeatsItsFolders(MemoryStorage):
    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        for info in self.scan(prefix, on_skip=on_skip):
            name, slash, _ = info.identifier[len(prefix) :].partition("/")
            yield f"{prefix}{name}/" if slash else info


@caught_by(Batches, "test_stat_of_many_is_that_of_each")
class StatManyStopsAtWhatIsMissing(MemoryStorage):
    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        return map(self.stat, identifiers)


@caught_by(Batches, "test_stat_of_many_is_that_of_each")
class StatManyShowsSizesOnly(MemoryStorage):
    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        return (ObjectInfo(info.identifier, info.size) for info in super().stat_many(identifiers))


@caught_by(Batches, "test_missing_objects_are_reported_after_the_others")
class ReadManyLeavesOutWhatIsMissing(MemoryStorage):
    @override
    def read_many(self, identifiers: Iterable[str], **_: Any) -> Iterator[tuple[str, bytes]]:
        return super().read_many(name for name in identifiers if self.exists(name))


@caught_by(Batches, "test_missing_objects_are_reported_after_the_others")
class ReadManyStopsAtTheFirstFailure(MemoryStorage):
    @override
    def read_many(self, identifiers: Iterable[str], **_: Any) -> Iterator[tuple[str, bytes]]:
        for name in identifiers:
            yield name, self.read(name)


@caught_by(Batches, "test_bad_items_are_reported_after_the_others")
class WriteManyStopsAtTheFirstFailure(MemoryStorage):
    @override
    def write_many(self, items: Iterable[Item], *, verify: bool = False, **_: Any) -> int:
        count = 0
        for key, content in items:
            info = key if isinstance(key, ObjectInfo) else ObjectInfo(key)
            self.write_stream(info.identifier, io.BytesIO(content), info=info, verify=verify)
            count += 1
        return count


@caught_by(Batches, "test_last_of_a_repeated_identifier_stays")
class FirstOfARepeatedIdentifierStays(MemoryStorage):
    @override
    def write_many(self, items: Iterable[Item], *, verify: bool = False, **_: Any) -> int:
        return super().write_many(reversed(list(items)), verify=verify)


@caught_by(Batches, "test_items_are_taken_lazily")
class GathersTheWholeBatch(MemoryStorage):
    @override
    def write_many(self, items: Iterable[Item], *, verify: bool = False, **_: Any) -> int:
        return super().write_many(list(items), verify=verify)


@caught_by(Batches, "test_progress_is_told_as_it_is_made")
class TellsWhatIsToComeAsDone(MemoryStorage):
    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        given = list(items)
        if progress is not None:
            progress(len(given), sum(len(content) for _, content in given))
        return super().write_many(given, verify=verify)


@caught_by(Batches, "test_progress_is_told_as_it_is_made")
class ForgetsTheProgressOfReads(MemoryStorage):
    @override
    def read_many(self, identifiers: Iterable[str], **_: Any) -> Iterator[tuple[str, bytes]]:
        return super().read_many(identifiers)


@caught_by(Batches, "test_repeated_and_absent_identifiers_are_deleted_once")
class DeleteManyCountsCalls(MemoryStorage):
    @override
    def delete_many(self, identifiers: Iterable[str], **_: Any) -> int:
        count = 0
        for name in identifiers:
            self._entries.pop(name, None)
            count += 1
        return count


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
    def delete_many(self, identifiers: Iterable[str], **_: Any) -> int:
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
