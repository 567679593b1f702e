"""Moving and copying, within the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage_backend import identifiers
from storage_backend.backends.sql import reading
from storage_backend.backends.sql.entry import Entry, new_version
from storage_backend.backends.sql.upload import Upload
from storage_backend.base import not_found
from storage_backend.errors import SourceChangedError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from storage_backend.backends.sql.database import Database

COPY_AT_ONCE = 16  # chunks that one transaction copies
COPY_TRIES = 10  # of a large object that is replaced again and again


def copy(database: Database, source_id: str, dest_id: str) -> bool:
    """Store the bytes of one object under another name too. No byte leaves the database."""
    identifiers.check(dest_id)
    for _ in range(COPY_TRIES):
        entry = reading.find(database, source_id)
        if source_id == dest_id:
            return True
        if entry.chunks <= COPY_AT_ONCE:
            if _copy_small(database, source_id, dest_id):
                return True
        elif _copy_large(database, entry, dest_id):
            return True
    where = database.address.location
    raise SourceChangedError(
        f"{source_id!r} in {where} was replaced each time it was being copied",
        identifier=source_id,
        backend=where,
        retryable=True,
    )


def move(database: Database, source_id: str, dest_id: str) -> bool:
    """Give an object another name, in one transaction."""
    identifiers.check(dest_id)
    entry = reading.find(database, source_id)
    if source_id == dest_id:
        return True
    catalog, target = database.catalog, dest_id.encode()

    def work(connection: Connection) -> bool:
        if catalog.version_of(connection, entry.name) is None:
            if catalog.version_of(connection, target) == entry.version:
                return False  # the acknowledgement of an earlier attempt was lost
            raise not_found(source_id, database.address.location)
        garbage = catalog.retire(connection, catalog.delete(connection, [target]))
        if not catalog.rename(connection, entry.name, target):
            raise not_found(source_id, database.address.location)
        return garbage

    if database.transact(work, source_id):
        database.collect()
    return True


def _copy_small(database: Database, source_id: str, dest_id: str) -> bool:
    """Copy in one transaction; False if the object has become too large for that."""
    catalog, name = database.catalog, source_id.encode()

    def work(connection: Connection) -> bool | None:
        entry = catalog.lock(connection, name)
        if entry is None:
            raise not_found(source_id, database.address.location)
        if entry.chunks > COPY_AT_ONCE:
            return None
        target = entry._replace(name=dest_id.encode(), version=new_version())
        catalog.copy_chunks(connection, entry.version, target.version, 0, entry.chunks)
        return catalog.put(connection, [target])

    garbage = database.transact(work, source_id)
    if garbage:
        database.collect()
    return garbage is not None


def _copy_large(database: Database, source: Entry, dest_id: str) -> bool:
    """Copy in many transactions; False if the object has been replaced meanwhile."""
    upload = Upload(database, dest_id)
    try:
        if not upload.copy_from(source, COPY_AT_ONCE):
            return False
        copied = source._replace(name=dest_id.encode(), version=upload.version)
        upload.publish(copied, lambda connection, entry: database.catalog.put(connection, [entry]))
    finally:
        upload.discard()
    return True
