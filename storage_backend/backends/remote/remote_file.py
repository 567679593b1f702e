"""RemoteFile: an object as a seekable raw stream with read-ahead, which resumes on another connection if the object is unchanged."""

from __future__ import annotations

import io
from collections import deque

from typing_extensions import override

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.errors import ConnectionLostError, changed, translate
from storage_backend.backends.remote.failover import Failover
from storage_backend.backends.remote.remote_path import RemotePath
from storage_backend.backends.remote.sftp_contents import open_to_read
from storage_backend.backends.remote.sftp_packets import Attributes, StatusError
from storage_backend.backends.remote.sftp_session import PendingReply
from storage_backend.streams import SeekableRaw

FIRST_AHEAD = 64 << 10  # bytes requested at the first read after a seek
MAX_AHEAD = 2 << 20  # bytes in flight; a channel's window holds no more


class RemoteFile(SeekableRaw):
    """Reads one object as it was when it was opened.

    Args:
        failover: provides the connection.
        path: the object.

    Attributes:
        attributes: of the object when it was opened.
        size: in bytes, at that time; reading ends there.

    Raises:
        NotFoundError: the object does not exist.
        SourceChangedError: from reads: the object was truncated, or was found replaced after a lost connection.
    """

    def __init__(self, failover: Failover, path: RemotePath) -> None:
        self._connection: SSHConnection | None = None
        self._failover = failover
        self._path = path
        self._ahead = FIRST_AHEAD
        self._in_flight: deque[tuple[int, PendingReply]] = deque()  # requested size, reply
        self._requested = 0  # position after the last request
        self._handle = b""
        self._rest = b""  # received, not yet returned
        self.attributes = failover.run(path.identifier, self._open)
        self.size = self.attributes.size or 0

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        before = self._position
        if super().seek(offset, whence) != before:
            self._drop_read_ahead()
            self._ahead = FIRST_AHEAD
        return self._position

    @override
    def readall(self) -> bytes:
        self._ahead = MAX_AHEAD
        return super().readall()

    def next_piece(self, most: int) -> bytes:
        """Between 1 and *most* of the next bytes; b"" at the end."""
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
        self._ahead = min(max(wanted, 1), MAX_AHEAD)
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
            self._drop_read_ahead()
            connection.close_handle(self._handle)
            connection.release()

    def _reopen(self, error: ConnectionLostError, losses: int) -> None:
        """Resume on another connection, if the object is unchanged."""
        connection, self._connection = self._connection, None
        self._drop_read_ahead()
        if connection is not None:
            connection.release()
            self._failover.lose_or_raise(connection, error, losses, identifier=self._path.identifier)
        found = self._failover.run(
            self._path.identifier, lambda connection, attempt: self._open(connection, attempt + 1)
        )
        if (found.size, found.modified) != (self.attributes.size, self.attributes.modified):
            # Otherwise the next read would continue in the other object.
            self._release()
            raise changed(self._path.identifier, self._failover.where) from error

    def _drop_read_ahead(self) -> None:
        """Drop the bytes read ahead."""
        self._in_flight.clear()
        self._rest = b""

    def _fetch(self, most: int) -> bytes:
        """The next bytes as they arrive; the read-ahead window doubles while reads are sequential."""
        if self._connection is None:
            raise ConnectionLostError("the connection was already lost")
        session = self._connection.session
        if not self._in_flight:
            self._requested = self._position
        wanted = max(self._ahead, min(most, MAX_AHEAD))
        requests: list[packets.Request] = []
        sizes: list[int] = []
        while self._requested < min(self._position + wanted, self.size):
            size = min(session.read_length, self.size - self._requested)
            if not self._in_flight and not sizes:
                size = min(size, max(wanted, 1))
            requests.append(packets.read_request(self._handle, self._requested, size))
            sizes.append(size)
            self._requested += size
        if requests:
            self._in_flight += zip(sizes, session.begin(requests), strict=True)
        self._ahead = min(self._ahead * 2, MAX_AHEAD)
        size, pending = self._in_flight.popleft()
        try:
            data = packets.data_in(session.wait(pending), size)
        except StatusError as error:
            raise translate(error, self._path.identifier, self._failover.where) from error
        if not data:
            how = f"it ended after {self._position:,} of {self.size:,} bytes"
            raise changed(self._path.identifier, self._failover.where, how)
        if len(data) < size:
            # A short read: the replies to the requests after it would leave a gap.
            self._in_flight.clear()
            self._requested = self._position + len(data)
        return data
