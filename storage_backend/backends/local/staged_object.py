"""StagedObject: a new version of an object, invisible until it is published whole."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

from typing_extensions import Buffer

from storage_backend.backends.local.containment import ContainedRoot
from storage_backend.backends.local.errors import ErrorTranslation
from storage_backend.backends.local.leftovers import Leftovers
from storage_backend.backends.local.renaming import ATTEMPTS, clear_way, is_directory
from storage_backend.backends.local.syncing import sync, sync_beneath, sync_directory
from storage_backend.errors import SourceChangedError
from storage_backend.files import StagedFile, copy_descriptor, told_size
from storage_backend.streams import CHUNK, Moved, new_digest

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class StagedObject:
    """A new version of one object: a file, unnamed or with a temporary name, until it is published. Used by one thread.

    Missing directories are created. A `with` block discards it at the end unless it was published.

    Args:
        root: the base directory.
        path: of the object.
        identifier: for errors.
        where: the base directory's location, for errors.
        leftovers: removes temporary files of killed processes.
        durable: sync before and after publication.
        anonymous: use an unnamed file if the file system supports that.

    Raises:
        AlreadyExistsError: an object is where a directory is needed.
    """

    def __init__(
        self,
        root: ContainedRoot,
        path: bytes,
        identifier: str,
        where: str,
        leftovers: Leftovers,
        *,
        durable: bool,
        anonymous: bool,
    ) -> None:
        self._root = root
        self._leftovers = leftovers
        self._path = path
        self._translation = ErrorTranslation(identifier, where)
        self._durable = durable
        self._grown: list[bytes] = []
        with self._translation:
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
        """Bytes appended by `write`."""
        return self._file.size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, data: Buffer, /) -> None:
        """Append all of *data*."""
        with self._translation:
            self._file.write(data)

    def copy_from(self, source: int, moved: Moved | None = None) -> None:
        """Append the content of the regular file with the descriptor *source*, and copy its times.

        Args:
            source: the descriptor.
            moved: called with the number of bytes of each piece.

        Raises:
            SourceChangedError: the source was written to meanwhile.
        """
        with self._translation:
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
                f"the source of {self._translation.identifier!r} changed while it was copied; nothing was stored",
                identifier=self._translation.identifier,
                backend=self._translation.where,
            )

    def set_modified(self, modified: datetime) -> None:
        """Set the modification time, to the microsecond."""
        nanoseconds = (modified - EPOCH) // timedelta(microseconds=1) * 1000
        with self._translation:
            os.utime(self._file.fd, ns=(nanoseconds, nanoseconds))

    def sha256(self) -> str:
        """SHA-256 of the staged content as read back from the file system, in lower-case hex."""
        digest = new_digest("sha256")
        position = 0
        with self._translation:
            if not os.fstat(self._file.fd).st_size:
                return digest.hexdigest()  # some file systems cannot reopen an empty file yet
            fd = self._file.reopen()
            try:
                while chunk := os.pread(fd, CHUNK, position):
                    digest.update(chunk)
                    position += len(chunk)
            finally:
                os.close(fd)
        return digest.hexdigest()

    def publish(self) -> None:
        """Publish it, replacing the old version.

        Raises:
            AlreadyExistsError: a directory that is not empty is in the way.
        """
        with self._translation:
            self._publish(overwrite=True)

    def create(self) -> bool:
        """Publish it unless the object exists.

        Returns:
            Whether this call created it.

        Raises:
            AlreadyExistsError: a directory that is not empty is in the way.
        """
        with self._translation:
            try:
                self._publish(overwrite=False)
            except FileExistsError:
                return False
        return True

    def discard(self) -> None:
        """Discard it. Does nothing after it was published."""
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
                sync_beneath(self._root, path)

    def _directory(self) -> tuple[int, bytes]:
        directory, name, grown = self._root.make_parent(self._path)
        self._grown += grown
        self._leftovers.sweep(directory, self._path[: -len(name)])
        return directory, name
