"""Lists the entries under a directory of the server in identifier order, by SFTP or the server's `find`; cleans up leftovers."""

from __future__ import annotations

import os
import posixpath
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from storage_backend import identifiers
from storage_backend.backends.remote import non_atomic_overwrite
from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.errors import ShellError, translate
from storage_backend.backends.remote.find_output import FindRecord
from storage_backend.backends.remote.remote_path import unambiguous
from storage_backend.backends.remote.sftp_packets import (
    NO_SUCH_FILE,
    Attributes,
    SFTPEntry,
    StatusError,
    Steps,
)
from storage_backend.errors import AccessDeniedError, IntegrityError, NotFoundError, StorageError

MAX_NAME = 255  # bytes; NAME_MAX of all common file systems
CONCURRENT_DIRECTORIES = 32  # read at a time
CONCURRENT_LINKS = 256  # resolved at a time
_REGULAR = Attributes(None, stat.S_IFREG, None)
_RESERVED = identifiers.RESERVED.encode()

OnLeftover = Callable[[bytes], object]
"""Called with the path of each file with a temporary name."""


class ListedPath(NamedTuple):
    """A directory entry.

    Attributes:
        path: relative to the base directory.
        attributes: of a symlink, those of its target; None if it dangles.
    """

    path: bytes
    attributes: Attributes | None


def find(
    connection: SSHConnection, prefix: bytes, on_leftover: OnLeftover, *, details: bool
) -> Iterator[ListedPath]:
    """As `walk` of all directories, but by the server's `find`.

    Args:
        connection: its shell must have `find`.
        prefix: literal bytes.
        on_leftover: called only with *details*.
        details: whether to yield attributes and other entries than objects.

    Raises:
        AccessDeniedError: a directory cannot be read.
        IntegrityError: the output is out of order, so entries may be missing.
        ShellError: the shell failed; the entries yielded so far are correct.
    """
    start = prefix.rpartition(b"/")[0]
    before = start + b"/" if start else b""
    previous = b""
    directory = posixpath.join(connection.base, start) if start else connection.base
    try:
        with connection.command(os.fsdecode(start)) as shell:
            if not details:
                for name in shell.find_names(directory):
                    if name <= previous:
                        raise _out_of_order(connection, name)
                    previous = name
                    if (path := before + name).startswith(prefix):
                        yield ListedPath(path, _REGULAR)
                return
            for entry in shell.find(directory):
                if entry.path <= previous:
                    raise _out_of_order(connection, entry.path)
                previous = entry.path
                path = before + entry.path
                if _RESERVED in entry.path and posixpath.basename(entry.path).startswith(_RESERVED):
                    on_leftover(path)
                elif path.startswith(prefix):
                    yield ListedPath(path, _attributes(connection, path, entry))
    except NotFoundError:
        return
    except (AccessDeniedError, IntegrityError, ShellError):
        raise
    except StorageError as error:
        raise ShellError(str(error), backend=error.backend) from error


def _out_of_order(connection: SSHConnection, path: bytes) -> IntegrityError:
    return IntegrityError(
        f"the server's find or sort gave {path[:200]!r} out of order at {connection.endpoint}"
    )


def _attributes(connection: SSHConnection, path: bytes, entry: FindRecord) -> Attributes | None:
    if entry.kind == b"f":
        # Whole seconds, as in SFTP: an object's time must not depend on how it is listed.
        return Attributes(entry.size, stat.S_IFREG, entry.seconds & 0xFFFFFFFF)
    if entry.kind == b"l":
        return _targets(connection, [path])[path]
    return Attributes(None, stat.S_IFIFO, None)


def is_beneath(connection: SSHConnection, directory: bytes) -> bool:
    """Whether no part of *directory*, relative to the base directory, is a symlink: listings do not follow these."""
    if not directory:
        return True
    parts = directory.split(b"/")

    def steps() -> Steps[bool]:
        above = [posixpath.join(connection.base, *parts[: count + 1]) for count in range(len(parts))]
        for reply in (yield [packets.request(packets.LSTAT, path) for path in above]):
            try:
                mode = packets.attributes_in(reply).mode
            except StatusError as error:
                if error.code == NO_SUCH_FILE:
                    return False
                continue  # reading the directory will raise
            if stat.S_ISLNK(mode or 0):
                return False
        return True

    return connection.run(steps())


def walk(
    connection: SSHConnection, prefix: bytes, enter: Callable[[bytes], bool], on_leftover: OnLeftover = bool
) -> Iterator[ListedPath]:
    """All entries but directories whose paths begin with *prefix*, ascending, by SFTP.

    Args:
        connection: sends the requests.
        prefix: literal bytes.
        enter: tells whether to read a directory, given its path without a final "/".
        on_leftover: called with the path of each file with a temporary name.

    Raises:
        StorageError: a directory cannot be read.
    """
    walked = _Walk(connection, prefix, enter, on_leftover)
    start = prefix.rpartition(b"/")[0]
    return walked.inside(start, _read_all(connection, [start])[start])


class _Walk(NamedTuple):
    """The arguments of `walk`: a nested recursive function would form a reference cycle."""

    connection: SSHConnection
    prefix: bytes
    enter: Callable[[bytes], bool]
    on_leftover: OnLeftover

    def inside(self, directory: bytes, entries: Sequence[SFTPEntry]) -> Iterator[ListedPath]:
        """The tree under *directory*, whose direct entries are *entries*."""
        before = directory + b"/" if directory else b""
        wanted = []
        for entry in entries:
            path = before + _segment(entry.name)
            if entry.name.startswith(_RESERVED):
                if not _is_directory(entry):
                    self.on_leftover(path)
                continue
            if _is_directory(entry):
                if (path + b"/").startswith(self.prefix) or self.prefix.startswith(path + b"/"):
                    wanted.append((path + b"/", entry))
            elif path.startswith(self.prefix):
                wanted.append((path, entry))
        # A directory sorts as "name/": this gives the order of identifiers.
        wanted.sort(key=lambda item: item[0])
        entered = [path[:-1] for path, entry in wanted if _is_directory(entry) and self.enter(path[:-1])]
        links = [path for path, entry in wanted if stat.S_ISLNK(entry.attributes.mode or 0)]
        targets = _targets(self.connection, links) if links else {}
        following = iter(entered)
        chosen = set(entered)
        ahead: dict[bytes, Sequence[SFTPEntry]] = {}
        for path, entry in wanted:
            name = path[:-1]
            if not _is_directory(entry):
                yield ListedPath(path, targets.get(path, entry.attributes))
            elif name in chosen:
                if name not in ahead:
                    ahead = _read_all(self.connection, [*islice(following, CONCURRENT_DIRECTORIES)])
                yield from self.inside(name, ahead.pop(name))


def level(connection: SSHConnection, directory: bytes, prefix: bytes) -> list[ListedPath]:
    """The entries of one directory whose paths begin with *prefix*, ascending, directories as "name/"."""
    before = directory + b"/" if directory else b""
    named = [
        (path + b"/" * _is_directory(entry), entry.attributes)
        for entry in _read_all(connection, [directory])[directory]
        if not entry.name.startswith(_RESERVED) and (path := before + _segment(entry.name)).startswith(prefix)
    ]
    named.sort(key=lambda item: item[0])
    links = [path for path, attributes in named if stat.S_ISLNK(attributes.mode or 0)]
    targets = _targets(connection, links) if links else {}
    return [ListedPath(path, targets.get(path, attributes)) for path, attributes in named]


def _segment(name: bytes) -> bytes:
    """*name* as a path segment; an impossible name becomes one that is invalid in identifiers."""
    return name if name and b"/" not in name else b"/" + name


def _is_directory(entry: SFTPEntry) -> bool:
    return stat.S_ISDIR(entry.attributes.mode or 0)


def _read_all(connection: SSHConnection, directories: Sequence[bytes]) -> dict[bytes, Sequence[SFTPEntry]]:
    """The entries of each of *directories*; none for a missing one."""
    found: dict[bytes, Sequence[SFTPEntry]] = {}

    def failed(key: bytes, error: Exception) -> None:
        if not isinstance(error, StatusError):
            raise error
        if error.code != NO_SUCH_FILE:
            where = connection.operations.where
            ours = translate(error, None, where)
            name = repr(identifiers.decode(key)) if key else "the base directory"
            raise type(ours)(f"cannot list {name}: {ours}", backend=where) from error
        found[key] = ()

    names = connection.operations.directories.names
    operations = (
        (path, names(posixpath.join(connection.base, path) if path else connection.base))
        for path in directories
    )
    found.update(connection.session.run_many(operations, CONCURRENT_DIRECTORIES, failed))
    return found


def _targets(connection: SSHConnection, links: Sequence[bytes]) -> dict[bytes, Attributes | None]:
    """The attributes of the targets of *links*; None for dangling ones."""

    def target(path: bytes) -> Steps[Attributes | None]:
        (reply,) = yield [packets.request(packets.STAT, posixpath.join(connection.base, path))]
        return packets.attributes_if_any(reply)

    found: dict[bytes, Attributes | None] = dict.fromkeys(links)
    found.update(
        connection.session.run_many(((path, target(path)) for path in links), CONCURRENT_LINKS, _ignore)
    )
    return found


def cleanup(connection: SSHConnection, age: float) -> int:
    """Remove everything with a temporary name that is older than *age* seconds; returns how many files and folders.

    A file that was moved aside for an overwrite that never finished gets its name back.
    """
    removed = 0
    limit = time.time() - age
    pending = [b""]
    while pending:
        block, pending = pending[:CONCURRENT_DIRECTORIES], pending[CONCURRENT_DIRECTORIES:]
        for directory, found in _read_all(connection, block).items():
            before = directory + b"/" if directory else b""
            for entry in found:
                if not entry.name.startswith(_RESERVED):
                    # We write only below valid identifiers, and a hostile server may nest directories without end.
                    if _is_directory(entry) and identifiers.is_valid(
                        identifiers.decode(before + _segment(entry.name)), surrogates=True
                    ):
                        pending.append(before + entry.name)
                elif entry.name == non_atomic_overwrite.ASIDE and _is_directory(entry):
                    above = posixpath.join(connection.base, directory) if directory else connection.base
                    names = connection.operations.directories.names
                    removed += connection.run(non_atomic_overwrite.heal(above, names))
                elif (seconds := unambiguous(entry.attributes.modified)) is None or seconds <= limit:
                    removed += connection.run(_remove(posixpath.join(connection.base, before + entry.name)))
    return removed


def remove_all(connection: SSHConnection, paths: Sequence[bytes]) -> int:
    """Remove files; returns how many were removed."""
    steps = ((path, _remove(posixpath.join(connection.base, path))) for path in paths)
    return sum(count for _, count in connection.session.run_many(steps, CONCURRENT_DIRECTORIES, _ignore))


def _remove(path: bytes) -> Steps[int]:
    """Remove a file or an empty folder; returns 1 if that worked, else 0."""
    replies = yield [packets.request(packets.REMOVE, path), packets.request(packets.RMDIR, path)]
    return int(any(packets.refusal(reply) is None for reply in replies))


def _ignore(_key: bytes, _error: Exception) -> None:
    """A link that cannot be resolved counts as dangling; a file that cannot be removed stays."""
