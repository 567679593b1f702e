"""What is beneath a directory of the server, in the order of identifiers: by SFTP, directory by directory."""

from __future__ import annotations

import os
import posixpath
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple

from storage_backend import identifiers
from storage_backend.backends.remote import non_atomic_overwrite
from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.errors import ShellError, translate
from storage_backend.backends.remote.find_output import FindRecord
from storage_backend.backends.remote.sftp_operations import known
from storage_backend.backends.remote.sftp_packets import NO_SUCH_FILE, Attributes, SFTPEntry, StatusError
from storage_backend.backends.remote.sftp_session import Steps
from storage_backend.errors import AccessDeniedError, IntegrityError, NotFoundError, StorageError
from storage_backend.info import ObjectInfo

_REGULAR = Attributes(None, stat.S_IFREG, None)
AHEAD = 32  # directories that are read at a time
_RESERVED = identifiers.RESERVED.encode()


class ListedPath(NamedTuple):
    """An entry.

    Attributes:
        path: relative to the base directory.
        attributes: of an object: of what a link leads to; None for a link that leads nowhere.
    """

    path: bytes
    attributes: Attributes | None

    @property
    def is_object(self) -> bool:
        """Whether it is a regular file."""
        return self.attributes is not None and (
            self.attributes.mode is None or stat.S_IFMT(self.attributes.mode) in {0, stat.S_IFREG}
        )


def found(
    connection: SSHConnection, prefix: bytes, left: Callable[[bytes], object], *, details: bool
) -> Iterator[ListedPath]:
    """The same as `walk` into every directory, by the server's own `find`.

    Args:
        connection: whose shell has `find`.
        prefix: literal bytes.
        left: is given each path of a file with a temporary name, with *details*.
        details: whether the attributes of objects are wanted. Otherwise what is no object is left out.

    Raises:
        AccessDeniedError: a directory cannot be read.
        IntegrityError: what the shell gives is out of order, so that something may have been passed by.
        ShellError: the shell failed; what was given until then is right.
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
                    left(path)
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


def is_beneath(connection: SSHConnection, directory: bytes) -> bool:
    """Whether a walk from the base directory may come to *directory*: by no link, which no walk follows."""
    parts = directory.split(b"/")
    if not directory:
        return True

    def steps() -> Steps[bool]:
        above = [posixpath.join(connection.base, *parts[: count + 1]) for count in range(len(parts))]
        for reply in (yield [packets.request(packets.LSTAT, path) for path in above]):
            try:
                mode = packets.attributes_in(reply).mode
            except StatusError as error:
                if error.code == NO_SUCH_FILE:
                    return False
                continue  # the walk itself will tell
            if stat.S_ISLNK(mode or 0):
                return False
        return True

    return connection.run(steps())


def _attributes(connection: SSHConnection, path: bytes, entry: FindRecord) -> Attributes | None:
    if entry.kind == b"f":
        # Whole seconds, as SFTP has them: the same object is to have the same time, whoever looks.
        return Attributes(entry.size, stat.S_IFREG, entry.seconds & 0xFFFFFFFF)
    if entry.kind == b"l":
        return _targets(connection, [path])[path]
    return Attributes(None, stat.S_IFIFO, None)


def walk(
    connection: SSHConnection,
    prefix: bytes,
    enter: Callable[[bytes], bool],
    where: str,
    left: Callable[[bytes], object] = bool,
) -> Iterator[ListedPath]:
    """All that is no directory and begins with *prefix*, ascending by path.

    Args:
        connection: to walk by.
        prefix: literal bytes.
        enter: is asked of each directory by its path, without "/" at the end, whether to go in.
        where: the backend's location, for errors.
        left: is given each path of a file with a temporary name.

    Raises:
        StorageError: a directory cannot be read.
    """
    walked = _Walk(connection, prefix, enter, where, left)
    start = prefix.rpartition(b"/")[0]
    return walked.inside(start, _read_all(connection, [start], where)[start])


class _Walk(NamedTuple):
    """What `walk` was asked for. A recursive function within it would be in a cycle with all that."""

    connection: SSHConnection
    prefix: bytes
    enter: Callable[[bytes], bool]
    where: str
    left: Callable[[bytes], object]

    def inside(self, directory: bytes, entries: Sequence[SFTPEntry]) -> Iterator[ListedPath]:
        """What is beneath *directory*, which has *entries*."""
        before = directory + b"/" if directory else b""
        wanted = []
        for entry in entries:
            path = before + _segment(entry.name)
            if entry.name.startswith(_RESERVED):
                if not _is_directory(entry):
                    self.left(path)
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
                    ahead = _read_all(self.connection, [*islice(following, AHEAD)], self.where)
                yield from self.inside(name, ahead.pop(name))


def level(
    connection: SSHConnection, directory: bytes, where: str
) -> Iterator[tuple[bytes, Attributes | None]]:
    """What is in one directory, ascending, directories as "name/"; of a link, the attributes of what it leads to."""
    entries = _read_all(connection, [directory], where)[directory]
    before = directory + b"/" if directory else b""
    usable = [entry for entry in entries if not entry.name.startswith(_RESERVED)]
    links = [before + _segment(entry.name) for entry in usable if stat.S_ISLNK(entry.attributes.mode or 0)]
    targets = _targets(connection, links) if links else {}
    named = [
        (before + _segment(entry.name) + b"/" * _is_directory(entry), entry.attributes) for entry in usable
    ]
    for path, attributes in sorted(named, key=lambda item: item[0]):
        yield path, targets.get(path, attributes)


def info_of(identifier: str, attributes: Attributes) -> ObjectInfo:
    """What is known of an object."""
    seconds = known(attributes.modified)
    modified = None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return ObjectInfo(identifier, attributes.size, modified)


def _segment(name: bytes) -> bytes:
    """A name that a server tells, as a part of a path; what no directory can have becomes what no identifier can have."""
    return name if name and b"/" not in name else b"/" + name


def _is_directory(entry: SFTPEntry) -> bool:
    return stat.S_ISDIR(entry.attributes.mode or 0)


def _read_all(
    connection: SSHConnection, directories: Sequence[bytes], where: str
) -> dict[bytes, Sequence[SFTPEntry]]:
    """The entries of each of *directories*; one that is gone has none."""
    found: dict[bytes, Sequence[SFTPEntry]] = {}

    def failed(key: bytes, error: Exception) -> None:
        if isinstance(error, StatusError):
            if error.code == NO_SUCH_FILE:
                found[key] = ()
                return
            raise _unlisted(key, error, where) from error
        raise error

    operations = (
        (
            path,
            connection.operations.names(posixpath.join(connection.base, path) if path else connection.base),
        )
        for path in directories
    )
    found.update(connection.session.run_many(operations, AHEAD, failed))
    return found


def _unlisted(path: bytes, error: StatusError, where: str) -> StorageError:
    """Why a directory cannot be read."""
    ours = translate(error, None, where)
    name = identifiers.decode(path) if path else "the base directory"
    return type(ours)(f"cannot list {name!r}: {ours}", backend=where)


def _targets(connection: SSHConnection, links: Sequence[bytes]) -> dict[bytes, Attributes | None]:
    """What each of *links* leads to; None for nothing."""
    found: dict[bytes, Attributes | None] = dict.fromkeys(links)

    def failed(key: bytes, error: Exception) -> None:
        _ = key, error

    def steps(path: bytes) -> Steps[Attributes | None]:
        (reply,) = yield [packets.request(packets.STAT, posixpath.join(connection.base, path))]
        return packets.attributes_in(reply)

    found.update(connection.session.run_many(((path, steps(path)) for path in links), 256, failed))
    return found


def cleanup(connection: SSHConnection, age: float, where: str) -> int:
    """Remove what has a temporary name and has not been written to for so many seconds; how much that was.

    What was moved aside for a successor that never came goes back.
    """
    removed = 0
    limit = time.time() - age
    pending = [b""]
    while pending:
        block, pending = pending[:AHEAD], pending[AHEAD:]
        for directory, found in _read_all(connection, block, where).items():
            before = directory + b"/" if directory else b""
            for entry in found:
                if not entry.name.startswith(_RESERVED):
                    # Where no identifier leads we have left nothing; and a server may tell of directories without end.
                    if _is_directory(entry) and identifiers.is_valid(
                        identifiers.decode(before + _segment(entry.name)), surrogates=True
                    ):
                        pending.append(before + entry.name)
                elif entry.name == non_atomic_overwrite.ASIDE and _is_directory(entry):
                    above = posixpath.join(connection.base, directory) if directory else connection.base
                    removed += connection.run(non_atomic_overwrite.heal(above, connection.operations.names))
                elif (seconds := known(entry.attributes.modified)) is None or seconds <= limit:
                    removed += connection.run(_remove(posixpath.join(connection.base, before + entry.name)))
    return removed


def remove_all(connection: SSHConnection, paths: Sequence[bytes]) -> int:
    """Remove files, there or not; how many were removed."""

    def failed(path: bytes, error: Exception) -> None:
        _ = path, error

    steps = ((path, _remove(posixpath.join(connection.base, path))) for path in paths)
    return sum(count for _, count in connection.session.run_many(steps, AHEAD, failed))


def _remove(path: bytes) -> Steps[int]:
    """Remove a file, or an empty folder; how many were removed."""
    replies = yield [packets.request(packets.REMOVE, path), packets.request(packets.RMDIR, path)]
    for reply in replies:
        try:
            packets.check(reply)
        except StatusError:
            continue
        return 1
    return 0
