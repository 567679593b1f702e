"""Uploads of any size: pipelined writes to a temporary name on one connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import BinaryIO, TypeVar, cast

from typing_extensions import Buffer

from storage_backend.backends.remote import server_side
from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.errors import ConnectionLostError, unreachable
from storage_backend.backends.remote.failover import Failover
from storage_backend.backends.remote.remote_file import RemoteFile
from storage_backend.backends.remote.remote_path import RemotePath, StagedUpload, in_seconds
from storage_backend.backends.remote.sftp_contents import SMALL, stage
from storage_backend.backends.remote.sftp_packets import StatusError
from storage_backend.backends.remote.sftp_session import PendingReply
from storage_backend.info import ObjectInfo
from storage_backend.streams import (
    CHUNK,
    HashingReader,
    check_arrived,
    check_digest,
    chunks,
    hashing,
    new_digest,
)

T = TypeVar("T")
Publish = Callable[[RemotePath, StagedUpload, int], None]
"""Renames a staged upload, of that many bytes, to its object's name."""

PIECE = 128 << 10  # bytes per request; measured on loopback, twice as fast as 255 KiB
MAX_IN_FLIGHT = 2 << 20  # bytes sent and not acknowledged


def stage_stream(
    failover: Failover,
    path: RemotePath,
    reader: BinaryIO,
    *,
    info: ObjectInfo | None = None,
    modified: datetime | None = None,
    verify: bool = False,
) -> tuple[StagedUpload, int]:
    """Upload the rest of *reader* under a temporary name; returns the staged file and its size.

    After a lost connection a seekable *reader* is rewound to its starting position and read again.
    """
    start = _position(reader)
    if info is not None and modified is None:
        modified = info.modified
    seconds = in_seconds(modified)
    first: BinaryIO | HashingReader = hashing(reader) if verify else reader
    head = _head(cast(BinaryIO, first))
    if len(head) <= SMALL:
        _check_arrived(first, info, path, len(head), verify=verify)
        return failover.perform(stage, path, head, seconds, verify=verify), len(head)

    def send(connection: SSHConnection, attempt: int) -> tuple[StagedUpload, int]:
        source, beginning = first, head
        if attempt:
            assert start is not None
            reader.seek(start)
            source, beginning = hashing(reader) if verify else reader, b""
        upload = SFTPUpload(connection, path)
        try:
            upload.write(beginning)
            for piece in chunks(cast(BinaryIO, source)):
                upload.write(piece)
            digest = _check_arrived(source, info, path, upload.size, verify=verify)
            staged = upload.finish(seconds)
        except BaseException:
            upload.discard()
            raise
        if digest is not None:
            try:
                found = _stored_digest(failover, connection, staged, path, upload.size)
                check_digest(path.identifier, digest, found, "what was stored")
            except BaseException:
                connection.operations.discard(staged)
                raise
        return staged, upload.size

    return failover.run(path.identifier, send, repeatable=start is not None)


class SFTPUpload:
    """Writes a file under a temporary name, on one connection.

    Args:
        connection: held until `finish` or `discard`.
        path: the object that the file is for.
        temporary: temporary path to use instead of a new one.
        resumed: number of bytes already stored under that path, to append to.

    Attributes:
        staged: the file.
        size: bytes written so far.
    """

    def __init__(
        self, connection: SSHConnection, path: RemotePath, temporary: bytes | None = None, resumed: int = 0
    ) -> None:
        self.connection = connection
        self._path = path
        self._in_flight: deque[tuple[int, PendingReply]] = deque()
        self._unconfirmed = 0
        self._piece = min(PIECE, connection.session.write_length)
        self.size = resumed
        operations = connection.operations
        self._handle, self.staged = connection.run(
            operations.resume(path, temporary)
            if temporary is not None and resumed
            else operations.begin(path, temporary)
        )
        self._open = True
        connection.hold()

    def write(self, data: Buffer) -> None:
        """Append all of *data*."""
        view = memoryview(data).cast("B")
        session = self.connection.session
        for start in range(0, len(view), self._piece):
            piece = view[start : start + self._piece]
            while self._unconfirmed + len(piece) > MAX_IN_FLIGHT:
                self._await_oldest()
            (pending,) = session.begin([packets.write_request(self._handle, self.size, piece)])
            self._in_flight.append((len(piece), pending))
            self._unconfirmed += len(piece)
            self.size += len(piece)

    def finish(self, modified: int | None) -> StagedUpload:
        """Wait for all writes and close the file."""
        while self._in_flight:
            self._await_oldest()
        connection = self.connection
        self.staged = connection.run(
            connection.operations.finish(
                self._handle, self.staged, self._path, size=self.size, modified=modified
            )
        )
        self._release()
        return self.staged

    def discard(self) -> None:
        """Remove the file unless it is finished."""
        if self._open:
            self.abandon()
            self.connection.discard(self.staged)

    def abandon(self) -> None:
        """Close the file unless it is finished, keeping what was written."""
        if self._open:
            self.connection.close_handle(self._handle)
            self._release()

    def _await_oldest(self) -> None:
        size, pending = self._in_flight.popleft()
        self._unconfirmed -= size
        connection = self.connection
        try:
            packets.check(connection.session.wait(pending))
        except StatusError as error:
            operations = connection.operations
            why = operations.directories.why_unwritable(error, operations.at(self._path))
            raise connection.run(why) from error

    def _release(self) -> None:
        self._open = False
        self.connection.release()


class RemoteSink:
    """The sink of `open(identifier, "wb")`: buffers a small object, and uploads a larger one as it is written.

    Args:
        failover: provides the connection.
        path: the object.
        publish: renames the upload to the object's name.
    """

    def __init__(self, failover: Failover, path: RemotePath, publish: Publish) -> None:
        self._failover = failover
        self._path = path
        self._publish = publish
        self._pieces: list[bytes] = []
        self._size = 0
        self._upload: SFTPUpload | None = None

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*.

        Raises:
            UnavailableError: the connection, and what was written, is lost.
        """
        piece = bytes(data)
        self._size += len(piece)
        if self._upload is None:
            self._pieces.append(piece)
            if self._size <= SMALL:
                return
            piece = b"".join(self._pieces)
            self._pieces = []
            self._upload = self._failover.run(
                self._path.identifier, lambda connection, _: SFTPUpload(connection, self._path)
            )
        upload = self._upload
        self._lose_on_failure(upload, lambda: upload.write(piece))

    def publish(self) -> None:
        """Publish the object."""
        upload = self._upload
        if upload is None:
            staged = self._failover.perform(stage, self._path, b"".join(self._pieces), None)
        else:
            staged = self._lose_on_failure(upload, lambda: upload.finish(None))
        self._publish(self._path, staged, self._size)

    def discard(self) -> None:
        """Remove what was uploaded."""
        if self._upload is not None:
            self._upload.discard()

    def _lose_on_failure(self, upload: SFTPUpload, step: Callable[[], T]) -> T:
        try:
            return step()
        except ConnectionLostError as error:
            self._failover.lose(upload.connection, error)
            raise unreachable(error, self._path.identifier, self._failover.where, 1) from error


def _check_arrived(
    source: BinaryIO | HashingReader, info: ObjectInfo | None, path: RemotePath, size: int, *, verify: bool
) -> str | None:
    """Compare the size and, with *verify*, the digest of what was read with *info*; returns that digest."""
    # Without it, a HashingReader is the caller's: its algorithm may be another, and it may have been read from before.
    digest = source.hexdigest() if verify and isinstance(source, HashingReader) else None
    check_arrived(info, path.identifier, size, digest)
    return digest


def _stored_digest(
    failover: Failover, connection: SSHConnection, staged: StagedUpload, path: RemotePath, size: int
) -> str:
    """The SHA-256 of a staged file, computed by the server, or by reading it back if that is cheaper."""
    if size > server_side.MIN_DIGEST:
        found = server_side.digests(connection, [staged.temporary]).get(staged.temporary)
        if found is not None:
            return found
    digest = new_digest("sha256")
    with RemoteFile(failover, RemotePath(path.identifier, staged.temporary)) as file:
        while piece := file.next_piece(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _position(reader: BinaryIO) -> int | None:
    """The position of *reader*; None if it is not seekable."""
    try:
        return reader.tell() if reader.seekable() else None
    except (AttributeError, OSError, ValueError):
        return None


def _head(reader: BinaryIO) -> bytes:
    """The first bytes: everything if at most SMALL bytes, else more than SMALL."""
    pieces: list[bytes] = []
    size = 0
    for piece in chunks(reader, SMALL + 1):
        pieces.append(piece)
        size += len(piece)
        if size > SMALL:
            break
    return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
