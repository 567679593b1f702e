"""SFTPClientSession: executes SFTP requests one by one with the public methods of a paramiko SFTPClient.

Used when paramiko.SSHClient is replaced, as by `unittest.mock.patch("paramiko.SSHClient")` in users' tests: a mock has no
transport on which `SFTPSession` could open its channel.
"""

from __future__ import annotations

import errno
import os
import posixpath
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.errors import ConnectionLostError, lost
from storage_backend.backends.remote.sftp_packets import Attributes, Fields, Reply, Request, Steps
from storage_backend.backends.remote.sftp_session import PLAIN_LENGTH, PendingReply, SFTPSession

T = TypeVar("T")
K = TypeVar("K")

# For the errors that paramiko raises for a status (SFTPClient._convert_status) and those of the local file system.
_CODES: Mapping[int | None, int] = MappingProxyType(
    {
        errno.ENOENT: packets.NO_SUCH_FILE,
        errno.ENOTDIR: packets.NO_SUCH_FILE,
        errno.EACCES: packets.PERMISSION_DENIED,
        errno.EPERM: packets.PERMISSION_DENIED,
        errno.EOPNOTSUPP: packets.UNSUPPORTED,
    }
)
_GONE = (ConnectionError, EOFError, TimeoutError)


class SFTPClientSession:
    """The interface of `SFTPSession` over an SFTPClient.

    Args:
        client: has the public methods of paramiko's SFTPClient.

    Attributes:
        failure: why the session is unusable; None while it works.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.RLock()
        self._handles: dict[bytes, Any] = {}
        self._numbers = 0
        self.failure: ConnectionLostError | None = None
        self.read_length = self.write_length = PLAIN_LENGTH
        self.at_a_time = 1
        self.unblocks_pipes = True  # a mock's files open at once
        # A client does not expose the server's extensions; remove this one at the first refusal.
        self.extensions = {packets.POSIX_RENAME: b"1"} if hasattr(client, "posix_rename") else {}

    def run(self, steps: Steps[T]) -> T:
        """Run one operation."""
        try:
            requests = next(steps)
            while True:
                requests = steps.send([self._reply(request) for request in requests])
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            steps.close()

    def run_many(
        self,
        operations: Iterable[tuple[K, Steps[T]] | None],
        most: int,
        failed: Callable[[K, Exception], object],
    ) -> Iterator[tuple[K, T]]:
        """Run operations one by one; see `SFTPSession.run_many`."""
        _ = most
        for operation in operations:
            if operation is None:
                continue
            key, steps = operation
            try:
                result = self.run(steps)
            except ConnectionLostError:
                raise
            except Exception as error:  # noqa: BLE001 - of this operation alone; the caller gets it
                failed(key, error)
            else:
                yield key, result

    def begin(self, requests: Iterable[Request]) -> list[PendingReply]:
        """Execute requests."""
        done = []
        for request in requests:
            done.append(PendingReply())
            done[-1].reply = self._reply(request)
        return done

    def wait(self, pending: PendingReply) -> Reply:
        """The reply to a request."""
        assert pending.reply is not None
        return pending.reply

    def post(self, request: Request) -> None:
        """Execute a request and ignore its reply."""
        with suppress(ConnectionLostError):
            self._reply(request)

    def flush(self) -> None:
        """Do nothing: requests are executed at once."""

    def close(self) -> None:
        """End the session."""
        self.failure = self.failure or ConnectionLostError("the SFTP session was closed")
        self._client.close()

    def _reply(self, request: Request) -> Reply:
        kind, body = request
        if self.failure is not None:
            raise ConnectionLostError(str(self.failure), timed_out=self.failure.timed_out)
        with self._lock:
            try:
                return self._execute(kind, Fields(body))
            except _GONE as error:
                if isinstance(error, EOFError) and kind in {packets.READ, packets.READDIR}:
                    return _status(packets.EOF, "")
                failure = lost(error)
                assert isinstance(failure, ConnectionLostError)
                self.failure = failure
                raise failure from error
            except OSError as error:
                unsupported = "unsupported" in str(error).lower()
                code = _CODES.get(error.errno, packets.UNSUPPORTED if unsupported else packets.FAILURE)
                if code == packets.UNSUPPORTED and kind == packets.EXTENDED:
                    self.extensions.pop(Fields(body).string(), None)
                return _status(code, error.strerror or str(error))

    def _execute(self, kind: int, fields: Fields) -> Reply:
        client = self._client
        first = fields.string()
        if kind == packets.STAT:
            return _attributes(client.stat(_name(first)))
        if kind == packets.LSTAT:
            return _attributes(client.lstat(_name(first)))
        if kind == packets.FSTAT:
            return _attributes(self._handles[first].stat())
        if kind == packets.OPEN:
            flags = fields.number()
            exclusively = "x" if flags & packets.FXF_EXCL else ""
            plain = "r" if flags & packets.FXF_READ else "w" if flags & packets.FXF_CREAT else "r+"
            return self._opened(client.open(_name(first), plain + exclusively + "b"))
        if kind == packets.READ:
            file = self._handles[first]
            file.seek(fields.long())
            data = file.read(fields.number())
            return (packets.DATA, packets.text(bytes(data))) if data else _status(packets.EOF, "")
        if kind == packets.WRITE:
            file = self._handles[first]
            file.seek(fields.long())
            file.write(fields.string())
        elif kind == packets.CLOSE:
            self._handles.pop(first).close()
        elif kind == packets.OPENDIR:
            return self._opened(_OpenDirectory(deque(client.listdir_attr(_name(first)))))
        elif kind == packets.READDIR:
            listed: Reply = self._handles[first].reply()
            return listed
        elif kind == packets.REMOVE:
            client.remove(_name(first))
        elif kind == packets.MKDIR:
            client.mkdir(_name(first))
        elif kind == packets.RMDIR:
            client.rmdir(_name(first))
        elif kind == packets.RENAME:
            client.rename(_name(first), _name(fields.string()))
        elif kind == packets.REALPATH:
            found = client.normalize(_name(first))
            # A mock has no paths; a relative one stays relative.
            path = os.fsencode(found) if isinstance(found, str | bytes) else b"."
            none = struct.pack(">I", 0)
            return packets.NAME, b"".join((struct.pack(">I", 1), packets.text(path), none, none))
        elif kind in {packets.SETSTAT, packets.FSETSTAT}:
            self._set(self._handles[first] if kind == packets.FSETSTAT else None, first, fields.attributes())
        elif kind == packets.EXTENDED and first == packets.POSIX_RENAME:
            client.posix_rename(_name(fields.string()), _name(fields.string()))
        else:
            return _status(packets.UNSUPPORTED, "")
        return _status(packets.OK, "")

    def _opened(self, file: Any) -> Reply:
        self._numbers += 1
        handle = b"%d" % self._numbers
        self._handles[handle] = file
        return packets.HANDLE, packets.text(handle)

    def _set(self, file: Any, path: bytes, wanted: Attributes) -> None:
        target = self._client if file is None else file
        given = (_name(path),) if file is None else ()
        if wanted.size is not None:
            target.truncate(*given, wanted.size)
        if wanted.mode is not None:
            target.chmod(*given, wanted.mode)
        if wanted.modified is not None:
            target.utime(*given, (wanted.modified, wanted.modified))


AnySession: TypeAlias = SFTPSession | SFTPClientSession


class _OpenDirectory:
    """The unread entries of an open directory."""

    def __init__(self, entries: deque[Any]) -> None:
        self._entries = entries

    def reply(self) -> Reply:
        """The reply to READDIR, with up to 100 names."""
        pieces: list[bytes] = []
        while self._entries and len(pieces) < 100:
            entry = self._entries.popleft()
            name = posixpath.basename(os.fsencode(entry.filename))
            pieces.append(b"".join((packets.text(name), packets.text(b""), _attributes(entry)[1])))
        if not pieces:
            return _status(packets.EOF, "")
        return packets.NAME, struct.pack(">I", len(pieces)) + b"".join(pieces)

    def close(self) -> None:
        """Do nothing: the entries are in memory."""


def _name(path: bytes) -> str | bytes:
    """The path as a string, which mocks expect; as bytes if it is not UTF-8."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return path


def _status(code: int, words: str) -> Reply:
    return packets.STATUS, struct.pack(">I", code) + packets.text(words.encode()) + packets.text(b"")


def _attributes(found: Any) -> Reply:
    """The result of `stat` as a reply, without fields that are not numbers: a mock returns mocks."""

    def number(name: str) -> int | None:
        value = getattr(found, name, None)
        return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    size, mode, modified = number("st_size"), number("st_mode"), number("st_mtime")
    known = packets.setstat_request(
        0, b"", size=size, mode=mode, modified=None if modified is None else modified & 0xFFFFFFFF
    )[1]
    return packets.ATTRS, known[4:]
