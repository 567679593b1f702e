"""Translates connection, SFTP and shell failures into errors of this package."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.library import ssh_library
from storage_backend.backends.remote.sftp_packets import StatusError
from storage_backend.base import not_found
from storage_backend.errors import (
    FILE_SYSTEM_ERRORS,
    AccessDeniedError,
    AlreadyExistsError,
    AuthenticationError,
    InvalidIdentifierError,
    NotAFileError,
    QuotaExceededError,
    SourceChangedError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
    UnsupportedOperationError,
    error_about,
)

# Messages of servers that pass on strerror(3); OpenSSH answers "Failure" for all of these (sftp-server.c, errno_to_portable).
_FULL = ("no space left", "quota exceeded")
_READ_ONLY = "read-only file system"

_BY_NUMBER: Mapping[int | None, tuple[type[StorageError], str]] = MappingProxyType(
    {**FILE_SYSTEM_ERRORS, errno.EEXIST: (AlreadyExistsError, "something of that name is there")}
)


class ShellError(StorageError):
    """A shell command failed or printed invalid output. The connection still works."""


class ConnectionLostError(Exception):
    """The connection failed during an operation. The last request may have taken effect.

    Attributes:
        timed_out: whether the server stopped responding.
    """

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out


def lost(error: BaseException) -> BaseException:
    """The ConnectionLostError for an error of paramiko or a socket; a KeyboardInterrupt and the like unchanged."""
    if isinstance(error, TimeoutError):
        return ConnectionLostError("the server stopped responding", timed_out=True)
    if isinstance(error, EOFError):
        return ConnectionLostError(str(error) or "the server closed the connection")
    # paramiko's errors derive directly from Exception.
    if isinstance(error, Exception):
        return ConnectionLostError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    return error


def unreachable(
    error: ConnectionLostError, identifier: str | None, where: str, attempts: int
) -> StorageError:
    """The error for an operation that lost its last connection."""
    kind = StorageTimeoutError if error.timed_out else UnavailableError
    return error_about(kind, str(error), identifier, where, attempts=attempts)


def translate(error: StatusError, identifier: str | None, where: str) -> StorageError:
    """Our error for an SFTP status (draft-ietf-secsh-filexfer-02, section 7)."""
    words = error.text.lower()
    kind: type[StorageError] = StorageError
    reason = f"the server refused: {error.text!r}" if error.text else "the server refused"
    if error.code == packets.NO_SUCH_FILE:
        if identifier is not None:
            return not_found(identifier, where)
        reason = "no such file or directory"
    elif any(phrase in words for phrase in _FULL):
        kind, reason = QuotaExceededError, "no space left for this user"
    elif error.code == packets.PERMISSION_DENIED or _READ_ONLY in words:
        kind, reason = AccessDeniedError, "permission denied"
    elif error.code == packets.BAD_MESSAGE or (error.code == packets.FAILURE and _is_not_utf8(identifier)):
        kind, reason = InvalidIdentifierError, "the server does not accept this name"
    elif error.code == packets.UNSUPPORTED:
        kind, reason = UnsupportedOperationError, "the server does not support this operation"
    elif error.code in {packets.NO_CONNECTION, packets.CONNECTION_LOST}:
        kind, reason = UnavailableError, "the server lost its connection to its storage"
    return error_about(kind, reason, identifier, where)


def _is_not_utf8(identifier: str | None) -> bool:
    """Whether the name is not UTF-8. Servers that decode names, such as paramiko's, fail every request with such a name."""
    try:
        (identifier or "").encode()
    except UnicodeEncodeError:
        return True
    return False


def translate_shell_error(error: Exception, identifier: str | None, where: str) -> StorageError:
    """Our error for a failed shell command."""
    number = error.errno if isinstance(error, OSError) else None
    if number in {errno.ENOENT, errno.ENOTDIR} and identifier is not None:
        return not_found(identifier, where)
    kind, reason = _BY_NUMBER.get(number, (ShellError, f"the server's shell failed: {error}"))
    return error_about(kind, reason, identifier, where)


def translate_dial_error(error: BaseException, connect_timeout: float) -> BaseException:
    """Our error for one raised while connecting, by paramiko, the system or a mock; BaseExceptions and our errors unchanged."""
    if isinstance(error, StorageError) or not isinstance(error, Exception):
        return error
    paramiko = ssh_library()
    kind: type[StorageError] = UnavailableError
    reason = reason_of(error)
    if isinstance(error, paramiko.AuthenticationException | paramiko.BadHostKeyException):
        kind = AuthenticationError
    elif isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        reason = ", ".join(dict.fromkeys(reason_of(each) for each in error.errors.values()))
    elif isinstance(error, TimeoutError):
        kind, reason = StorageTimeoutError, f"no connection within {connect_timeout:g} s"
    elif isinstance(error, EOFError):
        reason = "the server closed the connection"
    found = kind(reason)
    found.__cause__ = error
    return found


def changed(identifier: str, where: str, how: str = "") -> SourceChangedError:
    """The error for an object that was replaced or truncated while it was read."""
    reason = "it changed while it was read"
    return error_about(SourceChangedError, f"{reason}: {how}" if how else reason, identifier, where)


def reason_of(error: BaseException) -> str:
    """The message of a system or library error, without the errno; its class name if it has no message."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def not_a_file(identifier: str, where: str) -> NotAFileError:
    """The error for a directory, device or pipe at an object's path."""
    return error_about(NotAFileError, "Not a regular file", identifier, where)
