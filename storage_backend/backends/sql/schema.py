"""The tables, and their creation.

An object is a row of `sb_objects` that points to a version. Its bytes are the rows of `sb_chunks` of that version, all of
`chunk_size` bytes except the last. A version in `sb_unpublished` belongs to no object: its upload is running, or (beat 0)
it is garbage to be deleted. A version is never used twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    insert,
    inspect,
    select,
    update,
)

from storage_backend.errors import BaseDirectoryNotFoundError, ConfigurationError, UnavailableError

if TYPE_CHECKING:
    from storage_backend.backends.sql.address import Address

VERSION = 1
PAGE_SIZE = 16 << 10  # bytes; large objects are read and deleted several times as fast as with SQLite's 4 KiB
_CREATION_LOCK = 0x73625F736368656D  # arbitrary; other programs are unlikely to lock it

metadata = MetaData()

schema = Table(
    "sb_schema",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    # Counts flushes: a transaction that changes nothing is not synced.
    Column("flushes", BigInteger, nullable=False),
)

objects = Table(
    "sb_objects",
    metadata,
    Column("name", LargeBinary, primary_key=True),
    Column("version", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("chunk_size", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("modified", BigInteger, nullable=False),  # microseconds since 1970 in UTC
    Column("content_type", Text),
    Column("previous", LargeBinary),  # the version that this one replaced
    sqlite_with_rowid=False,  # clustered by name: a scan reads the table in order
)

chunks = Table(
    "sb_chunks",
    metadata,
    Column("version", LargeBinary, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

unpublished = Table(
    "sb_unpublished",
    metadata,
    Column("version", LargeBinary, primary_key=True),
    Column("beat", BigInteger, nullable=False),  # seconds since 1970 by the database's clock; 0 is garbage
)


def check(connection: Connection, address: Address) -> bool:
    """Whether the tables exist.

    Raises:
        ConfigurationError: they have an unknown version.
    """
    if not inspect(connection).has_table(schema.name):
        return False
    found = connection.execute(select(schema.c.version)).scalars().all()
    if found != [VERSION]:
        shown = ", ".join(map(str, found)) or "unknown"
        raise ConfigurationError(
            f"{address.location}: its tables have version {shown}, this program knows version {VERSION}; "
            "they were not changed: use the release that wrote them, or a newer one",
            backend=address.location,
        )
    return True


def create(connection: Connection, address: Address) -> None:
    """Create the tables, inside a transaction, unless another process has just done so."""
    if address.dialect == "postgresql":
        # CREATE TABLE IF NOT EXISTS fails if another transaction is creating the same table.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})")
    if check(connection, address):
        return
    metadata.create_all(connection)
    if address.dialect == "postgresql":
        # Out of line and uncompressed: three times as fast to write, and a slice is read alone.
        connection.exec_driver_sql(f"ALTER TABLE {chunks.name} ALTER COLUMN data SET STORAGE EXTERNAL")
    connection.execute(insert(schema).values(version=VERSION, flushes=0))


def touch(connection: Connection) -> None:
    """Change a row, so that the commit is synced."""
    if connection.execute(update(schema).values(flushes=schema.c.flushes + 1)).rowcount != 1:
        raise UnavailableError("the tables were dropped meanwhile; try again")


def missing(address: Address) -> BaseDirectoryNotFoundError:
    """The error for a database without our tables if they may not be created."""
    return BaseDirectoryNotFoundError(
        f"{address.location} holds no objects: it does not have the tables of this program",
        backend=address.location,
    )
