"""FallbackStorage: the public methods, and which side each one uses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal, cast

from typing_extensions import override

from storage_backend import identifiers as names
from storage_backend.base import Identifiers, Item, StorageBackend
from storage_backend.counted import Progress, delete_counted, read_counted, write_counted
from storage_backend.defensive import capabilities_of, matching, store
from storage_backend.errors import (
    STORE_MISSING,
    ConfigurationError,
    Failures,
    PreconditionFailedError,
    UnsupportedOperationError,
)
from storage_backend.hooks import Hooks, hooks_of
from storage_backend.info import Capability, ObjectInfo
from storage_backend.lineage import Lineage
from storage_backend.scanning import OnSkip
from storage_backend.streams import Content, HashingReader, SpooledSink, Writer, check_mode, plain
from storage_backend.wrappers.fallback import batches
from storage_backend.wrappers.fallback.merged_scans import union
from storage_backend.wrappers.fallback.pair import ABSENT, Absences, FallbackPair
from storage_backend.wrappers.fallback.repair import RepairReport, migrate, repair_pair
from storage_backend.wrappers.fallback.writing import (
    SameContentReader,
    carried,
    done,
    put,
    put_group,
    replayable,
)
from storage_backend.wrappers.sources import grouped

WRITE_TO = ("primary", "secondary", "both")
ON_ERROR = ("raise", "fallback")


class FallbackStorage(StorageBackend):
    """Two backends as one: an object exists if either has it.

    Reads try the primary, then the secondary; with write_to="secondary" the secondary first, because it has the newer
    object (an older copy in the primary stays hidden). So a write is a single write, nothing has to be removed from the
    other side, and a crash leaves nothing half done. A side that fails is an error, never an absence.

    With write_to="both" the secondary is written first, the primary last: until then, and if it fails, readers see the
    old object. (A primary with directories comes first if the secondary has none, since it refuses more names.) If the
    second of the two writes fails, its error is raised and the sides differ until `repair` or the same write again.

    With on_error="fallback" an unreachable primary (a retryable error, a ConnectionError or TimeoutError) is skipped
    with a WARNING: reads and writes use the secondary. If the secondary lacks the object, the primary's error is
    raised, because the object may exist. Listings, deletes and moves need both sides and raise it, too. This instance
    continues to read from the secondary what it wrote there; others see the primary's older object until `repair`.

    `create` and `replace` are refused: they cannot be atomic over two stores. A writer, and a source that cannot seek,
    are buffered (beyond 8 MiB in a temporary file) if both sides may need them.

    `delete` deletes from both sides, the hidden copy first, and returns False if there was none.

    Args:
        primary: a backend.
        secondary: another.
        write_to: "primary", "secondary" or "both".
        on_error: "raise" or "fallback".

    Raises:
        ConfigurationError: an unknown value, or the same backend twice.
        TypeError: a side is not a StorageBackend.
    """

    def __init__(
        self,
        primary: StorageBackend,
        secondary: StorageBackend,
        write_to: str = "primary",
        *,
        on_error: str = "raise",
    ) -> None:
        for name, backend in (("primary", primary), ("secondary", secondary)):
            if not isinstance(backend, StorageBackend):
                raise TypeError(f"{name} must be a StorageBackend, not {type(backend).__name__}")
        if primary is secondary:
            raise ConfigurationError("primary and secondary are the same backend", parameter="secondary")
        _check_word("write_to", write_to, WRITE_TO)
        _check_word("on_error", on_error, ON_ERROR)
        self._pair = FallbackPair(primary, secondary, write_to, on_error)

    @property
    def primary(self) -> StorageBackend:
        """The first backend."""
        return self._pair.primary

    @property
    def secondary(self) -> StorageBackend:
        """The second one."""
        return self._pair.secondary

    @property
    def write_to(self) -> str:
        """As given: "primary", "secondary" or "both"."""
        return self._pair.write_to

    @property
    def on_error(self) -> str:
        """As given: "raise" or "fallback"."""
        return self._pair.on_error

    @override
    def exists(self, identifier: str) -> bool:
        return self._pair.side_with(identifier) is not None

    @override
    def read(self, identifier: str) -> bytes:
        return self._pair.first(identifier, lambda side: side.read(identifier))

    @override
    def write(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        found: bytes = content
        return put(self._pair, identifier, lambda side: store(side, identifier, found))

    @override
    def delete(self, identifier: str) -> bool:
        there = False
        absences: Absences = []
        try:
            for side in reversed(self._pair.order(identifier)):
                try:
                    there = side.delete(identifier) is not False or there
                except ABSENT as error:
                    if isinstance(error, STORE_MISSING):
                        raise
                    absences.append((side, error))
            self._pair.forget(identifier)
            if there or len(absences) < 2:
                return there
            if not isinstance(self._pair.absence(identifier, absences), FileNotFoundError):
                raise self._pair.absence(identifier, absences)
        finally:
            del absences  # the errors' tracebacks refer to this frame
        return False

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        found = {*matching(self.primary, pattern), *matching(self.secondary, pattern)}
        return sorted(found, key=names.encode)

    @override
    def get_path(self, identifier: str) -> str:
        """The path on the side that holds the object; a NotFoundError if neither does."""
        side = self._pair.side_with(identifier)
        if side is None:
            self._pair.target.get_path(identifier)  # raises if the name is invalid
            raise self._pair.absence(identifier, [])
        return side.get_path(identifier)

    @override
    def size(self, identifier: str) -> int:
        return self._pair.first(identifier, lambda side: side.size(identifier))

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        side = self._pair.source_side(source_id)
        if source_id == dest_id:
            return side.copy(source_id, dest_id)
        if self.write_to == "both":
            self._pair.check(dest_id)
            self._pair.torn.add(dest_id)
            strayed = False
            for target in self._pair.both:
                try:
                    if target is side:
                        done(side.copy(source_id, dest_id), side, dest_id)
                    else:
                        carried(side, target, source_id, dest_id)
                except Exception as error:
                    if side is self.primary or not self._pair.warn_if_skipped(target, error):
                        raise
                    strayed = True
            self._pair.forget(dest_id)
            if strayed:
                self._pair.strayed.add(dest_id)
            return True
        if self._pair.hides(side, dest_id):
            return carried(side, self._pair.order(dest_id)[0], source_id, dest_id)
        return done(side.copy(source_id, dest_id), side, dest_id)

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        # An unreachable primary is not skipped: its object may be newer, and would be deleted when it is back.
        side = self._pair.source_side(source_id, past=False)
        if source_id == dest_id:
            return side.move(source_id, dest_id)
        other = self.secondary if side is self.primary else self.primary
        # Checked before any change: if this fails, the move could not be completed.
        left = other.exists(source_id)

        def drop_hidden() -> None:
            # Before the visible one is moved, else this older one would become visible, and a retry would move it.
            if left:
                with suppress(FileNotFoundError):
                    other.delete(source_id)

        if self.write_to == "both":
            self._pair.check(dest_id)
            self._pair.torn.update((source_id, dest_id))
            if side is self.primary and self._pair.both[0] is side:
                drop_hidden()
                done(side.move(source_id, dest_id), side, dest_id)
                carried(side, other, dest_id, dest_id)
            else:
                carried(side, other, source_id, dest_id)
                drop_hidden()
                done(side.move(source_id, dest_id), side, dest_id)
            self._pair.forget(dest_id)
        elif self._pair.hides(side, dest_id):
            carried(side, self._pair.order(dest_id)[0], source_id, dest_id)
            drop_hidden()
            side.delete(source_id)
        else:
            drop_hidden()
            done(side.move(source_id, dest_id), side, dest_id)
        self._pair.forget(source_id)
        return True

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        if self._pair.writes_once:
            return self._pair.target.write_stream(identifier, reader, info=info, verify=verify)
        self._pair.check(identifier)
        with replayable(reader) as source:
            given: list[HashingReader] = []

            def stored(side: StorageBackend) -> bool:
                # Both get the same bytes, though the source may have changed when it is read again.
                again = SameContentReader(source.reader, given[0]) if given else HashingReader(source.reader)
                result = side.write_stream(identifier, cast(BinaryIO, again), info=info, verify=verify)
                given.append(again)
                return done(result, side, identifier)

            return put(self._pair, identifier, stored, source)

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        return self._pair.first(identifier, lambda side: side.stat(identifier))

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        return union(
            self.primary.scan(prefix, on_skip=on_skip),
            self.secondary.scan(prefix, on_skip=on_skip),
            self._pair.secondary_is_first,
        )

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        return union(
            self.primary.scan_level(prefix, on_skip=on_skip),
            self.secondary.scan_level(prefix, on_skip=on_skip),
            self._pair.secondary_is_first,
        )

    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        if self.on_error == "fallback":
            yield from super().stat_many(identifiers)
            return
        yield from batches.stat_many(self._pair, identifiers, super().stat_many)

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        if mode == "rb":
            return self._pair.first(identifier, lambda side: side.open(identifier))
        if self._pair.writes_once:
            return self._pair.target.open(identifier, "wb")
        self._pair.check(identifier)
        return cast(BinaryIO, Writer(SpooledSink(lambda spool: self.write_stream(identifier, spool))))

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        return self._pair.first(identifier, lambda side: side.read_range(identifier, start, end))

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        return read_counted(batches.read_many(self._pair, identifiers), progress)

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        if self._pair.writes_once:
            return self._pair.target.write_many(items, verify=verify)
        failures = Failures()
        stored = 0
        for group in grouped(items):
            stored += len(group)
            put_group(self._pair, group, failures, verify)
            group.clear()  # not held while the next one is gathered
        failures.raise_any("write", self.location)
        return stored

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        return batches.delete_many(self._pair, identifiers)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        return self._pair.first(identifier, lambda side: side.download(identifier, path))

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        if self._pair.writes_once:
            return self._pair.target.upload(path, identifier)
        return super().upload(path, identifier)

    @override
    def create(self, identifier: str, content: Content) -> bool:
        raise self._refused("create", identifier)

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        raise self._refused("replace", identifier)

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        return self._pair.first(identifier, lambda side: side.checksum(identifier, algorithm))

    @override
    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        if Capability.URL not in self.capabilities:
            raise self._refused("get_url", identifier)
        return (self._pair.side_with(identifier) or self._pair.target).get_url(identifier, expires_in)

    @override
    def flush(self) -> bool:
        if Capability.FLUSH not in self.capabilities:
            raise self._refused("flush", None)
        self.secondary.flush()
        self.primary.flush()
        return True

    @property
    @override
    def capabilities(self) -> Capability:
        primary, secondary = capabilities_of(self.primary), capabilities_of(self.secondary)
        found = primary & secondary
        found &= ~(Capability.CREATE | Capability.REPLACE | Capability.DIRECTORIES)
        if self.write_to == "both":
            found &= ~Capability.SERVER_COPY
        # `a` and `a/b` exclude each other on each side that is written to.
        if self.write_to != "secondary":
            found |= primary & Capability.DIRECTORIES
        if self.write_to != "primary" or self.on_error == "fallback":
            found |= secondary & Capability.DIRECTORIES
        return found

    @property
    @override
    def location(self) -> str:
        return self._pair.location

    @property
    @override
    def keeps_modified(self) -> bool:
        return self.primary.keeps_modified is True and self.secondary.keeps_modified is True

    @property
    @override
    def hooks(self) -> Hooks:
        return _FallbackHooks(self)

    @override
    def close(self) -> None:
        try:
            self.primary.close()
        finally:
            self.secondary.close()

    def migrate_to_secondary(self, identifier: str, delete_primary: bool = False) -> bool:
        """Copy the primary's object to the secondary, replacing any object there, and verify the copy.

        Args:
            identifier: the object.
            delete_primary: then delete the primary's, unless it has changed since.

        Raises:
            ConfigurationError: primary and secondary are one place under two names; nothing was deleted.
            NotFoundError: "not found in primary".
            IntegrityError: the copy differs; nothing was deleted.
            SourceChangedError: the object changed meanwhile; nothing was deleted.
            PreconditionFailedError: the secondary's was written while the primary was unreachable, and is newer.
        """
        if identifier in self._pair.strayed:
            raise PreconditionFailedError(
                f"{identifier!r} in the secondary was written while the primary was unreachable: call "
                "migrate_to_primary or repair first",
                identifier=identifier,
                backend=self.location,
            )
        return migrate(self._pair, identifier, to="secondary", delete=delete_primary)

    def migrate_to_primary(self, identifier: str, delete_secondary: bool = False) -> bool:
        """Copy the secondary's object to the primary, replacing any object there, and verify the copy.

        Args:
            identifier: the object.
            delete_secondary: then delete the secondary's, unless it has changed since.

        Raises:
            ConfigurationError: primary and secondary are one place under two names; nothing was deleted.
            NotFoundError: "not found in secondary".
            IntegrityError: the copy differs; nothing was deleted.
            SourceChangedError: the object changed meanwhile; nothing was deleted.
        """
        migrate(self._pair, identifier, to="primary", delete=delete_secondary)
        self._pair.forget(identifier)
        return True

    def repair(self, winner: str | None = None) -> RepairReport:
        """Make both sides hold the same objects: copy and verify what one side lacks. Nothing is deleted.

        Objects on both sides are compared by digest. If two differ, this instance's knowledge decides: the secondary's is
        valid if it was written while the primary was unreachable; after a failed write to both, the object that readers
        see is. Any other difference is settled by *winner*, whose object replaces the other; without a winner both stay
        and are reported. (Times prove nothing: most stores keep the time that a writer set, and two stores have two
        clocks.) Do not call it while others write.

        Args:
            winner: "primary", "secondary", or None.

        Raises:
            StorageError: a side cannot be listed, or is full, ...; single objects' errors are in the report.
        """
        if winner is not None:
            _check_word("winner", winner, WRITE_TO[:2])
        return repair_pair(self._pair, winner)

    def _refused(self, method: str, identifier: str | None) -> UnsupportedOperationError:
        return UnsupportedOperationError(
            f"{self.location} has no {method}(): it cannot span both sides; use that of `primary` or `secondary`",
            identifier=identifier,
            backend=self.location,
        )


class _FallbackHooks(Hooks):
    def __init__(self, storage: FallbackStorage) -> None:
        super().__init__(storage)
        self._sides = hooks_of(storage.primary), hooks_of(storage.secondary)

    @override
    def keeps_time(self, modified: datetime) -> bool:
        return all(side.keeps_time(modified) for side in self._sides)

    @override
    def places(self, prefix: str = "") -> Iterator[Lineage]:
        return chain.from_iterable(side.places(prefix) for side in self._sides)

    @override
    def own_paths(self) -> Iterator[Path]:
        return chain.from_iterable(side.own_paths() for side in self._sides)

    @override
    def tidy(self) -> int:
        return sum(side.tidy() for side in self._sides)


def _check_word(parameter: str, word: object, known: tuple[str, ...]) -> None:
    if word not in known:
        listed = ", ".join(map(repr, known[:-1])) + f" or {known[-1]!r}"
        raise ConfigurationError(f"{parameter} must be {listed}, not {word!r}", parameter=parameter)
