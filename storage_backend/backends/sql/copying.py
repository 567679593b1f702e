"""Copies and renames objects within the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage_backend import identifiers
from storage_backend.backends.sql import reading
from storage_backend.backends.sql.chunked_upload import ChunkedUpload
from storage_backend.backends.sql.object_row import ObjectRow, new_version
from storage_backend.base import not_found
from storage_backend.errors import SourceChangedError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from storage_backend.backends.sql.database import Database

COPY_AT_ONCE = 16  # chunks that one transaction copies
COPY_ATTEMPTS = 10  # of a large object that others keep replacing


def copy(database: Database, source_id: str, dest_id: str) -> bool:
    """Copy an object. No byte leaves the database."""
    identifiers.check(dest_id)
    for _ in range(COPY_ATTEMPTS):
        row = reading.find(database, source_id)
        if source_id == dest_id:
            return True
        if row.chunks <= COPY_AT_ONCE:
            if _copy_small(database, source_id, dest_id):
                return True
        elif _copy_large(database, row, dest_id):
            return True
    where = database.address.location
    raise SourceChangedError(
        f"{source_id!r} in {where} was replaced during each attempt to copy it",
        identifier=source_id,
        backend=where,
        retryable=True,
    )


def move(database: Database, source_id: str, dest_id: str) -> bool:
    """Rename an object, in one transaction."""
    identifiers.check(dest_id)
    row = reading.find(database, source_id)
    if source_id == dest_id:
        return True
    statements, target = database.statements, dest_id.encode()

    def work(connection: Connection) -> bool:
        if statements.version_of(connection, row.name) is None:
            if statements.version_of(connection, target) == row.version:
                return False  # the acknowledgement of an earlier attempt was lost
            raise not_found(source_id, database.address.location)
        garbage = statements.retire(connection, statements.delete(connection, [target]))
        if not statements.rename(connection, row.name, target):
            raise not_found(source_id, database.address.location)
        return garbage

    if database.transact(work, source_id):
        database.collect()
    return True


def _copy_small(database: Database, source_id: str, dest_id: str) -> bool:
    """Copy in one transaction. Returns False if the object has become too large for that."""
    statements, name = database.statements, source_id.encode()

    def work(connection: Connection) -> bool | None:
        row = statements.lock(connection, name)
        if row is None:
            raise not_found(source_id, database.address.location)
        if row.chunks > COPY_AT_ONCE:
            return None
        target = row._replace(name=dest_id.encode(), version=new_version())
        statements.copy_chunks(connection, row.version, target.version, 0, row.chunks)
        return statements.put(connection, [target])

    garbage = database.transact(work, source_id)
    if garbage:
        database.collect()
    return garbage is not None


def _copy_large(database: Database, source: ObjectRow, dest_id: str) -> bool:
    """Copy in several transactions. Returns False if the object was replaced meanwhile."""
    upload = ChunkedUpload(database, dest_id)
    try:
        if not upload.copy_from(source, COPY_AT_ONCE):
            return False
        copied = source._replace(name=dest_id.encode(), version=upload.version)
        upload.publish(copied, lambda connection, row: database.statements.put(connection, [row]))
    finally:
        upload.discard()
    return True
