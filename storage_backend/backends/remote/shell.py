"""Shell: what a server's own tools do with its files, a command each."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from storage_backend.backends.remote import finding, scripts
from storage_backend.backends.remote.commands import Command, CommandError, OpenChannel
from storage_backend.backends.remote.finding import Found
from storage_backend.backends.remote.packing import Packed
from storage_backend.backends.remote.probe import LONGEST, Facts, probe
from storage_backend.backends.remote.streaming import Reader, Writer
from storage_backend.backends.remote.tarstream import archive
from storage_backend.errors import SourceChangedError
from storage_backend.identifiers import RESERVED

Item = TypeVar("Item")
_LIST_PIECE = 64 << 10
_CODES = {
    scripts.MISSING: errno.ENOENT,
    scripts.DIRECTORY: errno.EISDIR,
    scripts.DENIED: errno.EACCES,
    scripts.IRREGULAR: errno.EISDIR,
    scripts.EXISTS: errno.EEXIST,
    scripts.NOT_DIRECTORY: errno.ENOTDIR,
}
_SAID = {  # in the C locale, glibc and musl
    errno.ENOSPC: b": No space left on device",
    errno.EDQUOT: b"uota exceeded",
    errno.EACCES: b": Permission denied",
    errno.EPERM: b": Operation not permitted",
    errno.EROFS: b": Read-only file system",
    errno.ENAMETOOLONG: b"ame too long",
}


class Shell:
    """Operations of a POSIX shell. Each may be asked for only where the fact of its name holds.

    Paths are absolute, and any bytes but NUL. Every method may raise, beside what it names,

    * FileNotFoundError, PermissionError, IsADirectoryError (of whatever is no regular file), NotADirectoryError, FileExistsError, or
      another OSError with its number, as the server found it;
    * CommandError: the command failed otherwise;
    * TimeoutError, EOFError and paramiko's own errors: the connection is lost, or no channel is given.

    Args:
        open_channel: gives a new session channel.
        io_timeout: seconds in which something must move.
        facts: of this server, where they are known.
    """

    def __init__(self, open_channel: OpenChannel, io_timeout: float, facts: Facts | None = None) -> None:
        self._open_channel = open_channel
        self._timeout = io_timeout
        self.facts = Facts() if facts is None else facts

    def probe(self, directory: bytes | None = None, longest: float = LONGEST) -> Facts:
        """Find out what works, in a scratch directory beneath *directory* or the server's for temporary files; never raises.

        Args:
            directory: absolute; None for the server's own choice.
            longest: seconds for all of it.
        """
        self.facts = probe(self._open_channel, directory, longest)
        return self.facts

    def reader(self, path: bytes, offset: int = 0) -> Reader:
        """The file at *path* from *offset* on, with size and time of the very file that is read."""
        with _errors_of(path):
            command = self._start(scripts.READ, path, b"%d" % (offset + 1))
            return Reader(command, offset)

    def writer(self, path: bytes, offset: int = 0, algorithm: str | None = None) -> Writer:
        """A new file at *path*, or the rest of the one that is there.

        Args:
            path: of the file; its directory is there.
            offset: the length that the file must have.
            algorithm: one that the server has, to have it digest the whole file at the end.

        Raises:
            SourceChangedError: it has another length; raised by the writer's methods, as is all else.
        """
        digest = b"" if algorithm is None else f"{algorithm}sum".encode()
        command = self._start(
            scripts.WRITE, path, b"%d" % offset, digest, stdin=None, beat=algorithm is not None
        )
        return Writer(command, offset, algorithm is not None, lambda: _errors_of(path))

    def pack(self, directory: bytes, names: Iterable[bytes], limit: int) -> Packed:
        """The contents of many small files.

        Args:
            directory: where they are.
            names: relative to it, each once.
            limit: the longest content to take, in bytes.
        """

        def start(stdin: Iterable[bytes]) -> Command:
            return self._start(scripts.PACK, directory, stdin=stdin)

        return Packed(start, names, limit, lambda: _errors_of(directory))

    def unpack(
        self, directory: bytes, items: Iterable[tuple[int, bytes, float | None]], *, dated: bool = False
    ) -> None:
        """Write many small files into *directory*, which is there, under their numbers in decimal.

        Args:
            directory: where they go; none of the names is there yet.
            items: (number, content, time of last change in seconds since 1970).
            dated: whether these times are kept, in whole seconds; else the time is that of writing.
        """
        stream = archive((b"%d" % number, content, modified) for number, content, modified in items)
        with (
            _errors_of(directory),
            self._start(scripts.UNPACK, directory, b"" if dated else b"-m", stdin=stream) as command,
        ):
            command.finish()

    def find_names(self, directory: bytes, maxdepth: int | None = None) -> Iterator[bytes]:
        """The paths, relative to *directory*, of regular files and of links to such, ascending by their bytes.

        Names that begin as our temporary ones do are left out, and linked directories are not entered. Closing the iterator
        ends the command.
        """
        return self._find(finding.names, scripts.FIND_NAMES, directory, maxdepth)

    def find(
        self, directory: bytes, maxdepth: int | None = None, *, directories: bool = False
    ) -> Iterator[Found]:
        """As `find_names`, with details, and of all that is there; of directories if *directories*."""
        script = scripts.FIND_ALL if directories else scripts.FIND
        return self._find(finding.entries, script, directory, maxdepth)

    def copy(self, source: bytes, target: bytes) -> int:
        """Copy a file to a new one with the mode of new files and the source's time; its size.

        Raises:
            SourceChangedError: the source changed meanwhile. *target* is to be removed, as after any error.
        """
        with _errors_of(source):
            return int(self._run(scripts.COPY, source, target))

    def rename(self, source: bytes, target: bytes) -> None:
        """Give *source* the name *target*, in place of what file is there."""
        with _errors_of(source):
            self._run(scripts.RENAME, source, target)

    def link(self, source: bytes, target: bytes) -> None:
        """Give *source* the further name *target*.

        Raises:
            FileExistsError: it is in use.
        """
        with _errors_of(source):
            self._run(scripts.LINK, source, target)

    def digests(self, paths: Iterable[bytes], algorithm: str) -> Iterator[tuple[bytes, str]]:
        """(path, digest in hexadecimal) of those of *paths* that are regular files and readable, in their order.

        Args:
            paths: each once.
            algorithm: one of `facts.digests`.
        """
        script = scripts.DIGESTS if self.facts.digests[algorithm] else scripts.DIGESTS_SINGLY
        command = self._start(script, f"{algorithm}sum".encode(), stdin=_listed(paths), beat=True)
        with command:
            rest = b""
            while piece := command.read(_LIST_PIECE):
                *records, rest = (rest + piece).split(b"\0")
                for record in records:
                    digest, _, path = record.partition(b" ")
                    yield path[1:], digest.decode("ascii", "replace")
            command.finish()

    def remove_many(self, paths: Iterable[bytes]) -> None:
        """Remove files and links; what is not there is no error. After an error some are gone."""
        self._run(scripts.REMOVE, stdin=_listed(paths))

    def remove_tree(self, directory: bytes) -> None:
        """Remove one of our own temporary directories, or files, with all that it holds.

        Raises:
            ValueError: it is none of ours by its name.
        """
        if not directory.rpartition(b"/")[2].startswith(RESERVED.encode()):
            raise ValueError(f"{directory!r} is no temporary name")
        with _errors_of(directory):
            self._run(scripts.REMOVE_TREE, directory)

    def make_directories(self, paths: Iterable[bytes]) -> None:
        """Make directories, and those above them. After an error some are there."""
        self._run(scripts.DIRECTORIES, stdin=_listed(paths))

    def sync(self, directory: bytes) -> None:
        """Return when the file system of *directory* has stored all of its changes."""
        with _errors_of(directory):
            self._run(scripts.SYNC, directory)

    def _find(
        self,
        parse: Callable[[Command, bytes], Iterator[Item]],
        script: bytes,
        directory: bytes,
        maxdepth: int | None,
    ) -> Iterator[Item]:
        token = secrets.token_hex(16).encode()
        depth = b"" if maxdepth is None else b"%d" % maxdepth
        # Its input stays open: its end would end the command.
        with (
            _errors_of(directory),
            self._start(script, directory, depth, token, b"watch", stdin=None, beat=True) as command,
        ):
            yield from parse(command, token)

    def _start(
        self, script: bytes, *arguments: bytes, stdin: Iterable[bytes] | None = (), beat: bool = False
    ) -> Command:
        marker = secrets.token_hex(16).encode()
        interval = max(1, int(self._timeout / 3)) if beat else None
        line = scripts.command(marker, script, *arguments, beat=interval)
        return Command(self._open_channel, line, self._timeout, stdin=stdin, marker=marker)

    def _run(self, script: bytes, *arguments: bytes, stdin: Iterable[bytes] = ()) -> bytes:
        with self._start(script, *arguments, stdin=stdin, beat=True) as command:
            output = command.read_all(_LIST_PIECE)
            command.finish()
            return output


def _listed(names: Iterable[bytes]) -> Iterator[bytes]:
    """*names* with a NUL after each, in pieces that are worth a send."""
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
    """Raise what a command's status says of *path* as Python's own error."""
    try:
        yield
    except CommandError as error:
        shown = os.fsdecode(path)
        if error.status in {scripts.CHANGED, scripts.OTHER_SIZE}:
            raise SourceChangedError(f"{shown!r} is not what it was") from error
        number = _CODES.get(error.status) or next(
            (number for number, text in _SAID.items() if text in error.stderr), None
        )
        if number is None:
            raise
        raise OSError(number, os.strerror(number), shown) from error
