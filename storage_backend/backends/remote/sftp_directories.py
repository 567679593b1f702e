"""SFTPDirectories: lists, creates and removes directories by SFTP, and diagnoses refused writes."""

from __future__ import annotations

import posixpath
import stat

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.errors import translate
from storage_backend.backends.remote.remote_path import RemotePath
from storage_backend.backends.remote.sftp_client_session import AnySession
from storage_backend.backends.remote.sftp_packets import (
    FAILURE,
    NO_SUCH_FILE,
    Attributes,
    SFTPEntry,
    StatusError,
    Steps,
)
from storage_backend.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    QuotaExceededError,
    StorageError,
    error_about,
)

MAX_NAMES = 10_000_000  # of one directory; they take about 3 GB of memory
_MAX_REPEATED = 10_000  # repeated names, which a changing directory may have
TRIES = 8  # a write fails after others have removed its directory this often
_READ_ONLY = 1  # SSH_FXE_STATVFS_ST_RDONLY, OpenSSH's PROTOCOL, 4.4


class SFTPDirectories:
    """Operations on directories. Paths are absolute.

    Args:
        session: sends the requests.
        where: the backend's location, for errors.
    """

    def __init__(self, session: AnySession, where: str) -> None:
        self._session = session
        self._where = where

    def entry(self, path: bytes) -> Steps[Attributes | None]:
        """The attributes of *path*, of a symlink its own; None if it does not exist."""
        (reply,) = yield [packets.request(packets.LSTAT, path)]
        return packets.attributes_if_any(reply)

    def names(self, path: bytes) -> Steps[list[SFTPEntry]]:
        """The entries of a directory, in any order, without duplicates.

        Raises:
            StatusError: the directory cannot be read.
            SFTPProtocolError: the server sends too many names.
        """
        (reply,) = yield [packets.request(packets.OPENDIR, path)]
        try:
            handle = packets.handle_in(reply)
        except StatusError as error:
            if error.code != FAILURE:
                raise
            # rclone replies FAILURE for a file.
            (reply,) = yield [packets.request(packets.STAT, path)]
            found_there = packets.attributes_if_any(reply)
            if found_there is None or stat.S_ISDIR(found_there.mode or stat.S_IFDIR):
                raise
            raise StatusError(NO_SUCH_FILE, error.text) from error
        # A file that is renamed during the listing may appear twice.
        found: dict[bytes, SFTPEntry] = {}
        ahead = 2
        received = 0
        try:
            while True:
                # Most directories are small; for a large one, the pipeline grows.
                for reply in (yield [packets.request(packets.READDIR, handle)] * ahead):
                    entries = packets.entries_in(reply)
                    if not entries:
                        return [entry for entry in found.values() if entry.name not in {b".", b".."}]
                    found.update({entry.name: entry for entry in entries})
                    received += len(entries)
                    if received > 2 * len(found) + _MAX_REPEATED or received > MAX_NAMES:
                        raise packets.SFTPProtocolError(
                            f"{self._where}: the SFTP server sent {received:,} names of one directory, and goes on"
                        )
                ahead = min(2 * ahead, 16)
        finally:
            self._session.post(packets.request(packets.CLOSE, handle))

    def make(self, directory: bytes, path: RemotePath) -> Steps[None]:
        """Create a directory and its parents, unless they exist, for the object *path*."""
        pending = [directory]
        for _ in range(2 * directory.count(b"/") + TRIES):
            current = pending[-1]
            (reply,) = yield [packets.mkdir_request(current)]
            error = packets.refusal(reply)
            if error is None:
                pending.pop()
            else:
                (second,) = yield [packets.request(packets.STAT, current)]
                found = packets.attributes_if_any(second)
                if found is not None:
                    if not stat.S_ISDIR(found.mode or stat.S_IFDIR):
                        raise self._blocked(path, current) from error
                    # Another writer created it.
                    pending.pop()
                elif error.code == NO_SUCH_FILE and len(current) > 1:
                    pending.append(posixpath.dirname(current.rstrip(b"/")) or b"/")
                elif (yield from self.entry(current)) is not None:  # a dangling symlink
                    raise self._blocked(path, current) from error
                else:
                    raise (yield from self.why_unwritable(error, path)) from error
            if not pending:
                return
        raise removed_again(path, self._where)

    def remove_empty(self, path: RemotePath) -> Steps[None]:
        """Remove the directory tree at an object's path if it contains only directories."""
        directories = [path.path]
        try:
            # Check the whole tree before removing anything.
            for directory in directories:
                for entry in (yield from self.names(directory)):
                    if not stat.S_ISDIR(entry.attributes.mode or 0):
                        raise self._blocked(path, path.path)
                    directories.append(posixpath.join(directory, entry.name))
            for directory in reversed(directories):
                (reply,) = yield [packets.request(packets.RMDIR, directory)]
                packets.check(reply)
        except StatusError as error:
            # Another client removed it first; the caller tries again.
            if error.code != NO_SUCH_FILE:
                raise self._blocked(path, path.path) from error

    def why_unwritable(self, error: StatusError, path: RemotePath) -> Steps[StorageError]:
        """The error for a refused write: OpenSSH replies FAILURE for a full or read-only disk, rclone below a file."""
        if error.code != FAILURE:
            return translate(error, path.identifier, self._where)
        above = posixpath.dirname(path.path)
        while len(above) > 1:
            (reply,) = yield [packets.request(packets.STAT, above)]
            found = packets.attributes_if_any(reply)
            if found is not None and not stat.S_ISDIR(found.mode or stat.S_IFDIR):
                return self._blocked(path, above)
            if found is not None:
                break
            above = posixpath.dirname(above)
        if packets.STATVFS in self._session.extensions:
            for directory in (posixpath.dirname(path.path), b"/"):
                (reply,) = yield [packets.extended_request(packets.STATVFS, directory)]
                if reply[0] != packets.EXTENDED_REPLY:
                    continue
                # Field 4: blocks free for users; 5: inodes; 7: inodes free for users; 9: flags.
                fields = packets.Fields(reply[1])
                numbers = [fields.long() for _ in range(11)]
                if numbers[4] == 0 or (numbers[5] > 0 and numbers[7] == 0):
                    reason = "no space left for this user"
                    return error_about(QuotaExceededError, reason, path.identifier, self._where)
                if numbers[9] & _READ_ONLY:
                    reason = "the file system is read-only"
                    return error_about(AccessDeniedError, reason, path.identifier, self._where)
                break
        return translate(error, path.identifier, self._where)

    def _blocked(self, path: RemotePath, at: bytes) -> AlreadyExistsError:
        reason = (
            "a directory with objects is in the way"
            if path.path == at
            else "an object is where a directory is needed"
        )
        return error_about(AlreadyExistsError, reason, path.identifier, self._where)


def removed_again(path: RemotePath, where: str) -> StorageError:
    """The error for a directory that others remove each time we create it."""
    reason = "its directory is removed each time it is created"
    return error_about(StorageError, reason, path.identifier, where, retryable=True)
