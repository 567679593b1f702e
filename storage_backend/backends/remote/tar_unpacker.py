"""Unpacker: sends tar archives to scripts.UNPACK on the server and parses its output."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from storage_backend.backends.remote import scripts
from storage_backend.backends.remote.commands import Command, CommandError
from storage_backend.backends.remote.tar_format import archive, length

_RECORD = 128  # upper bound, in bytes, of what scripts.UNPACK prints for one file besides its paths
_TRIES = 3  # tar fails if another process creates the same directory; each try leaves fewer to create
_SUM = re.compile(rb"[0-9a-f]{64}")


class TarMember(NamedTuple):
    """A small file to be written; paths are relative.

    Attributes:
        path: temporary path, which must not exist.
        target: the file that it will replace.
        modified: seconds since 1970.
    """

    path: bytes
    target: bytes
    content: bytes
    modified: int


class UnpackedFile(NamedTuple):
    """A file that was unpacked.

    Attributes:
        size: of the new file, in bytes.
        mode: type and permissions, as `os.stat` has them.
        modified: seconds since 1970.
        sha256: in hexadecimal; "" if not requested.
        replaced_mode: mode of what exists at the target, of a symlink the link's own; None if nothing does.
    """

    size: int
    mode: int
    modified: int
    sha256: str
    replaced_mode: int | None


class Unpacker:
    """A command on the server that unpacks one archive after the other. Not thread-safe.

    Args:
        command: runs scripts.UNPACK.
        token: passed to the script.

    Attributes:
        waits: whether the command is ready for another archive.
    """

    def __init__(self, command: Command, token: bytes) -> None:
        self.command = command
        self._token = token
        self.waits = True

    def unpack(
        self, members: Sequence[TarMember], listing: bytes, *, dated: bool, digests: bool
    ) -> Sequence[UnpackedFile]:
        """Write small files; after an error, none of them exists.

        Args:
            members: files with paths relative to the command's directory.
            listing: a relative path that is unused, also with "+" appended.
            dated: whether to set modification times.
            digests: whether to compute SHA-256.
        """
        self.waits = False
        limit = sum(_RECORD + len(member.path) + len(member.target) for member in members)
        for _ in range(_TRIES):
            self.command.send(request(members, listing, dated=dated, digests=digests))
            output = self.command.read_until(self._token, limit)
            status = int(self.command.read_line())
            if status != scripts.AGAIN:
                break
        self.waits = True
        if status:
            raise CommandError(status, self.command.stderr)
        return unpacked(members, output, digests=digests)


def request(members: Sequence[TarMember], listing: bytes, *, dated: bool, digests: bool) -> Iterator[bytes]:
    """The header line and the archive for scripts.UNPACK, in pieces."""
    paths = b"".join([b"%b\0" % member.path for member in members])
    targets = b"".join([b"%b\0" % member.target for member in members])
    lists = [(listing, paths, 0), (listing + b"+", targets, 0)]
    sizes = chain(
        ((path, len(content)) for path, content, _ in lists),
        ((member.path, len(member.content)) for member in members),
    )
    yield b"%d %b %b %b\n" % (
        length(sizes),
        listing,
        b"-" if dated else b"-m",
        b"sha256sum" if digests else b"-",
    )
    yield from archive(chain(lists, ((member.path, member.content, member.modified) for member in members)))


def unpacked(members: Sequence[TarMember], output: bytes, *, digests: bool) -> list[UnpackedFile]:
    """Parse the output of scripts.UNPACK; returns one file for each of *members*.

    Raises:
        CommandError: it cannot be parsed.
    """
    records = output.split(b"\0")[:-1]
    count = len(members)
    sums = records[count : 2 * count] if digests else None
    there = {
        path: mode
        for mode, _, path in (record.partition(b" ") for record in records[count + len(sums or ()) :])
    }
    try:
        stats = [tuple(record.split(b" ")) for record in records[:count]]
        return [
            UnpackedFile(
                int(size),
                int(mode, 16),
                int(modified),
                "" if sums is None else _digest(sums[number], member.path),
                int(there[member.target], 16) if member.target in there else None,
            )
            for number, (member, (size, mode, modified)) in enumerate(zip(members, stats, strict=True))
        ]
    except (IndexError, ValueError) as error:
        raise CommandError(0, b"", f"the output of tar and stat is invalid: {error}") from error


def _digest(record: bytes, path: bytes) -> str:
    """The digest in a record of sha256sum: digest, two blanks, *path*."""
    if not _SUM.fullmatch(record[:64]) or record[64:66] != b"  " or record[66:] != path:
        raise ValueError(f"sha256sum printed {record[:100]!r} for {path!r}")
    return record[:64].decode()
