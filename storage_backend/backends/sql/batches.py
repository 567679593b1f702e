"""Reads, writes and deletes many small objects with few statements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar, cast

from storage_backend import identifiers
from storage_backend.backends.sql import reading
from storage_backend.backends.sql.chunked_upload import check_stored
from storage_backend.backends.sql.object_row import CHUNK_SIZE, ObjectRow, new_row, new_version
from storage_backend.base import Item, not_found
from storage_backend.errors import FATAL, Failures, IntegrityError, is_retryable
from storage_backend.info import ObjectInfo
from storage_backend.streams import check_arrived, sha256, whole

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from storage_backend.backends.sql.database import Database

COUNT = 500  # identifiers in one statement; SQLite before 3.32 allows 999 parameters
BYTES = 8 << 20  # of content held in memory

Result = TypeVar("Result")
Names = Mapping[bytes, str]


def read_many(database: Database, wanted: Iterable[str], failures: Failures) -> Iterator[tuple[str, bytes]]:
    """Yield each object as often as *wanted* contains it; errors go to *failures*."""
    for batch in _slices(wanted):
        times = Counter(batch)
        names = _names(times, failures)
        query = partial(database.statements.find_many, names=list(names))
        rows = _for_all(failures, names.values(), partial(database.run, query))
        if rows is None:
            continue
        _note_missing(database, names, {row.name for row in rows}, failures)
        for group in _groups(rows):
            for identifier, content in _read(database, group, names, failures):
                for _ in range(times[identifier]):
                    yield identifier, content


def delete_many(database: Database, unwanted: Iterable[str], failures: Failures) -> int:
    """Delete objects, whether or not they exist. Returns the number of distinct identifiers."""
    distinct = set(unwanted)
    for batch in _slices(distinct):
        names = _names(batch, failures)
        # Sorted, or two such transactions could deadlock.
        _for_all(failures, names.values(), partial(delete, database, sorted(names)))
    return len(distinct)


def delete(database: Database, names: Sequence[bytes], identifier: str | None = None) -> bool:
    """Delete objects in one transaction. Returns whether any of them existed."""
    found = False

    def work(connection: Connection) -> bool:
        nonlocal found
        versions = database.statements.delete(connection, names)
        # Remains true if work is repeated because the acknowledgement of its commit was lost.
        found = found or bool(versions)
        return database.statements.retire(connection, versions)

    if database.transact(work, identifier):
        database.collect()
    return found


@dataclass(slots=True)
class PendingObject:
    """An object to be written. *times* counts it and the items of the same identifier that it superseded in this batch."""

    identifier: str
    content: bytes
    row: ObjectRow
    times: int = 1


class BatchWriter:
    """Collects small objects and stores them many at a time.

    Args:
        database: stores them.
        verify: read the stored bytes and compare their digest before publishing.
        failures: collects the errors.

    Attributes:
        stored: the number of items stored.
    """

    def __init__(self, database: Database, *, verify: bool, failures: Failures) -> None:
        self.stored = 0
        self._database = database
        self._verify = verify
        self._failures = failures
        self._pending: dict[str, PendingObject] = {}
        self._bytes = 0

    def add(self, item: Item, stream: Callable[[str, bytes, ObjectInfo | None], object]) -> None:
        """Add an item to the batch; store the batch if it is full.

        Args:
            item: identifier or info, and content.
            stream: stores an object that is too large for a batch.
        """
        key, content = item
        info = key if isinstance(key, ObjectInfo) else None
        identifier = info.identifier if info else cast(str, key)
        with self._failures.of(identifier):
            identifiers.check(identifier)
            self._failures.errors.pop(identifier, None)
            content = whole(content)
            if len(content) > CHUNK_SIZE:
                if identifier in self._pending:
                    self.finish()
                stream(identifier, content, info)
                self.stored += 1
                return
            digest = sha256(content)
            check_arrived(info, identifier, len(content), digest if self._verify else None)
            self._keep(identifier, content, new_row(identifier, new_version(), len(content), digest, info))

    def finish(self) -> None:
        """Store the pending objects."""
        # Sorted, or two such transactions could deadlock.
        batch = sorted(self._pending.values(), key=lambda pending: pending.row.name)
        self._pending = {}
        self._bytes = 0
        if batch:
            self._store(batch)

    def _keep(self, identifier: str, content: bytes, row: ObjectRow) -> None:
        pending = PendingObject(identifier, content, row)
        superseded = self._pending.pop(identifier, None)
        if superseded is not None:
            pending.times += superseded.times
            self._bytes -= len(superseded.content)
        self._pending[identifier] = pending
        self._bytes += len(content)
        if len(self._pending) >= COUNT or self._bytes >= BYTES:
            self.finish()

    def _store(self, batch: Sequence[PendingObject]) -> None:
        try:
            self._transact(batch)
        except FATAL:
            raise
        except Exception as error:  # noqa: BLE001 - kept, and raised by raise_any
            if len(batch) == 1 or is_retryable(error):
                for pending in batch:
                    self._failures.errors[pending.identifier] = error
                return
            # One of them fails: the others are stored without it.
            middle = len(batch) // 2
            self._store(batch[:middle])
            self._store(batch[middle:])

    def _transact(self, batch: Sequence[PendingObject]) -> None:
        statements = self._database.statements

        def work(connection: Connection) -> tuple[bool, dict[str, IntegrityError]]:
            statements.insert_chunks(
                connection,
                [(pending.row.version, 0, pending.content) for pending in batch if pending.content],
            )
            wrong = self._wrong(connection, batch) if self._verify else {}
            good = [pending.row for pending in batch if pending.identifier not in wrong]
            bad = [pending.row.version for pending in batch if pending.identifier in wrong]
            garbage = statements.retire(connection, bad)
            return (statements.put(connection, good) if good else False) or garbage, wrong

        self._database.sweep_now_and_then()
        garbage, wrong = self._database.transact(work, size=sum(len(each.content) for each in batch))
        self._failures.errors.update(wrong)
        self.stored += sum(pending.times for pending in batch if pending.identifier not in wrong)
        if garbage:
            self._database.collect()

    def _wrong(self, connection: Connection, batch: Sequence[PendingObject]) -> dict[str, IntegrityError]:
        """The objects whose stored bytes differ from what was written."""
        versions = [pending.row.version for pending in batch]
        found = self._database.statements.contents(connection, versions)
        wrong = {}
        for pending in batch:
            try:
                check_stored(pending.identifier, pending.row.sha256, found.get(pending.row.version, b""))
            except IntegrityError as error:
                wrong[pending.identifier] = error
        return wrong


def _read(
    database: Database, group: Sequence[bytes], names: Names, failures: Failures
) -> Iterator[tuple[str, bytes]]:
    query = partial(database.statements.read_many, names=group)
    rows = _for_all(failures, [names[name] for name in group], partial(database.run, query))
    if rows is None:
        return
    for row, first in rows:
        identifier = names[row.name]
        content = None
        with failures.of(identifier):
            if row.size > row.chunk_size:
                content, _ = reading.read(database, identifier)
            else:
                reading.check(database, identifier, row, first)
                content = first
        if content is not None:
            yield identifier, content
    # Those deleted since find_many.
    _note_missing(database, {name: names[name] for name in group}, {row.name for row, _ in rows}, failures)


def _groups(rows: Sequence[ObjectRow]) -> Iterator[list[bytes]]:
    """Names of objects to be read by one statement, of up to BYTES in total."""
    group: list[bytes] = []
    size = 0
    for row in rows:
        if group and size + row.size > BYTES:
            yield group
            group, size = [], 0
        group.append(row.name)
        size += row.size
    if group:
        yield group


def _slices(items: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(items)
    while batch := list(islice(iterator, COUNT)):
        yield batch


def _names(wanted: Iterable[str], failures: Failures) -> dict[bytes, str]:
    names = {}
    for identifier in wanted:
        with failures.of(identifier):
            identifiers.check(identifier)
            names[identifier.encode()] = identifier
    return names


def _note_missing(database: Database, names: Names, found: Collection[bytes], failures: Failures) -> None:
    for name, identifier in names.items():
        if name not in found:
            failures.errors[identifier] = not_found(identifier, database.address.location)


def _for_all(failures: Failures, concerned: Iterable[str], step: Callable[[], Result]) -> Result | None:
    """Return the result of *step*. If it fails, record its error for all identifiers in *concerned*."""
    try:
        return step()
    except FATAL:
        raise
    except Exception as error:  # noqa: BLE001 - kept, and raised by raise_any
        failures.errors.update(dict.fromkeys(concerned, error))
        return None
