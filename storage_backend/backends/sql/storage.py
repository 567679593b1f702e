"""DatabaseStorage: the operations of a backend on a database."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from typing_extensions import override

from storage_backend import identifiers, url_escaping
from storage_backend.backends.sql import batches, copying, listing, reading
from storage_backend.backends.sql.address import DatabaseSettings, parse
from storage_backend.backends.sql.chunked_upload import ChunkedUpload, HashingSink, PointToVersion
from storage_backend.backends.sql.object_row import CHUNK_SIZE, ObjectRow, version_of
from storage_backend.base import Identifiers, Item, StorageBackend, not_found
from storage_backend.counted import Progress, delete_counted, read_counted, write_counted
from storage_backend.errors import (
    Failures,
    MissingClientError,
    PreconditionFailedError,
)
from storage_backend.hooks import Hooks, digest_of
from storage_backend.info import Capability, ObjectInfo
from storage_backend.last_seen import LastSeen
from storage_backend.lineage import Lineage, lineage, within
from storage_backend.scanning import OnSkip, one_level
from storage_backend.secrets import refuse_pickle
from storage_backend.streams import (
    Content,
    Moved,
    Writer,
    check_arrived,
    check_mode,
    check_range,
    chunks,
    hashing,
    plain,
    unwatched,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from storage_backend.backends.sql.database import Database


class DatabaseStorage(StorageBackend):
    """Objects in a database: an SQLite file, or PostgreSQL.

    The first write creates tables named `sb_*`. Objects of any size stream in bounded memory and never hold a lock longer than
    one short transaction: their bytes arrive in many, and the last one makes them visible. A complete read is compared with the
    SHA-256 that was computed during the write.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db`, or `postgresql://user@host:port/name?parameter=value` with
            libpq's parameters; percent-encoded.
        password: of PostgreSQL: itself (then this object cannot be pickled), "env:NAME" or "file:PATH". Without one,
            libpq uses PGPASSWORD or ~/.pgpass.
        create_if_missing: let the first write create the SQLite file (never its directory) and the tables; until then, the store
            is empty.
        durable: SQLite only: sync every commit, not only by `flush`. PostgreSQL follows the server's `synchronous_commit` (on by
            default).
        timeout_seconds: how long to wait for locks, for SQLite's writer, and for a free connection.
        connections: size of the connection pool of each process.
        stale_seconds: an unfinished upload of any process is swept after this time without a heartbeat. A live process
            sends ten heartbeats in that time, however slow its source.

    Raises:
        ConfigurationError: a parameter is wrong.
    """

    def __init__(
        self,
        url: str,
        *,
        password: str | None = None,
        create_if_missing: bool = True,
        durable: bool = False,
        timeout_seconds: float = 60.0,
        connections: int = 8,
        stale_seconds: float = 3600.0,
    ) -> None:
        self._address = parse(url, password)
        self._last_seen = LastSeen()
        self._settings = DatabaseSettings(
            create_if_missing, durable, timeout_seconds, connections, stale_seconds
        )

    def __getstate__(self) -> dict[str, Any]:
        advice = 'PGPASSWORD, .pgpass, password="env:NAME" or password="file:PATH"'
        refuse_pickle(self.location, self._address.password, advice=advice)
        return {"_address": self._address, "_settings": self._settings, "_last_seen": self._last_seen}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    @override
    def exists(self, identifier: str) -> bool:
        if not identifiers.is_valid(identifier):
            return False
        return self._version(identifier) is not None

    @override
    def read(self, identifier: str) -> bytes:
        content, row = reading.read(self._database, identifier)
        self._last_seen.note(row.info(identifier))
        return content

    @override
    def write(self, identifier: str, content: Content) -> bool:
        return self.write_stream(identifier, _reader(content))

    @override
    def delete(self, identifier: str) -> bool:
        identifiers.check(identifier)
        if not batches.delete(self._database, [identifier.encode()], identifier):
            raise not_found(identifier, self.location)
        return True

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        return listing.matching(self._database, pattern)

    @override
    def get_path(self, identifier: str) -> str:
        identifiers.check(identifier)
        return url_escaping.beneath(self.location, identifier)

    @override
    def size(self, identifier: str) -> int:
        return reading.find(self._database, identifier).size

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        return copying.copy(self._database, source_id, dest_id)

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        return copying.move(self._database, source_id, dest_id)

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        self._upload(identifier, reader, self._put, info=info, verify=verify)
        return True

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        return reading.find(self._database, identifier).info(identifier)

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        return listing.scan(self._database, prefix, on_skip)

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        return one_level(listing.scan(self._database, prefix, on_skip, prefix.count("/") + 1), prefix)

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        if mode == "rb":
            reader, row = reading.open_reader(self._database, identifier)
            self._last_seen.note(row.info(identifier))
            return reader
        identifiers.check(identifier)
        return cast(BinaryIO, Writer(HashingSink(ChunkedUpload(self._database, identifier), self._put)))

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        check_range(start, end)
        content, row = reading.read_range(self._database, identifier, start, end)
        self._last_seen.note(row.info(identifier))
        return content

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        if progress is not None:
            yield from read_counted(self.read_many(identifiers), progress)
            return
        failures = Failures()
        yield from batches.read_many(self._database, identifiers, failures)
        failures.raise_any("read", self.location)

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        failures = Failures()
        writing = batches.BatchWriter(self._database, verify=verify, failures=failures)

        def stream(identifier: str, content: bytes, info: ObjectInfo | None) -> None:
            self.write_stream(identifier, io.BytesIO(content), info=info, verify=verify)

        for item in items:
            writing.add(item, stream)
        writing.finish()
        failures.raise_any("write", self.location)
        return writing.stored

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        failures = Failures()
        count = batches.delete_many(self._database, identifiers, failures)
        failures.raise_any("delete", self.location)
        return count

    @override
    def create(self, identifier: str, content: Content) -> bool:
        identifiers.check(identifier)
        reader = _reader(content)
        if self._version(identifier) is not None:
            return False

        def point_to_version(connection: Connection, row: ObjectRow) -> bool:
            if not self._database.statements.create(connection, row):
                raise _TakenError
            return False

        try:
            self._upload(identifier, reader, point_to_version)
        except _TakenError:
            return False
        return True

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        identifiers.check(identifier)
        reader = _reader(content)
        old = version_of(etag)
        changed = PreconditionFailedError(
            f"{identifier!r} in {self.location} is gone, or is another version than {etag!r}",
            identifier=identifier,
            backend=self.location,
        )
        if old is None or old != self._version(identifier):
            raise changed

        def point_to_version(connection: Connection, row: ObjectRow) -> bool:
            if not self._database.statements.replace(connection, row, old):
                raise changed
            return self._database.statements.retire(connection, [old])

        return self._upload(identifier, reader, point_to_version).version.hex()

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        return self._checksum(identifier, algorithm, unwatched)

    def _checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        if algorithm != "sha256":
            return digest_of(self, identifier, algorithm, moved)
        return reading.checksum(self._database, identifier, moved)

    @override
    def flush(self) -> bool:
        self._database.flush()
        return True

    @property
    @override
    def capabilities(self) -> Capability:
        # Not CHECKSUM: the stored digest does not show later damage, so `checksum` reads the bytes.
        return (
            Capability.CREATE
            | Capability.REPLACE
            | Capability.RANGES
            | Capability.SERVER_COPY
            | Capability.FLUSH
        )

    @property
    @override
    def location(self) -> str:
        return self._address.location

    @property
    @override
    def keeps_modified(self) -> bool:
        return True

    @property
    @override
    def hooks(self) -> Hooks:
        return _DatabaseHooks(self)

    @override
    def close(self) -> None:
        if "_opened" in self.__dict__:
            self._database.close()

    def sweep(self, older_than_seconds: float | None = None) -> int:
        """Delete the bytes of abandoned uploads. Writes also do this from time to time.

        Args:
            older_than_seconds: since their last heartbeat; `stale_seconds` if None.

        Returns:
            The number of these uploads.
        """
        age = self._settings.stale_seconds if older_than_seconds is None else older_than_seconds
        return self._database.sweep(age)

    def compact(self) -> bool:
        """Return the space of deleted objects to the disk; until then, later objects use it.

        It rewrites the SQLite file, needs free space for two copies of the remaining data, and blocks other writers.

        Returns:
            True.

        Raises:
            QuotaExceededError: there is too little free space. Nothing was changed.
            UnsupportedOperationError: this is PostgreSQL, which reuses that space by itself.
        """
        self._database.compact()
        return True

    @property
    def _database(self) -> Database:
        found = self.__dict__.get("_opened")
        if found is None:
            try:
                from storage_backend.backends.sql.database import Database
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] != "sqlalchemy":
                    raise
                raise MissingClientError(
                    f"{self.location} needs SQLAlchemy ({error}): pip install SQLAlchemy",
                    backend=self.location,
                ) from error
            # setdefault is atomic; the Database of the thread that lost a race has not connected yet.
            found = self.__dict__.setdefault("_opened", Database(self._address, self._settings))
        return cast("Database", found)

    def _version(self, identifier: str) -> bytes | None:
        query = partial(self._database.statements.version_of, name=identifier.encode())
        return self._database.run(query, identifier)

    def _put(self, connection: Connection, row: ObjectRow) -> bool:
        return self._database.statements.put(connection, [row])

    def _upload(
        self,
        identifier: str,
        reader: BinaryIO,
        point_to_version: PointToVersion,
        *,
        info: ObjectInfo | None = None,
        verify: bool = False,
    ) -> ObjectRow:
        identifiers.check(identifier)
        source = hashing(reader)
        upload = ChunkedUpload(self._database, identifier)
        try:
            for chunk in chunks(cast(BinaryIO, source), CHUNK_SIZE):
                upload.write(chunk)
            digest = source.hexdigest()
            check_arrived(info, identifier, upload.size, digest if verify else None)
            row = upload.row(digest, info)
            upload.publish(row, point_to_version, verify=verify)
        finally:
            upload.discard()
        return row


class _TakenError(Exception):
    """The object already exists."""


class _DatabaseHooks(Hooks):
    def __init__(self, storage: DatabaseStorage) -> None:
        super().__init__(storage)
        self._storage = storage
        self._file = storage._address.path

    @override
    def last_read(self, identifier: str) -> ObjectInfo | None:
        return self._storage._last_seen.take(identifier)

    @property
    @override
    def is_near(self) -> bool:
        return bool(self._file)

    @override
    def places(self, prefix: str = "") -> Iterator[Lineage]:
        return iter([within(lineage(self._file), prefix)]) if self._file else super().places(prefix)

    @override
    def tidy(self) -> int:
        return self._storage._database.sweep_abandoned()

    @override
    def checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        return self._storage._checksum(identifier, algorithm, moved)


def _reader(content: Content) -> BinaryIO:
    content = plain(content)
    return io.BytesIO(content) if isinstance(content, bytes) else content
