"""RemoteSink: what `open(identifier, "wb")` writes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from typing_extensions import Buffer

from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.errors import ConnectionLostError, unreachable
from storage_backend.backends.remote.objects import SMALL, Objects
from storage_backend.backends.remote.sftp_operations import RemotePath
from storage_backend.backends.remote.upload import SFTPUpload

T = TypeVar("T")


class RemoteSink:
    """Takes the bytes of one object: a little in memory, more on the server.

    Args:
        objects: of the backend.
        place: the object.
    """

    def __init__(self, objects: Objects, place: RemotePath) -> None:
        self._objects = objects
        self._place = place
        self._pieces: list[bytes] = []
        self._size = 0
        self._upload: SFTPUpload | None = None

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*.

        Raises:
            UnavailableError: the connection was lost; what was written cannot be had again.
        """
        piece = bytes(data)
        self._size += len(piece)
        if self._upload is None:
            self._pieces.append(piece)
            if self._size <= SMALL:
                return
            piece = b"".join(self._pieces)
            self._pieces = []
            self._upload = self._objects.link.run(self._place.identifier, self._begun)
        upload = self._upload
        self._carefully(lambda: upload.write(piece))

    def publish(self) -> None:
        """Give the object its content."""
        if self._upload is None:
            self._objects.write(self._place, b"".join(self._pieces))
            return
        upload = self._upload
        staged = self._carefully(lambda: upload.finish(None))
        self._objects.publish(staged, self._place, self._size)

    def discard(self) -> None:
        """Drop what was written."""
        if self._upload is not None:
            self._upload.discard()

    def _begun(self, connection: SSHConnection) -> SFTPUpload:
        return SFTPUpload(connection, connection.at(self._place))

    def _carefully(self, step: Callable[[], T]) -> T:
        upload = self._upload
        assert upload is not None
        try:
            return step()
        except ConnectionLostError as error:
            self._objects.link.lose(upload.connection, error)
            raise unreachable(error, self._place.identifier, self._objects.where, 1) from error
