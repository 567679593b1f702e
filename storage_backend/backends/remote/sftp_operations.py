"""SFTPOperations: what is done to one file, each operation as steps of pipelined requests.

Every public method that takes a RemotePath makes it absolute first. One that takes the number of the *attempt*, from 0, allows
for an earlier attempt on a connection that was lost, which may have taken effect.
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
from storage_backend.backends.remote.errors import not_a_file, of_object, translate
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
)
from storage_backend.owners import temporary_name

SMALL = 256 << 10  # bytes that are written from memory, in three exchanges
COPY_STEP = 32 << 20  # bytes the server copies at a request; it answers nothing else meanwhile


class SFTPOperations:
    """The operations of one connection.

    Args:
        session: sends the requests.
        base: the base directory, absolute.
        where: the backend's location, for errors.
        move: renames by the server's shell, replacing what is there, where SFTP cannot.
        link: makes a hard link by the shell, where SFTP cannot; False where the name is taken.
        non_atomic: whether a file may be moved aside before its successor takes its name.
        warn: called before that.

    Attributes:
        temporary: what all temporary names of this connection begin with.
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
        # Random once, then counted: a batch has thousands of names, and each random number is a system call.
        self.temporary = f"{temporary_name()}-".encode()
        self._numbers = itertools.count()
        self._move = move
        self._link = link
        self._non_atomic = non_atomic
        self._warn = warn
        self.directories = SFTPDirectories(session, where)
        self.entry = self.directories.entry

    def at(self, path: RemotePath) -> RemotePath:
        """*path* as an absolute one; one that is absolute stays as it is."""
        return RemotePath(path.identifier, posixpath.join(self._base, path.path))

    def beside(self, path: bytes) -> bytes:
        """A new temporary path in the directory of *path*."""
        return posixpath.join(posixpath.dirname(path), self._name())

    # Writing under a temporary name

    def begin(
        self, path: RemotePath, temporary: bytes | None = None, ahead: Sequence[bytes] = ()
    ) -> Steps[tuple[bytes, StagedUpload]]:
        """A handle to write a new file in the directory of *path*, which is made if it is missing.

        Args:
            path: the object that the file is for.
            temporary: path of the file, instead of a new one.
            ahead: directories that may be missing, outer ones first; MKDIR of them in the same exchange costs little.
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
                    # A killed writer has left its object aside; it must be back before we look at what we replace.
                    yield from non_atomic_overwrite.heal(posixpath.dirname(path.path), self.directories.names)
                    (first,) = yield [packets.request(packets.LSTAT, path.path)]
                return handle, StagedUpload(temporary, packets.attributes_if_any(first))
        raise removed_again(path, self.where)

    def resume(self, path: RemotePath, temporary: bytes) -> Steps[tuple[bytes, StagedUpload]]:
        """A handle to continue a file that exists under its temporary name."""
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
        """Write *content* from the start, if there is some, and close the new file; it gets the mode of what it will replace.

        Raises:
            IntegrityError: it has not *size* bytes.
        """
        length = self.session.write_length
        view = memoryview(content)
        requests = [
            packets.write_request(handle, start, view[start : start + length])
            for start in range(0, len(view), length)
        ]
        # SETSTAT and STAT by its path after CLOSE: pkg/sftp, which rclone serves with, lets all but CLOSE overtake writes, so
        # size and time are not final before.
        requests.append(packets.request(packets.CLOSE, handle))
        closed = len(requests)
        old = staged.old
        if old is not None and old.mode is not None and stat.S_ISREG(old.mode):
            requests.append(packets.setstat_request(packets.SETSTAT, staged.temporary, mode=old.mode & 0o777))
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
        """Give a new file the mode of what it will replace."""
        old = staged.old
        if old is not None and old.mode is not None and stat.S_ISREG(old.mode):
            (reply,) = yield [
                packets.setstat_request(packets.SETSTAT, staged.temporary, mode=old.mode & 0o777)
            ]
            with self.mapped(path):
                packets.check_setstat(reply)

    def check_size(self, path: RemotePath, found: int, size: int) -> None:
        """Refuse a new file of another size than was written."""
        if found != size:
            reason = f"the server has {found:,} of {size:,} bytes"
            raise of_object(IntegrityError, reason, path.identifier, self.where)

    # Giving it its name

    def publish(self, path: RemotePath, attempt: int, staged: StagedUpload, size: int) -> Steps[None]:
        """Give a staged file its name. In a repeated attempt it is gone if the lost connection has renamed it."""
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
            reason = "the new file is gone before it had its name"
            raise of_object(UnavailableError, reason, path.identifier, self.where) from error

    def rename_staged(self, staged: StagedUpload, path: RemotePath) -> Steps[None]:
        """Give a staged file its name; if that fails it is removed."""
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
        """Give a staged file its name if that is free; the temporary name is removed in any case."""
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
            reason = "other writers make and remove it all the time"
            raise of_object(AlreadyExistsError, reason, path.identifier, self.where)
        finally:
            self.discard(staged)

    # Other verbs

    def delete(self, path: RemotePath, attempt: int = 0) -> Steps[None]:
        """Remove an object, or a symlink. In a repeated attempt it may be gone: the lost connection has removed it."""
        path = self.at(path)
        (reply,) = yield [packets.request(packets.LSTAT, path.path)]
        if self._sets_aside and packets.attributes_if_any(reply) is None:
            # Or what a killed writer moved aside would come back later.
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
        """Whether the server copies by SFTP."""
        return packets.COPY_DATA in self.session.extensions

    def remove(self, path: bytes) -> Steps[None]:
        """Remove a file; it may be gone."""
        (reply,) = yield [packets.request(packets.REMOVE, path)]
        error = packets.refusal(reply)
        if error is not None and error.code != NO_SUCH_FILE:
            raise translate(error, None, self.where) from error

    def heal(self, path: RemotePath) -> Steps[None]:
        """Move back what interrupted overwrites have left aside in the directory of *path*."""
        if self._sets_aside:
            (reply,) = yield [packets.request(packets.LSTAT, non_atomic_overwrite.aside(path.path))]
            if packets.attributes_if_any(reply) is not None:
                yield from non_atomic_overwrite.heal(posixpath.dirname(path.path), self.directories.names)

    def close(self, handle: bytes) -> None:
        """Close a handle without waiting for the reply."""
        self.session.post(packets.request(packets.CLOSE, handle))

    def discard(self, staged: StagedUpload) -> None:
        """Remove a staged file without waiting for the reply."""
        self.session.post(packets.request(packets.REMOVE, staged.temporary))

    # Helpers

    def rename(self, old_path: bytes, path: RemotePath, old: Attributes | None) -> Steps[None]:
        """Rename, replacing what is there.

        Raises:
            StatusError: the server refuses.
            UnsupportedOperationError: it cannot replace.
        """
        if packets.POSIX_RENAME in self.session.extensions:
            (reply,) = yield [packets.extended_request(packets.POSIX_RENAME, old_path, path.path)]
            try:
                packets.check(reply)
            except StatusError as error:
                if error.code != UNSUPPORTED:
                    raise
                # A server may announce what it does not have; and a substitute of paramiko's client announces nothing.
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
                f"{path.identifier!r} in {self.where}: the server cannot replace a file in one step; delete the object "
                'first, or allow several with ssh_config["non_atomic_overwrite"] = True',
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
        """Whether files are moved aside before their successors take their names."""
        return self._non_atomic and self._move is None and packets.POSIX_RENAME not in self.session.extensions

    def make_way(self, old: Attributes, path: RemotePath) -> Steps[None]:
        """Remove a directory tree without objects at the object's path; refuse to replace another, or a device."""
        if old.mode is not None and stat.S_ISDIR(old.mode):
            yield from self.directories.remove_empty(path)
        else:
            self.check_file_or_link(old, path)

    def make_parent(self, path: RemotePath) -> Steps[None]:
        """Make the directory of an object."""
        yield from self.directories.make(posixpath.dirname(path.path), path)

    def check_file_or_link(self, found: Attributes, path: RemotePath) -> None:
        """Refuse what is neither a regular file nor a symlink."""
        if found.mode is not None and stat.S_IFMT(found.mode) not in {0, stat.S_IFREG, stat.S_IFLNK}:
            raise not_a_file(path.identifier, self.where)

    def directory_in_the_way(self, path: RemotePath) -> AlreadyExistsError:
        """The error for a directory that comes back as often as it is removed."""
        return of_object(AlreadyExistsError, "a directory is in the way", path.identifier, self.where)

    @contextmanager
    def mapped(self, path: RemotePath) -> Iterator[None]:
        """Translate a StatusError into our error about *path*."""
        try:
            yield
        except StatusError as error:
            raise translate(error, path.identifier, self.where) from error
