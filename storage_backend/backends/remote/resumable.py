"""Downloads to and uploads from local files; those of large files can be resumed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from storage_backend.backends.remote import server_side
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.failover import Failover
from storage_backend.backends.remote.remote_file import RemoteFile
from storage_backend.backends.remote.remote_path import RemotePath, StagedUpload, in_seconds
from storage_backend.backends.remote.upload import MAX_IN_FLIGHT, Publish, SFTPUpload
from storage_backend.base import StorageBackend
from storage_backend.destinations import destination, errors_naming, write_file
from storage_backend.errors import SourceChangedError, StorageError
from storage_backend.file_rights import take_over
from storage_backend.files import StagedFile, modified_of, open_source, told_size
from storage_backend.identifiers import RESERVED
from storage_backend.info import ObjectInfo
from storage_backend.streams import Moved, counting, unwatched

RESUMABLE = 8 << 20  # bytes; smaller transfers start over
PIECE = 1 << 20
# Bytes at the end of a partial file that are transferred again: a server may write requests in flight out of order, and a
# power loss may lose the last blocks.
REWIND = 2 * MAX_IN_FLIGHT


def download(file: RemoteFile, key: str, path: Path, digest: Callable[[], str | None], moved: Moved) -> None:
    """Store an object in a local file, atomically.

    A large object is written to a partial file in the directory of *path*, named by a hash of the object, its size and its time;
    an interrupted download resumes there.

    Args:
        file: the object, open.
        key: identifies the backend and object.
        path: of the local file.
        digest: returns the object's SHA-256 as computed by the server, None if it cannot; verifies a resumed download.
        moved: called with the number of bytes as they arrive, first with those already there.
    """
    place = destination(path)
    if place is None or file.size < RESUMABLE or file.attributes.modified is None:
        write_file(path, lambda staged: _fill(staged, file, moved))
        return
    with errors_naming(place):
        if not _resumed(file, key, place, digest, moved):
            write_file(place, lambda staged: _fill(staged, file, moved))


def _resumed(file: RemoteFile, key: str, place: Path, digest: Callable[[], str | None], moved: Moved) -> bool:
    """Download by a partial file next to *place*; False if another process is doing so, and nothing was done."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.parent / _partial_name("download", key, str(file.size), str(file.attributes.modified))
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        if not _locked(fd) or not _is_at(partial, fd):
            return False
        size = os.fstat(fd).st_size
        resumed = max(size - REWIND, 0) if size <= file.size else 0
        try:
            _write_from(file, fd, resumed, moved)
            os.ftruncate(fd, file.size)
            if resumed and (expected := digest()) is not None and expected != _digest(fd):
                _write_from(file, fd, 0, unwatched)
        except SourceChangedError:
            partial.unlink()
            raise
        with suppress(FileNotFoundError):
            old = place.lstat()
            if stat.S_ISREG(old.st_mode):
                take_over(fd, None, str(place), old)
        partial.replace(place)
    finally:
        os.close(fd)
    return True


def upload(
    storage: StorageBackend,
    failover: Failover,
    path: Path,
    target: RemotePath,
    *,
    publish: Publish,
    moved: Moved,
) -> bool:
    """Store a local file as an object, with its modification time.

    A large file is written to a partial file in the object's directory, named by a hash of the local file, its size and its
    time; an interrupted upload resumes there. *moved* is called with the number of bytes sent, first with those already there.
    """
    with open_source(path) as reader:
        local = os.fstat(reader.fileno())
        # The lock makes concurrent uploads of the same file use another temporary name.
        if not stat.S_ISREG(local.st_mode) or local.st_size < RESUMABLE or not _locked(reader.fileno()):
            info = ObjectInfo(target.identifier, told_size(local), modified_of(local))
            return storage.write_stream(target.identifier, counting(reader, moved), info=info)
        name = _partial_name(
            "upload",
            socket.gethostname(),
            *map(str, (local.st_dev, local.st_ino, local.st_size, local.st_mtime_ns)),
            storage.location,
            target.identifier,
        )
        fd = reader.fileno()
        progress = _ProgressByPosition(moved)

        def send(connection: SSHConnection, _: int) -> tuple[StagedUpload, int]:
            return _send(connection, fd, local, target, name=name, progress=progress)

        def digest(connection: SSHConnection, _: int) -> str | None:
            return server_side.digests(connection, [staged.temporary]).get(staged.temporary)

        staged, resumed = failover.run(target.identifier, send)
        if resumed and (found := failover.run(None, digest)) is not None and found != _digest(fd):
            temporary = staged.temporary
            failover.run(None, lambda connection, _: connection.run(connection.operations.remove(temporary)))
            staged, _ = failover.run(target.identifier, send)
        publish(target, staged, local.st_size)
        return True


class _ProgressByPosition:
    """Reports progress by position, so that bytes sent twice are reported once."""

    def __init__(self, moved: Moved) -> None:
        self._moved = moved
        self._reported = 0

    def reached(self, position: int) -> None:
        if position > self._reported:
            self._moved(position - self._reported)
            self._reported = position


def _send(
    connection: SSHConnection,
    fd: int,
    local: os.stat_result,
    target: RemotePath,
    *,
    name: str,
    progress: _ProgressByPosition,
) -> tuple[StagedUpload, int]:
    """The staged upload, and the number of bytes it resumed from."""
    operations = connection.operations
    temporary = posixpath.join(posixpath.dirname(operations.at(target).path), name.encode())
    partial = connection.run(operations.entry(temporary))
    size = partial.size or 0 if partial is not None else 0
    resumed = max(size - REWIND, 0) if size <= local.st_size else 0
    if partial is not None and not resumed:
        connection.run(operations.remove(temporary))
    sending = SFTPUpload(connection, target, temporary, resumed)
    try:
        progress.reached(resumed)
        while sending.size < local.st_size:
            piece = os.pread(fd, PIECE, sending.size)
            if not piece:
                break
            sending.write(piece)
            progress.reached(sending.size)
        now = os.fstat(fd)
        if sending.size != local.st_size or (now.st_size, now.st_mtime_ns) != (
            local.st_size,
            local.st_mtime_ns,
        ):
            raise SourceChangedError(
                f"the file changed while it was sent to {target.identifier!r}", identifier=target.identifier
            )
        return sending.finish(in_seconds(modified_of(local))), resumed
    except (SourceChangedError, StorageError):
        sending.discard()
        raise
    except BaseException:
        # Keep the partial file for the next transfer.
        sending.abandon()
        raise


def _fill(staged: StagedFile, file: RemoteFile, moved: Moved) -> None:
    while piece := file.next_piece(PIECE):
        staged.write(piece)
        moved(len(piece))


def _write_from(file: RemoteFile, fd: int, start: int, moved: Moved) -> None:
    """Write the object, from *start* on, to a local file."""
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
    """Lock a file until its descriptor is closed; False if another process has the lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(path: Path, fd: int) -> bool:
    """Whether *path* still names the open file: another process may just have finished it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _partial_name(*key: str) -> str:
    digest = hashlib.sha256("\0".join(key).encode("utf-8", "surrogateescape"), usedforsecurity=False)
    return f"{RESERVED}{digest.hexdigest()[:32]}.part"
