"""Translates failures of the connection, of SFTP and of the server's shell into errors of this package."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.sftp_packets import StatusError
from storage_backend.base import not_found
from storage_backend.errors import (
    FILE_SYSTEM_ERRORS,
    AccessDeniedError,
    AlreadyExistsError,
    InvalidIdentifierError,
    NotAFileError,
    QuotaExceededError,
    SourceChangedError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
    UnsupportedOperationError,
)

E = TypeVar("E", bound=StorageError)

# Messages of servers that pass on strerror(3); OpenSSH answers "Failure" for all of these (sftp-server.c, errno_to_portable).
_FULL = ("no space left", "quota exceeded")
_READ_ONLY = "read-only file system"

_BY_NUMBER: Mapping[int | None, tuple[type[StorageError], str]] = MappingProxyType(
    {**FILE_SYSTEM_ERRORS, errno.EEXIST: (AlreadyExistsError, "something of that name is there")}
)


class ShellError(StorageError):
    """A command of the server's shell failed, or printed what makes no sense. The connection still works."""


class ConnectionLostError(Exception):
    """The connection failed during an operation. The last request may or may not have been carried out.

    Attributes:
        timed_out: whether the server stopped answering.
    """

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out


def lost(error: BaseException) -> BaseException:
    """The ConnectionLostError for an error of paramiko or of a socket; a KeyboardInterrupt and the like as it is."""
    if isinstance(error, TimeoutError):
        return ConnectionLostError("the server fell silent", timed_out=True)
    if isinstance(error, EOFError):
        return ConnectionLostError(str(error) or "the server closed the connection")
    # paramiko's errors derive directly from Exception, and this module does not import paramiko.
    if isinstance(error, Exception):
        return ConnectionLostError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    return error


def of_object(kind: type[E], reason: str, identifier: str, where: str, *, retryable: bool | None = None) -> E:
    """An error of *kind* about one object: "REASON: 'IDENTIFIER' in WHERE"."""
    return kind(
        f"{reason}: {identifier!r} in {where}", identifier=identifier, backend=where, retryable=retryable
    )


def unreachable(
    error: ConnectionLostError, identifier: str | None, where: str, attempts: int
) -> StorageError:
    """The error for an operation whose connections were all lost."""
    what = f"{identifier!r} in {where}" if identifier is not None else where
    kind = StorageTimeoutError if error.timed_out else UnavailableError
    return kind(f"{error}: {what}", identifier=identifier, backend=where, attempts=attempts)


def translate(error: StatusError, identifier: str | None, where: str) -> StorageError:
    """Our error for a status of SFTP (draft-ietf-secsh-filexfer-02, section 7)."""
    what = f"{identifier!r} in {where}" if identifier is not None else where
    words = error.text.lower()
    kind: type[StorageError] = StorageError
    reason = f"the server refused, saying {error.text!r}" if error.text else "the server refused"
    if error.code == packets.NO_SUCH_FILE:
        if identifier is not None:
            return not_found(identifier, where)
        reason = "no such file or directory"
    elif any(phrase in words for phrase in _FULL):
        kind, reason = QuotaExceededError, "no space left for this user"
    elif error.code == packets.PERMISSION_DENIED or _READ_ONLY in words:
        kind, reason = AccessDeniedError, "permission denied"
    elif error.code == packets.BAD_MESSAGE or (error.code == packets.FAILURE and _odd(identifier)):
        kind, reason = InvalidIdentifierError, "the server does not take such a name"
    elif error.code == packets.UNSUPPORTED:
        kind, reason = UnsupportedOperationError, "the server has no such operation"
    elif error.code in {packets.NO_CONNECTION, packets.CONNECTION_LOST}:
        kind, reason = UnavailableError, "the server lost its own connection"
    return kind(f"{reason}: {what}", identifier=identifier, backend=where)


def _odd(identifier: str | None) -> bool:
    """Whether the name is not UTF-8. Servers that decode names, such as paramiko's, fail at each request with one."""
    try:
        (identifier or "").encode()
    except UnicodeEncodeError:
        return True
    return False


def translate_shell_error(error: Exception, identifier: str | None, where: str) -> StorageError:
    """Our error for a failed command of the server's shell."""
    what = f"{identifier!r} in {where}" if identifier is not None else where
    number = error.errno if isinstance(error, OSError) else None
    if number in {errno.ENOENT, errno.ENOTDIR} and identifier is not None:
        return not_found(identifier, where)
    kind, reason = _BY_NUMBER.get(number, (ShellError, f"the server's shell failed: {error}"))
    return kind(f"{reason}: {what}", identifier=identifier, backend=where)


def changed(identifier: str, where: str, how: str = "") -> SourceChangedError:
    """The error for an object that was replaced or cut while it was read."""
    reason = f"it changed while it was read: {how}" if how else "it changed while it was read"
    return of_object(SourceChangedError, reason, identifier, where)


def reason_of(error: BaseException) -> str:
    """The message of an error of the system or of a library, without its number; its class where it has none."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def not_a_file(identifier: str, where: str) -> NotAFileError:
    """The error for a directory, device or pipe at an object's path."""
    return of_object(NotAFileError, "Not a regular file", identifier, where)
