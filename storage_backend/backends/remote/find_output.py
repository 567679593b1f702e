"""Parses the output of scripts.FIND and FIND_NAMES incrementally."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import NamedTuple

from storage_backend.backends.remote.commands import Command, CommandError

_PIECE = 256 << 10
_KINDS = frozenset(bytes((letter,)) for letter in b"bcdfpslDLNU?")  # find(1), %Y
FIELDS = 45  # bytes before the path: type, type of a symlink's target, size (20), time (23); see scripts.FIND


class FindRecord(NamedTuple):
    """A file, directory or other entry.

    Attributes:
        path: relative to the directory that was searched.
        kind: find's letter for the type: b"f", b"d", b"l" (symlink), b"p", ...
        target: the same for a symlink's target; b"N" if missing, b"L" for a loop, b"?" for an error.
        size: in bytes; of a link, its own.
        modified: seconds since 1970; of a link, its own.
        seconds: *modified* rounded down; exact.
    """

    path: bytes
    kind: bytes
    target: bytes
    size: int
    modified: float
    seconds: int


def names(command: Command, token: bytes) -> Iterator[bytes]:
    """The paths of regular files and symlinks to them that scripts.FIND_NAMES prints. Raises as `entries`."""
    for records in _records(command, token):
        for record in records:
            if record[:1] == b"f":
                yield record[1:]
            elif record[:1] not in _KINDS:
                raise CommandError(0, b"", f"find printed an invalid record: {record[:100]!r}")


def entries(command: Command, token: bytes) -> Iterator[FindRecord]:
    """The entries that scripts.FIND prints.

    Raises:
        PermissionError: a directory could not be read.
        OSError: find or sort failed otherwise.
        CommandError: the output is invalid.
    """
    for records in _records(command, token):
        for record in records:
            try:
                modified = record[22:FIELDS]
                yield FindRecord(
                    record[FIELDS:],
                    record[:1],
                    record[1:2],
                    int(record[2:22]),
                    _seconds(modified),
                    # The fraction is positive, before 1970 too.
                    int(modified.partition(b".")[0]),
                )
            except ValueError:
                raise CommandError(0, b"", f"find printed an invalid record: {record[:100]!r}") from None


def _records(command: Command, token: bytes) -> Iterator[list[bytes]]:
    rest = b""
    while piece := command.read(_PIECE):
        found = (rest + piece).split(b"\0")
        rest = found.pop()
        yield found
    _check_end(command, token, rest)


def _seconds(text: bytes) -> float:
    seconds = float(text)
    if seconds >= 0:
        return seconds
    # find prints the seconds, rounded down, and then the positive fraction: -1.5 is printed as -2.5.
    whole, _, fraction = text.partition(b".")
    return int(whole) + float(b"." + fraction)


def _check_end(command: Command, token: bytes, rest: bytes) -> None:
    command.finish()
    said = command.stderr
    match = re.search(rb"(?:^|\n)%b (\d+)\n" % token, said)
    if match is None or rest:
        raise CommandError(0, said, "the list of files is truncated")
    if match[1] != b"0":
        denied = b": Permission denied" in said
        complaint = said[: match.start()].decode("utf-8", "backslashreplace").strip()
        raise OSError(errno.EACCES if denied else errno.EIO, f"find could not read everything: {complaint}")
