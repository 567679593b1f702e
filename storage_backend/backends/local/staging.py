"""An object on its way into the directory tree, and the races on that way."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

from typing_extensions import Buffer

from storage_backend.backends.local.beneath import LIST, Beneath
from storage_backend.backends.local.errors import Mapped
from storage_backend.backends.local.leftovers import Leftovers
from storage_backend.backends.local.syncing import sync, sync_beneath, sync_directory
from storage_backend.errors import SourceChangedError
from storage_backend.file_rights import entry_facts
from storage_backend.files import StagedFile, copy_descriptor, told_size
from storage_backend.owners import temporary_name
from storage_backend.streams import CHUNK, Moved, new_digest

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A directory may be taken away, or put in the way, again and again. Each attempt has whether one more is left.
ATTEMPTS = (*[True] * 99, False)


class Staging:
    """A new version of one object, with an unseen or temporary name until it is published. Used by one thread.

    Its directories are created. As a context, it is discarded at the end unless it was published.

    Args:
        beneath: the root.
        path: where it will be.
        identifier: for errors.
        where: the root's location, for errors.
        leftovers: of killed writes.
        durable: sync before and after publication.
        anonymous: use a file without a name where the file system has such.

    Raises:
        AlreadyExistsError: an object is where a directory is needed.
    """

    def __init__(
        self,
        beneath: Beneath,
        path: bytes,
        identifier: str,
        where: str,
        leftovers: Leftovers,
        *,
        durable: bool,
        anonymous: bool,
    ) -> None:
        self._beneath = beneath
        self._leftovers = leftovers
        self._path = path
        self._mapped = Mapped(identifier, where)
        self._durable = durable
        self._grown: list[bytes] = []
        with self._mapped:
            for more in ATTEMPTS:
                directory, name = self._directory()
                try:
                    self._file = StagedFile(directory, name, anonymous=anonymous)
                    break
                except FileNotFoundError:  # the directory has been removed
                    if not more:
                        raise

    @property
    def size(self) -> int:
        """How many bytes `write` has appended."""
        return self._file.size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*."""
        with self._mapped:
            self._file.write(data)

    def copy_from(self, source: int, moved: Moved | None = None) -> None:
        """Append everything from a regular file that is open as *source*, and take over its times; *moved* is told of the bytes.

        Raises:
            SourceChangedError: it was written to meanwhile.
        """
        with self._mapped:
            before = os.fstat(source)
            copied = copy_descriptor(source, self._file.fd, moved)
            after = os.fstat(source)
            os.utime(self._file.fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        if told_size(before) is not None and (before.st_mtime_ns, before.st_size, copied) != (
            after.st_mtime_ns,
            after.st_size,
            after.st_size,
        ):
            raise SourceChangedError(
                f"what is copied to {self._mapped.identifier!r} changed meanwhile; nothing was stored",
                identifier=self._mapped.identifier,
                backend=self._mapped.where,
            )

    def set_modified(self, modified: datetime) -> None:
        """Give it a time, to the microsecond."""
        nanoseconds = (modified - EPOCH) // timedelta(microseconds=1) * 1000
        with self._mapped:
            os.utime(self._file.fd, ns=(nanoseconds, nanoseconds))

    def sha256(self) -> str:
        """Lower-case hex of the SHA-256 of what the file system gives back."""
        digest = new_digest("sha256")
        position = 0
        with self._mapped:
            if not os.fstat(self._file.fd).st_size:
                return (
                    digest.hexdigest()
                )  # of nothing; some file systems have no file before there is something in it
            fd = self._file.reopen()
            try:
                while chunk := os.pread(fd, CHUNK, position):
                    digest.update(chunk)
                    position += len(chunk)
            finally:
                os.close(fd)
        return digest.hexdigest()

    def publish(self) -> None:
        """Make it the object, in place of what was there.

        Raises:
            AlreadyExistsError: a directory that is not empty is in the way.
        """
        with self._mapped:
            self._publish(overwrite=True)

    def create(self) -> bool:
        """Make it the object unless there is one.

        Returns:
            Whether this call created it.

        Raises:
            AlreadyExistsError: a directory that is not empty is in the way.
        """
        with self._mapped:
            try:
                self._publish(overwrite=False)
            except FileExistsError:
                return False
        return True

    def discard(self) -> None:
        """Drop it. Harmless after it was published."""
        self._file.discard()

    def _publish(self, *, overwrite: bool) -> None:
        if self._durable:
            sync(self._file.fd)
        for more in ATTEMPTS:
            try:
                self._file.publish(overwrite=overwrite)
                break
            except (IsADirectoryError, FileExistsError):
                if not more or not is_directory(self._file.directory, self._file.name):
                    raise
                clear_way(self._file.directory, self._file.name)
            except FileNotFoundError as error:  # the directory has been removed
                if not more:
                    raise OSError(errno.EAGAIN, "removed as often as it was created", self._path) from error
                self._file.move_to(self._directory()[0])
        if self._durable:
            sync_directory(self._file.directory)
            for path in self._grown:
                sync_beneath(self._beneath, path)

    def _directory(self) -> tuple[int, bytes]:
        directory, name, grown = self._beneath.make_parent(self._path)
        self._grown += grown
        self._leftovers.sweep(directory, self._path[: -len(name)])
        return directory, name


def rename(beneath: Beneath, directory: int, name: bytes, path: bytes, *, durable: bool) -> None:
    """Give the entry *name* of *directory* the place *path*, in place of what was there; also of another name of the same file.

    Raises:
        OSError: with ENOENT, there is no such entry; with EEXIST or ENOTEMPTY, something is in the way; with EXDEV, the
            place is on another file system.
    """
    for more in ATTEMPTS:
        to, to_name, grown = beneath.make_parent(path)
        try:
            there = entry_facts(to, to_name)  # devices are not replaced
            if (
                there is not None
                and there.st_nlink > 1
                and _is_other_name(there, directory, name, to, to_name)
            ):
                _remove_name(there, directory, name, to, to_name)
            else:
                os.rename(name, to_name, src_dir_fd=directory, dst_dir_fd=to)
        except IsADirectoryError:
            if not more:
                raise
            clear_way(to, to_name)
        except FileNotFoundError as error:
            check_entry(directory, name)  # it is there: so the other directory is not
            if not more:
                raise OSError(errno.EAGAIN, "removed as often as it was created", path) from error
        else:
            if durable:
                sync_directory(to)
                sync_directory(directory)
                for created in grown:
                    sync_beneath(beneath, created)
            return
        finally:
            os.close(to)


def _is_other_name(there: os.stat_result, directory: int, name: bytes, to: int, to_name: bytes) -> bool:
    """Whether two entries, of which the second is *there*, are names of one file: then rename(2) does nothing."""
    here = entry_facts(directory, name)
    if here is None or stat.S_ISDIR(here.st_mode) or not os.path.samestat(here, there):
        return False
    if not os.path.samestat(os.fstat(directory), os.fstat(to)):
        return True
    # Where case makes no difference, two names may be one entry.
    listed = os.open(".", LIST, dir_fd=to)
    try:
        with os.scandir(listed) as entries:
            names = {os.fsencode(entry.name) for entry in entries}
    finally:
        os.close(listed)
    return name in names and to_name in names


def _remove_name(there: os.stat_result, directory: int, name: bytes, to: int, to_name: bytes) -> None:
    """Remove one of two names of the file *there*; if it is another's by now, that one is renamed."""
    aside = os.fsencode(temporary_name())
    os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
    if os.path.samestat(os.stat(aside, dir_fd=directory, follow_symlinks=False), there) and _is_there(
        there, to, to_name
    ):
        os.unlink(aside, dir_fd=directory)
    else:
        os.rename(aside, to_name, src_dir_fd=directory, dst_dir_fd=to)


def _is_there(facts: os.stat_result, directory: int, name: bytes) -> bool:
    found = entry_facts(directory, name)
    return found is not None and os.path.samestat(found, facts)


def is_directory(directory: int, name: bytes | str) -> bool:
    """Whether *name* is a directory; or nothing by now, which is as good to one who wants the name."""
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True


def clear_way(directory: int, name: bytes | str) -> None:
    """Remove the directory *name*, and the directories in it, if there is nothing else in any of them.

    Objects are flat, so directories that are left over from deleted ones must not keep a name taken.

    Raises:
        OSError: with ENOTEMPTY, there is something else.
    """
    with suppress(FileNotFoundError, NotADirectoryError):  # someone else was faster; the caller tries again
        _descend_bare(directory, name, remove=False)  # all of it first: nothing is removed in vain
        _descend_bare(directory, name, remove=True)


def _descend_bare(directory: int, name: bytes | str, *, remove: bool) -> None:
    fd = os.open(name, LIST | os.O_NOFOLLOW, dir_fd=directory)
    try:
        with os.scandir(fd) as entries:
            inner = [entry.name if entry.is_dir(follow_symlinks=False) else None for entry in entries]
        for each in inner:
            if each is None:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), name)
            _descend_bare(fd, each, remove=remove)
    finally:
        os.close(fd)
    if remove:
        os.rmdir(name, dir_fd=directory)


def check_entry(directory: int, name: bytes) -> os.stat_result:
    """What is known of an entry, which must be a file or a symlink.

    Raises:
        OSError: with ENOENT, there is none; with EISDIR or ENXIO, it is something else.
    """
    facts = entry_facts(directory, name)
    if facts is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    return facts
