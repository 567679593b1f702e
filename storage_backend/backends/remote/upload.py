"""SFTPUpload: a new file on the server, written with many requests under way."""

from __future__ import annotations

from collections import deque
from typing import Any

from typing_extensions import Buffer

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.sftp_operations import RemotePath, StagedUpload
from storage_backend.backends.remote.sftp_packets import StatusError

# bytes in a request; measured on loopback, twice as fast as requests of 255 KiB
PIECE = 128 << 10
UNDER_WAY = 2 << 20  # bytes sent and not confirmed


class SFTPUpload:
    """Writes a file under a temporary name, on one connection.

    Args:
        connection: it is held until `finish` or `discard`.
        place: that the file is for.
        temporary: the path of the temporary name, instead of a new one.
        resumed: how many bytes there are under that name already, to go on after.

    Attributes:
        connection: as given.
        staged: the file.
        size: the file's bytes so far.
    """

    def __init__(
        self, connection: SSHConnection, place: RemotePath, temporary: bytes | None = None, resumed: int = 0
    ) -> None:
        self.connection = connection
        self._place = place
        self._under_way: deque[tuple[int, Any]] = deque()
        self._unconfirmed = 0
        self._piece = min(PIECE, connection.session.write_length)
        self.size = resumed
        operations = connection.operations
        if temporary is not None and resumed:
            self._handle, self.staged = connection.run(operations.resume(place, temporary))
        else:
            self._handle, self.staged = connection.run(operations.begin(place, temporary))
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
            (ticket,) = session.begin([packets.write_request(self._handle, self.size, piece)])
            self._under_way.append((len(piece), ticket))
            self._unconfirmed += len(piece)
            self.size += len(piece)

    def finish(self, modified: int | None) -> StagedUpload:
        """Close the file, which is whole on the server then."""
        while self._under_way:
            self._confirm()
        connection = self.connection
        self.staged = connection.run(
            connection.operations.finish(
                self._handle, self.staged, self._place, size=self.size, modified=modified
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
            self.connection.let_go(self._handle)
            self._release()

    def _confirm(self) -> None:
        size, ticket = self._under_way.popleft()
        self._unconfirmed -= size
        try:
            packets.check(self.connection.session.wait(ticket))
        except StatusError as error:
            connection = self.connection
            raise connection.run(connection.operations.why_unwritable(error, self._place)) from error

    def _release(self) -> None:
        self._open = False
        self.connection.release()
