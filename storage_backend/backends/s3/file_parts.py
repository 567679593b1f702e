"""FilePart: a part of an open file as a request body, sent by sendfile(2) where possible, else by positioned reads."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

PIECE = 256 << 10  # bytes sent or received at a time; larger objects leave the allocator's cache

_NO_SENDFILE = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
}  # not supported for this kind of file: sendfile(2)


class FileChangedError(OSError):
    """The file became shorter while it was sent."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """A body of *size* bytes of an open file, from *offset*. The file's own position is neither used nor moved."""

    fd: int
    offset: int
    size: int

    def read(self, position: int, size: int) -> bytes:
        """1 to *size* bytes from *position* in the part.

        Raises:
            FileChangedError: the file ends before that.
        """
        data = os.pread(self.fd, min(size, self.size - position), self.offset + position)
        return data or self._shortened(position)

    def read_all(self) -> bytes:
        """The whole part."""
        pieces = []
        position = 0
        while position < self.size:
            pieces.append(self.read(position, self.size))
            position += len(pieces[-1])
        return b"".join(pieces)

    def sender(self, sock: socket.socket, *, by_kernel: bool) -> Callable[[int], int]:
        """A function that sends bytes from a position and returns how many; *by_kernel*: by sendfile(2) if supported."""
        start, piece = 0, b""

        def step(position: int) -> int:
            nonlocal by_kernel, start, piece
            if by_kernel:
                try:
                    size = min(PIECE, self.size - position)
                    sent = os.sendfile(sock.fileno(), self.fd, self.offset + position, size)
                except OSError as error:
                    if error.errno not in _NO_SENDFILE:
                        raise
                    by_kernel = False
                else:
                    return sent or self._shortened(position)
            # After a partial write TLS must get the same bytes again ("SSL_write", OpenSSL).
            if not start <= position < start + len(piece):
                start, piece = position, self.read(position, PIECE)
            return sock.send(memoryview(piece)[position - start :])

        return step

    def _shortened(self, position: int) -> NoReturn:
        raise FileChangedError(
            f"the file became shorter while it was sent: {position:,} of {self.size:,} bytes from {self.offset:,} are there"
        )
