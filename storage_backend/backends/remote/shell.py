"""Shell: operations with the server's command-line tools."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from storage_backend.backends.remote import find_output, scripts
from storage_backend.backends.remote.commands import MAX_STDERR, Command, CommandError, OpenChannel
from storage_backend.backends.remote.find_output import FindRecord
from storage_backend.backends.remote.probe import LONGEST, ShellFeatures, probe
from storage_backend.backends.remote.tar_format import ArchiveTooLargeError, members
from storage_backend.backends.remote.tar_unpacker import Unpacker
from storage_backend.errors import SourceChangedError

Item = TypeVar("Item")
_LIST_PIECE = 64 << 10
_UNREADABLE = (
    b": Cannot stat: No such file or directory",
    b": Cannot open: Permission denied",
)  # messages of GNU tar
_SUMMARY = b"tar: Exiting with failure status due to previous errors"
_BY_STATUS = {
    scripts.MISSING: errno.ENOENT,
    scripts.DIRECTORY: errno.EISDIR,
    scripts.DENIED: errno.EACCES,
    scripts.IRREGULAR: errno.EISDIR,
    scripts.EXISTS: errno.EEXIST,
    scripts.NOT_DIRECTORY: errno.ENOTDIR,
}
_BY_MESSAGE = {  # of strerror(3) in the C locale, glibc and musl
    errno.ENOSPC: b": No space left on device",
    errno.EDQUOT: b"uota exceeded",
    errno.EACCES: b": Permission denied",
    errno.EPERM: b": Operation not permitted",
    errno.EROFS: b": Read-only file system",
    errno.ENAMETOOLONG: b"ame too long",
}


class Shell:
    """Operations of a POSIX shell. Use only those in `features`.

    Paths are absolute, of any bytes but NUL. Every method may also raise:

    * FileNotFoundError, PermissionError, IsADirectoryError (for anything but a regular file), NotADirectoryError, FileExistsError,
      or another OSError with its errno: the server refused.
    * CommandError: the command failed otherwise.
    * TimeoutError, EOFError and paramiko's errors: the connection is lost, or the server opens no channel.

    Args:
        open_channel: opens a session channel.
        io_timeout: seconds without progress after which a command fails.
        features: of this server, if known.
    """

    def __init__(
        self, open_channel: OpenChannel, io_timeout: float, features: ShellFeatures | None = None
    ) -> None:
        self._open_channel = open_channel
        self.io_timeout = io_timeout
        self.features = ShellFeatures() if features is None else features

    def probe(self, directory: bytes | None = None, longest: float = LONGEST) -> ShellFeatures:
        """Test which features work, in a scratch directory; never raises.

        Args:
            directory: absolute parent of the scratch directory; None for the server's TMPDIR.
            longest: seconds for the whole probe.
        """
        self.features = probe(self._open_channel, directory, longest)
        return self.features

    def find_names(self, directory: bytes) -> Iterator[bytes]:
        """The paths, relative to *directory*, of regular files and links to them, in byte order.

        Leaves out our temporary names and does not enter symlinked directories. Closing the iterator ends the command.
        """
        return self._find(find_output.names, scripts.FIND_NAMES, directory)

    def find(self, directory: bytes) -> Iterator[FindRecord]:
        """As `find_names`, but all entries except directories, with details; also temporary names."""
        return self._find(find_output.entries, scripts.FIND, directory)

    def copy(self, source: bytes, target: bytes) -> int:
        """Copy a file to a new one with the default mode and the source's modification time; returns its size.

        Raises:
            SourceChangedError: the source changed. After any error the caller must remove *target*.
        """
        with _errors_of(source):
            return int(self._run(scripts.COPY, source, target))

    def rename(self, source: bytes, target: bytes) -> None:
        """Rename *source* to *target*, replacing a file."""
        with _errors_of(source):
            self._run(scripts.RENAME, source, target)

    def link(self, source: bytes, target: bytes) -> None:
        """Make the hard link *target* of *source*.

        Raises:
            FileExistsError: *target* exists.
        """
        with _errors_of(source):
            self._run(scripts.LINK, source, target)

    def digests(self, paths: Iterable[bytes], algorithm: str) -> Iterator[tuple[bytes, str]]:
        """(path, hexadecimal digest) of each readable regular file in *paths*, in order.

        Args:
            paths: without duplicates.
            algorithm: one of `features.digests`.
        """
        script = scripts.DIGESTS if self.features.digests[algorithm] else scripts.DIGESTS_SINGLY
        command = self._start(script, f"{algorithm}sum".encode(), stdin=_listed(paths))
        with command:
            rest = b""
            while piece := command.read(_LIST_PIECE):
                *records, rest = (rest + piece).split(b"\0")
                for record in records:
                    digest, _, path = record.partition(b" ")
                    yield path[1:], digest.decode("ascii", "replace")
            command.finish()

    def pack(self, directory: bytes, names: Sequence[bytes], limit: int) -> list[bytes | None] | None:
        """Read many small files.

        Args:
            directory: parent of the names.
            names: paths relative to it.
            limit: maximum bytes to receive.

        Returns:
            The content of each file, or None if it is missing, unreadable or not regular; None instead of the list if a file
            changed while it was read, or the contents exceed *limit*.
        """
        asked = [b"./" + name for name in names]
        found: list[bytes | None] = [None] * len(asked)
        with _errors_of(directory), self._start(scripts.PACK, directory, stdin=_listed(asked)) as command:
            try:
                for at, content in members(command.read, asked, limit):
                    found[at] = content
            except ArchiveTooLargeError:
                return None
            except EOFError as error:
                # tar failed or the connection was lost: the exit status tells which.
                command.finish()
                raise CommandError(
                    0, command.stderr, "tar's output is truncated, but its status is 0"
                ) from error
            status = command.status()
            if status and not (status == 2 and _only_unreadable(command.stderr)):
                if status > 2 or status < 0:
                    raise CommandError(status, command.stderr)
                return None
            return found

    def unpacker(self, directory: bytes) -> Unpacker:
        """Start a command that writes many small files to *directory*; it creates missing directories."""
        token = secrets.token_hex(16).encode()
        return Unpacker(self._start(scripts.UNPACK, directory, token, stdin=None), token)

    def sync(self, directory: bytes) -> None:
        """Sync the file system of *directory* to disk."""
        with _errors_of(directory):
            self._run(scripts.SYNC, directory)

    def _find(
        self, parse: Callable[[Command, bytes], Iterator[Item]], script: bytes, directory: bytes
    ) -> Iterator[Item]:
        token = secrets.token_hex(16).encode()
        # Keep the input open: the script ends when it is closed.
        with _errors_of(directory), self._start(script, directory, token, b"watch", stdin=None) as command:
            yield from parse(command, token)

    def _start(self, script: bytes, *arguments: bytes, stdin: Iterable[bytes] | None = ()) -> Command:
        marker = secrets.token_hex(16).encode()
        line = scripts.command(marker, script, *arguments, beat=max(1, int(self.io_timeout / 3)))
        return Command(self._open_channel, line, self.io_timeout, stdin=stdin, marker=marker)

    def _run(self, script: bytes, *arguments: bytes) -> bytes:
        with self._start(script, *arguments) as command:
            output = command.read_all(_LIST_PIECE)
            command.finish()
            return output


def _only_unreadable(said: bytes) -> bool:
    """Whether tar only reports names that it skipped. It quotes them, so none contains a newline."""
    return len(said) < MAX_STDERR and all(
        line.endswith((*_UNREADABLE, _SUMMARY)) or not line.strip(b".") for line in said.splitlines()
    )


def _listed(names: Iterable[bytes]) -> Iterator[bytes]:
    """*names*, each followed by NUL, in larger pieces."""
    piece = bytearray()
    for name in names:
        piece += name
        piece.append(0)
        if len(piece) >= _LIST_PIECE:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


@contextmanager
def _errors_of(path: bytes) -> Iterator[None]:
    """Translate a CommandError into an OSError about *path*, if its status or message implies an errno."""
    try:
        yield
    except CommandError as error:
        shown = os.fsdecode(path)
        if error.status == scripts.CHANGED:
            raise SourceChangedError(f"{shown!r} changed while it was copied") from error
        number = _BY_STATUS.get(error.status) or next(
            (number for number, text in _BY_MESSAGE.items() if text in error.stderr), None
        )
        if number is None:
            raise
        raise OSError(number, os.strerror(number), shown) from error
