"""SFTP version 3 packets: encodes requests and parses replies (draft-ietf-secsh-filexfer-02 and OpenSSH's PROTOCOL)."""

from __future__ import annotations

import stat
import struct
from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from storage_backend.errors import IntegrityError

T = TypeVar("T")

# Section 3 of the draft.
INIT, VERSION = 1, 2
OPEN, CLOSE, READ, WRITE = 3, 4, 5, 6
LSTAT, FSTAT, SETSTAT, FSETSTAT = 7, 8, 9, 10
OPENDIR, READDIR, REMOVE, MKDIR, RMDIR = 11, 12, 13, 14, 15
REALPATH, STAT, RENAME, READLINK, SYMLINK = 16, 17, 18, 19, 20
STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105
EXTENDED, EXTENDED_REPLY = 200, 201

# Section 6.3: flags of OPEN.
FXF_READ, FXF_WRITE, FXF_APPEND, FXF_CREAT, FXF_TRUNC, FXF_EXCL = 1, 2, 4, 8, 16, 32

# Section 5: which attributes follow.
_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES, _HAS_EXTENDED = 1, 2, 4, 8, 0x80000000

# Section 7.
(
    OK,
    EOF,
    NO_SUCH_FILE,
    PERMISSION_DENIED,
    FAILURE,
    BAD_MESSAGE,
    NO_CONNECTION,
    CONNECTION_LOST,
    UNSUPPORTED,
) = range(9)

POSIX_RENAME = b"posix-rename@openssh.com"
HARDLINK = b"hardlink@openssh.com"
LIMITS = b"limits@openssh.com"
STATVFS = b"statvfs@openssh.com"
COPY_DATA = b"copy-data"  # OpenSSH's PROTOCOL, 4.11

# bytes; OpenSSH sends at most 256 KiB (sftp-common.h). A hostile server must not fill our memory.
MAX_PACKET = 1 << 20
MAX_HANDLE = 256  # bytes; section 4 of the draft
_MAX_SIZE = 1 << 63  # bytes; offsets of files are signed 64-bit numbers

_NO_ATTRIBUTES = bytes(4)
_OK = bytes(4)
# flags, size, owner, group, mode, access time, modification time: what OpenSSH sends for every file
_ALL = struct.Struct(">IQIIIII")
_ALL_FLAGS = (_HAS_SIZE | _HAS_OWNER | _HAS_MODE | _HAS_TIMES).to_bytes(4)

Request: TypeAlias = tuple[int, bytes]
Reply: TypeAlias = tuple[int, bytes]
Steps: TypeAlias = Generator[Sequence[Request], Sequence[Reply], T]
"""An SFTP operation as a generator: yields requests to send together, receives their replies in order, returns its result."""


class StatusError(Exception):
    """The server replied with a status other than OK.

    Attributes:
        code: section 7 of the draft.
        text: the server's message.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class SFTPProtocolError(IntegrityError):
    """The server violated the protocol."""


class Attributes(NamedTuple):
    """File attributes; None where the server does not send one.

    Attributes:
        size: in bytes.
        mode: type and permissions, as in `os.stat`.
        modified: whole seconds since 1970, modulo 2**32.
    """

    size: int | None
    mode: int | None
    modified: int | None

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file, or the server does not send its type."""
        return self.mode is None or stat.S_IFMT(self.mode) in {0, stat.S_IFREG}


class SFTPEntry(NamedTuple):
    """A directory entry; the attributes of a symlink are its own."""

    name: bytes
    attributes: Attributes


# Requests


def text(value: bytes) -> bytes:
    """A string, preceded by its length."""
    return len(value).to_bytes(4) + value


def request(kind: int, name: bytes) -> Request:
    """A request whose only field is a path or a handle."""
    return kind, len(name).to_bytes(4) + name


def open_request(name: bytes, flags: int) -> Request:
    """Open a file; a new one gets the server's default mode, 0666 minus its umask."""
    return OPEN, b"".join((len(name).to_bytes(4), name, flags.to_bytes(4), _NO_ATTRIBUTES))


def read_request(handle: bytes, offset: int, size: int) -> Request:
    """Read at most *size* bytes."""
    return READ, b"".join((len(handle).to_bytes(4), handle, struct.pack(">QI", offset, size)))


def write_request(handle: bytes, offset: int, data: bytes | memoryview) -> Request:
    """Write *data*."""
    return WRITE, b"".join((len(handle).to_bytes(4), handle, struct.pack(">QI", offset, len(data)), data))


def setstat_request(
    kind: int, target: bytes, *, mode: int | None = None, modified: int | None = None, size: int | None = None
) -> Request:
    """Set attributes of a path or handle. *modified* also sets the access time: SFTP has one flag for both."""
    flags = 0
    body = b""
    if size is not None:
        flags |= _HAS_SIZE
        body += struct.pack(">Q", size)
    if mode is not None:
        flags |= _HAS_MODE
        body += struct.pack(">I", mode)
    if modified is not None:
        flags |= _HAS_TIMES
        body += struct.pack(">II", modified, modified)
    return kind, b"".join((len(target).to_bytes(4), target, flags.to_bytes(4), body))


def mkdir_request(name: bytes) -> Request:
    """Make a directory with the server's default mode."""
    return MKDIR, text(name) + _NO_ATTRIBUTES


def two_path_request(kind: int, old: bytes, new: bytes) -> Request:
    """A request with two paths."""
    return kind, text(old) + text(new)


def extended_request(name: bytes, *values: bytes) -> Request:
    """A request of an extension with string arguments."""
    return EXTENDED, b"".join(
        [piece for value in (name, *values) for piece in (len(value).to_bytes(4), value)]
    )


def copy_request(source: bytes, target: bytes, start: int, length: int) -> Request:
    """Copy bytes between two handles (draft-ietf-secsh-filexfer-extensions-00, section 7)."""
    fields = (text(COPY_DATA), text(source), start.to_bytes(8), length.to_bytes(8), text(target))
    return EXTENDED, b"".join((*fields, start.to_bytes(8)))


# Replies


def failure_reply(message: str) -> Reply:
    """A status of FAILURE."""
    return STATUS, FAILURE.to_bytes(4) + text(message.encode())


def check(reply: Reply) -> None:
    """Require a status of OK.

    Raises:
        StatusError: another status.
        SFTPProtocolError: the reply is not a status.
    """
    kind, body = reply
    if kind != STATUS:
        raise SFTPProtocolError(f"the SFTP server replied with a packet of type {kind} instead of a status")
    if not body.startswith(_OK):
        raise status(body)


def check_setstat(reply: Reply) -> None:
    """Require OK, or that the server cannot set the mode or time."""
    try:
        check(reply)
    except StatusError as error:
        if error.code not in {UNSUPPORTED, PERMISSION_DENIED}:
            raise


def refusal(reply: Reply) -> StatusError | None:
    """The error in a status reply; None if it is OK."""
    try:
        check(reply)
    except StatusError as error:
        return error
    return None


def status(body: bytes) -> StatusError:
    """The error in the body of a status."""
    reader = Fields(body)
    code = reader.number()
    # Version 3 adds a message and a language; older servers omit them.
    message = reader.string() if reader.left() >= 4 else b""
    return StatusError(code, message.decode("utf-8", "replace"))


def expect(reply: Reply, kind: int) -> Fields:
    """The fields of a reply of *kind*.

    Raises:
        StatusError: the server refuses.
        SFTPProtocolError: the reply is of another kind.
    """
    if reply[0] == kind:
        return Fields(reply[1])
    if reply[0] == STATUS:
        raise status(reply[1])
    raise SFTPProtocolError(f"the SFTP server replied with a packet of type {reply[0]} instead of {kind}")


def handle_in(reply: Reply) -> bytes:
    """The handle in a reply."""
    kind, body = reply
    if kind == HANDLE and 4 <= len(body) <= 4 + MAX_HANDLE and int.from_bytes(body[:4]) == len(body) - 4:
        return body[4:]
    handle = expect(reply, HANDLE).string()
    if len(handle) > MAX_HANDLE:
        raise SFTPProtocolError(f"the SFTP server sent a handle of {len(handle):,} bytes")
    return handle


def data_in(reply: Reply, most: int) -> bytes:
    """The bytes in the reply to a READ; b"" at the end of the file.

    Raises:
        SFTPProtocolError: the reply is empty, too long, or not data.
        StatusError: the server refused.
    """
    kind, body = reply
    if kind == DATA:
        if 4 < len(body) <= most + 4 and int.from_bytes(body[:4]) == len(body) - 4:
            return body[4:]
        raise SFTPProtocolError(f"the SFTP server sent {len(body) - 4:,} bytes where {most:,} were requested")
    error = status(body) if kind == STATUS else None
    if error is not None and error.code == EOF:
        return b""
    raise error or SFTPProtocolError(f"the SFTP server replied with a packet of type {kind} instead of data")


def has_data(reply: Reply) -> bool:
    """Whether the reply to a READ of one byte has it."""
    return reply[0] == DATA and bool(data_in(reply, 1))


def attributes_in(reply: Reply) -> Attributes:
    """The attributes in a reply."""
    kind, body = reply
    if kind == ATTRS and len(body) == _ALL.size and body.startswith(_ALL_FLAGS):
        _, size, _, _, mode, _, modified = _ALL.unpack(body)
        if size < _MAX_SIZE:
            return Attributes(size, mode, modified)
    return expect(reply, ATTRS).attributes()


def attributes_if_any(reply: Reply) -> Attributes | None:
    """The attributes in a reply; None if the server refuses for any reason: a later request raises then."""
    try:
        return attributes_in(reply)
    except StatusError:
        return None


def entries_in(reply: Reply) -> list[SFTPEntry]:
    """The names in a reply; none at the end of the directory."""
    try:
        fields = expect(reply, NAME)
    except StatusError as error:
        if error.code == EOF:
            return []
        raise
    found = []
    for _ in range(fields.number()):
        name = fields.string()
        fields.string()  # what `ls -l` would print
        found.append(SFTPEntry(name, fields.attributes()))
    return found


class Fields:
    """Reads the fields of a packet in order. Each method raises SFTPProtocolError if the packet is too short."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def left(self) -> int:
        """The number of unread bytes."""
        return len(self._body) - self._at

    def number(self) -> int:
        """An unsigned 32-bit integer."""
        return int.from_bytes(self._take(4))

    def long(self) -> int:
        """An unsigned 64-bit integer."""
        return int.from_bytes(self._take(8))

    def string(self) -> bytes:
        """A string."""
        return self._take(self.number())

    def attributes(self) -> Attributes:
        """The attributes of a file."""
        flags = self.number()
        size = self.long() if flags & _HAS_SIZE else None
        if size is not None and size >= _MAX_SIZE:
            raise SFTPProtocolError(f"the SFTP server reports a file of {size:,} bytes")
        if flags & _HAS_OWNER:
            self._take(8)
        mode = self.number() if flags & _HAS_MODE else None
        modified = None
        if flags & _HAS_TIMES:
            self._take(4)
            modified = self.number()
        if flags & _HAS_EXTENDED:
            for _ in range(self.number()):
                self.string()
                self.string()
        return Attributes(size, mode, modified)

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._body):
            raise SFTPProtocolError("the SFTP server sent a packet that is shorter than its fields say")
        piece = self._body[self._at : end]
        self._at = end
        return piece
