"""StorageError and its subclasses; Failures, which collects those of a batch."""

from __future__ import annotations

import errno as codes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar


class StorageError(OSError):
    """An operation on an object or on its store failed.

    Attributes:
        identifier: the object, in the caller's spelling; None if the error concerns none.
        backend: the backend's location, without secrets; None if unknown.
        retryable: whether the same call may succeed later, judged by the kind of error; it never changes.
        attempts: the number of attempts so far.
        errno: the system's number for this kind of error; never part of the message.
    """

    default_errno: ClassVar[int | None] = None
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str = "",
        *,
        identifier: str | None = None,
        backend: str | None = None,
        retryable: bool | None = None,
        attempts: int = 1,
    ) -> None:
        super().__init__(message)
        # Not through the constructor: OSError would then print "[Errno 2]" before the message.
        self.errno = self.default_errno
        self.identifier = identifier
        self.backend = backend
        self.retryable = self.default_retryable if retryable is None else retryable
        self.attempts = attempts

    def __reduce__(self) -> tuple[Any, ...]:
        # errno lives in a C slot, so the instance's dictionary alone would lose it.
        return type(self), self.args, {**self.__dict__, "errno": self.errno}


class NotFoundError(StorageError, FileNotFoundError):
    """There is no such object."""

    default_errno = codes.ENOENT


class BucketNotFoundError(NotFoundError, ValueError):
    """There is no such bucket."""


class BaseDirectoryNotFoundError(NotFoundError, ValueError):
    """There is no such base directory, and it may not be created."""


class NotAFileError(StorageError, IsADirectoryError):
    """The identifier names a directory (or a device, a socket, ...), not an object."""

    default_errno = codes.EISDIR


class AlreadyExistsError(StorageError, FileExistsError):
    """A write needs a directory where an object is, or would replace a directory that is not empty."""

    default_errno = codes.EEXIST


class InvalidIdentifierError(StorageError, ValueError):
    """The identifier or pattern breaks the rules of `storage_backend.identifiers`, or of the store."""

    default_errno = codes.EINVAL


class AccessDeniedError(StorageError, PermissionError):
    """The store refuses this operation to this user."""

    default_errno = codes.EACCES


class AuthenticationError(AccessDeniedError):
    """The store does not accept our credentials, or we do not accept its host key or certificate."""


class PreconditionFailedError(StorageError):
    """The object is not the version that the caller named. Nothing was written."""


class SourceChangedError(PreconditionFailedError):
    """The object changed while it was read."""


class IntegrityError(StorageError):
    """A length or digest differs from the expected one."""

    default_errno = codes.EIO


class UnsupportedOperationError(StorageError, NotImplementedError):
    """The backend does not support the operation."""

    default_errno = codes.ENOTSUP


class UnavailableError(StorageError, ConnectionError):
    """The store is unreachable, or temporarily unable to respond."""

    default_retryable = True


class RateLimitedError(UnavailableError):
    """The store demands fewer requests.

    Attributes:
        retry_after: seconds to wait before the next attempt, if the store said so; else None.
    """

    def __init__(self, message: str = "", *, retry_after: float | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.retry_after = retry_after


class NoEndpointError(UnavailableError):
    """No endpoint works; the message has the reason for each."""


class StorageTimeoutError(StorageError, TimeoutError):
    """The store did not respond in time."""

    default_errno = codes.ETIMEDOUT
    default_retryable = True


class QuotaExceededError(StorageError):
    """The store is full, or this user's share of it is."""

    default_errno = codes.ENOSPC


class ConfigurationError(StorageError, ValueError):
    """A parameter is wrong. The message names it.

    Attributes:
        parameter: its name; None if several conflict.
    """

    default_errno = codes.EINVAL

    def __init__(self, message: str = "", *, parameter: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.parameter = parameter


class BatchError(StorageError):
    """Some objects of a batch failed; all others succeeded.

    Attributes:
        failures: identifier -> its error.
        retryable: whether each of the failures is.
    """

    def __init__(
        self, message: str = "", *, failures: dict[str, Exception] | None = None, **fields: Any
    ) -> None:
        self.failures = {} if failures is None else failures
        fields.setdefault("retryable", bool(self.failures) and all(map(is_retryable, self.failures.values())))
        super().__init__(message, **fields)


class MissingClientError(StorageError):
    """A client library is not installed, or cannot be imported. The message says what to install.

    The ImportError is its cause, not a base class: no class can be both an ImportError and an OSError.
    """


STORE_MISSING = (BucketNotFoundError, BaseDirectoryNotFoundError)
"""Errors that prove nothing about an object: the bucket or base directory itself is missing."""

FATAL = (QuotaExceededError, AuthenticationError, ConfigurationError, MissingClientError)
"""Errors that stop a whole batch or transfer at once, because every other object would fail in the same way."""


def is_retryable(error: BaseException | None) -> bool:
    """Whether the same call may succeed later: the attribute `retryable`, which errors of other libraries may have too."""
    return getattr(error, "retryable", False) is True


class Failures:
    """Collects the failures of a batch, to be raised as one BatchError at its end."""

    def __init__(self) -> None:
        self.errors: dict[str, Exception] = {}

    @contextmanager
    def of(self, identifier: str) -> Iterator[None]:
        """Run the body for *identifier*. Note its error; raise it if it is fatal."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - kept, and raised by raise_any
            self.note(identifier, error)

    def note(self, identifier: str, error: Exception) -> None:
        """Note the error of *identifier*; raise it if it is fatal."""
        if isinstance(error, FATAL):
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame: a cycle that only the garbage collector ends
        self.errors[identifier] = error

    def raise_any(self, verb: str, backend: str | None = None) -> None:
        """Raise a BatchError if anything failed.

        Args:
            verb: the operation, as in "cannot *read* 3 objects".
            backend: the backend's location.
        """
        # Not kept here: their tracebacks refer to frames that hold this object, a cycle.
        errors, self.errors = self.errors, {}
        if not errors:
            return
        first = next(iter(errors))
        count = "1 object" if len(errors) == 1 else f"{len(errors)} objects"
        raise BatchError(
            f"cannot {verb} {count}; the first is {first!r}: {errors[first]}",
            failures=errors,
            backend=backend,
        )


FILE_SYSTEM_ERRORS: Mapping[int | None, tuple[type[StorageError], str]] = MappingProxyType(
    {
        codes.EISDIR: (NotAFileError, "Not a regular file"),
        codes.EACCES: (AccessDeniedError, "permission denied"),
        codes.EPERM: (AccessDeniedError, "permission denied"),
        codes.EROFS: (AccessDeniedError, "the file system is read-only"),
        codes.ENOSPC: (QuotaExceededError, "no space left for this user"),
        codes.EDQUOT: (QuotaExceededError, "no space left for this user"),
        codes.ENAMETOOLONG: (InvalidIdentifierError, "the file system takes only shorter names"),
    }
)
"""errno(3) -> class and message, for local file systems and those of SSH servers."""

E = TypeVar("E", bound=StorageError)


def error_about(kind: type[E], reason: str, identifier: str | None, where: str, **fields: Any) -> E:
    """An error of *kind* with the message "REASON: 'IDENTIFIER' in WHERE"; "REASON: WHERE" without an identifier."""
    subject = where if identifier is None else f"{identifier!r} in {where}"
    return kind(f"{reason}: {subject}", identifier=identifier, backend=where, **fields)
