"""Statements: the SQL, composed once. Each method runs in the current transaction of *connection*."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Connection,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    true,
    update,
)

from storage_backend.backends.sql.object_row import ObjectRow
from storage_backend.backends.sql.schema import chunks, objects, unpublished

RETIRED_AT_ONCE = 64  # chunks of superseded versions that one transaction deletes; more would block others

_COUNTED = {"preserve_rowcount": True}  # SQLAlchemy drops the row count of an INSERT otherwise

_NOW = {  # seconds since 1970, by the database's clock: all clients share it
    "sqlite": "CAST(strftime('%s', 'now') AS INTEGER)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS BIGINT)",
}


_FIELDS = tuple(objects.c[name] for name in ObjectRow._fields)


class Statements:
    """The SQL statements on the tables.

    Args:
        dialect: "sqlite" or "postgresql".
    """

    def __init__(self, dialect: str) -> None:
        # Imported by dialect: importing PostgreSQL's takes longer than opening an SQLite file.
        upsert_of: Callable[[Any], Any] = import_module(f"sqlalchemy.dialects.{dialect}").insert
        one = objects.c.name == bindparam("name")
        many = objects.c.name.in_(bindparam("names", expanding=True))
        versions: BindParameter[Any] = bindparam("versions", expanding=True)
        now = literal_column(_NOW[dialect], BigInteger)
        first = and_(chunks.c.version == objects.c.version, chunks.c.seq == 0)
        start, end = bindparam("start", type_=BigInteger), bindparam("end", type_=BigInteger)

        self._find = select(*_FIELDS).where(one)
        self._lock = self._find.with_for_update(read=True)
        self._find_many = select(*_FIELDS).where(many)
        self._version = select(objects.c.version).where(one)
        with_first = select(*_FIELDS, chunks.c.data).outerjoin_from(objects, chunks, first)
        self._read: Select[Any] = with_first.where(one)
        self._read_many: Select[Any] = with_first.where(many)
        self._span_of_object = _span(
            select(*_FIELDS, chunks.c.data).outerjoin_from(
                objects, chunks, _within(objects.c.chunk_size, start, end)
            ),
            objects.c.chunk_size,
            start,
            end,
        ).where(one)
        self._contents = select(chunks.c.version, chunks.c.data).where(
            chunks.c.version.in_(versions), chunks.c.seq == 0
        )
        length = bindparam("chunk_size", type_=BigInteger)
        self._span = _span(select(chunks.c.data), length, start, end).where(
            chunks.c.version == bindparam("version"),
            chunks.c.seq >= start // length,
            chunks.c.seq <= (end - 1) // length,
        )
        low = objects.c.name >= bindparam("low")
        below = objects.c.name < bindparam("high")
        self._pages = {
            (columns, bounded): select(*columns)
            .where(low, below if bounded else true())
            .order_by(objects.c.name)
            .limit(bindparam("limit", type_=BigInteger))
            for columns in (_FIELDS, _FIELDS[:1])
            for bounded in (True, False)
        }

        insert_chunk = upsert_of(chunks)
        # A transaction whose acknowledgement was lost is repeated, with the same versions.
        self._insert_chunk = insert_chunk.on_conflict_do_nothing()
        copied = select(
            bindparam("new", type_=chunks.c.version.type).label("version"), chunks.c.seq, chunks.c.data
        ).where(
            chunks.c.version == bindparam("old"),
            chunks.c.seq >= bindparam("first"),
            chunks.c.seq < bindparam("stop"),
        )
        self._copy_chunks = (
            upsert_of(chunks)
            .from_select(["version", "seq", "data"], copied)
            .on_conflict_do_nothing()
            .execution_options(**_COUNTED)
        )

        upsert = upsert_of(objects)
        self._upsert = upsert.on_conflict_do_update(
            index_elements=[objects.c.name],
            set_={field: upsert.excluded[field] for field in ObjectRow._fields[1:]}
            | {"previous": objects.c.version},
            where=objects.c.version != upsert.excluded.version,
        )
        self._upsert_one = self._upsert.returning(objects.c.previous)
        self._previous = select(objects.c.previous).where(many, objects.c.previous.is_not(None))
        self._create = upsert_of(objects).on_conflict_do_nothing().execution_options(**_COUNTED)
        self._replace = (
            update(objects)
            .where(objects.c.name == bindparam("key"), objects.c.version == bindparam("old"))
            .values({field: bindparam(field) for field in ObjectRow._fields[1:]})
        )
        self._rename = (
            update(objects)
            .where(objects.c.name == bindparam("source"))
            .values(name=bindparam("target"), previous=None)
        )
        self._delete = delete(objects).where(many).returning(objects.c.version)

        of_versions = chunks.c.version.in_(versions)
        self._retire = delete(chunks).where(of_versions, chunks.c.seq < RETIRED_AT_ONCE)
        leftover = select(chunks.c.version, literal(0, BigInteger)).where(of_versions).distinct()
        self._leave = (
            insert(unpublished).from_select(["version", "beat"], leftover).execution_options(**_COUNTED)
        )

        live = and_(unpublished.c.version.in_(versions), unpublished.c.beat > 0)
        register = upsert_of(unpublished).values(version=bindparam("version"), beat=now)
        self._register = register.on_conflict_do_nothing()
        self._beat = update(unpublished).where(live).values(beat=now)
        self._release = delete(unpublished).where(live)
        self._discard = update(unpublished).where(unpublished.c.version.in_(versions)).values(beat=0)
        stale = unpublished.c.beat <= now - bindparam("age", type_=BigInteger)
        self._stale = select(unpublished.c.version).where(stale | (unpublished.c.beat == 0))
        self._condemn = (
            update(unpublished)
            .where(unpublished.c.version == bindparam("key"), stale | (unpublished.c.beat == 0))
            .values(beat=0)
        )
        some = select(chunks.c.seq).where(chunks.c.version == bindparam("version")).limit(RETIRED_AT_ONCE)
        self._prune = delete(chunks).where(chunks.c.version == bindparam("version"), chunks.c.seq.in_(some))
        # Keep the row while chunks remain: another process that deletes the same garbage may be killed.
        remaining = select(chunks.c.seq).where(chunks.c.version == bindparam("version")).exists()
        self._forget = delete(unpublished).where(unpublished.c.version == bindparam("version"), ~remaining)

    def find(self, connection: Connection, name: bytes) -> ObjectRow | None:
        """The object's row."""
        return _row(connection.execute(self._find, {"name": name}).first())

    def find_many(self, connection: Connection, names: Sequence[bytes]) -> list[ObjectRow]:
        """The rows of those objects that exist."""
        return [ObjectRow._make(row) for row in connection.execute(self._find_many, {"names": names})]

    def version_of(self, connection: Connection, name: bytes) -> bytes | None:
        """The version that the object points to."""
        return typing.cast("bytes | None", connection.execute(self._version, {"name": name}).scalar())

    def read(self, connection: Connection, name: bytes) -> tuple[ObjectRow, bytes] | None:
        """The object's row and its first chunk."""
        row = connection.execute(self._read, {"name": name}).first()
        return None if row is None else _with_data(row)

    def read_many(self, connection: Connection, names: Sequence[bytes]) -> list[tuple[ObjectRow, bytes]]:
        """The rows and first chunks of those objects that exist."""
        return [_with_data(row) for row in connection.execute(self._read_many, {"names": names})]

    def contents(self, connection: Connection, versions: Sequence[bytes]) -> dict[bytes, bytes]:
        """The first chunks of versions that have any."""
        rows = connection.execute(self._contents, {"versions": versions})
        return {row.version: row.data for row in rows}

    def lock(self, connection: Connection, name: bytes) -> ObjectRow | None:
        """As `find`, and lock the row until the end of the transaction."""
        return _row(connection.execute(self._lock, {"name": name}).first())

    def span_of_object(
        self, connection: Connection, name: bytes, start: int, end: int
    ) -> tuple[ObjectRow, bytes] | None:
        """The object's row, and its bytes of [start, end) as far as they exist."""
        rows = connection.execute(
            self._span_of_object, {"name": name, "start": start, "end": max(end, start + 1)}
        ).all()
        if not rows:
            return None
        return _with_data(rows[0])[0], b"".join(row[-1] for row in rows if row[-1] is not None)[: end - start]

    def span(self, connection: Connection, row: ObjectRow, start: int, end: int) -> bytes:
        """The bytes of a version in [start, end), which must not be empty, as far as they exist."""
        pieces = connection.execute(
            self._span,
            {"version": row.version, "chunk_size": row.chunk_size, "start": start, "end": end},
        ).scalars()
        found = pieces.all()
        return typing.cast(bytes, found[0]) if len(found) == 1 else b"".join(found)

    def page(self, connection: Connection, low: bytes, high: bytes | None, limit: int) -> list[ObjectRow]:
        """The first rows with low <= name < high, ascending."""
        return [ObjectRow._make(row) for row in self._rows(connection, _FIELDS, low, high, limit)]

    def names(self, connection: Connection, low: bytes, high: bytes | None, limit: int) -> list[bytes]:
        """As `page`, but only the names."""
        return [row[0] for row in self._rows(connection, _FIELDS[:1], low, high, limit)]

    def _rows(
        self, connection: Connection, columns: tuple[Any, ...], low: bytes, high: bytes | None, limit: int
    ) -> Sequence[Row[Any]]:
        bounds = {"low": low, "limit": limit} | ({} if high is None else {"high": high})
        return connection.execute(self._pages[columns, high is not None], bounds).all()

    def insert_chunks(self, connection: Connection, rows: Sequence[tuple[bytes, int, bytes]]) -> None:
        """Insert (version, seq, data)."""
        parameters = [{"version": version, "seq": seq, "data": data} for version, seq, data in rows]
        if parameters:
            connection.execute(self._insert_chunk, parameters)

    def copy_chunks(self, connection: Connection, old: bytes, new: bytes, first: int, stop: int) -> int:
        """Copy the chunks [first, stop) from one version to another. Returns their number."""
        parameters = {"old": old, "new": new, "first": first, "stop": stop}
        return connection.execute(self._copy_chunks, parameters).rowcount

    def put(self, connection: Connection, rows: Sequence[ObjectRow]) -> bool:
        """Point distinct names to versions, and retire the versions that they replace. Returns what `retire` does."""
        if len(rows) == 1:
            previous = connection.execute(self._upsert_one, rows[0]._asdict()).scalars().all()
        else:
            connection.execute(self._upsert, [row._asdict() for row in rows])
            names = {"names": [row.name for row in rows]}
            previous = connection.execute(self._previous, names).scalars().all()
        return self.retire(connection, [version for version in previous if version is not None])

    def create(self, connection: Connection, row: ObjectRow) -> bool:
        """Point the name to the version unless the object exists. Returns whether it points there now."""
        if connection.execute(self._create, row._asdict()).rowcount == 1:
            return True
        return self.version_of(connection, row.name) == row.version

    def replace(self, connection: Connection, row: ObjectRow, old: bytes) -> bool:
        """Point the name from version *old* to this one. Returns whether it points there now."""
        parameters = row._asdict() | {"key": row.name, "old": old}
        del parameters["name"]
        if connection.execute(self._replace, parameters).rowcount == 1:
            return True
        return self.version_of(connection, row.name) == row.version

    def rename(self, connection: Connection, source: bytes, target: bytes) -> bool:
        """Rename an object to a free name. Returns whether it existed."""
        return connection.execute(self._rename, {"source": source, "target": target}).rowcount == 1

    def delete(self, connection: Connection, names: Sequence[bytes]) -> list[bytes]:
        """Delete the rows of objects. Returns the versions that they pointed to."""
        return list(connection.execute(self._delete, {"names": names}).scalars())

    def retire(self, connection: Connection, versions: Sequence[bytes]) -> bool:
        """Delete chunks of versions that no object points to. Returns whether garbage remains, for `prune`."""
        if not versions:
            return False
        if connection.execute(self._retire, {"versions": versions}).rowcount < RETIRED_AT_ONCE:
            return False
        return connection.execute(self._leave, {"versions": versions}).rowcount > 0

    def register(self, connection: Connection, version: bytes) -> None:
        """Register an upload."""
        connection.execute(self._register, {"version": version})

    def beat(self, connection: Connection, versions: Sequence[bytes]) -> int:
        """Record a heartbeat of uploads. Returns how many of them were not swept."""
        return connection.execute(self._beat, {"versions": versions}).rowcount

    def release(self, connection: Connection, version: bytes) -> bool:
        """Unregister a complete upload. Returns False if it was swept."""
        return connection.execute(self._release, {"versions": [version]}).rowcount == 1

    def discard(self, connection: Connection, versions: Sequence[bytes]) -> None:
        """Mark uploads as garbage."""
        connection.execute(self._discard, {"versions": versions})

    def stale(self, connection: Connection, age: int) -> list[bytes]:
        """Garbage, and uploads without a heartbeat for *age* seconds."""
        return list(connection.execute(self._stale, {"age": age}).scalars())

    def condemn(self, connection: Connection, version: bytes, age: int) -> bool:
        """Mark an upload as garbage if it is still stale. Returns whether it is garbage now."""
        return connection.execute(self._condemn, {"key": version, "age": age}).rowcount == 1

    def prune(self, connection: Connection, version: bytes) -> bool:
        """Delete some chunks of garbage. Returns whether more may remain."""
        if connection.execute(self._prune, {"version": version}).rowcount == RETIRED_AT_ONCE:
            return True
        connection.execute(self._forget, {"version": version})
        return False


def _within(chunk_size: Any, start: Any, end: Any) -> Any:
    return and_(
        chunks.c.version == objects.c.version,
        chunks.c.seq >= start // chunk_size,
        chunks.c.seq <= (end - 1) // chunk_size,
    )


def _span(query: Select[Any], chunk_size: Any, start: Any, end: Any) -> Select[Any]:
    """*query* with the last column, a chunk's data, cut to [start, end) of the object."""
    *others, data = query.selected_columns
    begin = chunks.c.seq * chunk_size
    skipped = case((begin < start, start - begin), else_=0)
    stop = case((begin + chunk_size > end, end - begin), else_=chunk_size)
    # PostgreSQL's substr takes no BIGINT; SQLite's copies even the whole.
    part = func.substr(data, cast(skipped + 1, Integer), cast(stop - skipped, Integer), type_=data.type)
    piece = case(((begin >= start) & (begin + chunk_size <= end), data), else_=part)
    return query.with_only_columns(*others, piece, maintain_column_froms=True).order_by(chunks.c.seq)


def _row(row: Row[Any] | None) -> ObjectRow | None:
    return None if row is None else ObjectRow._make(row)


def _with_data(row: Row[Any]) -> tuple[ObjectRow, bytes]:
    return ObjectRow._make(row[:-1]), row[-1] or b""  # an empty object has no chunk
