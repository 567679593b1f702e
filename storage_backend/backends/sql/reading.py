"""Reads objects: never a mix of two versions, and a whole object is compared with its digest."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from storage_backend import identifiers
from storage_backend.backends.sql.object_row import ObjectRow
from storage_backend.base import not_found
from storage_backend.errors import IntegrityError, SourceChangedError
from storage_backend.streams import Moved, ranged_reader

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from storage_backend.backends.sql.database import Database

Result = TypeVar("Result")

AT_ONCE = 4 << 20  # bytes in one query result


def find(database: Database, identifier: str) -> ObjectRow:
    """The object's row.

    Raises:
        NotFoundError: there is none.
    """
    return _query(database, identifier, database.statements.find)


def read(database: Database, identifier: str) -> tuple[bytes, ObjectRow]:
    """The whole object, and its row."""
    row, content = _first(database, identifier)
    if row.size <= row.chunk_size:
        return content, row

    def work(connection: Connection) -> tuple[bytes, ObjectRow]:
        found = _found(database, identifier, database.statements.find(connection, row.name))
        buffer = io.BytesIO()
        for piece in _pieces(database, connection, found, 0, found.size):
            buffer.write(piece)
        content = buffer.getvalue()  # not a copy
        check(database, identifier, found, content)
        return content, found

    return database.snapshot(work, identifier)


def read_range(database: Database, identifier: str, start: int, end: int | None) -> tuple[bytes, ObjectRow]:
    """The bytes of [start, end), or from *start* to the end, as far as they exist; and the object's row."""
    if end is None or end - start > AT_ONCE:
        identifiers.check(identifier)

        def work(connection: Connection) -> tuple[bytes, ObjectRow]:
            found = _found(database, identifier, database.statements.find(connection, identifier.encode()))
            stop = found.size if end is None else min(end, found.size)
            content = b"".join(_pieces(database, connection, found, start, stop))
            _check_length(database, identifier, len(content), stop - start)
            return content, found

        return database.snapshot(work, identifier)
    row, content = _query(
        database,
        identifier,
        lambda connection, name: database.statements.span_of_object(connection, name, start, end),
    )
    _check_length(database, identifier, len(content), min(end, row.size) - start)
    return content, row


def open_reader(database: Database, identifier: str) -> tuple[BinaryIO, ObjectRow]:
    """A seekable reader of the object's current version, and its row."""
    row, content = _first(database, identifier)
    if row.size <= row.chunk_size:
        return io.BytesIO(content), row
    pinned = PinnedVersion(database, identifier, row)
    return ranged_reader(pinned.fetch, row.size, row.chunk_size), row


def checksum(database: Database, identifier: str, moved: Moved) -> str:
    """The SHA-256 of the bytes as read now. *moved* is called with the number of bytes of each piece."""
    row, content = _first(database, identifier)
    if len(content) < row.size:
        pinned = PinnedVersion(database, identifier, row)
        for start in range(0, row.size, row.chunk_size):
            moved(len(pinned.fetch(start, min(start + row.chunk_size, row.size))))
    return row.sha256.hex()


def check(database: Database, identifier: str, row: ObjectRow, content: bytes) -> None:
    """Raise an IntegrityError unless *content* has the size and digest of what was written."""
    if len(content) != row.size or hashlib.sha256(content, usedforsecurity=False).digest() != row.sha256:
        raise _damaged(database, identifier)


class PinnedVersion:
    """Reads ranges of one version. A sequential read of all bytes is compared with the digest."""

    def __init__(self, database: Database, identifier: str, row: ObjectRow) -> None:
        self._database = database
        self._identifier = identifier
        self._row = row
        self._digest = hashlib.sha256(usedforsecurity=False)
        self._digested = 0

    def fetch(self, start: int, end: int) -> bytes:
        """The bytes of [start, end)."""
        content = self._database.run(
            lambda connection: self._database.statements.span(connection, self._row, start, end),
            self._identifier,
        )
        if len(content) != end - start:
            raise self._missing_bytes()
        if start == self._digested:
            self._digest.update(content)
            self._digested = end
            if end == self._row.size and self._digest.digest() != self._row.sha256:
                raise _damaged(self._database, self._identifier)
        return content

    def _missing_bytes(self) -> IntegrityError | SourceChangedError:
        statements, name = self._database.statements, self._row.name
        current = self._database.run(lambda connection: statements.version_of(connection, name))
        if current == self._row.version:
            return _damaged(self._database, self._identifier)
        where = self._database.address.location
        return SourceChangedError(
            f"{self._identifier!r} in {where} was {'deleted' if current is None else 'replaced'} while it was read",
            identifier=self._identifier,
            backend=where,
        )


def _first(database: Database, identifier: str) -> tuple[ObjectRow, bytes]:
    """The object's row and first chunk, compared with the digest if it is the only one."""
    row, content = _query(database, identifier, database.statements.read)
    if row.size <= row.chunk_size:
        check(database, identifier, row, content)
    return row, content


def _query(
    database: Database, identifier: str, query: Callable[[Connection, bytes], Result | None]
) -> Result:
    identifiers.check(identifier)
    name = identifier.encode()
    return _found(database, identifier, database.run(lambda connection: query(connection, name), identifier))


def _found(database: Database, identifier: str, found: Result | None) -> Result:
    if found is None:
        raise not_found(identifier, database.address.location)
    return found


def _pieces(
    database: Database, connection: Connection, row: ObjectRow, start: int, end: int
) -> Iterator[bytes]:
    step = max(1, AT_ONCE // row.chunk_size) * row.chunk_size
    while start < end:
        # End at a multiple of the chunk size, so that no chunk is read twice.
        stop = min((start // step + 1) * step, end)
        yield database.statements.span(connection, row, start, stop)
        start = stop


def _check_length(database: Database, identifier: str, found: int, expected: int) -> None:
    if found != max(0, expected):
        raise _damaged(database, identifier)


def _damaged(database: Database, identifier: str) -> IntegrityError:
    where = database.address.location
    return IntegrityError(
        f"the bytes of {identifier!r} in {where} are not those that were stored; restore it from a copy",
        identifier=identifier,
        backend=where,
    )
