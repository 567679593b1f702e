"""SFTP operations on whole contents: open and read an object, write a small one."""

from __future__ import annotations

import stat
from collections.abc import Sequence

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.errors import changed, not_a_file, translate
from storage_backend.backends.remote.remote_path import RemotePath, StagedUpload
from storage_backend.backends.remote.sftp_operations import SFTPOperations
from storage_backend.backends.remote.sftp_packets import (
    FAILURE,
    FXF_READ,
    Attributes,
    Reply,
    StatusError,
    Steps,
)
from storage_backend.errors import StorageError, error_about
from storage_backend.streams import check_digest, sha256

SMALL = 256 << 10  # bytes; contents up to this size are written in three exchanges


def stat_object(operations: SFTPOperations, path: RemotePath) -> Steps[Attributes]:
    """The attributes of an object."""
    path = operations.at(path)
    (reply,) = yield [packets.request(packets.STAT, path.path)]
    try:
        found = packets.attributes_in(reply)
    except StatusError as error:
        raise translate(error, path.identifier, operations.where) from error
    if not found.is_regular:
        raise not_a_file(path.identifier, operations.where)
    return found


def open_to_read(
    operations: SFTPOperations, path: RemotePath, attempt: int = 0
) -> Steps[tuple[bytes, Attributes]]:
    """Open an object to read; returns the handle and attributes; *attempt* as for `read`."""
    path = operations.at(path)
    handle, _ = yield from _open(operations, path, stat_first=attempt > 0)
    try:
        first, second = yield [packets.request(packets.FSTAT, handle), packets.read_request(handle, 0, 1)]
        found = packets.attributes_in(first)
        if not found.is_regular:
            raise not_a_file(path.identifier, operations.where)
        # procfs, sysfs and some FUSE file systems report 0 bytes for files that have content.
        if found.size is None or (found.size == 0 and packets.has_data(second)):
            reason = "the server does not report the size, so only `read` can read it"
            raise error_about(StorageError, reason, path.identifier, operations.where)
    except StatusError as error:
        operations.close(handle)
        raise translate(error, path.identifier, operations.where) from error
    except BaseException:
        operations.close(handle)
        raise
    return handle, found


def read(
    operations: SFTPOperations, path: RemotePath, attempt: int, most: int
) -> Steps[tuple[bytes | None, Attributes]]:
    """The whole content of an object, or None if it exceeds *most* bytes, and its attributes.

    A repeated attempt waits for STAT before OPEN, at the cost of an exchange: opening a pipe may have lost the connection.
    """
    path = operations.at(path)
    where = operations.where
    handle, seen = yield from _open(operations, path, stat_first=attempt > 0)
    length = operations.session.read_length
    # Otherwise an exchange passed between STAT and OPEN, and the file may have been replaced.
    together = operations.session.unblocks_pipes and not attempt and seen is not None
    try:
        if seen is None or not together:
            first, second = yield [
                packets.request(packets.FSTAT, handle),
                packets.read_request(handle, 0, length),
            ]
            found = packets.attributes_in(first)
            if not found.is_regular:
                raise not_a_file(path.identifier, where)
            if found.size is None and seen is not None:
                found = found._replace(size=seen.size)
        else:
            found = seen
            (second,) = yield [packets.read_request(handle, 0, length)]
        pieces = [packets.data_in(second, length)]
        size = len(pieces[0])
        # A piece of the reported size is the whole. Another size means a growing file or a server that sends less than requested,
        # where only EOF proves the end. The same holds for a full-length piece if STAT may have seen another file than OPEN.
        while pieces[-1] and (size != found.size or (together and len(pieces[-1]) == length)):
            if max(size, found.size or 0) > most:
                return None, found
            (reply,) = yield [packets.read_request(handle, size, length)]
            pieces.append(packets.data_in(reply, length))
            size += len(pieces[-1])
        if together and size != found.size:
            (reply,) = yield [packets.request(packets.FSTAT, handle)]
            found = packets.attributes_in(reply)
            if not found.is_regular:
                raise not_a_file(path.identifier, where)
        if found.size is not None and size < found.size:
            # Truncated during the read, or a server that sends EOF early.
            raise changed(path.identifier, where, f"it ended after {size:,} of {found.size:,} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), found
    except StatusError as error:
        raise translate(error, path.identifier, where) from error
    finally:
        operations.session.post(packets.request(packets.CLOSE, handle))


def _open(
    operations: SFTPOperations, path: RemotePath, *, stat_first: bool
) -> Steps[tuple[bytes, Attributes | None]]:
    """Open a file to read; returns the handle and the attributes from STAT."""
    opening = packets.open_request(path.path, FXF_READ)
    seen: Attributes | None = None
    looked: Reply | None = None
    if operations.session.unblocks_pipes and not stat_first:
        looked, reply = yield [packets.request(packets.STAT, path.path), opening]
    else:
        seen = yield from stat_object(operations, path)
        (reply,) = yield [opening]
    try:
        handle = packets.handle_in(reply)
    except StatusError as error:
        raise (yield from _why_unreadable(operations, error, path)) from error
    if looked is None:
        return handle, seen
    try:
        seen = packets.attributes_if_any(looked)
        if seen is not None and not seen.is_regular:
            raise not_a_file(path.identifier, operations.where)
    except BaseException:
        operations.close(handle)
        raise
    return handle, seen


def _why_unreadable(operations: SFTPOperations, error: StatusError, path: RemotePath) -> Steps[StorageError]:
    """The error for a file that cannot be opened; some servers reply FAILURE for a directory."""
    if error.code == FAILURE:
        (reply,) = yield [packets.request(packets.STAT, path.path)]
        found = packets.attributes_if_any(reply)
        if found is not None and found.mode is not None and not stat.S_ISREG(found.mode):
            return not_a_file(path.identifier, operations.where)
    return translate(error, path.identifier, operations.where)


def stage(
    operations: SFTPOperations,
    path: RemotePath,
    content: bytes,
    modified: int | None,
    ahead: Sequence[bytes] = (),
    *,
    verify: bool = False,
) -> Steps[StagedUpload]:
    """As `SFTPOperations.stage`; with *verify*, also read the file back and compare it."""
    staged = yield from operations.stage(path, content, modified, ahead)
    if verify:
        try:
            found, _ = yield from read(
                operations, RemotePath(path.identifier, staged.temporary), 0, len(content)
            )
            if found != content:
                check_digest(path.identifier, sha256(content), sha256(found or b""), "what was stored")
        except BaseException:
            operations.discard(staged)
            raise
    return staged


def write(
    operations: SFTPOperations,
    path: RemotePath,
    content: bytes,
    modified: int | None,
    ahead: Sequence[bytes] = (),
    *,
    verify: bool = False,
) -> Steps[StagedUpload]:
    """Store an object: `stage`, then rename."""
    staged = yield from stage(operations, path, content, modified, ahead, verify=verify)
    yield from operations.rename_staged(staged, path)
    return staged
