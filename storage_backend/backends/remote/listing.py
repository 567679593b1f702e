"""Entries beneath a directory of the server, in the order of identifiers: by SFTP, or by the server's `find`."""

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

MAX_NAME = 255  # bytes; NAME_MAX of every file system in common use
AHEAD = 32  # directories that are read at a time
LINKS_AHEAD = 256  # symlinks that are followed at a time
_REGULAR = Attributes(None, stat.S_IFREG, None)
_RESERVED = identifiers.RESERVED.encode()

OnLeftover = Callable[[bytes], object]
"""Called with the path of each file that has a temporary name."""


class ListedPath(NamedTuple):
    """An entry.

    Attributes:
        path: relative to the base directory.
        attributes: of a symlink, those of its target; None for a dangling one.
    """

    path: bytes
    attributes: Attributes | None


def find(
    connection: SSHConnection, prefix: bytes, on_leftover: OnLeftover, *, details: bool
) -> Iterator[ListedPath]:
    """As `walk` into every directory, by the server's `find`.

    Args:
        connection: whose shell has `find`.
        prefix: literal bytes.
        on_leftover: only called with *details*.
        details: whether the attributes of objects are wanted. Otherwise what is not an object is left out.

    Raises:
        AccessDeniedError: a directory cannot be read.
        IntegrityError: the output is out of order, so that something may be missing.
        ShellError: the shell failed; what was yielded until then is right.
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
                        raise _disordered(connection, name)
                    previous = name
                    if (path := before + name).startswith(prefix):
                        yield ListedPath(path, _REGULAR)
                return
            for entry in shell.find(directory):
                if entry.path <= previous:
                    raise _disordered(connection, entry.path)
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


def _disordered(connection: SSHConnection, path: bytes) -> IntegrityError:
    return IntegrityError(
        f"the server's find or sort gave {path[:200]!r} out of order at {connection.endpoint}"
    )


def _attributes(connection: SSHConnection, path: bytes, entry: FindRecord) -> Attributes | None:
    if entry.kind == b"f":
        # Whole seconds, as by SFTP: an object must have the same time however it is listed.
        return Attributes(entry.size, stat.S_IFREG, entry.seconds & 0xFFFFFFFF)
    if entry.kind == b"l":
        return _targets(connection, [path])[path]
    return Attributes(None, stat.S_IFIFO, None)


def is_beneath(connection: SSHConnection, directory: bytes) -> bool:
    """Whether *directory* is reached from the base directory without symlinks, which a scan does not follow."""
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
                continue  # reading the directory will tell
            if stat.S_ISLNK(mode or 0):
                return False
        return True

    return connection.run(steps())


def walk(
    connection: SSHConnection, prefix: bytes, enter: Callable[[bytes], bool], on_leftover: OnLeftover = bool
) -> Iterator[ListedPath]:
    """All that is not a directory and begins with *prefix*, ascending by path, by SFTP.

    Args:
        connection: to walk by.
        prefix: literal bytes.
        enter: called with the path of each directory, without "/" at the end, whether to read it.
        on_leftover: called with the path of each file that has a temporary name.

    Raises:
        StorageError: a directory cannot be read.
    """
    walked = _Walk(connection, prefix, enter, on_leftover)
    start = prefix.rpartition(b"/")[0]
    return walked.inside(start, _read_all(connection, [start])[start])


class _Walk(NamedTuple):
    """The arguments of `walk`. A nested recursive function would be in a reference cycle with them."""

    connection: SSHConnection
    prefix: bytes
    enter: Callable[[bytes], bool]
    on_leftover: OnLeftover

    def inside(self, directory: bytes, entries: Sequence[SFTPEntry]) -> Iterator[ListedPath]:
        """What is beneath *directory*, which has *entries*."""
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
        # A directory takes its place as "name/": only so is the order that of identifiers.
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
                    ahead = _read_all(self.connection, [*islice(following, AHEAD)])
                yield from self.inside(name, ahead.pop(name))


def level(connection: SSHConnection, directory: bytes) -> list[ListedPath]:
    """What is in one directory, ascending, directories as "name/"."""
    entries = _read_all(connection, [directory])[directory]
    before = directory + b"/" if directory else b""
    usable = [entry for entry in entries if not entry.name.startswith(_RESERVED)]
    links = [before + _segment(entry.name) for entry in usable if stat.S_ISLNK(entry.attributes.mode or 0)]
    targets = _targets(connection, links) if links else {}
    named = [
        (before + _segment(entry.name) + b"/" * _is_directory(entry), entry.attributes) for entry in usable
    ]
    named.sort(key=lambda item: item[0])
    return [ListedPath(path, targets.get(path, attributes)) for path, attributes in named]


def _segment(name: bytes) -> bytes:
    """A name as a part of a path; one that no directory can have becomes one that no identifier can have."""
    return name if name and b"/" not in name else b"/" + name


def _is_directory(entry: SFTPEntry) -> bool:
    return stat.S_ISDIR(entry.attributes.mode or 0)


def _read_all(connection: SSHConnection, directories: Sequence[bytes]) -> dict[bytes, Sequence[SFTPEntry]]:
    """The entries of each of *directories*; one that is gone has none."""
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
    found.update(connection.session.run_many(operations, AHEAD, failed))
    return found


def _targets(connection: SSHConnection, links: Sequence[bytes]) -> dict[bytes, Attributes | None]:
    """The attributes of the targets of *links*; None for a dangling one."""

    def target(path: bytes) -> Steps[Attributes | None]:
        (reply,) = yield [packets.request(packets.STAT, posixpath.join(connection.base, path))]
        return packets.attributes_if_any(reply)

    found: dict[bytes, Attributes | None] = dict.fromkeys(links)
    found.update(connection.session.run_many(((path, target(path)) for path in links), LINKS_AHEAD, _ignore))
    return found


def cleanup(connection: SSHConnection, age: float) -> int:
    """Remove what has a temporary name and was last written more than *age* seconds ago; returns how much that was.

    A file that was moved aside for a successor that never came gets its name back.
    """
    removed = 0
    limit = time.time() - age
    pending = [b""]
    while pending:
        block, pending = pending[:AHEAD], pending[AHEAD:]
        for directory, found in _read_all(connection, block).items():
            before = directory + b"/" if directory else b""
            for entry in found:
                if not entry.name.startswith(_RESERVED):
                    # We leave nothing where no identifier leads; and a hostile server may nest directories without end.
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
    """Remove files; returns how many were there."""
    steps = ((path, _remove(posixpath.join(connection.base, path))) for path in paths)
    return sum(count for _, count in connection.session.run_many(steps, AHEAD, _ignore))


def _remove(path: bytes) -> Steps[int]:
    """Remove a file, or an empty folder; returns how many were removed."""
    replies = yield [packets.request(packets.REMOVE, path), packets.request(packets.RMDIR, path)]
    return int(any(packets.refusal(reply) is None for reply in replies))


def _ignore(_key: bytes, _error: Exception) -> None:
    """What cannot be read is a dangling link, and what cannot be removed stays."""
