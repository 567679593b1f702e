"""RemoteFile: an object as a seekable raw stream, read ahead, pinned to what was opened, carried over lost connections."""

from __future__ import annotations

import io
from collections import deque
from typing import TYPE_CHECKING, Any

from typing_extensions import Buffer, override

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.errors import ConnectionLostError, translate, unreachable
from storage_backend.backends.remote.failover import LOSSES, Failover
from storage_backend.backends.remote.sftp_operations import RemotePath, changed
from storage_backend.backends.remote.sftp_packets import Attributes, StatusError
from storage_backend.streams import position_after

if TYPE_CHECKING:
    from storage_backend.backends.remote.sftp_session import PendingReply

FIRST_AHEAD = 64 << 10  # bytes asked for at the first read after a seek
MOST_AHEAD = 2 << 20  # bytes under way at most; the window of a channel, which more would not fit into


class RemoteFile(io.RawIOBase):
    """Reads one object as it was when it was opened.

    Args:
        link: the way to the server.
        place: the object.
        where: the backend's location, for errors.

    Attributes:
        facts: the object's attributes when it was opened; reading ends at that size.

    Raises:
        NotFoundError: there is none.
        SourceChangedError: from reads: after a lost connection it was another one, or it was cut short.
    """

    def __init__(self, link: Failover, place: RemotePath, where: str) -> None:
        self._connection: SSHConnection | None = None
        self._link = link
        self._place = place
        self._where = where
        self._position = 0
        self._ahead = FIRST_AHEAD
        self._under_way: deque[tuple[int, int, Any]] = deque()
        self._asked = 0  # up to where is under way
        self._handle = b""
        self._rest = b""  # what came and was not taken yet
        self._tried = False
        self.facts = link.run(place.identifier, self._open)
        self.size = self.facts.size or 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return self._position

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        position = position_after(offset, whence, self._position, self.size)
        if position != self._position:
            self._position = position
            self._forget()
            self._ahead = FIRST_AHEAD
        return position

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        piece = self.next_piece(len(view)) if view else b""
        view[: len(piece)] = piece
        return len(piece)

    @override
    def readall(self) -> bytes:
        self._ahead = MOST_AHEAD
        pieces = []
        while piece := self.next_piece(self.size):
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def next_piece(self, most: int) -> bytes:
        """Some of the bytes that follow, at most *most*; b"" at the end."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._position >= self.size:
            return b""
        losses = 0
        while not self._rest:
            try:
                self._rest = self._fetched(most)
            except ConnectionLostError as error:
                losses += 1
                self._lost(error, losses)
        piece, self._rest = self._rest[:most], self._rest[most:]
        self._position += len(piece)
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
            self._let_go()

    def _open(self, connection: SSHConnection) -> Attributes:
        look, self._tried = self._tried, True
        self._handle, facts = connection.run(
            connection.operations.open(connection.at(self._place), look=look)
        )
        connection.hold()
        self._connection = connection
        return facts

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._forget()
            connection.let_go(self._handle)
            connection.release()

    def _lost(self, error: ConnectionLostError, losses: int) -> None:
        """Go on with another connection, if the object is still the same."""
        connection, self._connection = self._connection, None
        self._forget()
        if connection is not None:
            self._link.lose(connection, error)
            connection.release()
        if losses == LOSSES:
            raise unreachable(error, self._place.identifier, self._where, losses) from error
        facts = self._link.run(self._place.identifier, self._open)
        if (facts.size, facts.modified) != (self.facts.size, self.facts.modified):
            # Or the next read would go on in the other object.
            self._let_go()
            raise changed(self._place, self._where) from error

    def _forget(self) -> None:
        """Drop what was read ahead."""
        self._under_way.clear()
        self._rest = b""

    def _fetched(self, most: int) -> bytes:
        """The next bytes as they come; more is asked for, and the more the longer it goes on."""
        if self._connection is None:
            raise ConnectionLostError("the connection was lost before")
        session = self._connection.session
        if not self._under_way:
            self._asked = self._position
        length = session.read_length
        wanted = max(self._ahead, min(most, MOST_AHEAD))
        sizes: list[tuple[int, int]] = []
        while self._asked < min(self._position + wanted, self.size):
            size = min(length, self.size - self._asked)
            if not self._under_way and not sizes:
                size = min(size, max(wanted, 1))
            sizes.append((self._asked, size))
            self._asked += size
        if sizes:
            tickets: list[PendingReply] | list[Any] = session.begin(
                packets.read_request(self._handle, start, size) for start, size in sizes
            )
            self._under_way += [(*piece, ticket) for piece, ticket in zip(sizes, tickets, strict=True)]
        self._ahead = min(self._ahead * 2, MOST_AHEAD)
        _, size, ticket = self._under_way.popleft()
        try:
            data = packets.data_in(session.wait(ticket), size)
        except StatusError as error:
            raise translate(error, self._place.identifier, self._where) from error
        if not data:
            how = f"it ended after {self._position:,} of {self.size:,} bytes"
            raise changed(self._place, self._where, how)
        if len(data) < size:
            # The server gives less at a time: what is under way does not follow on this.
            self._under_way.clear()
            self._asked = self._position + len(data)
        return data
