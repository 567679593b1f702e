"""LocalStorage: the verbs."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, cast

from typing_extensions import Buffer, override

from storage_backend import identifiers
from storage_backend.backends.local.beneath import LIST, READ, Beneath
from storage_backend.backends.local.errors import Mapped, translate
from storage_backend.backends.local.hooks import LocalHooks
from storage_backend.backends.local.leftovers import Leftovers
from storage_backend.backends.local.links import move_link
from storage_backend.backends.local.small_write import SMALL, write_small
from storage_backend.backends.local.staging import EPOCH, Staging, check_entry, rename
from storage_backend.backends.local.syncing import sync_directory, sync_file_system, sync_path
from storage_backend.backends.local.walk import Directory, walk
from storage_backend.base import Identifiers, StorageBackend
from storage_backend.destinations import write_file
from storage_backend.errors import (
    BaseDirectoryNotFoundError,
    ConfigurationError,
    InvalidIdentifierError,
    NotAFileError,
    NotFoundError,
    SourceChangedError,
    StorageError,
    UnsupportedOperationError,
)
from storage_backend.files import copy_descriptor, open_source, told_size
from storage_backend.hooks import Hooks
from storage_backend.info import Capability, ObjectInfo
from storage_backend.paths import expanded
from storage_backend.scanning import OnSkip, report_skip
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

MAX_NAME = 255  # bytes; NAME_MAX of every file system in common use
EXACT_SECONDS = 1 << 32  # below, a double tells microseconds apart; twice as fast as exact arithmetic
_SPOOLED = 8 << 20  # bytes in memory of a file whose size is not told
_BUFFER = 64 << 10  # bytes; larger reads pass the buffer by


class LocalStorage(StorageBackend):
    """The files beneath one directory, on Linux and macOS.

    Nothing outside the directory is ever read, listed or written, whatever symlinks there are or come to be. A symlink
    that stays beneath it reads as its target; write, move and delete act on the symlink itself, and one that is moved leads
    to the same object. Writes are atomic; a file that is overwritten keeps its mode, ACL, extended attributes and, where we may
    give it those, owner and group. `delete` leaves directories alone: they may be a mount point, or someone's
    own with a mode and an owner that we could not give back; a write removes an empty one that is in its way.

    Args:
        base_dir: the directory; "~" is expanded.
        create_if_missing: create it, and those above it: now, or, with "late", by the first write, until which it is empty.
        durable: return from each change only once it survives power loss.

    Attributes:
        base_dir: absolute, without symlinks.

    Raises:
        BaseDirectoryNotFoundError: it does not exist, and is not to be created; also a ValueError.
        ConfigurationError: it is not a directory; a ValueError.
        UnsupportedOperationError: this is Windows.
    """

    # What a kernel or file system may lack; the tests do without.
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
        self.base_dir, later = _base(base_dir, create=create_if_missing, durable=durable)
        self._durable = durable
        self._location = self.base_dir.as_uri()
        self._prefix = str(self.base_dir).rstrip("/") + "/"
        self._leftovers = Leftovers()
        self._beneath = Beneath(os.fsencode(self.base_dir), openat2=self._openat2, make=later)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.base_dir)!r}{', durable=True' if self._durable else ''})"

    @override
    def exists(self, identifier: str) -> bool:
        try:
            return stat.S_ISREG(self._beneath.stat(self._native(identifier)).st_mode)
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
        with Mapped(identifier, self._location):
            fd = self._beneath.open(self._native(identifier), READ)
            try:
                size = _regular(os.fstat(fd)).st_size
                # One byte more shows the end in the same call. Some files of the kernel are given by the first call or not at all.
                content = os.read(fd, size + 1 if size else _BUFFER)
                return content if len(content) == size else _read_on(fd, content)
            finally:
                os.close(fd)

    @override
    def write(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        if len(content) > SMALL or self._durable:
            with self._staging(identifier) as staging:
                staging.write(content)
                staging.publish()
            return True
        try:
            write_small(
                self._beneath, self._native(identifier), content, self._leftovers, anonymous=self._tmpfile
            )
        except StorageError:
            raise
        except OSError as error:
            raise translate(error, identifier, self._location) from error
        return True

    @override
    def delete(self, identifier: str) -> bool:
        with Mapped(identifier, self._location):
            directory, name = self._beneath.parent(self._native(identifier))
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
        glob = identifiers.glob(pattern) if pattern is not None else None
        runs = self._runs(glob.stem, glob.may_hold, None) if glob else self._runs("", _always, None)
        found: Identifiers = []
        for directory, names, regular in runs:
            run = [directory.path + name for name in names]
            if glob is not None:
                run = [identifier for identifier in run if glob.matches(identifier)]
            if run and not regular and self._look(directory, names[0], None) is None:
                continue
            found += run
        return found

    @override
    def get_path(self, identifier: str) -> str:
        return self._prefix + os.fsdecode(self._native(identifier))

    @override
    def size(self, identifier: str) -> int:
        try:
            facts = self._beneath.stat(self._native(identifier))
        except StorageError:
            raise
        except OSError as error:
            raise translate(error, identifier, self._location) from error
        size = told_size(facts)
        return self._read_size(identifier, facts) if size is None else size

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        dest = self._native(dest_id)
        with self._opened(source_id) as reader:
            if dest != self._native(source_id):
                with self._staging(dest_id) as staging:
                    staging.copy_from(reader.fileno())
                    staging.publish()
        return True

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        source, dest = self._native(source_id), self._native(dest_id)
        with Mapped(source_id, self._location):
            directory, name = self._beneath.parent(source)
            try:
                facts = check_entry(directory, name)
                if source == dest:
                    return True
                if stat.S_ISLNK(facts.st_mode):
                    if move_link(self._beneath, self._beneath.base, source, dest, durable=self._durable):
                        return True
                    if self.exists(source_id):
                        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                rename(self._beneath, directory, name, dest, durable=self._durable)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            else:
                return True
            finally:
                os.close(directory)
        return super().move(source_id, dest_id)  # another file system is mounted beneath the base directory

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        plain(reader)
        source = hashing(reader) if verify else reader
        with self._staging(identifier) as staging:
            for chunk in chunks(cast(BinaryIO, source)):
                staging.write(chunk)
            digest = source.hexdigest() if isinstance(source, HashingReader) and verify else None
            check_arrived(info, identifier, staging.size, digest)
            if info is not None and info.modified is not None:
                staging.set_modified(info.modified)
            if digest is not None:
                check_digest(identifier, digest, staging.sha256(), "what was stored")
            staging.publish()
        return True

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        return _info(identifier, self._regular_facts(identifier))

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        for directory, names, _ in self._runs(prefix, _always, on_skip):
            path, fd = directory.path, directory.fd
            for name in names:
                # What nearly all are, without a call of our own each; _look decides the rest.
                try:
                    facts = os.stat(identifiers.encode(name), dir_fd=fd, follow_symlinks=False)
                except OSError:
                    facts = None
                if facts is not None and stat.S_ISREG(facts.st_mode):
                    yield _info(path + name, facts)
                elif (info := self._look(directory, name, on_skip)) is not None:
                    yield info

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        passed: Identifiers = []  # without a look inside, so one that holds no object is there too

        def pass_by(path: str) -> bool:
            passed.append(f"{path}/")
            return False

        for directory, names, _ in self._runs(prefix, pass_by, on_skip):
            yield from passed
            passed.clear()
            for name in names:
                info = self._look(directory, name, on_skip)
                if info is not None:
                    yield info
        yield from passed

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        if mode == "wb":
            staging = self._staging(identifier)
            writer = Writer(staging)
            weakref.finalize(writer, staging.discard)  # collected unclosed
            return cast(BinaryIO, writer)
        reader = self._opened(identifier)
        if told_size(os.fstat(reader.fileno())) is not None:
            return io.BufferedReader(reader, _BUFFER)
        # Where it ends is known once it has been read; and the next read may give something else.
        with reader:
            spool = tempfile.SpooledTemporaryFile(_SPOOLED)  # noqa: SIM115 - it is the caller's
            shutil.copyfileobj(reader, spool)
        spool.seek(0)
        return cast(BinaryIO, spool)

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        check_range(start, end)
        with self._opened(identifier) as reader, Mapped(identifier, self._location):
            size = told_size(os.fstat(reader.fileno()))
            if size is None:
                return super().read_range(identifier, start, end)
            end = size if end is None else min(end, size)
            pieces = []
            while start < end:
                piece = os.pread(reader.fileno(), end - start, start)
                if not piece:
                    raise SourceChangedError(
                        f"{identifier!r} in {self._location} was cut short while it was read",
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
                with self._staging(identifier) as staging:
                    staging.copy_from(reader.fileno(), moved)
                    staging.publish()
                return True
            return self.write_stream(identifier, counting(reader, moved or unwatched))

    @override
    def create(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        with self._staging(identifier) as staging:
            for chunk in (content,) if isinstance(content, bytes) else chunks(content):
                staging.write(chunk)
            return staging.create()

    @override
    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        """A `file://` URL, good for as long as the object is there."""
        return Path(self.get_path(identifier)).as_uri()

    @override
    def flush(self) -> bool:
        """Return once every write so far survives power loss. Other file systems mounted beneath are not included."""
        with Mapped(None, self._location):
            try:
                fd = self._beneath.root(LIST)
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
        with Mapped(None, self._location):
            return self._leftovers.remove_listed(self._beneath)

    def _native(self, identifier: str) -> bytes:
        """The path beneath the base directory."""
        identifiers.check(identifier, surrogates=True, max_segment_bytes=MAX_NAME)
        return identifiers.encode(identifier)

    def _resolve_path(self, identifier: str) -> Path:
        """The absolute path of what the identifier names, which need not exist.

        It says where something is now; what is done by that path later may go elsewhere.

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
        with Mapped(identifier, self._location):
            return _regular(self._beneath.stat(self._native(identifier)))

    def _read_size(self, identifier: str, facts: os.stat_result) -> int:
        """The size of a file whose file system does not tell it: 0, or that is an error."""
        with Mapped(identifier, self._location):
            _regular(facts)
        with self._opened(identifier) as reader:
            if not reader.read(1):
                return 0
        raise StorageError(
            f"the file system does not tell the size of {identifier!r} in {self._location}: only reading it does",
            identifier=identifier,
            backend=self._location,
        )

    def _opened(self, identifier: str) -> _MappedFile:
        with Mapped(identifier, self._location):
            fd = self._beneath.open(self._native(identifier), READ)
            try:
                _regular(os.fstat(fd))
                return _MappedFile(fd, identifier, self._location)
            except BaseException:
                os.close(fd)
                raise

    def _staging(self, identifier: str) -> Staging:
        return Staging(
            self._beneath,
            self._native(identifier),
            identifier,
            self._location,
            self._leftovers,
            durable=self._durable,
            anonymous=self._tmpfile,
        )

    def _runs(
        self, stem: str, enter: Callable[[str], bool], on_skip: OnSkip | None
    ) -> Iterator[tuple[Directory, Identifiers, bool]]:
        """Runs of entries whose identifiers are valid; the others are reported."""

        def may_enter(path: str) -> bool:
            return enter(path) and (_short(path) or self._valid(f"{path}/x", on_skip))

        for directory, names, regular in walk(
            self._beneath, stem, may_enter, self._location, self._leftovers.note
        ):
            if _short(directory.path, max(map(len, names))):
                yield directory, names, regular
            elif valid := [name for name in names if self._valid(directory.path + name, on_skip)]:
                yield directory, valid, regular

    def _valid(self, identifier: str, on_skip: OnSkip | None) -> bool:
        try:
            self._native(identifier)
        except InvalidIdentifierError as error:
            report_skip(on_skip, error, self._location)
            return False
        return True

    def _look(self, directory: Directory, name: str, on_skip: OnSkip | None) -> ObjectInfo | None:
        """What an entry is, if it is an object. If it is none it is reported, and if it is gone it is not."""
        identifier = directory.path + name
        try:
            facts = os.stat(identifiers.encode(name), dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise translate(error, identifier, self._location) from error
        if stat.S_ISREG(facts.st_mode):
            return _info(identifier, facts)
        try:
            return _info(identifier, self._regular_facts(identifier))
        except BaseDirectoryNotFoundError:
            raise
        except (NotFoundError, NotAFileError, InvalidIdentifierError) as error:
            report_skip(on_skip, error, self._location)
            return None


class _MappedFile(io.FileIO):
    """A regular file, open for reading, whose late errors are ours."""

    def __init__(self, fd: int, identifier: str, where: str) -> None:
        super().__init__(fd)
        self._mapped = Mapped(identifier, where)

    @override
    def read(self, size: int | None = -1, /) -> bytes:
        with self._mapped:
            return super().read(size)

    @override
    def readall(self) -> bytes:
        with self._mapped:
            return super().readall()

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        with self._mapped:
            return super().readinto(buffer)


def refuse_platform(platform: str) -> None:
    """Say no to Windows, which has none of the calls that containment rests on.

    Raises:
        UnsupportedOperationError: the platform is Windows.
    """
    if platform == "win32":
        raise UnsupportedOperationError(
            "LocalStorage works on Linux and macOS; on Windows use another backend, or WSL"
        )


def _base(
    base_dir: str | os.PathLike[str], *, create: bool | Literal["late"], durable: bool
) -> tuple[Path, Callable[[], object] | None]:
    """The base directory as it is kept, created if asked for; else what creates it, if that is to be done later."""
    given = expanded(base_dir)
    if given.startswith("~"):
        raise ConfigurationError(
            f'base_dir {given!r}: there is no such user; write "./{given}" for a directory of that name',
            parameter="base_dir",
        )
    try:
        base = Path(given).resolve()
    except RuntimeError as error:  # a loop of symlinks
        raise ConfigurationError(
            f"base_dir {os.fspath(base_dir)!r}: {error}", parameter="base_dir"
        ) from error
    with Mapped(None, base.as_uri()):
        if create == "late" and not base.exists():
            _check_possible(base)
            return base, partial(_create, base, durable)
        if create:
            _create(base, durable)
        if not base.exists():
            raise BaseDirectoryNotFoundError(f"base directory {str(base)!r} does not exist")
    if not base.is_dir():
        raise ConfigurationError(f"base directory {str(base)!r} is not a directory", parameter="base_dir")
    return base, None


def _create(base: Path, durable: bool) -> None:
    missing = [path for path in (base, *base.parents) if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            if durable:
                sync_path(path.parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise _in_the_way(base, error.filename) from error
    except FileNotFoundError as error:  # as in /proc
        raise BaseDirectoryNotFoundError(f"base directory {str(base)!r} cannot be created") from error


def _check_possible(base: Path) -> None:
    """Refuse a directory that could not be created."""
    above = next(path for path in base.parents if path.exists())
    if not above.is_dir():
        raise _in_the_way(base, str(above))
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))


def _in_the_way(base: Path, other: str) -> ConfigurationError:
    return ConfigurationError(
        f"base directory {str(base)!r} cannot be created: {other!r} is not a directory", parameter="base_dir"
    )


def _always(_: str) -> bool:
    return True


def _short(path: str, longest: int = 0) -> bool:
    """Whether names of up to *longest* characters in the directory *path* are valid whatever the characters are."""
    return longest * 4 <= MAX_NAME and (len(path) + longest) * 4 < identifiers.MAX_BYTES


def _regular(facts: os.stat_result) -> os.stat_result:
    """*facts*, if they are of a regular file."""
    if not stat.S_ISREG(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return facts


def _info(identifier: str, facts: os.stat_result) -> ObjectInfo:
    seconds = facts.st_mtime
    size = told_size(facts)
    if 0 <= seconds < EXACT_SECONDS:
        return ObjectInfo(identifier, size, datetime.fromtimestamp(seconds, UTC))
    try:
        modified: datetime | None = EPOCH + timedelta(microseconds=facts.st_mtime_ns // 1000)
    except OverflowError:  # file systems count further than years have digits
        modified = None
    return ObjectInfo(identifier, size, modified)


def _read_on(fd: int, start: bytes) -> bytes:
    """*start* and the rest of the file: one call gives at most 2 GiB, and files grow or do not know their size."""
    pieces = [start]
    while piece := os.read(fd, max(CHUNK, len(start))):
        pieces.append(piece)
    return b"".join(pieces)
