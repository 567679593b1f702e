"""SFTP operations that move and copy objects."""

from __future__ import annotations

import posixpath
import stat

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.errors import translate
from storage_backend.backends.remote.remote_path import RemotePath
from storage_backend.backends.remote.sftp_contents import open_to_read
from storage_backend.backends.remote.sftp_directories import TRIES
from storage_backend.backends.remote.sftp_operations import SFTPOperations
from storage_backend.backends.remote.sftp_packets import NO_SUCH_FILE, Attributes, StatusError, Steps
from storage_backend.base import not_found
from storage_backend.errors import NotFoundError

COPY_STEP = 32 << 20  # bytes copied per request; the server handles no other request meanwhile


def move(operations: SFTPOperations, source: RemotePath, attempt: int, dest: RemotePath) -> Steps[bool]:
    """Rename an object; False, and nothing was done, if it is a symlink that would resolve to another object.

    In a repeated attempt the source may be missing: the lost connection has renamed it.
    """
    source, dest = operations.at(source), operations.at(dest)
    if attempt:
        yield from operations.heal(dest)
    try:
        return (yield from _move_object(operations, source, dest))
    except NotFoundError:
        if not attempt or (yield from operations.entry(dest.path)) is None:
            raise
        return True


def _move_object(operations: SFTPOperations, source: RemotePath, dest: RemotePath) -> Steps[bool]:
    first, second = yield [
        packets.request(packets.LSTAT, source.path),
        packets.request(packets.LSTAT, dest.path),
    ]
    with operations.mapped(source):
        found = packets.attributes_in(first)
        operations.check_file_or_link(found, source)
    old = packets.attributes_if_any(second)
    if stat.S_ISLNK(found.mode or 0) and (yield from _leads_elsewhere(source, dest, old)):
        return False
    for _ in range(TRIES):
        if old is not None:
            yield from operations.make_way(old, dest)
        try:
            yield from operations.rename(source.path, dest, old)
        except StatusError as error:
            if (yield from operations.entry(source.path)) is None:
                raise not_found(source.identifier, operations.where) from error
            old = yield from operations.entry(dest.path)
            if old is not None and not stat.S_ISDIR(old.mode or 0):
                raise translate(error, dest.identifier, operations.where) from error
            if old is None:
                if error.code != NO_SUCH_FILE:
                    raise (yield from operations.directories.why_unwritable(error, dest)) from error
                yield from operations.make_parent(dest)
        else:
            if old == found:
                yield from _remove_other_name(operations, source, dest)
            return True
    raise operations.directory_in_the_way(dest)


def _leads_elsewhere(source: RemotePath, dest: RemotePath, old: Attributes | None) -> Steps[bool]:
    """Whether a symlink would resolve to another object, or itself, under its new name. A dangling one may be renamed."""
    first, second = yield [
        packets.request(packets.STAT, source.path),
        packets.request(packets.READLINK, source.path),
    ]
    if packets.attributes_if_any(first) is None:
        return False
    if old is not None:
        return True  # that may be its target
    if posixpath.dirname(source.path) == posixpath.dirname(dest.path):
        return False
    try:
        targets = packets.entries_in(second)
    except StatusError:
        return True
    return len(targets) != 1 or not targets[0].name.startswith(b"/")


def _remove_other_name(operations: SFTPOperations, source: RemotePath, dest: RemotePath) -> Steps[None]:
    """Remove the source if both names are hard links to one file, as rename(2) then does nothing.

    SFTP has no inode numbers, but renaming one temporary name to another shows it: the first remains if both are links to one
    file. A new file that another client has meanwhile stored as the source is moved back.
    """
    if (
        packets.HARDLINK not in operations.session.extensions
        or (yield from operations.entry(source.path)) is None
    ):
        return
    one, other = operations.beside(dest.path), operations.beside(dest.path)
    (reply,) = yield [packets.extended_request(packets.POSIX_RENAME, source.path, one)]
    with operations.mapped(source):
        packets.check(reply)
    (reply,) = yield [packets.extended_request(packets.HARDLINK, dest.path, other)]
    if packets.refusal(reply) is None:
        (reply,) = yield [packets.extended_request(packets.POSIX_RENAME, one, other)]
        with operations.mapped(source):
            packets.check(reply)
        if (yield from operations.entry(one)) is not None:
            yield [packets.request(packets.REMOVE, one), packets.request(packets.REMOVE, other)]
            return
        one = other
    (reply,) = yield [packets.two_path_request(packets.RENAME, one, source.path)]
    if packets.refusal(reply) is not None:  # another client has stored an even newer one
        yield [packets.request(packets.REMOVE, one)]


def copy(operations: SFTPOperations, source: RemotePath, dest: RemotePath) -> Steps[None]:
    """Copy an object on the server (copy-data)."""
    dest = operations.at(dest)
    handle, found = yield from open_to_read(operations, source)
    try:
        target, staged = yield from operations.begin(dest)
        try:
            size = found.size or 0
            for start in range(0, size, COPY_STEP):
                length = min(COPY_STEP, size - start)
                (reply,) = yield [packets.copy_request(handle, target, start, length)]
                with operations.mapped(dest):
                    packets.check(reply)
            yield from operations.finish(target, staged, dest, size=size, modified=found.modified)
        except BaseException:
            operations.discard(staged)
            raise
    finally:
        operations.close(handle)
    yield from operations.rename_staged(staged, dest)
