"""SFTPOperations: operations on one file, each a generator of pipelined requests.

Every public method that takes a RemotePath makes it absolute first. A method that takes the number of the *attempt*, from 0,
allows for an earlier attempt, on a lost connection, that took effect.
"""

from __future__ import annotations

import itertools
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from storage_backend.backends.remote import non_atomic_overwrite
from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.errors import not_a_file, translate
from storage_backend.backends.remote.remote_path import RemotePath, StagedUpload
from storage_backend.backends.remote.sftp_client_session import AnySession
from storage_backend.backends.remote.sftp_directories import TRIES, SFTPDirectories, removed_again
from storage_backend.backends.remote.sftp_packets import (
    FXF_CREAT,
    FXF_EXCL,
    FXF_WRITE,
    NO_SUCH_FILE,
    UNSUPPORTED,
    Attributes,
    StatusError,
    Steps,
)
from storage_backend.base import not_found
from storage_backend.errors import (
    AlreadyExistsError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
    UnsupportedOperationError,
    error_about,
)
from storage_backend.owners import temporary_name


class SFTPOperations:
    """The operations of one connection.

    Args:
        session: sends the requests.
        base: absolute path of the base directory.
        where: the backend's location, for errors.
        move: renames by the server's shell, replacing the target, if SFTP cannot.
        link: makes a hard link by the shell, if SFTP cannot; returns False if the name is taken.
        non_atomic: whether an overwrite may move the old file aside first.
        warn: called before that.

    Attributes:
        temporary: prefix of this connection's temporary names.
        directories: operations on directories.
    """

    def __init__(
        self,
        session: AnySession,
        base: bytes,
        where: str,
        *,
        move: Callable[[bytes, bytes], object] | None = None,
        link: Callable[[bytes, bytes], bool] | None = None,
        non_atomic: bool = False,
        warn: Callable[[], object] = bool,
    ) -> None:
        self.session = session
        self._base = base
        self.where = where
        # One random number, then a counter: a batch needs thousands of names, and each random number is a system call.
        self.temporary = f"{temporary_name()}-".encode()
        self._numbers = itertools.count()
        self._move = move
        self._link = link
        self._non_atomic = non_atomic
        self._warn = warn
        self.directories = SFTPDirectories(session, where)
        self.entry = self.directories.entry

    def at(self, path: RemotePath) -> RemotePath:
        """*path* made absolute."""
        return RemotePath(path.identifier, posixpath.join(self._base, path.path))

    def beside(self, path: bytes) -> bytes:
        """A new temporary path in the directory of *path*."""
        return posixpath.join(posixpath.dirname(path), self._name())

    # Writing under a temporary name

    def begin(
        self, path: RemotePath, temporary: bytes | None = None, ahead: Sequence[bytes] = ()
    ) -> Steps[tuple[bytes, StagedUpload]]:
        """Open a new file in the directory of *path*, which is created if missing; returns the handle and the staged file.

        Args:
            path: the object that the file is for.
            temporary: path of the file, instead of a new temporary name.
            ahead: directories that may be missing, outermost first; a MKDIR in the same exchange costs little.
        """
        path = self.at(path)
        temporary = temporary or self.beside(path.path)
        aside = (
            [packets.request(packets.LSTAT, non_atomic_overwrite.aside(path.path))]
            if self._sets_aside
            else []
        )
        for attempt in range(TRIES):
            *_, first, second = replies = yield [
                *([] if attempt else map(packets.mkdir_request, ahead)),
                *aside,
                packets.request(packets.LSTAT, path.path),
                packets.open_request(temporary, FXF_WRITE | FXF_CREAT | FXF_EXCL),
            ]
            try:
                handle = packets.handle_in(second)
            except StatusError as error:
                if error.code != NO_SUCH_FILE:
                    raise (yield from self.directories.why_unwritable(error, path)) from error
                yield from self.make_parent(path)
            else:
                if aside and packets.attributes_if_any(replies[-3]) is not None:
                    # A killed writer left its object aside; restore it before we examine what we replace.
                    yield from non_atomic_overwrite.heal(posixpath.dirname(path.path), self.directories.names)
                    (first,) = yield [packets.request(packets.LSTAT, path.path)]
                return handle, StagedUpload(temporary, packets.attributes_if_any(first))
        raise removed_again(path, self.where)

    def resume(self, path: RemotePath, temporary: bytes) -> Steps[tuple[bytes, StagedUpload]]:
        """Open an existing temporary file to append to; returns the handle and the staged file."""
        path = self.at(path)
        first, second = yield [
            packets.request(packets.LSTAT, path.path),
            packets.open_request(temporary, FXF_WRITE),
        ]
        with self.mapped(path):
            return packets.handle_in(second), StagedUpload(temporary, packets.attributes_if_any(first))

    def stage(
        self, path: RemotePath, content: bytes, modified: int | None, ahead: Sequence[bytes] = ()
    ) -> Steps[StagedUpload]:
        """Write a whole new file under a temporary name; *ahead* as for `begin`."""
        handle, staged = yield from self.begin(path, ahead=ahead)
        try:
            return (
                yield from self.finish(
                    handle, staged, path, size=len(content), modified=modified, content=content
                )
            )
        except BaseException:
            self.discard(staged)
            raise

    def finish(
        self,
        handle: bytes,
        staged: StagedUpload,
        path: RemotePath,
        *,
        size: int,
        modified: int | None,
        content: bytes = b"",
    ) -> Steps[StagedUpload]:
        """Write *content*, if any, at the start; close the file; set its time and the mode of the file it will replace.

        Raises:
            IntegrityError: the file does not have *size* bytes.
        """
        length = self.session.write_length
        view = memoryview(content)
        requests = [
            packets.write_request(handle, start, view[start : start + length])
            for start in range(0, len(view), length)
        ]
        # SETSTAT and STAT by path after CLOSE: in pkg/sftp, rclone's server, requests other than CLOSE overtake writes, so size and
        # time are not final before.
        requests.append(packets.request(packets.CLOSE, handle))
        closed = len(requests)
        requests += _mode_requests(staged)
        if modified is not None:
            requests.append(packets.setstat_request(packets.SETSTAT, staged.temporary, modified=modified))
        requests.append(packets.request(packets.STAT, staged.temporary))
        replies = yield requests
        try:
            for reply in replies[:closed]:
                packets.check(reply)
            for reply in replies[closed:-1]:
                packets.check_setstat(reply)
            found = packets.attributes_in(replies[-1])
        except StatusError as error:
            raise (yield from self.directories.why_unwritable(error, self.at(path))) from error
        if found.size is not None:
            self.check_size(path, found.size, size)
        return replace(staged, new=found)

    def keep_mode(self, staged: StagedUpload, path: RemotePath) -> Steps[None]:
        """Give a new file the mode of the file it will replace."""
        for request in _mode_requests(staged):
            (reply,) = yield [request]
            with self.mapped(path):
                packets.check_setstat(reply)

    def check_size(self, path: RemotePath, found: int, size: int) -> None:
        """Raise IntegrityError if the *found* size of a new file is not *size*."""
        if found != size:
            reason = f"the server has {found:,} of {size:,} bytes"
            raise error_about(IntegrityError, reason, path.identifier, self.where)

    # Publishing: renaming the temporary file

    def publish(self, path: RemotePath, attempt: int, staged: StagedUpload, size: int) -> Steps[None]:
        """Rename a staged file to *path*. In a repeated attempt it is missing if the lost connection has renamed it."""
        path = self.at(path)
        try:
            if attempt:
                yield from self.heal(path)
                if (yield from self.entry(staged.temporary)) is None:
                    raise not_found(path.identifier, self.where)
            yield from self.rename_staged(staged, path)
        except NotFoundError as error:
            found = (yield from self.entry(path.path)) if attempt else None
            if found is not None and found.size == size:
                return
            reason = "the temporary file disappeared before it was renamed"
            raise error_about(UnavailableError, reason, path.identifier, self.where) from error

    def rename_staged(self, staged: StagedUpload, path: RemotePath) -> Steps[None]:
        """Rename a staged file to *path*, or remove it after a failure."""
        path = self.at(path)
        try:
            old = staged.old
            refused: StatusError | None = None
            for _ in range(TRIES):
                if old is not None:
                    yield from self.make_way(old, path)
                try:
                    yield from self.rename(staged.temporary, path, old)
                except StatusError as error:
                    refused = error
                    old = yield from self.entry(path.path)
                    if old is not None and not stat.S_ISDIR(old.mode or 0):
                        raise (yield from self.directories.why_unwritable(error, path)) from error
                    if (yield from self.entry(staged.temporary)) is None:
                        raise translate(error, path.identifier, self.where) from error
                    if old is None:
                        yield from self.make_parent(path)
                else:
                    return
            if refused is not None and old is None:
                raise (yield from self.directories.why_unwritable(refused, path)) from refused
            raise self.directory_in_the_way(path)
        except BaseException:
            self.discard(staged)
            raise

    def create(self, path: RemotePath, staged: StagedUpload) -> Steps[bool]:
        """Link a staged file to *path* unless that exists; removes the temporary name in any case."""
        path = self.at(path)
        try:
            for _ in range(TRIES):
                old = yield from self.entry(path.path)
                if old is not None and not stat.S_ISDIR(old.mode or 0):
                    return False
                if old is not None:
                    yield from self.make_way(old, path)
                try:
                    if packets.HARDLINK in self.session.extensions:
                        link = packets.extended_request(packets.HARDLINK, staged.temporary, path.path)
                        packets.check((yield [link])[0])
                        return True
                    if self._link is None:
                        raise StatusError(UNSUPPORTED, "no hard links")
                    if self._link(staged.temporary, path.path):
                        return True
                except StatusError as error:
                    if error.code == UNSUPPORTED:
                        raise UnsupportedOperationError(
                            f"{self.where} has no create(): the server makes no hard links",
                            identifier=path.identifier,
                            backend=self.where,
                        ) from error
                    if error.code == NO_SUCH_FILE:
                        yield from self.make_parent(path)
                    elif (yield from self.entry(path.path)) is None:
                        raise translate(error, path.identifier, self.where) from error
            reason = "other writers keep creating and removing it"
            raise error_about(AlreadyExistsError, reason, path.identifier, self.where)
        finally:
            self.discard(staged)

    # Other operations

    def delete(self, path: RemotePath, attempt: int = 0) -> Steps[None]:
        """Remove an object or a symlink. In a repeated attempt it may be missing: the lost connection has removed it."""
        path = self.at(path)
        (reply,) = yield [packets.request(packets.LSTAT, path.path)]
        if self._sets_aside and packets.attributes_if_any(reply) is None:
            # Otherwise a file that a killed writer moved aside would reappear later.
            yield from self.heal(path)
            (reply,) = yield [packets.request(packets.LSTAT, path.path)]
        try:
            with self.mapped(path):
                self.check_file_or_link(packets.attributes_in(reply), path)
            (reply,) = yield [packets.request(packets.REMOVE, path.path)]
            with self.mapped(path):
                packets.check(reply)
        except NotFoundError:
            if not attempt:
                raise

    def can_copy(self) -> bool:
        """Whether the server copies files by SFTP."""
        return packets.COPY_DATA in self.session.extensions

    def remove(self, path: bytes) -> Steps[None]:
        """Remove a file, which may be missing."""
        (reply,) = yield [packets.request(packets.REMOVE, path)]
        error = packets.refusal(reply)
        if error is not None and error.code != NO_SUCH_FILE:
            raise translate(error, None, self.where) from error

    def heal(self, path: RemotePath) -> Steps[None]:
        """Restore files that interrupted overwrites left aside in the directory of *path*."""
        if self._sets_aside:
            (reply,) = yield [packets.request(packets.LSTAT, non_atomic_overwrite.aside(path.path))]
            if packets.attributes_if_any(reply) is not None:
                yield from non_atomic_overwrite.heal(posixpath.dirname(path.path), self.directories.names)

    def close(self, handle: bytes) -> None:
        """Close a handle without awaiting the reply."""
        self.session.post(packets.request(packets.CLOSE, handle))

    def discard(self, staged: StagedUpload) -> None:
        """Remove a staged file without awaiting the reply."""
        self.session.post(packets.request(packets.REMOVE, staged.temporary))

    # Helpers

    def rename(self, old_path: bytes, path: RemotePath, old: Attributes | None) -> Steps[None]:
        """Rename *old_path* to *path*, replacing the file there.

        Raises:
            StatusError: the server refuses.
            UnsupportedOperationError: the server cannot replace a file.
        """
        if packets.POSIX_RENAME in self.session.extensions:
            (reply,) = yield [packets.extended_request(packets.POSIX_RENAME, old_path, path.path)]
            try:
                packets.check(reply)
            except StatusError as error:
                if error.code != UNSUPPORTED:
                    raise
                # A server may announce an extension that it lacks, and a mock of paramiko's client announces nothing.
                self.session.extensions.pop(packets.POSIX_RENAME, None)
            else:
                return
        if self._move is not None:
            self._move(old_path, path.path)
            return
        taken = old is not None
        if not taken:
            (reply,) = yield [packets.two_path_request(packets.RENAME, old_path, path.path)]
            refused = packets.refusal(reply)
            if refused is None:
                return
            taken = (yield from self.entry(path.path)) is not None
            if not taken:
                raise refused
        if not self._non_atomic:
            raise UnsupportedOperationError(
                f"{path.identifier!r} in {self.where}: the server cannot replace a file atomically; delete the object "
                'first, or allow this with ssh_config["non_atomic_overwrite"] = True',
                identifier=path.identifier,
                backend=self.where,
            )
        self._warn()
        yield from non_atomic_overwrite.replace(
            old_path, path.path, self._name, self.directories.names, self.session.post
        )

    def _name(self) -> bytes:
        return self.temporary + b"%d" % next(self._numbers)

    @property
    def _sets_aside(self) -> bool:
        """Whether an overwrite moves the old file aside first."""
        return self._non_atomic and self._move is None and packets.POSIX_RENAME not in self.session.extensions

    def make_way(self, old: Attributes, path: RemotePath) -> Steps[None]:
        """Remove a directory tree without objects at *path*; raise for one with objects, and for a device."""
        if old.mode is not None and stat.S_ISDIR(old.mode):
            yield from self.directories.remove_empty(path)
        else:
            self.check_file_or_link(old, path)

    def make_parent(self, path: RemotePath) -> Steps[None]:
        """Create the directory of an object."""
        yield from self.directories.make(posixpath.dirname(path.path), path)

    def check_file_or_link(self, found: Attributes, path: RemotePath) -> None:
        """Raise NotAFileError for other than a regular file or symlink."""
        if found.mode is not None and stat.S_IFMT(found.mode) not in {0, stat.S_IFREG, stat.S_IFLNK}:
            raise not_a_file(path.identifier, self.where)

    def directory_in_the_way(self, path: RemotePath) -> AlreadyExistsError:
        """The error for a directory that reappears each time it is removed."""
        return error_about(AlreadyExistsError, "a directory is in the way", path.identifier, self.where)

    @contextmanager
    def mapped(self, path: RemotePath) -> Iterator[None]:
        """Translate a StatusError into our error about *path*."""
        try:
            yield
        except StatusError as error:
            raise translate(error, path.identifier, self.where) from error


def _mode_requests(staged: StagedUpload) -> list[packets.Request]:
    """The request to give a staged file the mode of the regular file that it will replace, if any."""
    mode = None if staged.old is None else staged.old.mode
    if mode is None or not stat.S_ISREG(mode):
        return []
    return [packets.setstat_request(packets.SETSTAT, staged.temporary, mode=mode & 0o777)]
