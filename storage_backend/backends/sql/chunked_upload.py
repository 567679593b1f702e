"""ChunkedUpload: stores one object as chunks of a new version, then points its name to that version."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from typing_extensions import Buffer

from storage_backend.backends.sql.object_row import CHUNK_SIZE, ObjectRow, new_row, new_version
from storage_backend.errors import UnavailableError, UnsupportedOperationError
from storage_backend.info import ObjectInfo
from storage_backend.streams import check_digest

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from storage_backend.backends.sql.database import Database

_STORED = "what was stored (nothing was published)"

PointToVersion = Callable[["Connection", ObjectRow], bool]
"""Points the row's name to its version, in the publishing transaction. Returns whether that left garbage."""


class ChunkedUpload:
    """Stores the bytes of one object and publishes them at once. One of a single chunk takes a single transaction.

    Args:
        database: stores it.
        identifier: of the object.
    """

    def __init__(self, database: Database, identifier: str) -> None:
        self._database = database
        self._identifier = identifier
        self.version = new_version()
        self._held: list[bytes] = []  # at most one chunk, not inserted yet
        self._room = CHUNK_SIZE
        self._inserted = 0  # chunks
        self.size = 0
        self._process = os.getpid()
        self._dropped: weakref.finalize[..., ChunkedUpload] | None = None

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*."""
        view = memoryview(data).cast("B")
        position = 0
        while position < len(view):
            if not self._room:
                self._insert()
            piece = view[position : position + self._room]
            # bytes are immutable, so all of them need no copy; another buffer may change.
            self._held.append(data if isinstance(data, bytes) and len(piece) == len(data) else bytes(piece))
            self._room -= len(piece)
            position += len(piece)
        self.size += len(view)

    def row(self, sha256: str, info: ObjectInfo | None = None) -> ObjectRow:
        """The row of the object that `publish` will create.

        Args:
            sha256: digest of all that was written.
            info: has its modification time and media type.
        """
        return new_row(self._identifier, self.version, self.size, sha256, info)

    def publish(self, row: ObjectRow, point_to_version: PointToVersion, *, verify: bool = False) -> None:
        """Make the object visible.

        Args:
            row: its row.
            point_to_version: points the name to the version.
            verify: first read the stored bytes and compare their digest.

        Raises:
            IntegrityError: the stored bytes are not those that were written.
            UnavailableError: the upload had no heartbeat for too long, and another process swept it.
        """
        self._check_process()
        self._database.sweep_now_and_then()
        statements = self._database.statements
        streamed = self._inserted > 0
        if streamed and verify:
            self._insert()
            self._check(row)
        last = self._take()

        def work(connection: Connection) -> bool:
            if streamed and not statements.release(connection, row.version):
                if statements.version_of(connection, row.name) == row.version:
                    return False  # the acknowledgement of an earlier attempt was lost
                raise self._swept()
            if last:
                statements.insert_chunks(connection, [(row.version, self._inserted, last)])
            if verify and not streamed:
                found = statements.span(connection, row, 0, row.size) if row.size else b""
                check_stored(self._identifier, row.sha256, found)
            return point_to_version(connection, row)

        garbage = self._database.transact(work, self._identifier, size=len(last))
        self._done()
        if garbage:
            self._database.collect()

    def copy_from(self, source: ObjectRow, at_once: int) -> bool:
        """Copy all chunks of another version within the database.

        Args:
            source: its row.
            at_once: the most chunks that one transaction may copy.

        Returns:
            False if the source was replaced meanwhile.
        """
        statements = self._database.statements
        count = -(-source.size // source.chunk_size)
        while self._inserted < count:
            first, stop = self._inserted, min(self._inserted + at_once, count)

            def work(connection: Connection, first: int = first, stop: int = stop) -> int:
                self._claim(connection)
                return statements.copy_chunks(connection, source.version, self.version, first, stop)

            self._begin()
            size = (stop - first) * source.chunk_size
            if self._database.transact(work, self._identifier, size=size) < stop - first:
                return False
            self._inserted = stop
        self.size = source.size
        return True

    def discard(self) -> None:
        """Discard the upload. Does nothing after `publish`."""
        # A forked child has a copy of its parent's upload and must not discard it.
        if self._dropped is not None and self._dropped.alive and self._process == os.getpid():
            self._done()
            self._database.discard(self.version)

    def _insert(self) -> None:
        data = self._take()
        if not data:
            return

        def work(connection: Connection) -> None:
            self._claim(connection)
            self._database.statements.insert_chunks(connection, [(self.version, self._inserted, data)])

        self._begin()
        self._database.transact(work, self._identifier, size=len(data))
        self._inserted += 1

    def _begin(self) -> None:
        """Before the first transaction: register the upload, for heartbeats and for removal if this object is garbage-collected."""
        self._check_process()
        if self._dropped is not None:
            return
        self._database.transact(
            lambda connection: self._database.statements.register(connection, self.version), self._identifier
        )
        heartbeat = self._database.heartbeat
        heartbeat.add(self.version)
        self._dropped = weakref.finalize(self, heartbeat.drop, self.version)
        self._dropped.atexit = False

    def _claim(self, connection: Connection) -> None:
        """Check, in each inserting transaction, that the upload was not swept: later chunks would never be deleted."""
        if not self._database.statements.beat(connection, [self.version]):
            raise self._swept()

    def _check(self, row: ObjectRow) -> None:
        digest = hashlib.sha256(usedforsecurity=False)
        for start in range(0, row.size, CHUNK_SIZE):
            end = min(start + CHUNK_SIZE, row.size)

            def work(connection: Connection, start: int = start, end: int = end) -> bytes:
                return self._database.statements.span(connection, row, start, end)

            digest.update(self._database.run(work, self._identifier))
        check_digest(self._identifier, row.sha256.hex(), digest.hexdigest(), _STORED)

    def _take(self) -> bytes:
        data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held = []
        self._room = CHUNK_SIZE
        return data

    def _done(self) -> None:
        if self._dropped is not None:
            self._dropped.detach()
            self._database.heartbeat.remove(self.version)

    def _check_process(self) -> None:
        """Refuse use in a forked child: both processes would write chunks of the same version."""
        if self._process != os.getpid():
            raise UnsupportedOperationError(
                f"{self._identifier!r}: a writer works only in the process that opened it, not in a forked child",
                identifier=self._identifier,
                backend=self._database.address.location,
            )

    def _swept(self) -> UnavailableError:
        where = self._database.address.location
        return UnavailableError(
            f"{where}: the upload of {self._identifier!r} had no heartbeat for so long that its bytes were swept; "
            "nothing was stored, try again",
            identifier=self._identifier,
            backend=where,
        )


class HashingSink:
    """The sink of a Writer: an upload that also computes the digest."""

    def __init__(self, upload: ChunkedUpload, point_to_version: PointToVersion) -> None:
        self._upload = upload
        self._point_to_version = point_to_version
        self._digest = hashlib.sha256(usedforsecurity=False)

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*."""
        self._digest.update(data)
        self._upload.write(data)

    def publish(self) -> None:
        """Make the object visible."""
        self._upload.publish(self._upload.row(self._digest.hexdigest()), self._point_to_version)

    def discard(self) -> None:
        """Discard the upload."""
        self._upload.discard()


def check_stored(identifier: str, sha256: bytes, content: bytes) -> None:
    """Raise an IntegrityError unless *content*, as read back, has the digest of what was written."""
    found = hashlib.sha256(content, usedforsecurity=False).hexdigest()
    check_digest(identifier, sha256.hex(), found, _STORED)
