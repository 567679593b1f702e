"""Translates OSErrors of the file system into StorageErrors."""

from __future__ import annotations

import errno
import os
from types import TracebackType

from storage_backend.base import not_found
from storage_backend.errors import (
    FILE_SYSTEM_ERRORS,
    AlreadyExistsError,
    InvalidIdentifierError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
    error_about,
)

_OUTSIDE = (InvalidIdentifierError, "a symlink on its way loops, or leads outside base directory")
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_TAKEN = (
    AlreadyExistsError,
    "an object is where a directory is needed, or a directory with objects is in the way",
)
_BUSY = (UnavailableError, "too much is open or under way at once in this process or on this machine")
_AWAY = (UnavailableError, "the file system does not respond")

# errno(3); any other number becomes a plain StorageError with the system's message.
_KINDS: dict[int | None, tuple[type[StorageError], str]] = {
    **FILE_SYSTEM_ERRORS,
    errno.EXDEV: _OUTSIDE,
    errno.ELOOP: _OUTSIDE,
    errno.ENXIO: FILE_SYSTEM_ERRORS[errno.EISDIR],  # a pipe or a device
    errno.EEXIST: _TAKEN,
    errno.ENOTEMPTY: _TAKEN,
    errno.EILSEQ: (InvalidIdentifierError, "the file system does not take such a name"),
    errno.EINVAL: (InvalidIdentifierError, "the file system does not take such a name"),
    errno.EAGAIN: _BUSY,
    errno.EMFILE: _BUSY,
    errno.ENFILE: _BUSY,
    errno.ENOMEM: _BUSY,
    errno.ESTALE: _AWAY,
    errno.ENOTCONN: _AWAY,
    errno.EHOSTDOWN: _AWAY,
    errno.ETIMEDOUT: (StorageTimeoutError, "the file system did not respond in time"),
}


def translate(error: OSError, identifier: str | None, where: str) -> StorageError:
    """The StorageError for an OSError; a StorageError is returned as it is."""
    if isinstance(error, StorageError):
        return error
    if error.errno in _ABSENT and identifier is not None:
        return not_found(identifier, where)
    kind, reason = _KINDS.get(error.errno, (StorageError, os.strerror(error.errno or errno.EIO)))
    translated = error_about(kind, reason, identifier, where)
    translated.errno = translated.errno or error.errno
    return translated


class ErrorTranslation:
    """Translates each OSError of a `with` body. A class: a generator-based context manager costs a microsecond more."""

    __slots__ = ("identifier", "where")

    def __init__(self, identifier: str | None, where: str) -> None:
        self.identifier = identifier
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise translate(error, self.identifier, self.where) from error
