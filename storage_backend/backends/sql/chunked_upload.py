"""ChunkedUpload: stores one object as chunks of a new version, then points its name to the version."""

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

Flip = Callable[["Connection", ObjectRow], bool]
"""Points a name to a version. Returns whether that left garbage."""


class ChunkedUpload:
    """Takes bytes and publishes them as a whole. An object of one chunk is stored in a single transaction.

    Args:
        database: where to.
        identifier: of the object to be.
    """

    def __init__(self, database: Database, identifier: str) -> None:
        self._database = database
        self._identifier = identifier
        self.version = new_version()
        self._held: list[bytes] = []  # at most a chunk, not inserted yet
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
            # Bytes as a whole are kept as they are; anything else may change under us.
            self._held.append(data if isinstance(data, bytes) and len(piece) == len(data) else bytes(piece))
            self._room -= len(piece)
            position += len(piece)
        self.size += len(view)

    def row(self, sha256: str, info: ObjectInfo | None = None) -> ObjectRow:
        """The row of the object that `publish` will create.

        Args:
            sha256: digest of all that was written.
            info: gives its time and media type.
        """
        return new_row(self._identifier, self.version, self.size, sha256, info)

    def publish(self, row: ObjectRow, flip: Flip, *, verify: bool = False) -> None:
        """Make the object visible.

        Args:
            row: its row.
            flip: points the name to the version.
            verify: read what was stored and digest it first.

        Raises:
            IntegrityError: what was stored is not what was written.
            UnavailableError: others gave this upload up, since it showed no life for too long.
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
                raise self._given_up()
            if last:
                statements.insert_chunks(connection, [(row.version, self._inserted, last)])
            if verify and not streamed:
                found = statements.span(connection, row, 0, row.size) if row.size else b""
                check_stored(self._identifier, row.sha256, found)
            return flip(connection, row)

        garbage = self._database.transact(work, self._identifier, size=len(last))
        self._done()
        if garbage:
            self._database.collect()

    def copy_from(self, source: ObjectRow, at_once: int) -> bool:
        """Take all chunks of another version, within the database; False if that has been replaced meanwhile.

        Args:
            source: its row.
            at_once: how many chunks a transaction may copy.
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
        # A forked child has a copy of its parent's upload, and it is not the child's to drop.
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
        """Before the first transaction: register the upload for heartbeats, and for removal if it is garbage-collected."""
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
        """Part of each transaction that inserts: otherwise chunks inserted after a sweep would stay for ever."""
        if not self._database.statements.beat(connection, [self.version]):
            raise self._given_up()

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
        """Refuse a forked child: both processes would write parts of the same version."""
        if self._process != os.getpid():
            raise UnsupportedOperationError(
                f"{self._identifier!r}: a writer is of use only to the process that opened it, not to a forked child",
                identifier=self._identifier,
                backend=self._database.address.location,
            )

    def _given_up(self) -> UnavailableError:
        where = self._database.address.location
        return UnavailableError(
            f"{where}: the upload of {self._identifier!r} showed no life for so long that its bytes were swept; "
            "nothing was stored, try again",
            identifier=self._identifier,
            backend=where,
        )


class HashingSink:
    """The sink of a writer: an upload that also digests what is written."""

    def __init__(self, upload: ChunkedUpload, flip: Flip) -> None:
        self._upload = upload
        self._flip = flip
        self._digest = hashlib.sha256(usedforsecurity=False)

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*."""
        self._digest.update(data)
        self._upload.write(data)

    def publish(self) -> None:
        """Make the object visible."""
        self._upload.publish(self._upload.row(self._digest.hexdigest()), self._flip)

    def discard(self) -> None:
        """Discard the upload."""
        self._upload.discard()


def check_stored(identifier: str, sha256: bytes, content: bytes) -> None:
    """Compare what was read back with what was written.

    Raises:
        IntegrityError: it differs.
    """
    found = hashlib.sha256(content, usedforsecurity=False).hexdigest()
    check_digest(identifier, sha256.hex(), found, _STORED)
