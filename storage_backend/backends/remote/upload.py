"""Uploads of any size: written with many requests under way, under a temporary name, on one connection."""

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
"""Gives a staged upload of so many bytes its name."""

PIECE = 128 << 10  # bytes in a request; measured on loopback, twice as fast as requests of 255 KiB
UNDER_WAY = 2 << 20  # bytes sent and not confirmed


def stage_stream(
    failover: Failover,
    path: RemotePath,
    reader: BinaryIO,
    *,
    info: ObjectInfo | None = None,
    modified: datetime | None = None,
    verify: bool = False,
) -> tuple[StagedUpload, int]:
    """Upload what *reader* gives under a temporary name; returns it and its size.

    If a connection is lost, *reader* is read again from where it was, if it is seekable.
    """
    start = _position(reader)
    if info is not None and modified is None:
        modified = info.modified
    seconds = in_seconds(modified)
    first: BinaryIO | HashingReader = hashing(reader) if verify else reader
    head = _head(cast(BinaryIO, first))
    if len(head) <= SMALL:
        _check_arrived(first, info, path, len(head))
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
            digest = _check_arrived(source, info, path, upload.size)
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
        connection: it is held until `finish` or `discard`.
        path: the object that the file is for.
        temporary: path of the temporary name, instead of a new one.
        resumed: how many bytes there are under that name already, to continue after.

    Attributes:
        connection: as given.
        staged: the file.
        size: bytes written so far.
    """

    def __init__(
        self, connection: SSHConnection, path: RemotePath, temporary: bytes | None = None, resumed: int = 0
    ) -> None:
        self.connection = connection
        self._path = path
        self._under_way: deque[tuple[int, PendingReply]] = deque()
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
            while self._unconfirmed + len(piece) > UNDER_WAY:
                self._confirm()
            (pending,) = session.begin([packets.write_request(self._handle, self.size, piece)])
            self._under_way.append((len(piece), pending))
            self._unconfirmed += len(piece)
            self.size += len(piece)

    def finish(self, modified: int | None) -> StagedUpload:
        """Close the file, which is then complete on the server."""
        while self._under_way:
            self._confirm()
        connection = self.connection
        self.staged = connection.run(
            connection.operations.finish(
                self._handle, self.staged, self._path, size=self.size, modified=modified
            )
        )
        self._release()
        return self.staged

    def discard(self) -> None:
        """Remove the file, if it was not finished."""
        if self._open:
            self.abandon()
            self.connection.discard(self.staged)

    def abandon(self) -> None:
        """Leave the file as it is, if it was not finished."""
        if self._open:
            self.connection.close_handle(self._handle)
            self._release()

    def _confirm(self) -> None:
        size, pending = self._under_way.popleft()
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
    """What `open(identifier, "wb")` writes to: keeps a small object in memory, and uploads a larger one as it is written.

    Args:
        failover: chooses the connection.
        path: the object.
        publish: gives the upload its name.
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
            UnavailableError: the connection was lost, and with it what was written.
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
        self._once(upload, lambda: upload.write(piece))

    def publish(self) -> None:
        """Store the object."""
        upload = self._upload
        if upload is None:
            staged = self._failover.perform(stage, self._path, b"".join(self._pieces), None)
        else:
            staged = self._once(upload, lambda: upload.finish(None))
        self._publish(self._path, staged, self._size)

    def discard(self) -> None:
        """Drop what was written."""
        if self._upload is not None:
            self._upload.discard()

    def _once(self, upload: SFTPUpload, step: Callable[[], T]) -> T:
        try:
            return step()
        except ConnectionLostError as error:
            self._failover.lose(upload.connection, error)
            raise unreachable(error, self._path.identifier, self._failover.where, 1) from error


def _check_arrived(
    source: BinaryIO | HashingReader, info: ObjectInfo | None, path: RemotePath, size: int
) -> str | None:
    """Compare what was read with *info*; returns its digest, if it is being computed."""
    digest = source.hexdigest() if isinstance(source, HashingReader) else None
    check_arrived(info, path.identifier, size, digest)
    return digest


def _stored_digest(
    failover: Failover, connection: SSHConnection, staged: StagedUpload, path: RemotePath, size: int
) -> str:
    """The SHA-256 of a staged file: computed by the server, or by reading it back if that costs less."""
    if size > server_side.READ_RATHER:
        found = server_side.digests(connection, [staged.temporary]).get(staged.temporary)
        if found is not None:
            return found
    digest = new_digest("sha256")
    with RemoteFile(failover, RemotePath(path.identifier, staged.temporary)) as file:
        while piece := file.next_piece(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _position(reader: BinaryIO) -> int | None:
    """The position of a seekable reader; None for another."""
    try:
        return reader.tell() if reader.seekable() else None
    except (AttributeError, OSError, ValueError):
        return None


def _head(reader: BinaryIO) -> bytes:
    """The beginning: all, if it is no more than SMALL bytes; else somewhat more."""
    pieces: list[bytes] = []
    size = 0
    for piece in chunks(reader, SMALL + 1):
        pieces.append(piece)
        size += len(piece)
        if size > SMALL:
            break
    return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
