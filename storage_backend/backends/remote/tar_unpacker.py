"""Unpacking: archives that a server's tar unpacks, and what it made of them, as scripts.UNPACK tells it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from storage_backend.backends.remote import scripts
from storage_backend.backends.remote.commands import Command, CommandError
from storage_backend.backends.remote.tar_format import archive, length

_RECORD = 128  # bytes; numbers and digests of one file, with room to spare
_TRIES = 3  # each time more of the directories are there that others make at the same time
_SUM = re.compile(rb"[0-9a-f]{64}")


class TarMember(NamedTuple):
    """A small file to be written; paths are relative.

    Attributes:
        path: that nothing has.
        target: what it is for.
        content: all of it.
        modified: seconds since 1970.
    """

    path: bytes
    target: bytes
    content: bytes
    modified: int


class UnpackedFile(NamedTuple):
    """What the server then has.

    Attributes:
        size: of the new file, in bytes.
        mode: type and permissions, as `os.stat` has them.
        modified: seconds since 1970.
        sha256: in hexadecimal; "" where it was not asked for.
        replaced_mode: of what there is at the target, a link itself and not what it leads to; None if nothing is.
    """

    size: int
    mode: int
    modified: int
    sha256: str
    replaced_mode: int | None


class Unpacker:
    """A command of the server's that unpacks one archive after the other. Not for several threads at once.

    Args:
        command: runs scripts.UNPACK.
        token: that it was given.

    Attributes:
        command: as given.
        waits: whether it takes another archive.
    """

    def __init__(self, command: Command, token: bytes) -> None:
        self.command = command
        self._token = token
        self.waits = True

    def unpack(
        self, members: Sequence[TarMember], listing: bytes, *, dated: bool, digests: bool
    ) -> Sequence[UnpackedFile]:
        """Write small files, all or, after an error, none.

        Args:
            members: their paths are relative to the directory of the command.
            listing: a relative path that nothing has, nor with a "+" after it.
            dated: whether their times are kept; else it is that of writing.
            digests: whether their SHA-256 is wanted.
        """
        self.waits = False
        for _ in range(_TRIES):
            self.command.send(request(members, listing, dated=dated, digests=digests))
            output = self.command.read_until(self._token, _longest(members))
            status = int(self.command.read_line())
            if status != scripts.AGAIN:
                break
        self.waits = True
        if status:
            raise CommandError(status, self.command.stderr)
        return unpacked(members, output, digests=digests)


def request(members: Sequence[TarMember], listing: bytes, *, dated: bool, digests: bool) -> Iterator[bytes]:
    """The line and the archive that scripts.UNPACK wants, in pieces."""
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


def _longest(members: Sequence[TarMember]) -> int:
    """The most bytes that scripts.UNPACK may print of *members*."""
    return sum(_RECORD + len(member.path) + len(member.target) for member in members)


def unpacked(members: Sequence[TarMember], output: bytes, *, digests: bool) -> list[UnpackedFile]:
    """What scripts.UNPACK printed, one for each of *members*.

    Raises:
        CommandError: it makes no sense.
    """
    records = output.split(b"\0")[:-1]
    count = len(members)
    sums = records[count : 2 * count] if digests else None
    there = {
        path: mode
        for mode, _, path in (record.partition(b" ") for record in records[count + len(sums or ()) :])
    }
    try:
        told = [tuple(record.split(b" ")) for record in records[:count]]
        return [
            UnpackedFile(
                int(size),
                int(mode, 16),
                int(modified),
                "" if sums is None else _digest(sums[number], member.path),
                int(there[member.target], 16) if member.target in there else None,
            )
            for number, (member, (size, mode, modified)) in enumerate(zip(members, told, strict=True))
        ]
    except (IndexError, ValueError) as error:
        raise CommandError(0, b"", f"what tar and stat said makes no sense: {error}") from error


def _digest(record: bytes, path: bytes) -> str:
    """What sha256sum says of *path*: its digest, two blanks, its name."""
    if not _SUM.fullmatch(record[:64]) or record[64:66] != b"  " or record[66:] != path:
        raise ValueError(f"sha256sum says {record[:100]!r} of {path!r}")
    return record[:64].decode()
