"""One file as an object: its path, its ObjectInfo, and a reader."""

from __future__ import annotations

import errno
import io
import os
import stat
from datetime import UTC, datetime

from typing_extensions import Buffer, override

from storage_backend import identifiers
from storage_backend.backends.local.errors import ErrorTranslation
from storage_backend.files import modified_of, told_size
from storage_backend.info import ObjectInfo

_MAX_NAME = 255  # bytes; NAME_MAX of all common file systems
_EXACT_SECONDS = 1 << 32  # a double resolves microseconds below this; twice as fast as exact arithmetic


def native_path(identifier: str) -> bytes:
    """The path of an object relative to the base directory.

    Raises:
        InvalidIdentifierError: the identifier is not valid.
    """
    identifiers.check(identifier, surrogates=True, max_segment_bytes=_MAX_NAME)
    return identifiers.encode(identifier)


def is_surely_valid(path: str, longest: int = 0) -> bool:
    """Whether every name of up to *longest* characters in the directory *path* is short enough, in bytes."""
    return longest * 4 <= _MAX_NAME and (len(path) + longest) * 4 < identifiers.MAX_BYTES


def require_regular(facts: os.stat_result) -> os.stat_result:
    """Return *facts*; raise IsADirectoryError unless they describe a regular file."""
    if not stat.S_ISREG(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return facts


def info_of_file(identifier: str, facts: os.stat_result) -> ObjectInfo:
    """The ObjectInfo of a file with the status *facts*."""
    seconds = facts.st_mtime
    size = told_size(facts)
    if 0 <= seconds < _EXACT_SECONDS:
        return ObjectInfo(identifier, size, datetime.fromtimestamp(seconds, UTC))
    return ObjectInfo(identifier, size, modified_of(facts))


class LocalFile(io.FileIO):
    """A regular file, open for reading, whose errors are StorageErrors."""

    def __init__(self, fd: int, identifier: str, where: str) -> None:
        super().__init__(fd)
        self._translation = ErrorTranslation(identifier, where)

    @override
    def read(self, size: int | None = -1, /) -> bytes:
        with self._translation:
            return super().read(size)

    @override
    def readall(self) -> bytes:
        with self._translation:
            return super().readall()

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        with self._translation:
            return super().readinto(buffer)
