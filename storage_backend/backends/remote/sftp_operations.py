"""Operations: what is done to one file on the server, each as steps that any number of them can take side by side."""

from __future__ import annotations

import itertools
import posixpath
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from storage_backend.backends.remote import non_atomic_overwrite
from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.errors import not_a_file, translate
from storage_backend.backends.remote.sftp_packets import (
    FAILURE,
    FXF_CREAT,
    FXF_EXCL,
    FXF_READ,
    FXF_WRITE,
    NO_SUCH_FILE,
    UNSUPPORTED,
    Attributes,
    Reply,
    Request,
    SFTPEntry,
    StatusError,
)
from storage_backend.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    IntegrityError,
    QuotaExceededError,
    SourceChangedError,
    StorageError,
    UnsupportedOperationError,
)
from storage_backend.owners import temporary_name
from storage_backend.streams import check_digest, sha256

T = TypeVar("T")
Steps: TypeAlias = Generator[Sequence[Request], Sequence[Reply], T]

COPY_STEP = 32 << 20  # bytes the server copies at a request; it answers nothing else in the meantime
COPY_DATA = b"copy-data"
MOST_NAMES = 10_000_000  # of one directory, which has us keep some 3 GB
_REPEATED = 10_000  # names that may come again as a directory changes
_TRIES = 8  # how often a directory may be taken away before a write gives up
_READ_ONLY = 1  # SSH_FXE_STATVFS_ST_RDONLY, OpenSSH's PROTOCOL, 4.4


class RemotePath(NamedTuple):
    """An object's identifier and the path of its file on the server."""

    identifier: str
    path: bytes


class Requests(Protocol):
    """What operations need of a session."""

    extensions: dict[bytes, bytes]
    read_length: int
    write_length: int
    wakes: bool

    def post(self, request: Request) -> None:
        """Have a request sent whose reply nobody waits for."""


@dataclass(frozen=True)
class StagedUpload:
    """A whole file under a temporary name.

    Attributes:
        temporary: its path.
        old: what was found at the place that it is for.
        new: what the server told of it when it was whole.
    """

    temporary: bytes
    old: Attributes | None
    new: Attributes | None = None


class Operations:
    """The operations of one connection.

    Args:
        session: that they are for.
        where: the backend's location, for errors.
        move: renames by the server's shell, replacing what is there, where SFTP cannot.
        link: likewise, a second name for a file; False where there is something of that name.
        non_atomic: whether a file may be moved aside before its successor takes its place.
        warn: is called before that.

    Attributes:
        temporary: what all temporary names of this connection begin with.
    """

    def __init__(
        self,
        session: Requests,
        where: str,
        *,
        move: Callable[[bytes, bytes], object] | None = None,
        link: Callable[[bytes, bytes], bool] | None = None,
        non_atomic: bool = False,
        warn: Callable[[], object] = bool,
    ) -> None:
        self._session = session
        self._where = where
        # Random once, then counted: the kernel takes its time for each random number, and a batch has thousands of names.
        self.temporary = f"{temporary_name()}-".encode()
        self._names = itertools.count()
        self._move = move
        self._link = link
        self._non_atomic = non_atomic
        self._warn = warn

    def beside(self, path: bytes) -> bytes:
        """A new temporary path in the directory of *path*."""
        return beside(path, self._name())

    def facts(self, place: RemotePath) -> Steps[Attributes]:
        """The attributes of an object."""
        (reply,) = yield [packets.request(packets.STAT, place.path)]
        with self._mapped(place):
            found = packets.attributes_in(reply)
        return self.regular(found, place)

    def entry(self, path: bytes) -> Steps[Attributes | None]:
        """The attributes of what has this name, a link itself and not what it leads to; None if nothing has."""
        (reply,) = yield [packets.request(packets.LSTAT, path)]
        return _if_there(reply)

    def open(self, place: RemotePath, *, look: bool = False) -> Steps[tuple[bytes, Attributes]]:
        """A handle to read the object by, and its attributes; *look* as for `read`."""
        handle, _ = yield from self._opened(place, look=look)
        try:
            first, second = yield [packets.request(packets.FSTAT, handle), packets.read_request(handle, 0, 1)]
            with self._mapped(place):
                found = self.regular(packets.attributes_in(first), place)
            # Files of procfs, sysfs and some of FUSE have none and say so; their content is made when they are read.
            if found.size is None or (found.size == 0 and packets.has_data(second)):
                raise StorageError(
                    f"the server does not tell the size of {place.identifier!r} in {self._where}: only `read` takes what there is",
                    identifier=place.identifier,
                    backend=self._where,
                )
        except BaseException:
            self.let_go(handle)
            raise
        return handle, found

    def read(
        self, place: RemotePath, most: int, *, look: bool = False
    ) -> Steps[tuple[bytes | None, Attributes]]:
        """The whole object, or None instead if it has more than *most* bytes; and its attributes.

        Args:
            place: of it.
            most: bytes.
            look: what it is before it is opened, for a read that a connection did not survive. That costs an exchange.
        """
        handle, seen = yield from self._opened(place, look=look)
        length = self._session.read_length
        # Otherwise there was an exchange between the look and the opening, in which much may happen.
        at_once = self._session.wakes and not look and seen is not None
        try:
            if seen is None or not at_once:
                first, second = yield [
                    packets.request(packets.FSTAT, handle),
                    packets.read_request(handle, 0, length),
                ]
                with self._mapped(place):
                    found = self.regular(packets.attributes_in(first), place)
                if found.size is None and seen is not None:
                    found = found._replace(size=seen.size)
            else:
                found = seen
                (second,) = yield [packets.read_request(handle, 0, length)]
            with self._mapped(place):
                pieces = [packets.data_in(second, length)]
            size = len(pieces[0])
            # A piece of the very size is the whole; other sizes are of a file that grows, or of a server that gives less
            # than it has, and only its word proves the end. So it is where another file may have been looked at than opened,
            # if the piece may be cut.
            while pieces[-1] and (size != found.size or (at_once and len(pieces[-1]) == length)):
                if max(size, found.size or 0) > most:
                    return None, found
                (reply,) = yield [packets.read_request(handle, size, length)]
                with self._mapped(place):
                    pieces.append(packets.data_in(reply, length))
                size += len(pieces[-1])
            if at_once and size != found.size:
                found = yield from self._facts_of(handle, place)
            if found.size is not None and size < found.size:
                # Cut short meanwhile; or a file system or server that ends early.
                raise changed(place, self._where, f"it ended after {size:,} of {found.size:,} bytes")
            return pieces[0] if len(pieces) == 1 else b"".join(pieces), found
        finally:
            self.let_go(handle)

    def _opened(self, place: RemotePath, *, look: bool) -> Steps[tuple[bytes, Attributes | None]]:
        """A handle to read by, and what was seen of the object right before."""
        opening = packets.open_request(place.path, FXF_READ)
        seen: Attributes | None = None
        looked: Reply | None = None
        if self._session.wakes and not look:
            looked, reply = yield [packets.request(packets.STAT, place.path), opening]
        else:
            seen = yield from self.facts(place)
            (reply,) = yield [opening]
        try:
            handle = packets.handle_in(reply)
        except StatusError as error:
            raise (yield from self._why_unreadable(error, place)) from error
        if looked is None:
            return handle, seen
        try:
            seen = _if_there(looked)
            return handle, None if seen is None else self.regular(seen, place)
        except BaseException:
            self.let_go(handle)
            raise

    def _facts_of(self, handle: bytes, place: RemotePath) -> Steps[Attributes]:
        (reply,) = yield [packets.request(packets.FSTAT, handle)]
        with self._mapped(place):
            return self.regular(packets.attributes_in(reply), place)

    def begin(
        self, place: RemotePath, temporary: bytes | None = None, ahead: Sequence[bytes] = ()
    ) -> Steps[tuple[bytes, StagedUpload]]:
        """A handle to write a new file by, beside the place that it is for; directories are made.

        Args:
            place: what the file is for.
            temporary: the path of the file, instead of a new one.
            ahead: directories that may be missing, outer ones first: to ask for them beforehand costs no exchange.
        """
        temporary = temporary or self.beside(place.path)
        aside = (
            [packets.request(packets.LSTAT, non_atomic_overwrite.aside(place.path))]
            if self._sets_aside
            else []
        )
        for attempt in range(_TRIES):
            *_, first, second = replies = yield [
                *(packets.mkdir_request(directory) for directory in (() if attempt else ahead)),
                *aside,
                packets.request(packets.LSTAT, place.path),
                packets.open_request(temporary, FXF_WRITE | FXF_CREAT | FXF_EXCL),
            ]
            try:
                handle = packets.handle_in(second)
            except StatusError as error:
                if error.code != NO_SUCH_FILE:
                    raise (yield from self.why_unwritable(error, place)) from error
                yield from self.make_directory(posixpath.dirname(place.path), place)
            else:
                if aside and _if_there(replies[-3]) is not None:
                    # What a writer that was broken off has left; its object is to be seen as it was.
                    yield from non_atomic_overwrite.heal(posixpath.dirname(place.path), self.names)
                    (first,) = yield [packets.request(packets.LSTAT, place.path)]
                return handle, StagedUpload(temporary, _if_there(first))
        raise StorageError(
            f"{place.identifier!r} in {self._where}: its directory is removed as often as it is made",
            identifier=place.identifier,
            backend=self._where,
            retryable=True,
        )

    def resume(self, place: RemotePath, temporary: bytes) -> Steps[tuple[bytes, StagedUpload]]:
        """A handle to write on in a file that is there, beside the place that it is for."""
        first, second = yield [
            packets.request(packets.LSTAT, place.path),
            packets.open_request(temporary, FXF_WRITE),
        ]
        with self._mapped(place):
            return packets.handle_in(second), StagedUpload(temporary, _if_there(first))

    def remove(self, path: bytes) -> Steps[None]:
        """Remove a file, there or not."""
        (reply,) = yield [packets.request(packets.REMOVE, path)]
        try:
            packets.check(reply)
        except StatusError as error:
            if error.code != NO_SUCH_FILE:
                raise translate(error, None, self._where) from error

    def finish(
        self, handle: bytes, staged: StagedUpload, place: RemotePath, *, size: int, modified: int | None
    ) -> Steps[StagedUpload]:
        """Close the new file, which must have *size* bytes; it has the mode of what it will replace."""
        return (yield from self._write_and_close(handle, staged, place, size=size, modified=modified))

    def keep_mode(self, staged: StagedUpload, place: RemotePath) -> Steps[None]:
        """Give a new file the mode of what it will replace."""
        old = staged.old
        if old is not None and old.mode is not None and stat.S_ISREG(old.mode):
            (reply,) = yield [
                packets.setstat_request(packets.SETSTAT, staged.temporary, mode=old.mode & 0o777)
            ]
            with self._mapped(place):
                _check_setting(reply)

    def stage(
        self, place: RemotePath, content: bytes, modified: int | None, ahead: Sequence[bytes] = ()
    ) -> Steps[StagedUpload]:
        """A whole new file beside the place that it is for; *ahead* as for `begin`."""
        handle, staged = yield from self.begin(place, ahead=ahead)
        length = self._session.write_length
        view = memoryview(content)
        writes = [
            packets.write_request(handle, at, view[at : at + length]) for at in range(0, len(view), length)
        ]
        try:
            return (
                yield from self._write_and_close(
                    handle, staged, place, writes=writes, size=len(view), modified=modified
                )
            )
        except BaseException:
            self.discard(staged)
            raise

    def write(
        self,
        place: RemotePath,
        content: bytes,
        modified: int | None,
        ahead: Sequence[bytes] = (),
        *,
        verify: bool = False,
    ) -> Steps[StagedUpload]:
        """Store an object, with *verify* only if what the server then has is *content*; *ahead* as for `begin`."""
        staged = yield from self.stage(place, content, modified, ahead)
        if verify:
            yield from self._read_back(staged, place, content)
        yield from self.publish(staged, place)
        return staged

    def _read_back(self, staged: StagedUpload, place: RemotePath, content: bytes) -> Steps[None]:
        try:
            found, _ = yield from self.read(RemotePath(place.identifier, staged.temporary), len(content))
            if found != content:
                check_digest(place.identifier, sha256(content), sha256(found or b""), "what was stored")
        except BaseException:
            self.discard(staged)
            raise

    def publish(self, staged: StagedUpload, place: RemotePath) -> Steps[None]:
        """Give the new file its name; if that fails it is removed."""
        try:
            old = staged.old
            refused: StatusError | None = None
            for _ in range(_TRIES):
                if old is not None:
                    yield from self._make_way(old, place)
                try:
                    yield from self._rename(staged.temporary, place, old)
                except StatusError as error:
                    refused = error
                    old = yield from self.entry(place.path)
                    if old is not None and not stat.S_ISDIR(old.mode or 0):
                        raise (yield from self.why_unwritable(error, place)) from error
                    if (yield from self.entry(staged.temporary)) is None:
                        raise translate(error, place.identifier, self._where) from error
                    if old is None:
                        yield from self.make_directory(posixpath.dirname(place.path), place)
                else:
                    return
            if refused is not None and old is None:
                raise (yield from self.why_unwritable(refused, place)) from refused
            raise AlreadyExistsError(
                f"{place.identifier!r} in {self._where}: a directory is in the way",
                identifier=place.identifier,
                backend=self._where,
            )
        except BaseException:
            self.discard(staged)
            raise

    def create(self, staged: StagedUpload, place: RemotePath) -> Steps[bool]:
        """Give the new file its name if nothing has it; the temporary name is gone afterwards."""
        try:
            for _ in range(_TRIES):
                old = yield from self.entry(place.path)
                if old is not None and not stat.S_ISDIR(old.mode or 0):
                    return False
                if old is not None:
                    yield from self._make_way(old, place)
                try:
                    if packets.HARDLINK in self._session.extensions:
                        request = packets.extended_request(packets.HARDLINK, staged.temporary, place.path)
                        packets.check((yield [request])[0])
                        return True
                    if self._link is None:
                        raise StatusError(UNSUPPORTED, "no hard links")
                    if self._link(staged.temporary, place.path):
                        return True
                except StatusError as error:
                    if error.code == UNSUPPORTED:
                        raise UnsupportedOperationError(
                            f"{self._where} has no create(): the server makes no hard links",
                            identifier=place.identifier,
                            backend=self._where,
                        ) from error
                    if error.code == NO_SUCH_FILE:
                        yield from self.make_directory(posixpath.dirname(place.path), place)
                    elif (yield from self.entry(place.path)) is None:
                        raise translate(error, place.identifier, self._where) from error
            raise AlreadyExistsError(
                f"{place.identifier!r} in {self._where}: what is in the way comes and goes",
                identifier=place.identifier,
                backend=self._where,
            )
        finally:
            self.discard(staged)

    def delete(self, place: RemotePath) -> Steps[None]:
        """Remove an object, or a link."""
        (reply,) = yield [packets.request(packets.LSTAT, place.path)]
        if self._sets_aside and _if_there(reply) is None:
            # Or what a killed writer moved aside would come back later.
            yield from self.heal(place)
            (reply,) = yield [packets.request(packets.LSTAT, place.path)]
        with self._mapped(place):
            self.entry_of_object(packets.attributes_in(reply), place)
        (reply,) = yield [packets.request(packets.REMOVE, place.path)]
        with self._mapped(place):
            packets.check(reply)

    def move(self, source: RemotePath, dest: RemotePath) -> Steps[bool]:
        """Give an object another name; False if it is a link that would lead elsewhere then, and nothing was done."""
        first, second = yield [
            packets.request(packets.LSTAT, source.path),
            packets.request(packets.LSTAT, dest.path),
        ]
        with self._mapped(source):
            found = packets.attributes_in(first)
            self.entry_of_object(found, source)
        old = _if_there(second)
        if stat.S_ISLNK(found.mode or 0) and (yield from self._leads_elsewhere(source, dest, old)):
            return False
        for _ in range(_TRIES):
            if old is not None:
                yield from self._make_way(old, dest)
            try:
                yield from self._rename(source.path, dest, old)
            except StatusError as error:
                if (yield from self.entry(source.path)) is None:
                    raise translate(StatusError(NO_SUCH_FILE, ""), source.identifier, self._where) from error
                old = yield from self.entry(dest.path)
                if old is not None and not stat.S_ISDIR(old.mode or 0):
                    raise translate(error, dest.identifier, self._where) from error
                if old is None:
                    if error.code != NO_SUCH_FILE:
                        raise (yield from self.why_unwritable(error, dest)) from error
                    yield from self.make_directory(posixpath.dirname(dest.path), dest)
            else:
                if old == found:
                    yield from self._remove_other_name(source, dest)
                return True
        raise AlreadyExistsError(
            f"{dest.identifier!r} in {self._where}: a directory is in the way",
            identifier=dest.identifier,
            backend=self._where,
        )

    def _leads_elsewhere(self, source: RemotePath, dest: RemotePath, old: Attributes | None) -> Steps[bool]:
        """Whether a link would lead to another object under its new name, or to itself; one that leads nowhere may be renamed."""
        first, second = yield [
            packets.request(packets.STAT, source.path),
            packets.request(packets.READLINK, source.path),
        ]
        if _if_there(first) is None:
            return False
        if old is not None:
            return True  # it may lead to just that
        if posixpath.dirname(source.path) == posixpath.dirname(dest.path):
            return False
        try:
            targets = packets.entries_in(second)
        except StatusError:
            return True
        return len(targets) != 1 or not targets[0].name.startswith(b"/")

    def _remove_other_name(self, source: RemotePath, dest: RemotePath) -> Steps[None]:
        """The source's name is to go also if both were names of one file: rename(2) does nothing then.

        SFTP tells of no file which it is, but renaming does: under two names of ours, which nobody writes to, the first stays if
        they are of one file. A new file that somebody has given the source's name by now goes back there.
        """
        if packets.HARDLINK not in self._session.extensions or (yield from self.entry(source.path)) is None:
            return
        one, other = self.beside(dest.path), self.beside(dest.path)
        (reply,) = yield [packets.extended_request(packets.POSIX_RENAME, source.path, one)]
        with self._mapped(source):
            packets.check(reply)
        (reply,) = yield [packets.extended_request(packets.HARDLINK, dest.path, other)]
        if packets.is_ok(reply):
            (reply,) = yield [packets.extended_request(packets.POSIX_RENAME, one, other)]
            with self._mapped(source):
                packets.check(reply)
            if (yield from self.entry(one)) is not None:
                yield [packets.request(packets.REMOVE, one), packets.request(packets.REMOVE, other)]
                return
            one = other
        (reply,) = yield [packets.two_path_request(packets.RENAME, one, source.path)]
        if not packets.is_ok(reply):  # there is a still newer one
            yield [packets.request(packets.REMOVE, one)]

    def can_copy(self) -> bool:
        """Whether the server copies by itself."""
        return COPY_DATA in self._session.extensions

    def copy(self, source: RemotePath, dest: RemotePath) -> Steps[None]:
        """Store the content of an object under another name, on the server."""
        handle, found = yield from self.open(source)
        try:
            target, staged = yield from self.begin(dest)
            try:
                size = found.size or 0
                for start in range(0, size, COPY_STEP):
                    length = min(COPY_STEP, size - start)
                    (reply,) = yield [_copying(handle, target, start, length)]
                    with self._mapped(dest):
                        packets.check(reply)
                yield from self.finish(target, staged, dest, size=size, modified=found.modified)
            except BaseException:
                self.discard(staged)
                raise
        finally:
            self.let_go(handle)
        yield from self.publish(staged, dest)

    def names(self, path: bytes) -> Steps[list[SFTPEntry]]:
        """What is in a directory, in any order, each name once.

        Raises:
            StatusError: it cannot be read.
            SFTPProtocolError: the server goes on for ever.
        """
        (reply,) = yield [packets.request(packets.OPENDIR, path)]
        try:
            handle = packets.handle_in(reply)
        except StatusError as error:
            if error.code != FAILURE:
                raise
            # rclone says but this of a file.
            (reply,) = yield [packets.request(packets.STAT, path)]
            found_there = _if_there(reply)
            if found_there is None or stat.S_ISDIR(found_there.mode or stat.S_IFDIR):
                raise
            raise StatusError(NO_SUCH_FILE, error.text) from error
        # What is renamed meanwhile may come twice.
        found: dict[bytes, SFTPEntry] = {}
        ahead = 2
        told = 0
        try:
            while True:
                # Most directories are small; of a large one there are more under way each time.
                for reply in (yield [packets.request(packets.READDIR, handle)] * ahead):
                    entries = packets.entries_in(reply)
                    if not entries:
                        return [entry for entry in found.values() if entry.name not in {b".", b".."}]
                    found.update({entry.name: entry for entry in entries})
                    told += len(entries)
                    if told > 2 * len(found) + _REPEATED or told > MOST_NAMES:
                        raise packets.SFTPProtocolError(
                            f"{self._where}: the SFTP server told {told:,} names of a directory, and goes on"
                        )
                ahead = min(2 * ahead, 16)
        finally:
            self.let_go(handle)

    def make_directory(self, path: bytes, place: RemotePath | None) -> Steps[None]:
        """Make a directory and those above it; it may be there already."""
        pending = [path]
        for _ in range(2 * path.count(b"/") + _TRIES):
            current = pending[-1]
            (reply,) = yield [packets.mkdir_request(current)]
            try:
                packets.check(reply)
            except StatusError as error:
                (second,) = yield [packets.request(packets.STAT, current)]
                found = _if_there(second)
                if found is not None:
                    if not stat.S_ISDIR(found.mode or stat.S_IFDIR):
                        raise self._taken(place, current) from error
                    # Another has made it.
                    pending.pop()
                elif error.code == NO_SUCH_FILE and len(current) > 1:
                    pending.append(posixpath.dirname(current.rstrip(b"/")) or b"/")
                elif (yield from self.entry(current)) is not None:  # a link that leads nowhere
                    raise self._taken(place, current) from error
                elif place is not None:
                    raise (yield from self.why_unwritable(error, place)) from error
                else:
                    raise translate(error, None, self._where) from error
            else:
                pending.pop()
            if not pending:
                return
        raise StorageError(
            f"{self._where}: a directory is removed as often as it is made",
            backend=self._where,
            retryable=True,
        )

    def heal(self, place: RemotePath) -> Steps[None]:
        """Bring back what an overwrite that was broken off has moved aside, beside *place*."""
        if self._sets_aside:
            (reply,) = yield [packets.request(packets.LSTAT, non_atomic_overwrite.aside(place.path))]
            if _if_there(reply) is not None:
                yield from non_atomic_overwrite.heal(posixpath.dirname(place.path), self.names)

    def let_go(self, handle: bytes) -> None:
        """Close a handle whose closing tells nothing."""
        self._session.post(packets.request(packets.CLOSE, handle))

    def discard(self, staged: StagedUpload) -> None:
        """Remove a file under a temporary name."""
        self._session.post(packets.request(packets.REMOVE, staged.temporary))

    def regular(self, found: Attributes, place: RemotePath) -> Attributes:
        """*found*, if it is of a regular file; a server that does not say what it is is believed to have only these."""
        if found.mode is not None and stat.S_IFMT(found.mode) not in {0, stat.S_IFREG}:
            raise not_a_file(place.identifier, self._where)
        return found

    def check_size(self, place: RemotePath, found: int, size: int) -> None:
        """Refuse a new file that has not all bytes, or more."""
        if found != size:
            raise IntegrityError(
                f"{place.identifier!r} in {self._where}: the server has {found:,} of {size:,} bytes",
                identifier=place.identifier,
                backend=self._where,
            )

    def entry_of_object(self, found: Attributes, place: RemotePath) -> None:
        """Refuse what is neither a regular file nor a link."""
        if found.mode is not None and stat.S_IFMT(found.mode) not in {0, stat.S_IFREG, stat.S_IFLNK}:
            raise not_a_file(place.identifier, self._where)

    def _write_and_close(
        self,
        handle: bytes,
        staged: StagedUpload,
        place: RemotePath,
        *,
        size: int,
        modified: int | None,
        writes: Sequence[Request] = (),
    ) -> Steps[StagedUpload]:
        # By its name once it is closed: pkg/sftp, which rclone and others serve with, lets all but CLOSE overtake writes, and
        # a file's size and time are not final before.
        requests = [*writes, packets.request(packets.CLOSE, handle)]
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
                _check_setting(reply)
            found = packets.attributes_in(replies[-1])
        except StatusError as error:
            raise (yield from self.why_unwritable(error, place)) from error
        if found.size is not None:
            self.check_size(place, found.size, size)
        return replace(staged, new=found)

    def _name(self) -> bytes:
        return self.temporary + b"%d" % next(self._names)

    @property
    def _sets_aside(self) -> bool:
        """Whether files are moved aside before others take their places."""
        return (
            self._non_atomic and self._move is None and packets.POSIX_RENAME not in self._session.extensions
        )

    def _rename(self, old_path: bytes, place: RemotePath, old: Attributes | None) -> Steps[None]:
        """Rename, replacing what is there.

        Raises:
            StatusError: the server refuses.
            UnsupportedOperationError: it cannot replace.
        """
        if packets.POSIX_RENAME in self._session.extensions:
            (reply,) = yield [packets.extended_request(packets.POSIX_RENAME, old_path, place.path)]
            try:
                packets.check(reply)
            except StatusError as error:
                if error.code != UNSUPPORTED:
                    raise
                # A server may announce what it then does not have, and a substitute's client announces nothing.
                self._session.extensions.pop(packets.POSIX_RENAME, None)
            else:
                return
        if self._move is not None:
            self._move(old_path, place.path)
            return
        taken = old is not None
        if not taken:
            (reply,) = yield [packets.two_path_request(packets.RENAME, old_path, place.path)]
            try:
                packets.check(reply)
            except StatusError:
                taken = (yield from self.entry(place.path)) is not None
                if not taken:
                    raise
            else:
                return
        if not self._non_atomic:
            raise UnsupportedOperationError(
                f"{place.identifier!r} in {self._where}: the server cannot replace a file in one step; delete the object "
                'first, or allow several with ssh_config["non_atomic_overwrite"] = True',
                identifier=place.identifier,
                backend=self._where,
            )
        self._warn()
        yield from non_atomic_overwrite.replace(
            old_path, place.path, self._name, self.names, self._session.post
        )

    def _make_way(self, old: Attributes, place: RemotePath) -> Steps[None]:
        """Remove a directory without objects that is where the object shall be; refuse to replace another, or a device."""
        if old.mode is not None and stat.S_ISDIR(old.mode):
            yield from self._remove_bare(place)
        else:
            self.entry_of_object(old, place)

    def _remove_bare(self, place: RemotePath) -> Steps[None]:
        """Remove a directory and those in it, if there is nothing else in any of them."""
        bare = [place.path]
        try:
            # All of it first: nothing is removed in vain.
            for directory in bare:
                for entry in (yield from self.names(directory)):
                    if not stat.S_ISDIR(entry.attributes.mode or 0):
                        raise self._taken(place, place.path)
                    bare.append(posixpath.join(directory, entry.name))
            for directory in reversed(bare):
                (reply,) = yield [packets.request(packets.RMDIR, directory)]
                packets.check(reply)
        except StatusError as error:
            # Someone else may have been faster; the caller tries again.
            if error.code != NO_SUCH_FILE:
                raise self._taken(place, place.path) from error

    def _taken(self, place: RemotePath | None, path: bytes) -> AlreadyExistsError:
        identifier = place.identifier if place else None
        directory = place is not None and place.path == path
        reason = (
            "a directory with objects is in the way"
            if directory
            else "an object is where a directory is needed"
        )
        what = f"{identifier!r} in {self._where}" if identifier is not None else self._where
        return AlreadyExistsError(f"{reason}: {what}", identifier=identifier, backend=self._where)

    def _why_unreadable(self, error: StatusError, place: RemotePath) -> Steps[StorageError]:
        """Why a file cannot be opened; a server that opens no directory says but "failure"."""
        if error.code == FAILURE:
            (reply,) = yield [packets.request(packets.STAT, place.path)]
            found = _if_there(reply)
            if found is not None and found.mode is not None and not stat.S_ISREG(found.mode):
                return not_a_file(place.identifier, self._where)
        return translate(error, place.identifier, self._where)

    def why_unwritable(self, error: StatusError, place: RemotePath) -> Steps[StorageError]:
        """Why a file cannot be written: OpenSSH says but "failure" where the disk is full or read-only, rclone beneath a file."""
        if error.code == FAILURE:
            above = posixpath.dirname(place.path)
            while len(above) > 1:
                (reply,) = yield [packets.request(packets.STAT, above)]
                found = _if_there(reply)
                if found is not None and not stat.S_ISDIR(found.mode or stat.S_IFDIR):
                    return self._taken(place, above)
                if found is not None:
                    break
                above = posixpath.dirname(above)
        if error.code == FAILURE and packets.STATVFS in self._session.extensions:
            for path in (posixpath.dirname(place.path), b"/"):
                (reply,) = yield [packets.extended_request(packets.STATVFS, path)]
                if reply[0] != packets.EXTENDED_REPLY:
                    continue
                fields = packets.Fields(reply[1])
                numbers = [fields.long() for _ in range(11)]
                what = f"{place.identifier!r} in {self._where}"
                if numbers[4] == 0 or (numbers[5] > 0 and numbers[7] == 0):
                    return QuotaExceededError(
                        f"no space left for this user: {what}",
                        identifier=place.identifier,
                        backend=self._where,
                    )
                if numbers[9] & _READ_ONLY:
                    return AccessDeniedError(
                        f"the file system is read-only: {what}",
                        identifier=place.identifier,
                        backend=self._where,
                    )
                break
        return translate(error, place.identifier, self._where)

    @contextmanager
    def _mapped(self, place: RemotePath) -> Iterator[None]:
        try:
            yield
        except StatusError as error:
            raise translate(error, place.identifier, self._where) from error


def beside(path: bytes, name: bytes) -> bytes:
    """A path in the directory of *path*."""
    return posixpath.join(posixpath.dirname(path), name)


def in_seconds(modified: datetime | None) -> int | None:
    """A time as SFTP has it: whole seconds since 1970; one that `known` would not know again is not kept."""
    return None if modified is None else known(int(modified.timestamp() // 1))


def known(seconds: int | None) -> int | None:
    """A time as SFTP tells it, if it is one time: from 2**31 on (2038) it may be one of before 1970, wrapped at 2**32."""
    return seconds if seconds is not None and 0 <= seconds < 1 << 31 else None


def changed(place: RemotePath, where: str, how: str = "") -> SourceChangedError:
    """The error for an object that is not the one any more that was opened."""
    return SourceChangedError(
        f"{place.identifier!r} in {where} changed while it was read{f': {how}' if how else ''}",
        identifier=place.identifier,
        backend=where,
    )


def _if_there(reply: Reply) -> Attributes | None:
    try:
        return packets.attributes_in(reply)
    except StatusError:
        # Not to be seen is not the same as absent, but what follows will tell.
        return None


def _check_setting(reply: Reply) -> None:
    """Accept that a server cannot keep a mode or time."""
    try:
        packets.check(reply)
    except StatusError as error:
        if error.code not in {UNSUPPORTED, packets.PERMISSION_DENIED}:
            raise


def _copying(source: bytes, target: bytes, start: int, length: int) -> Request:
    """OpenSSH's PROTOCOL, 4.11 (draft-ietf-secsh-filexfer-extensions-00, section 7)."""
    return packets.EXTENDED, b"".join(
        (
            packets.text(COPY_DATA),
            packets.text(source),
            start.to_bytes(8),
            length.to_bytes(8),
            packets.text(target),
            start.to_bytes(8),
        )
    )
