"""LocalStorage: the operations of a backend on local files."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, cast

from typing_extensions import override

from storage_backend.backends.local.base_directory import prepare_base, refuse_platform
from storage_backend.backends.local.containment import LIST, READ, ContainedRoot
from storage_backend.backends.local.errors import ErrorTranslation, translate
from storage_backend.backends.local.hooks import LocalHooks
from storage_backend.backends.local.leftovers import Leftovers
from storage_backend.backends.local.local_file import LocalFile, info_of_file, native_path, require_regular
from storage_backend.backends.local.renaming import check_entry, rename
from storage_backend.backends.local.scanner import DirectoryScanner
from storage_backend.backends.local.small_write import SMALL, SmallWriter
from storage_backend.backends.local.staged_object import StagedObject
from storage_backend.backends.local.symlinks import move_symlink
from storage_backend.backends.local.syncing import sync_directory, sync_file_system
from storage_backend.base import Identifiers, StorageBackend
from storage_backend.destinations import write_file
from storage_backend.errors import (
    BaseDirectoryNotFoundError,
    ConfigurationError,
    InvalidIdentifierError,
    SourceChangedError,
    StorageError,
)
from storage_backend.files import copy_descriptor, open_source, told_size
from storage_backend.hooks import Hooks
from storage_backend.info import Capability, ObjectInfo
from storage_backend.scanning import OnSkip
from storage_backend.streams import (
    CHUNK,
    Content,
    HashingReader,
    Moved,
    Writer,
    check_arrived,
    check_digest,
    check_mode,
    check_range,
    chunks,
    counting,
    hashing,
    plain,
    unwatched,
)

_SPOOLED = 8 << 20  # bytes held in memory of a file whose size the file system does not report
_BUFFER = 64 << 10  # bytes; larger reads bypass the buffer


class LocalStorage(StorageBackend):
    """The files beneath one directory, on Linux and macOS.

    Nothing outside the directory is ever read, listed or written, whatever symlinks exist or are created meanwhile. A symlink to a
    file beneath the directory reads as that file; write, move and delete act on the symlink itself, and a moved one leads to the same
    file. Writes are atomic. An overwritten file keeps its mode, ACL, extended attributes and, if permitted, owner and group.
    `delete` does not remove directories: one may be a mount point, or have a mode and an owner that we could not restore. A write
    removes an empty directory that is in its way.

    Args:
        base_dir: the directory; "~" is expanded.
        create_if_missing: create it and its parents: True now; "late" at the first write, until which the store is empty.
        durable: return from each change only once it survives power loss.

    Attributes:
        base_dir: absolute, without symlinks.

    Raises:
        BaseDirectoryNotFoundError: it does not exist and may not or cannot be created; also a ValueError.
        ConfigurationError: it is not a directory; also a ValueError.
        AccessDeniedError: it cannot be created because its parent is not writable.
        UnsupportedOperationError: this is Windows.
    """

    # Features that a kernel or file system may lack; tests turn them off.
    _openat2 = True
    _tmpfile = True

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        create_if_missing: bool | Literal["late"] = True,
        *,
        durable: bool = False,
    ) -> None:
        refuse_platform(sys.platform)
        self.base_dir, later = prepare_base(base_dir, create=create_if_missing, durable=durable)
        self._durable = durable
        self._location = self.base_dir.as_uri()
        self._prefix = str(self.base_dir).rstrip("/") + "/"
        self._leftovers = Leftovers()
        self._root = ContainedRoot(os.fsencode(self.base_dir), openat2=self._openat2, make=later)
        self._small_writer = SmallWriter(self._root, self._leftovers, anonymous=self._tmpfile)
        self._scanner = DirectoryScanner(self._root, self._location, self._leftovers.note)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.base_dir)!r}{', durable=True' if self._durable else ''})"

    @override
    def exists(self, identifier: str) -> bool:
        try:
            return stat.S_ISREG(self._root.stat(native_path(identifier)).st_mode)
        except (BaseDirectoryNotFoundError, ConfigurationError):
            raise
        except (FileNotFoundError, NotADirectoryError, InvalidIdentifierError):
            return False
        except OSError as error:
            ours = translate(error, identifier, self._location)
            if isinstance(ours, InvalidIdentifierError):
                return False
            raise ours from error

    @override
    def read(self, identifier: str) -> bytes:
        try:
            fd = self._root.open(native_path(identifier), READ)
            try:
                facts = os.fstat(fd)
                if not stat.S_ISREG(facts.st_mode):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                # One byte more than the size detects the end in the same call. Some files in /proc must be read by a single call.
                size = facts.st_size
                content = os.read(fd, size + 1 if size else _BUFFER)
                return content if len(content) == size else _read_on(fd, content)
            finally:
                os.close(fd)
        except StorageError:
            raise
        except OSError as error:
            raise translate(error, identifier, self._location) from error

    @override
    def write(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        if len(content) > SMALL or self._durable:
            with self._staged(identifier) as staged:
                staged.write(content)
                staged.publish()
            return True
        try:
            self._small_writer.write(native_path(identifier), content)
        except StorageError:
            raise
        except OSError as error:
            raise translate(error, identifier, self._location) from error
        return True

    @override
    def delete(self, identifier: str) -> bool:
        with ErrorTranslation(identifier, self._location):
            directory, name = self._root.parent(native_path(identifier))
            try:
                check_entry(directory, name)
                os.unlink(name, dir_fd=directory)
                if self._durable:
                    sync_directory(directory)
            finally:
                os.close(directory)
        return True

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        return self._scanner.list(pattern)

    @override
    def get_path(self, identifier: str) -> str:
        return self._prefix + os.fsdecode(native_path(identifier))

    @override
    def size(self, identifier: str) -> int:
        try:
            size = told_size(self._root.stat(native_path(identifier)))
        except StorageError:
            raise
        except OSError as error:
            raise translate(error, identifier, self._location) from error
        return self._read_size(identifier) if size is None else size

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        dest = native_path(dest_id)
        with self._opened(source_id) as reader:
            if dest != native_path(source_id):
                with self._staged(dest_id) as staged:
                    staged.copy_from(reader.fileno())
                    staged.publish()
        return True

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        source, dest = native_path(source_id), native_path(dest_id)
        with ErrorTranslation(source_id, self._location):
            directory, name = self._root.parent(source)
            try:
                facts = check_entry(directory, name)
                if source == dest:
                    return True
                if stat.S_ISLNK(facts.st_mode):
                    if move_symlink(self._root, self._root.base, source, dest, durable=self._durable):
                        return True
                    if self.exists(source_id):
                        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                rename(self._root, directory, name, dest, durable=self._durable)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            else:
                return True
            finally:
                os.close(directory)
        return super().move(source_id, dest_id)  # a move between file systems

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        plain(reader)
        source = hashing(reader) if verify else reader
        with self._staged(identifier) as staged:
            for chunk in chunks(cast(BinaryIO, source)):
                staged.write(chunk)
            digest = source.hexdigest() if isinstance(source, HashingReader) and verify else None
            check_arrived(info, identifier, staged.size, digest)
            if info is not None and info.modified is not None:
                staged.set_modified(info.modified)
            if digest is not None:
                check_digest(identifier, digest, staged.sha256(), "what was stored")
            staged.publish()
        return True

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        return info_of_file(identifier, self._regular_facts(identifier))

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        return self._scanner.scan(prefix, on_skip)

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        return self._scanner.scan_level(prefix, on_skip)

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        if mode == "wb":
            staged = self._staged(identifier)
            writer = Writer(staged)
            weakref.finalize(writer, staged.discard)  # for a writer that is never closed
            return cast(BinaryIO, writer)
        reader = self._opened(identifier)
        if told_size(os.fstat(reader.fileno())) is not None:
            return io.BufferedReader(reader, _BUFFER)
        # The size is unknown until the file was read, and another read may return other content.
        with reader:
            spool = tempfile.SpooledTemporaryFile(_SPOOLED)  # noqa: SIM115 - the caller closes it
            shutil.copyfileobj(reader, spool)
        spool.seek(0)
        return cast(BinaryIO, spool)

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        check_range(start, end)
        with self._opened(identifier) as reader, ErrorTranslation(identifier, self._location):
            size = told_size(os.fstat(reader.fileno()))
            if size is None:
                return super().read_range(identifier, start, end)
            end = size if end is None else min(end, size)
            pieces = []
            while start < end:
                piece = os.pread(reader.fileno(), end - start, start)
                if not piece:
                    raise SourceChangedError(
                        f"{identifier!r} in {self._location} was truncated while it was read",
                        identifier=identifier,
                        backend=self._location,
                    )
                pieces.append(piece)
                start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        return self._download(identifier, path)

    def _download(self, identifier: str, path: str | os.PathLike[str], moved: Moved | None = None) -> bool:
        with self._opened(identifier) as reader:
            write_file(path, lambda staged: copy_descriptor(reader.fileno(), staged.fd, moved))
        return True

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        return self._upload(path, identifier)

    def _upload(self, path: str | os.PathLike[str], identifier: str, moved: Moved | None = None) -> bool:
        with open_source(path) as reader:
            if stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
                with self._staged(identifier) as staged:
                    staged.copy_from(reader.fileno(), moved)
                    staged.publish()
                return True
            return self.write_stream(identifier, counting(reader, moved or unwatched))

    @override
    def create(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        with self._staged(identifier) as staged:
            for chunk in (content,) if isinstance(content, bytes) else chunks(content):
                staged.write(chunk)
            return staged.create()

    @override
    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        """A `file://` URL, valid as long as the object exists."""
        return Path(self.get_path(identifier)).as_uri()

    @override
    def flush(self) -> bool:
        """Return once every write so far survives power loss, except on other file systems mounted beneath the directory."""
        with ErrorTranslation(None, self._location):
            try:
                fd = self._root.root(LIST)
            except BaseDirectoryNotFoundError:
                raise
            except FileNotFoundError:  # nothing has been written yet
                return True
            try:
                sync_file_system(fd)
            finally:
                os.close(fd)
        return True

    @property
    @override
    def capabilities(self) -> Capability:
        return (
            Capability.CREATE
            | Capability.URL
            | Capability.RANGES
            | Capability.SERVER_COPY
            | Capability.DIRECTORIES
            | Capability.FLUSH
        )

    @property
    @override
    def keeps_modified(self) -> bool:
        return True

    @property
    @override
    def hooks(self) -> Hooks:
        return LocalHooks(self)

    @property
    @override
    def location(self) -> str:
        return self._location

    def _tidy(self) -> int:
        with ErrorTranslation(None, self._location):
            return self._leftovers.remove_listed(self._root)

    def _resolve_path(self, identifier: str) -> Path:
        """The absolute path of an object, without symlinks. The object need not exist.

        Operations on the path are not contained: a symlink may be replaced later.

        Raises:
            InvalidIdentifierError: it is "outside base directory".
        """
        path = Path(self.get_path(identifier)).resolve()
        if not path.is_relative_to(self.base_dir):
            raise InvalidIdentifierError(
                f"{identifier!r} leads outside base directory {str(self.base_dir)!r}",
                identifier=identifier,
                backend=self._location,
            )
        return path

    def _regular_facts(self, identifier: str) -> os.stat_result:
        with ErrorTranslation(identifier, self._location):
            return require_regular(self._root.stat(native_path(identifier)))

    def _read_size(self, identifier: str) -> int:
        """The size of a file whose file system does not report sizes: 0 if it is empty, else an error."""
        self._regular_facts(identifier)
        with self._opened(identifier) as reader:
            if not reader.read(1):
                return 0
        raise StorageError(
            f"the file system does not report the size of {identifier!r} in {self._location}: read it to find out",
            identifier=identifier,
            backend=self._location,
        )

    def _opened(self, identifier: str) -> LocalFile:
        with ErrorTranslation(identifier, self._location):
            fd = self._root.open(native_path(identifier), READ)
            try:
                require_regular(os.fstat(fd))
                return LocalFile(fd, identifier, self._location)
            except BaseException:
                os.close(fd)
                raise

    def _staged(self, identifier: str) -> StagedObject:
        return StagedObject(
            self._root,
            native_path(identifier),
            identifier,
            self._location,
            self._leftovers,
            durable=self._durable,
            anonymous=self._tmpfile,
        )


def _read_on(fd: int, start: bytes) -> bytes:
    """*start* and the rest of the file. One read(2) returns at most 2 GiB, and the file may have grown or report no size."""
    pieces = [start]
    while piece := os.read(fd, max(CHUNK, len(start))):
        pieces.append(piece)
    return b"".join(pieces)
