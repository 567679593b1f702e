"""Reader and Writer: one file's content, through `cat`."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Self

from typing_extensions import Buffer

from storage_backend.backends.remote.commands import Command, CommandError
from storage_backend.errors import IntegrityError, SourceChangedError


class Reader:
    """A file's content as it was when it was opened.

    Attributes:
        size: of the whole file, in bytes.
        modified: seconds since 1970, with the fraction that the server tells.
        inode: (device, number) of the file.
    """

    def __init__(self, command: Command, offset: int) -> None:
        self._command = command
        try:
            line = command.read_line()
            found = re.fullmatch(rb"(\d+):(\d+):(\d+):(-?\d+(?:\.\d*)?)", line)
            if found is None:
                raise CommandError(0, b"", f"stat printed {line[:100]!r}")
        except BaseException:
            command.close()
            raise
        self.inode = (int(found[1]), int(found[2]))
        self.size = int(found[3])
        self.modified = float(found[4])
        self._left = max(self.size - offset, 0)
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, size: int) -> bytes:
        """Up to *size* bytes as they come; b"" at the end. The last are given only once the server has said that all is well.

        Raises:
            SourceChangedError: the file became longer or shorter.
            EOFError: the connection was lost.
        """
        if self._ended or size <= 0:
            return b""
        piece = self._command.read(min(size, self._left)) if self._left else b""
        self._left -= len(piece)
        if not piece or not self._left:
            self._end()
        return piece

    def readinto(self, buffer: Buffer) -> int:
        """As `read`, into *buffer*; how many bytes."""
        view = memoryview(buffer).cast("B")
        piece = self.read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """End the command without waiting for the rest."""
        self._command.close()

    def _end(self) -> None:
        self._ended = True
        longer = not self._left and self._command.read(1)
        if longer:
            self.close()
        else:
            self._command.finish()
        if longer or self._left:
            raise SourceChangedError(f"the file became {'longer' if longer else 'shorter'} while it was read")


class Writer:
    """A file's new content. Its methods raise what the command reports.

    Attributes:
        sent: bytes so far.
    """

    def __init__(
        self,
        command: Command,
        offset: int,
        digested: bool,
        errors: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._command = command
        self._offset = offset
        self._digested = digested
        self._errors = errors
        self.sent = 0
        self.digest: str | None = (
            None  # of the whole file, in hexadecimal; after `finish`, if it was asked for
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: Buffer) -> None:
        """Send *data*."""
        with self._errors():
            self._command.write(data)
        self.sent += memoryview(data).nbytes

    def finish(self) -> int:
        """Wait until the server has written all; the file's size.

        Raises:
            IntegrityError: it is not what was sent.
        """
        with self._errors():
            self._command.end_input()
            size = self._command.read_line()
            digest = self._command.read_line() if self._digested else b""
            self._command.finish()
        if size != b"%d" % (self._offset + self.sent):
            raise IntegrityError(
                f"{self._offset + self.sent:,} bytes were to be written; the server has {size.decode('ascii', 'replace')}"
            )
        if self._digested:
            self.digest = digest.partition(b" ")[0].decode("ascii", "replace")
        return self._offset + self.sent

    def close(self) -> None:
        """End the command; what is written so far stays, and must not be taken for a whole."""
        self._command.close()
