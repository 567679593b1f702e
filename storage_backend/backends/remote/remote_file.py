"""RemoteFile: an object as a seekable raw stream, read ahead; it continues on another connection if the object is unchanged."""

from __future__ import annotations

import io
from collections import deque

from typing_extensions import override

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.errors import ConnectionLostError, changed, translate, unreachable
from storage_backend.backends.remote.failover import MAX_LOSSES, Failover
from storage_backend.backends.remote.remote_path import RemotePath
from storage_backend.backends.remote.sftp_contents import open_to_read
from storage_backend.backends.remote.sftp_packets import Attributes, StatusError
from storage_backend.backends.remote.sftp_session import PendingReply
from storage_backend.streams import SeekableRaw

FIRST_AHEAD = 64 << 10  # bytes asked for at the first read after a seek
MOST_AHEAD = 2 << 20  # bytes under way at most; a channel's window holds no more


class RemoteFile(SeekableRaw):
    """Reads one object as it was when it was opened.

    Args:
        failover: chooses the connection.
        path: the object.

    Attributes:
        attributes: of the object when it was opened.
        size: in bytes, at that time; reading ends there.

    Raises:
        NotFoundError: there is none.
        SourceChangedError: from reads: it was cut short, or after a lost connection it was another one.
    """

    def __init__(self, failover: Failover, path: RemotePath) -> None:
        self._connection: SSHConnection | None = None
        self._failover = failover
        self._path = path
        self._ahead = FIRST_AHEAD
        self._under_way: deque[tuple[int, PendingReply]] = deque()  # size asked for
        self._asked = 0  # position after the last request
        self._handle = b""
        self._rest = b""  # received and not returned yet
        self.attributes = failover.run(path.identifier, self._open)
        self.size = self.attributes.size or 0

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        before = self._position
        if super().seek(offset, whence) != before:
            self._forget()
            self._ahead = FIRST_AHEAD
        return self._position

    @override
    def readall(self) -> bytes:
        self._ahead = MOST_AHEAD
        return super().readall()

    def next_piece(self, most: int) -> bytes:
        """Some of the next bytes, at most *most*; b"" at the end."""
        self._check_open()
        piece = self._read_on(most)
        self._position += len(piece)
        return piece

    @override
    def _read_on(self, most: int) -> bytes:
        if self._position >= self.size:
            return b""
        losses = 0
        while not self._rest:
            try:
                self._rest = self._fetch(most)
            except ConnectionLostError as error:
                losses += 1
                self._reopen(error, losses)
        piece, self._rest = self._rest[:most], self._rest[most:]
        return piece

    def read_exactly(self, start: int, end: int) -> bytes:
        """The bytes of [start, end), clamped."""
        self.seek(start)
        wanted = max(min(end, self.size) - start, 0)
        self._ahead = min(max(wanted, 1), MOST_AHEAD)
        pieces = []
        while wanted:
            piece = self.next_piece(wanted)
            wanted -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @override
    def close(self) -> None:
        if not self.closed:
            super().close()
            self._release()

    def _open(self, connection: SSHConnection, attempt: int) -> Attributes:
        self._handle, attributes = connection.run(open_to_read(connection.operations, self._path, attempt))
        connection.hold()
        self._connection = connection
        return attributes

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._forget()
            connection.close_handle(self._handle)
            connection.release()

    def _reopen(self, error: ConnectionLostError, losses: int) -> None:
        """Continue on another connection, if the object is unchanged."""
        connection, self._connection = self._connection, None
        self._forget()
        if connection is not None:
            self._failover.lose(connection, error)
            connection.release()
        if losses == MAX_LOSSES:
            raise unreachable(error, self._path.identifier, self._failover.where, losses) from error
        found = self._failover.run(
            self._path.identifier, lambda connection, attempt: self._open(connection, attempt + 1)
        )
        if (found.size, found.modified) != (self.attributes.size, self.attributes.modified):
            # Otherwise the next read would continue in the other object.
            self._release()
            raise changed(self._path.identifier, self._failover.where) from error

    def _forget(self) -> None:
        """Drop what was read ahead."""
        self._under_way.clear()
        self._rest = b""

    def _fetch(self, most: int) -> bytes:
        """The next bytes as they arrive; the longer the sequential read, the more is requested ahead."""
        if self._connection is None:
            raise ConnectionLostError("the connection was lost before")
        session = self._connection.session
        if not self._under_way:
            self._asked = self._position
        wanted = max(self._ahead, min(most, MOST_AHEAD))
        requests: list[packets.Request] = []
        sizes: list[int] = []
        while self._asked < min(self._position + wanted, self.size):
            size = min(session.read_length, self.size - self._asked)
            if not self._under_way and not sizes:
                size = min(size, max(wanted, 1))
            requests.append(packets.read_request(self._handle, self._asked, size))
            sizes.append(size)
            self._asked += size
        if requests:
            self._under_way += zip(sizes, session.begin(requests), strict=True)
        self._ahead = min(self._ahead * 2, MOST_AHEAD)
        size, pending = self._under_way.popleft()
        try:
            data = packets.data_in(session.wait(pending), size)
        except StatusError as error:
            raise translate(error, self._path.identifier, self._failover.where) from error
        if not data:
            how = f"it ended after {self._position:,} of {self.size:,} bytes"
            raise changed(self._path.identifier, self._failover.where, how)
        if len(data) < size:
            # The server sends less at a time: the other replies do not continue this one.
            self._under_way.clear()
            self._asked = self._position + len(data)
        return data
