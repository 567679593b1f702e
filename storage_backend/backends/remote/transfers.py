"""Local files to and from the server: large ones go on where a broken transfer ended."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from storage_backend.backends.remote.connection import Connection
from storage_backend.backends.remote.objects import Objects
from storage_backend.backends.remote.operations import Place, Staged, beside, in_seconds
from storage_backend.backends.remote.reading import RemoteFile
from storage_backend.backends.remote.writing import UNDER_WAY, Upload
from storage_backend.base import StorageBackend
from storage_backend.destinations import destination, told_of, write_file
from storage_backend.errors import SourceChangedError, StorageError
from storage_backend.file_rights import take_over
from storage_backend.files import StagedFile, modified_of, open_source
from storage_backend.identifiers import RESERVED
from storage_backend.info import ObjectInfo
from storage_backend.streams import Moved, counting, unwatched
from storage_backend.unsized import told_size

RESUMABLE = 8 << 20  # bytes; smaller files are sent again
PIECE = 1 << 20
# What is transferred again of a partial file: a server may write out of order what is under way at a time, and a machine
# that loses power its last blocks.
AGAIN = 2 * UNDER_WAY


def download(file: RemoteFile, key: str, path: Path, digest: Callable[[], str | None], moved: Moved) -> None:
    """Store an object in a local file, which appears whole or not at all.

    A large one is gathered beside *path* under a temporary name that says which object it is, as of which size and time; a
    transfer that was broken off goes on there.

    Args:
        file: the object, open.
        key: which object of which backend that is.
        path: of the file.
        digest: gives the object's SHA-256 as the server makes it out, None if it cannot. What was resumed is compared.
        moved: is told of the bytes as they arrive, and first of those that were there.
    """
    place = destination(path)
    if place is None or file.size < RESUMABLE or file.facts.modified is None:
        write_file(path, lambda staged: _fill(staged, file, moved))
        return
    with told_of(place):
        if not _resumed(file, key, place, digest, moved):
            write_file(place, lambda staged: _fill(staged, file, moved))


def _resumed(file: RemoteFile, key: str, place: Path, digest: Callable[[], str | None], moved: Moved) -> bool:
    """Gather the object beside *place*; False, and nothing was done, if another process does so just now."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.parent / _partial_name("download", key, str(file.size), str(file.facts.modified))
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        if not _locked(fd) or not _is_at(partial, fd):
            return False
        size = os.fstat(fd).st_size
        resumed = max(size - AGAIN, 0) if size <= file.size else 0
        try:
            _gather(file, fd, resumed, moved)
            os.ftruncate(fd, file.size)
            if resumed and (expected := digest()) is not None and expected != _digest(fd):
                _gather(file, fd, 0, unwatched)
        except SourceChangedError:
            partial.unlink()
            raise
        with suppress(FileNotFoundError):
            facts = place.lstat()
            if stat.S_ISREG(facts.st_mode):
                take_over(fd, None, str(place), facts)
        partial.replace(place)
    finally:
        os.close(fd)
    return True


def upload(storage: StorageBackend, objects: Objects, path: Path, place: Place, moved: Moved) -> bool:
    """Store a local file as an object, with its time.

    A large one is gathered beside its place under a temporary name that says which file it is, as of which size and time; a
    transfer that was broken off goes on there. *moved* is told of the bytes as they leave, and first of those that were there.
    """
    with open_source(path) as reader:
        facts = os.fstat(reader.fileno())
        modified = modified_of(facts)
        regular = stat.S_ISREG(facts.st_mode)
        # The lock is for others that send the same file to the same place: they take another temporary name.
        if not regular or facts.st_size < RESUMABLE or not _locked(reader.fileno()):
            info = ObjectInfo(place.identifier, told_size(facts), modified)
            return storage.write_stream(place.identifier, counting(reader, moved), info=info)
        name = _partial_name(
            "upload",
            socket.gethostname(),
            *map(str, (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)),
            storage.location,
            place.identifier,
        )
        fd = reader.fileno()
        told = _Furthest(moved)

        def send(connection: Connection) -> tuple[Staged, int]:
            return _send(connection, fd, facts, connection.at(place), name=name, told=told)

        staged, resumed = objects.link.run(place.identifier, send)
        if resumed and (found := objects.staged_digest(staged)) is not None and found != _digest(fd):
            objects.remove(staged)
            staged, _ = objects.link.run(place.identifier, send)
        objects.publish(staged, place, facts.st_size)
        return True


class _Furthest:
    """Tells of bytes by their position: what is sent again is told once."""

    def __init__(self, moved: Moved) -> None:
        self._moved = moved
        self._told = 0

    def reached(self, position: int) -> None:
        if position > self._told:
            self._moved(position - self._told)
            self._told = position


def _send(
    connection: Connection, fd: int, facts: os.stat_result, at: Place, *, name: str, told: _Furthest
) -> tuple[Staged, int]:
    """The staged file, and how much of it was there before."""
    temporary = beside(at.path, name.encode())
    there = connection.run(connection.operations.entry(temporary))
    size = there.size or 0 if there is not None else 0
    resumed = max(size - AGAIN, 0) if size <= facts.st_size else 0
    if there is not None and not resumed:
        connection.run(connection.operations.remove(temporary))
    sending = Upload(connection, at, temporary, resumed)
    try:
        told.reached(resumed)
        while sending.size < facts.st_size:
            piece = os.pread(fd, PIECE, sending.size)
            if not piece:
                break
            sending.write(piece)
            told.reached(sending.size)
        now = os.fstat(fd)
        if sending.size != facts.st_size or (now.st_size, now.st_mtime_ns) != (
            facts.st_size,
            facts.st_mtime_ns,
        ):
            raise SourceChangedError(
                f"the file changed while it was sent to {at.identifier!r}", identifier=at.identifier
            )
        return sending.finish(in_seconds(modified_of(facts))), resumed
    except (SourceChangedError, StorageError):
        sending.discard()
        raise
    except BaseException:
        # What has arrived stays for the next time.
        sending.abandon()
        raise


def _fill(staged: StagedFile, file: RemoteFile, moved: Moved) -> None:
    while piece := file.next_piece(PIECE):
        staged.write(piece)
        moved(len(piece))


def _gather(file: RemoteFile, fd: int, start: int, moved: Moved) -> None:
    """Write the object from *start* on to its place in a local file."""
    file.seek(start)
    moved(start)
    while piece := file.next_piece(PIECE):
        _write_at(fd, piece, file.tell() - len(piece))
        moved(len(piece))


def _digest(fd: int) -> str:
    with os.fdopen(os.dup(fd), "rb") as reader:
        reader.seek(0)
        return hashlib.file_digest(reader, "sha256").hexdigest()


def _write_at(fd: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written


def _locked(fd: int) -> bool:
    """Whether this process has the lock on a file now, which ends with the descriptor; others do without resuming."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(path: Path, fd: int) -> bool:
    """Whether the file is still the one of that name: another process may have finished it just now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _partial_name(*key: str) -> str:
    digest = hashlib.sha256("\0".join(key).encode("utf-8", "surrogateescape"), usedforsecurity=False)
    return f"{RESERVED}{digest.hexdigest()[:32]}.part"
