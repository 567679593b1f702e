"""FallbackStorage: the verbs, and which side each is for."""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any, BinaryIO, Literal, TypeAlias, TypeVar, cast

from typing_extensions import override

from storage_backend import identifiers as names
from storage_backend.base import (
    Identifiers,
    Item,
    OnSkip,
    StorageBackend,
    capabilities_of,
    check_mode,
    info_of,
    location_of,
    matching,
    store,
)
from storage_backend.errors import (
    BaseDirectoryNotFoundError,
    BatchError,
    BucketNotFoundError,
    ConfigurationError,
    Failures,
    InvalidIdentifierError,
    NotFoundError,
    PreconditionFailedError,
    SourceChangedError,
    StorageError,
    UnsupportedOperationError,
    is_retryable,
)
from storage_backend.info import Capability, ObjectInfo
from storage_backend.streams import SPOOL, Content, HashingReader, SpooledSink, Writer, chunks, plain
from storage_backend.wrappers.fallback.repair import RepairReport, copied, differ, told_of
from storage_backend.wrappers.fallback.union import paired, union
from storage_backend.wrappers.sources import Source, grouped, name_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
Items: TypeAlias = list[Item]  # inside the class, `list` is a method
Errors: TypeAlias = list[Exception]
Absences: TypeAlias = list[tuple[StorageBackend, Exception]]

WRITE_TO = ("primary", "secondary", "both")
ON_ERROR = ("raise", "fallback")
ABSENT = (FileNotFoundError, IsADirectoryError, InvalidIdentifierError)
"""What a side says of an object that it has not: a directory of that name, and a name that it cannot have, are none."""
NO_PLACE = (BucketNotFoundError, BaseDirectoryNotFoundError)
"""Of these nothing follows for the object."""


class FallbackStorage(StorageBackend):
    """Two backends as one: what is in either is there.

    Reading asks the primary, then the secondary; with write_to="secondary" the secondary first, which has what was
    written (a copy that the primary has of it stays, and is not seen). So a write is one write, nothing has to be
    removed elsewhere, and a crash leaves nothing half done. A side that cannot tell is an error, never an absence.

    With write_to="both" the secondary is written first, the primary last: until it is done, and if it fails, readers
    see what they saw. (A primary with directories beside a secondary without comes first, since it refuses more.) When
    the second of the two fails, the error is raised, the sides differ, and `repair` or the same write again ends that.

    With on_error="fallback" a primary that is out of reach (a retryable error, a ConnectionError or TimeoutError) is
    passed over with a WARNING: reads and writes use the secondary. What is absent there is not thereby missing, and
    the primary's error is raised; so it is by listings, deletes and moves, which need both. This instance goes on to
    read what it wrote there from there; others see the primary's older object as soon as it is back, until `repair`.

    `create` and `replace` are refused: two places cannot be tested and changed as one. A writer, and a source that
    cannot seek, are kept aside (in memory, beyond 8 MiB in a temporary file) where both sides may need them.

    `delete` removes from both sides, the copy that is not seen first, and returns False when there was none.

    Args:
        primary: a backend.
        secondary: another.
        write_to: "primary", "secondary" or "both".
        on_error: "raise" or "fallback".

    Attributes:
        primary, secondary, write_to, on_error: as given.

    Raises:
        ConfigurationError: another word, or twice the same backend.
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
        self.primary = primary
        self.secondary = secondary
        self.write_to = write_to
        self.on_error = on_error
        # Written to the secondary because the primary was out of reach: there is what counts.
        self._strayed: set[str] = set()
        # A write to both of these may have reached one: what readers see is what counts.
        self._torn: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_strayed": set(self._strayed), "_torn": set(self._torn)}

    @override
    def exists(self, identifier: str) -> bool:
        return self._side_with(identifier) is not None

    @override
    def read(self, identifier: str) -> bytes:
        return self._first(identifier, lambda side: side.read(identifier))

    @override
    def write(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        found: bytes = content
        return self._put(identifier, lambda side: store(side, identifier, found))

    @override
    def delete(self, identifier: str) -> bool:
        there = False
        absences: Absences = []
        for side in reversed(self._order(identifier)):
            try:
                there = side.delete(identifier) is not False or there
            except ABSENT as error:
                if isinstance(error, NO_PLACE):
                    raise
                absences.append((side, error))
        self._forget(identifier)
        if there or len(absences) < 2:
            return there
        found = self._absence(identifier, absences)
        if not isinstance(found, FileNotFoundError):
            raise found
        return False

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        found = {*matching(self.primary, pattern), *matching(self.secondary, pattern)}
        return sorted(found, key=names.encode)

    @override
    def get_path(self, identifier: str) -> str:
        return (self._side_with(identifier) or self._target).get_path(identifier)

    @override
    def size(self, identifier: str) -> int:
        return self._first(identifier, lambda side: side.size(identifier))

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        side = self._source_side(source_id)
        if source_id == dest_id:
            return side.copy(source_id, dest_id)
        if self.write_to == "both":
            self._check(dest_id)
            self._torn.add(dest_id)
            strayed = False
            for target in self._both:
                try:
                    if target is side:
                        _done(side.copy(source_id, dest_id), side, dest_id)
                    else:
                        _carried(side, target, source_id, dest_id)
                except Exception as error:
                    if side is self.primary or not self._is_down(target, error):
                        raise
                    strayed = True
            self._forget(dest_id)
            if strayed:
                self._strayed.add(dest_id)
            return True
        if self._hides(side, dest_id):
            return _carried(side, self._order(dest_id)[0], source_id, dest_id)
        return _done(side.copy(source_id, dest_id), side, dest_id)

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        # Not past a primary that is out of reach: what it has may be newer, and would be deleted when it is back.
        side = self._source_side(source_id, past=False)
        if source_id == dest_id:
            return side.move(source_id, dest_id)
        other = self.secondary if side is self.primary else self.primary
        # Asked before anything is done: where it cannot be answered, the move could not be completed.
        left = other.exists(source_id)

        def drop_hidden() -> None:
            # Before the one that is seen goes, or this older one would come to light, and a second try would move it.
            if left:
                with suppress(FileNotFoundError):
                    other.delete(source_id)

        if self.write_to == "both":
            self._check(dest_id)
            self._torn.update((source_id, dest_id))
            if side is self.primary and self._both[0] is side:
                drop_hidden()
                _done(side.move(source_id, dest_id), side, dest_id)
                _carried(side, other, dest_id, dest_id)
            else:
                _carried(side, other, source_id, dest_id)
                drop_hidden()
                _done(side.move(source_id, dest_id), side, dest_id)
            self._forget(dest_id)
        elif self._hides(side, dest_id):
            _carried(side, self._order(dest_id)[0], source_id, dest_id)
            drop_hidden()
            side.delete(source_id)
        else:
            drop_hidden()
            _done(side.move(source_id, dest_id), side, dest_id)
        self._forget(source_id)
        return True

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        if self._writes_once:
            return self._target.write_stream(identifier, reader, info=info, verify=verify)
        self._check(identifier)
        with _replayable(reader) as source:
            given: list[HashingReader] = []

            def put(side: StorageBackend) -> bool:
                # Both get the same bytes, though the source may have changed when it is read again.
                again = _SameAgain(source.reader, given[0]) if given else HashingReader(source.reader)
                stored = side.write_stream(identifier, cast(BinaryIO, again), info=info, verify=verify)
                given.append(again)
                return _done(stored, side, identifier)

            return self._put(identifier, put, source)

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        return self._first(identifier, lambda side: side.stat(identifier))

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        return union(
            self.primary.scan(prefix, on_skip=on_skip),
            self.secondary.scan(prefix, on_skip=on_skip),
            self._secondary_is_first,
        )

    @override
    def _scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        return union(
            self.primary._scan_level(prefix, on_skip=on_skip),
            self.secondary._scan_level(prefix, on_skip=on_skip),
            self._secondary_is_first,
        )

    @override
    def _stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        if self.on_error == "fallback":
            yield from super()._stat_many(identifiers)
            return
        pending = dict.fromkeys(identifiers)
        for side in self._order(None):
            for info in side._stat_many([*pending]):
                pending.pop(info.identifier, None)
                yield info

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        if mode == "rb":
            return self._first(identifier, lambda side: side.open(identifier))
        if self._writes_once:
            return self._target.open(identifier, "wb")
        self._check(identifier)
        return cast(BinaryIO, Writer(SpooledSink(lambda spool: self.write_stream(identifier, spool))))

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        return self._first(identifier, lambda side: side.read_range(identifier, start, end))

    @override
    def read_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        front, back = self._order(None)
        asked = _Asked(identifiers, self._strayed if front is self.primary else ())
        failures = Failures()
        errors: dict[str, Exception] = {}  # the first side's, of those that the second is asked for
        down: Exception | None = None
        try:
            for name, content in front.read_many(asked):
                asked.came(name)
                yield name, content
        except Exception as error:
            if error is asked.raised:
                raise
            if isinstance(error, BatchError):
                self._say_down([e for e in error.failures.values() if self._is_out(front, e)])
                for name, failure in error.failures.items():
                    if _is_absence(failure) or self._is_out(front, failure):
                        errors[name] = failure
                    else:
                        failures.note(name, failure)
                        asked.came(name, all_of_it=True)
            elif self._is_down(front, error):
                down = error
            else:
                raise
        missed = asked.pending()
        second = missed if down is None else chain(missed, asked)
        try:
            for name, content in back.read_many(second) if missed or down is not None else ():
                yield name, content
        except BatchError as error:
            if error is asked.raised:
                raise
            for name, failure in error.failures.items():
                first = errors.get(name, down)
                if first is not None or not _is_absence(failure):
                    failures.note(name, self._of_both(name, first, failure))
                    continue
                # Put aside, and gone from where it was: the first side has not been asked.
                found = None
                with failures.of(name):
                    found = self.read(name)
                if found is not None:
                    yield name, found
        failures.raise_any("read", self.location)

    @override
    def write_many(self, items: Iterable[Item], *, verify: bool = False) -> int:
        if self._writes_once:
            return self._target.write_many(items, verify=verify)
        failures = Failures()
        stored = 0
        for group in grouped(items):
            stored += len(group)
            self._put_group(group, failures, verify)
            group.clear()  # not held while the next one is gathered
        failures.raise_any("write", self.location)
        return stored

    @override
    def delete_many(self, identifiers: Iterable[str]) -> int:
        distinct = dict.fromkeys(identifiers)
        front, back = self._order(None)
        failures = Failures()
        hidden = _failures_of(lambda: back.delete_many([*distinct]))
        # What is seen stays as long as what is behind it does.
        kept = {name for name, error in hidden.items() if not _is_absence(error)}
        seen = _failures_of(lambda: front.delete_many([name for name in distinct if name not in kept]))
        for name in distinct:
            errors = [(side, found[name]) for side, found in ((back, hidden), (front, seen)) if name in found]
            faults = [error for _, error in errors if not _is_absence(error)]
            if faults:
                failures.note(name, faults[0])
            elif len(errors) == 2:
                failures.note(name, self._absence(name, errors))
            else:
                self._forget(name)
        failures.raise_any("delete", self.location)
        return len(distinct)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        return self._first(identifier, lambda side: side.download(identifier, path))

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        if self._writes_once:
            return self._target.upload(path, identifier)
        return super().upload(path, identifier)

    @override
    def create(self, identifier: str, content: Content) -> bool:
        raise self._refused("create", identifier)

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        raise self._refused("replace", identifier)

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        return self._first(identifier, lambda side: side.checksum(identifier, algorithm))

    @override
    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        if Capability.URL not in self.capabilities:
            raise self._refused("get_url", identifier)
        return (self._side_with(identifier) or self._target).get_url(identifier, expires_in)

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
        # `a` and `a/b` exclude each other where they are written.
        if self.write_to != "secondary":
            found |= primary & Capability.DIRECTORIES
        if self.write_to != "primary" or self.on_error == "fallback":
            found |= secondary & Capability.DIRECTORIES
        return found

    @property
    @override
    def location(self) -> str:
        return f"fallback({location_of(self.primary)}|{location_of(self.secondary)})"

    @property
    @override
    def keeps_modified(self) -> bool:
        return self.primary.keeps_modified is True and self.secondary.keeps_modified is True

    @override
    def close(self) -> None:
        try:
            self.primary.close()
        finally:
            self.secondary.close()

    def migrate_to_secondary(self, identifier: str, delete_primary: bool = False) -> bool:
        """Copy the primary's object to the secondary, replacing what is there, and check what was stored.

        Args:
            identifier: the object.
            delete_primary: then delete the primary's, unless it has changed since.

        Returns:
            True.

        Raises:
            NotFoundError: "not found in primary".
            IntegrityError: the copy differs; nothing was deleted.
            SourceChangedError: the object changed meanwhile; nothing was deleted.
            PreconditionFailedError: the secondary's was written while the primary was out of reach, and is newer.
        """
        if identifier in self._strayed:
            raise PreconditionFailedError(
                f"{identifier!r} in the secondary was written while the primary was out of reach: call "
                "migrate_to_primary or repair first",
                identifier=identifier,
                backend=self.location,
            )
        return self._migrated(identifier, "primary", self.primary, self.secondary, delete=delete_primary)

    def migrate_to_primary(self, identifier: str, delete_secondary: bool = False) -> bool:
        """Copy the secondary's object to the primary, replacing what is there, and check what was stored.

        Args:
            identifier: the object.
            delete_secondary: then delete the secondary's, unless it has changed since.

        Returns:
            True.

        Raises:
            NotFoundError: "not found in secondary".
            IntegrityError: the copy differs; nothing was deleted.
            SourceChangedError: the object changed meanwhile; nothing was deleted.
        """
        self._migrated(identifier, "secondary", self.secondary, self.primary, delete=delete_secondary)
        self._forget(identifier)
        return True

    def repair(self, winner: str | None = None) -> RepairReport:
        """Have both sides hold the same objects: what one lacks is copied there, verified; nothing is deleted.

        All that both have is compared by digest. Of two that differ, what this instance knows decides: the secondary's
        was written while the primary was out of reach, or the write of both failed, and what readers see stays. Of
        all others *winner* is copied over the other one, which is then gone; without a winner both stay as they are
        and are reported. (Times prove nothing: most stores show the time that a writer gave them, and two stores have
        two clocks.) Not for while others write.

        Args:
            winner: "primary", "secondary", or None.

        Returns:
            What was done.

        Raises:
            StorageError: a side cannot be listed, or is full, ...; single objects' errors are in the report.
        """
        if winner is not None:
            _check_word("winner", winner, WRITE_TO[:2])
        failures = Failures()
        moved: dict[str, Identifiers] = {"primary": [], "secondary": []}
        undecided: Identifiers = []
        same = 0
        sides = {"primary": self.primary, "secondary": self.secondary}
        for name, here, there in paired(self.primary.scan(), self.secondary.scan()):
            with failures.of(name):
                if here is None or there is None:
                    source = "secondary" if here is None else "primary"
                elif not differ(self.primary, self.secondary, here, there):
                    same += 1
                    self._forget(name)
                    continue
                else:
                    source = self._what_counts(name) or winner or ""
                    if not source:
                        undecided.append(name)
                        continue
                target = "primary" if source == "secondary" else "secondary"
                copied(sides[source], sides[target], name)
                moved[target].append(name)
                self._forget(name)
        return RepairReport(
            same, tuple(moved["primary"]), tuple(moved["secondary"]), tuple(undecided), failures.errors
        )

    def _order(self, identifier: str | None) -> tuple[StorageBackend, StorageBackend]:
        """The sides in the order in which a read asks them."""
        if identifier is None:
            second_first = self.write_to == "secondary"
        else:
            second_first = self._secondary_is_first(identifier)
        return (self.secondary, self.primary) if second_first else (self.primary, self.secondary)

    def _secondary_is_first(self, identifier: str) -> bool:
        return self.write_to == "secondary" or identifier in self._strayed

    @property
    def _target(self) -> StorageBackend:
        """The side that is written; of both, the primary."""
        return self.secondary if self.write_to == "secondary" else self.primary

    @property
    def _writes_once(self) -> bool:
        """Whether a write is one call of one side."""
        return self.write_to == "secondary" or (self.write_to == "primary" and self.on_error == "raise")

    @property
    def _both(self) -> tuple[StorageBackend, StorageBackend]:
        """The sides in the order in which a write to both reaches them."""
        stricter = capabilities_of(self.primary) & ~capabilities_of(self.secondary)
        if Capability.DIRECTORIES in stricter:
            return self.primary, self.secondary
        return self.secondary, self.primary

    def _check(self, identifier: str) -> None:
        """Refuse a name before anything is written, if a side would."""
        for side in self._both:
            side.get_path(identifier)

    def _forget(self, identifier: str) -> None:
        """Both sides agree on this one, or readers see what they should."""
        self._strayed.discard(identifier)
        self._torn.discard(identifier)

    def _what_counts(self, identifier: str) -> str | None:
        """The side whose object is the one that counts, as far as this instance knows."""
        if identifier in self._strayed:
            return "secondary"
        if identifier in self._torn:
            return "secondary" if self.write_to == "secondary" else "primary"
        return None

    def _is_out(self, side: StorageBackend, error: BaseException) -> bool:
        """Whether *side* is to be passed over, since it is out of reach."""
        if self.on_error != "fallback" or side is not self.primary:
            return False
        return is_retryable(error) or isinstance(error, ConnectionError | TimeoutError)

    def _is_down(self, side: StorageBackend, error: Exception) -> bool:
        """The same, and it is said in the log."""
        if not self._is_out(side, error):
            return False
        self._say_down([error])
        return True

    def _say_down(self, errors: Errors) -> None:
        if not errors:
            return
        # Only our own errors promise that their text has no secret in it.
        first = errors[0]
        reason = (
            f"{type(first).__name__}: {first}" if isinstance(first, StorageError) else type(first).__name__
        )
        logger.warning(
            "the primary %s is out of reach, %s is used in its place: %s",
            *(location_of(self.primary), location_of(self.secondary), reason),
        )

    def _first(self, identifier: str, call: Callable[[StorageBackend], T]) -> T:
        """What *call* gives of the first side that has the object."""
        absences: Absences = []
        down: Exception | None = None
        for side in self._order(identifier):
            try:
                return call(side)
            except Exception as error:
                if _is_absence(error):
                    absences.append((side, error))
                elif self._is_down(side, error):
                    down = error
                else:
                    raise
        raise self._absence(identifier, absences) if down is None else down

    def _side_with(self, identifier: str, *, past: bool = True) -> StorageBackend | None:
        """The first side that has the object; None if it is in neither.

        Args:
            identifier: the object.
            past: pass over a primary that is out of reach, where that is wanted.
        """
        down: Exception | None = None
        for side in self._order(identifier):
            try:
                if side.exists(identifier):
                    return side
            except Exception as error:
                if not past or not self._is_down(side, error):
                    raise
                down = error
        if down is not None:
            raise down
        return None

    def _source_side(self, identifier: str, *, past: bool = True) -> StorageBackend:
        """The side whose object is copied or moved; *past* as for `_side_with`.

        Raises:
            NotFoundError: "Source file not found".
        """
        side = self._side_with(identifier, past=past)
        if side is not None:
            return side
        with suppress(FileNotFoundError):
            self.size(identifier)  # which says what is wrong with it
        raise NotFoundError(
            f"Source file not found: {identifier!r} not found in primary or secondary of {self.location}",
            identifier=identifier,
            backend=self.location,
        )

    def _hides(self, side: StorageBackend, dest_id: str) -> bool:
        """Whether what *side* would have at a destination would be hidden behind what the other has there."""
        front = self._order(dest_id)[0]
        if side is front:
            return False
        try:
            return front.exists(dest_id)
        except Exception as error:
            if not self._is_down(front, error):
                raise
            self._strayed.add(dest_id)
            return False

    def _absence(self, identifier: str, absences: Absences) -> Exception:
        """The error for what is in neither."""
        refusals = [found for found in absences if isinstance(found[1], InvalidIdentifierError)]
        for side, error in refusals:
            # A name that can be written is not refused because the other side could not have it.
            if len(refusals) == len(absences) or self.write_to == "both" or side is self._target:
                return error
        for _, error in absences:
            if isinstance(error, IsADirectoryError):
                return error
        return NotFoundError(
            f"{identifier!r} not found in primary or secondary of {self.location}",
            identifier=identifier,
            backend=self.location,
        )

    def _of_both(self, identifier: str, first: Exception | None, second: Exception) -> Exception:
        """The error for an object that the second side did not give either."""
        if not _is_absence(second):
            return second
        if first is not None and not _is_absence(first):
            return first
        front, back = self._order(None)
        return self._absence(
            identifier, [(back, second)] if first is None else [(front, first), (back, second)]
        )

    def _put(
        self, identifier: str, put: Callable[[StorageBackend], object], source: Source | None = None
    ) -> bool:
        """Write one object where `write_to` says."""
        if self.write_to == "both":
            self._check(identifier)
            self._torn.add(identifier)
            first, second = self._both
        else:
            first, second = self._target, None
        strayed = False
        try:
            put(first)
        except Exception as error:
            if not self._is_down(first, error):
                raise
            # `first` is the primary: what the secondary takes alone is what counts.
            strayed = True
            self._again(source, identifier)
            try:
                put(self.secondary)
            except Exception as second_error:
                raise error from second_error
        if second is not None and not strayed:
            self._again(source, identifier)
            try:
                put(second)
            except Exception as error:
                if not self._is_down(second, error):
                    self._say_torn(identifier, second)
                    raise
                strayed = True
        self._forget(identifier)
        if strayed:
            self._strayed.add(identifier)
        return True

    def _again(self, source: Source | None, identifier: str) -> None:
        if source is not None and not source.rewind():
            raise StorageError(
                f"the source of {identifier!r} cannot be read a second time, for the second side of {self.location}",
                identifier=identifier,
                backend=self.location,
            )

    def _say_torn(self, identifier: str, missing: StorageBackend) -> None:
        logger.warning(
            "%r was stored in one side of %s and not in %s; write it again, or call repair()",
            *(identifier, self.location, location_of(missing)),
        )

    def _put_group(self, group: Items, failures: Failures, verify: bool) -> None:
        """Write many objects where `write_to` says; the errors of those that failed are noted."""
        wanted: Items = []
        for key, content in group:
            name = name_of(key)
            failures.errors.pop(name, None)
            with failures.of(name):
                self._check(name)
                wanted.append((key, content))
        first, second = self._both if self.write_to == "both" else (self._target, None)
        if second is not None:
            self._torn.update(name_of(key) for key, _ in wanted)
        lost = self._written(first, wanted, verify)
        down = {name for name, error in lost.items() if self._is_out(first, error)}
        self._say_down([lost[name] for name in down])
        for name, error in lost.items():
            if name not in down:
                failures.note(name, error)
        rest = [item for item in wanted if name_of(item[0]) not in failures.errors]
        if second is None:
            second = self.secondary
            again = [item for item in rest if name_of(item[0]) in down]
        else:
            again = rest
        strayed = set(down)
        lost_too = self._written(second, again, verify)
        self._say_down([error for error in lost_too.values() if self._is_out(second, error)])
        for name, error in lost_too.items():
            if name in down:
                failures.note(name, lost[name])
            elif self._is_out(second, error):
                strayed.add(name)
            else:
                self._say_torn(name, second)
                failures.note(name, error)
        for key, _ in rest:
            name = name_of(key)
            if name not in failures.errors:
                self._forget(name)
                if name in strayed:
                    self._strayed.add(name)

    def _written(self, side: StorageBackend, items: Items, verify: bool) -> dict[str, Exception]:
        """Store many objects on one side; the errors of those that failed."""
        if not items:
            return {}
        try:
            return _failures_of(lambda: side.write_many(items, verify=verify))
        except Exception as error:
            if not self._is_out(side, error):
                raise
            return dict.fromkeys((name_of(key) for key, _ in items), error)

    def _migrated(
        self, identifier: str, name: str, source: StorageBackend, target: StorageBackend, *, delete: bool
    ) -> bool:
        try:
            copied(source, target, identifier)
        except FileNotFoundError as error:
            if isinstance(error, NO_PLACE) or source.exists(identifier):
                raise
            raise NotFoundError(
                f"{identifier!r} not found in {name} {location_of(source)}",
                identifier=identifier,
                backend=self.location,
            ) from error
        if delete:
            source.delete(identifier)
        return True

    def _refused(self, method: str, identifier: str | None) -> UnsupportedOperationError:
        return UnsupportedOperationError(
            f"{self.location} has no {method}(): its two sides cannot both do it as one; use that of `primary` or "
            "`secondary`",
            identifier=identifier,
            backend=self.location,
        )


class _Asked:
    """The identifiers of a batch as they are asked for, and those that have not come yet.

    Args:
        identifiers: the caller's.
        aside: those that are not to be asked for the first time.

    Attributes:
        raised: what the caller's iterable raised.
    """

    def __init__(self, identifiers: Iterable[str], aside: Iterable[str]) -> None:
        self.raised: BaseException | None = None
        self._rest = iter(identifiers)
        self._aside = aside
        self._pending: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        try:
            for identifier in self._rest:
                self._pending[identifier] += 1
                if identifier not in self._aside:
                    yield identifier
        except Exception as error:
            self.raised = error
            raise

    def came(self, identifier: str, *, all_of_it: bool = False) -> None:
        """This one need not be asked for again."""
        self._pending[identifier] -= 1
        if all_of_it or self._pending[identifier] <= 0:
            del self._pending[identifier]

    def pending(self) -> list[str]:
        """Those that have not come, as of now."""
        return [*self._pending.elements()]


class _SameAgain(HashingReader):
    """Reads again what another one read; what has come since is left.

    Raises when it ends, so that nothing is stored, if that is no longer the same.
    """

    def __init__(self, reader: BinaryIO, before: HashingReader) -> None:
        super().__init__(reader)
        self._before = before

    @override
    def read(self, size: int = -1, /) -> bytes:
        left = self._before.size - self.size
        chunk = super().read(left if size < 0 else min(size, left)) if left else b""
        ended = self.size == self._before.size or (not chunk and size != 0)
        if ended and self.hexdigest() != self._before.hexdigest():
            raise SourceChangedError(
                "the source gave other bytes when it was read again; nothing was stored there"
            )
        return chunk


def _check_word(parameter: str, word: object, known: tuple[str, ...]) -> None:
    if word not in known:
        listed = ", ".join(map(repr, known[:-1])) + f" or {known[-1]!r}"
        raise ConfigurationError(f"{parameter} must be {listed}, not {word!r}", parameter=parameter)


def _is_absence(error: BaseException) -> bool:
    return isinstance(error, ABSENT) and not isinstance(error, NO_PLACE)


def _done(result: object, side: StorageBackend, identifier: str) -> bool:
    """True; False of a class that may be a user's is a failure."""
    if result is False:
        where = location_of(side)
        raise StorageError(f"{where} did not store {identifier!r}", identifier=identifier, backend=where)
    return True


def _carried(source: StorageBackend, target: StorageBackend, source_id: str, dest_id: str) -> bool:
    """Copy an object from one side to the other, and check what was stored."""
    info = info_of(source.stat(source_id), source_id)
    with source.open(source_id) as reader:
        stored = target.write_stream(dest_id, reader, info=told_of(info, dest_id), verify=True)
    return _done(stored, target, dest_id)


def _failures_of(call: Callable[[], object]) -> dict[str, Exception]:
    """The failures of a batch."""
    try:
        call()
    except BatchError as error:
        return error.failures
    return {}


@contextmanager
def _replayable(reader: BinaryIO) -> Iterator[Source]:
    """*reader* as a source that can be read twice: itself where it seeks, else a copy of what it gives."""
    source = Source(reader)
    if source.seekable:
        yield source
        return
    with tempfile.SpooledTemporaryFile(max_size=SPOOL) as spool:
        for chunk in chunks(reader):
            spool.write(chunk)
        spool.seek(0)
        yield Source(cast(BinaryIO, spool))
