"""SFTP version 3 on the wire: requests made, replies read (draft-ietf-secsh-filexfer-02, and OpenSSH's PROTOCOL)."""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

from storage_backend.errors import IntegrityError

# Section 3 of the draft.
INIT, VERSION = 1, 2
OPEN, CLOSE, READ, WRITE = 3, 4, 5, 6
LSTAT, FSTAT, SETSTAT, FSETSTAT = 7, 8, 9, 10
OPENDIR, READDIR, REMOVE, MKDIR, RMDIR = 11, 12, 13, 14, 15
REALPATH, STAT, RENAME, READLINK, SYMLINK = 16, 17, 18, 19, 20
STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105
EXTENDED, EXTENDED_REPLY = 200, 201

# Section 6.3: how a file is opened.
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
FSYNC = b"fsync@openssh.com"
LIMITS = b"limits@openssh.com"
STATVFS = b"statvfs@openssh.com"

MAX_PACKET = (
    1 << 20
)  # bytes; OpenSSH sends no more than 256 KiB (sftp-common.h), and nobody is to fill our memory

Request: TypeAlias = tuple[int, bytes]
Reply: TypeAlias = tuple[int, bytes]

MAX_HANDLE = 256  # bytes; section 4 of the draft
_MAX_SIZE = 1 << 63  # bytes; no file has as many, as offsets are signed

_NONE = struct.pack(">I", 0)


class StatusError(Exception):
    """The server answered a request with a status that is not OK.

    Attributes:
        code: section 7 of the draft.
        text: the server's words.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class SFTPProtocolError(IntegrityError):
    """The server sent what SFTP does not have at this place."""


class Attributes(NamedTuple):
    """What the server tells of a file; None where it does not.

    Attributes:
        size: in bytes.
        mode: type and permissions, as `os.stat` has them.
        modified: seconds since 1970; whole, and wrapped at 2**32.
    """

    size: int | None
    mode: int | None
    modified: int | None


class SFTPEntry(NamedTuple):
    """One name of a directory, with its own attributes (of a link: the link's)."""

    name: bytes
    attributes: Attributes


def text(value: bytes) -> bytes:
    """A string, as a request has it."""
    return struct.pack(">I", len(value)) + value


def request(kind: int, name: bytes) -> Request:
    """A request that has nothing but a path, or a handle."""
    return kind, text(name)


def open_request(name: bytes, flags: int) -> Request:
    """Open a file; one that comes to be has the server's own default mode, 0666 less its umask."""
    return OPEN, b"".join((text(name), struct.pack(">I", flags), _NONE))


def refusal(words: str) -> Reply:
    """What a server says that does not do something."""
    return STATUS, struct.pack(">I", FAILURE) + text(words.encode())


def read_request(handle: bytes, offset: int, size: int) -> Request:
    """Read at most *size* bytes."""
    return READ, text(handle) + struct.pack(">QI", offset, size)


def write_request(handle: bytes, offset: int, data: bytes | memoryview) -> Request:
    """Write *data*."""
    return WRITE, b"".join((text(handle), struct.pack(">QI", offset, len(data)), data))


def setstat_request(
    kind: int, target: bytes, *, mode: int | None = None, modified: int | None = None, size: int | None = None
) -> Request:
    """Set attributes of a path or handle; a time is that of the last access too, as there is no other way."""
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
    return kind, b"".join((text(target), struct.pack(">I", flags), body))


def mkdir_request(name: bytes) -> Request:
    """Make a directory, with the server's default mode."""
    return MKDIR, text(name) + _NONE


def two_path_request(kind: int, old: bytes, new: bytes) -> Request:
    """A request that has two paths."""
    return kind, text(old) + text(new)


def extended_request(name: bytes, *values: bytes) -> Request:
    """A request that an extension brings, whose values are strings."""
    return EXTENDED, b"".join((text(name), *map(text, values)))


def framed(number: int, request: Request) -> bytes:
    """A request as it is sent."""
    kind, body = request
    return struct.pack(">IBI", len(body) + 5, kind, number) + body


def check(reply: Reply) -> None:
    """Accept a status of OK.

    Raises:
        StatusError: another status.
        SFTPProtocolError: this is no status.
    """
    kind, body = reply
    if kind != STATUS:
        raise SFTPProtocolError(f"the SFTP server answered with a packet of type {kind} instead of a status")
    if not body.startswith(_NONE):
        raise status(body)


def is_ok(reply: Reply) -> bool:
    """Whether it is a status of OK.

    Raises:
        SFTPProtocolError: this is no status.
    """
    try:
        check(reply)
    except StatusError:
        return False
    return True


def status(body: bytes) -> StatusError:
    """The error that a status tells."""
    reader = Fields(body)
    code = reader.number()
    # Version 3 has a message and a language; older servers leave them out.
    words = reader.string() if reader.left() >= 4 else b""
    return StatusError(code, words.decode("utf-8", "replace"))


def expect(reply: Reply, kind: int) -> Fields:
    """The fields of a reply of *kind*.

    Raises:
        StatusError: the server refuses.
        SFTPProtocolError: another kind of reply.
    """
    if reply[0] == kind:
        return Fields(reply[1])
    if reply[0] == STATUS:
        raise status(reply[1])
    raise SFTPProtocolError(f"the SFTP server answered with a packet of type {reply[0]} instead of {kind}")


def handle_in(reply: Reply) -> bytes:
    """The handle that a reply gives."""
    handle = expect(reply, HANDLE).string()
    if len(handle) > MAX_HANDLE:
        raise SFTPProtocolError(f"the SFTP server gave a handle of {len(handle):,} bytes")
    return handle


def data_in(reply: Reply, most: int) -> bytes:
    """The bytes that a reply to a READ gives; b"" at the end of the file.

    Raises:
        SFTPProtocolError: none, or more than were asked for.
    """
    kind, body = reply
    if kind == DATA:
        if 4 < len(body) <= most + 4 and int.from_bytes(body[:4]) == len(body) - 4:
            return body[4:]
        raise SFTPProtocolError(
            f"the SFTP server answered with {len(body) - 4:,} bytes where {most:,} were asked for"
        )
    error = status(body) if kind == STATUS else None
    if error is not None and error.code == EOF:
        return b""
    raise error or SFTPProtocolError(f"the SFTP server answered with a packet of type {kind} instead of data")


def has_data(reply: Reply) -> bool:
    """Whether a reply to a READ of one byte gives it."""
    return reply[0] == DATA and bool(data_in(reply, 1))


def attributes_in(reply: Reply) -> Attributes:
    """The attributes that a reply gives."""
    return expect(reply, ATTRS).attributes()


def entries_in(reply: Reply) -> list[SFTPEntry]:
    """The names that a reply gives, without "." and ".."; none at the end of the directory."""
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
    """Reads the fields of a reply one after the other.

    Each method raises SFTPProtocolError where the packet ends too early.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._body) - self._at

    def number(self) -> int:
        """An unsigned number of four bytes."""
        return int.from_bytes(self._take(4))

    def long(self) -> int:
        """An unsigned number of eight bytes."""
        return int.from_bytes(self._take(8))

    def string(self) -> bytes:
        """A string."""
        return self._take(self.number())

    def attributes(self) -> Attributes:
        """The attributes of a file."""
        flags = self.number()
        size = self.long() if flags & _HAS_SIZE else None
        if size is not None and size >= _MAX_SIZE:
            raise SFTPProtocolError(f"the SFTP server tells of a file of {size:,} bytes")
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
            raise SFTPProtocolError("the SFTP server sent a packet that is too short for what it says")
        piece = self._body[self._at : end]
        self._at = end
        return piece
