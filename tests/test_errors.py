from __future__ import annotations

import copy
import errno
import inspect
import pickle
from typing import Any

import pytest

import storage_backend
from storage_backend import (
    AccessDeniedError,
    AlreadyExistsError,
    AuthenticationError,
    BaseDirectoryNotFoundError,
    BatchError,
    BucketNotFoundError,
    ConfigurationError,
    IntegrityError,
    InvalidIdentifierError,
    MissingClientError,
    NoEndpointError,
    NotAFileError,
    NotFoundError,
    PreconditionFailedError,
    QuotaExceededError,
    RateLimitedError,
    SourceChangedError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
    UnsupportedOperationError,
    errors,
)
from storage_backend.errors import FATAL, Failures, is_retryable

# The table of contract.md "Errors": what each is besides, whether it is retryable, and its errno.
KINDS: dict[type[StorageError], tuple[tuple[type[Exception], ...], bool, int | None]] = {
    StorageError: ((OSError,), False, None),
    NotFoundError: ((FileNotFoundError,), False, errno.ENOENT),
    BucketNotFoundError: ((NotFoundError, FileNotFoundError, ValueError), False, errno.ENOENT),
    BaseDirectoryNotFoundError: ((NotFoundError, FileNotFoundError, ValueError), False, errno.ENOENT),
    NotAFileError: ((IsADirectoryError,), False, errno.EISDIR),
    AlreadyExistsError: ((FileExistsError,), False, errno.EEXIST),
    InvalidIdentifierError: ((ValueError,), False, errno.EINVAL),
    AccessDeniedError: ((PermissionError,), False, errno.EACCES),
    AuthenticationError: ((AccessDeniedError, PermissionError), False, errno.EACCES),
    PreconditionFailedError: ((), False, None),
    SourceChangedError: ((PreconditionFailedError,), False, None),
    IntegrityError: ((), False, errno.EIO),
    UnsupportedOperationError: ((NotImplementedError,), False, errno.ENOTSUP),
    UnavailableError: ((ConnectionError,), True, None),
    RateLimitedError: ((UnavailableError, ConnectionError), True, None),
    NoEndpointError: ((UnavailableError, ConnectionError), True, None),
    StorageTimeoutError: ((TimeoutError,), True, errno.ETIMEDOUT),
    QuotaExceededError: ((), False, errno.ENOSPC),
    ConfigurationError: ((ValueError,), False, errno.EINVAL),
    BatchError: ((), False, None),
    MissingClientError: ((), False, None),
}
OWN_FIELDS: dict[type[StorageError], dict[str, Any]] = {
    RateLimitedError: {"retry_after": 2.5},
    ConfigurationError: {"parameter": "bucket"},
    BatchError: {"failures": {"a": NotFoundError("no a", identifier="a"), "b": OSError(5, "plain")}},
}
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def test_every_class_is_in_the_table_and_exported() -> None:
    defined = {
        found
        for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, StorageError) and found.__module__ == errors.__name__
    }
    assert defined == set(KINDS)
    assert {kind.__name__ for kind in KINDS} <= set(storage_backend.__all__)


@every_kind
def test_class_is_also_a_built_in_one(kind: type[StorageError]) -> None:
    bases, retryable, number = KINDS[kind]
    error = kind("it went wrong")
    assert isinstance(error, StorageError)
    assert isinstance(error, OSError)
    for base in bases:
        assert isinstance(error, base)
    assert error.retryable is retryable
    assert is_retryable(error) is retryable
    assert error.errno == number


@every_kind
def test_storage_error_comes_first(kind: type[StorageError]) -> None:
    # Our constructor and our __reduce__ must win over OSError's.
    order = kind.__mro__
    assert order.index(StorageError) < order.index(OSError)
    assert kind.__reduce__ is StorageError.__reduce__


@every_kind
def test_message_is_clean(kind: type[StorageError]) -> None:
    assert str(kind("cannot read 'a' in memory:")) == "cannot read 'a' in memory:"
    assert str(kind("", identifier="a")) == ""
    assert str(kind()) == ""
    # Two positional arguments would make OSError print "[Errno ...]".
    with pytest.raises(TypeError):
        kind(2, "No such file")  # type: ignore[arg-type, call-arg] # on purpose


@every_kind
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_field_survives_a_pickle(kind: type[StorageError], protocol: int) -> None:
    own = OWN_FIELDS.get(kind, {})
    error = kind(
        "wrong: é \udcff", identifier="a/\udcff", backend="s3://b/p", retryable=True, attempts=3, **own
    )
    error.errno = errno.EXDEV
    vars(error)["noted"] = "set later"  # fields that others add travel too
    found = pickle.loads(pickle.dumps(error, protocol))
    assert type(found) is kind
    assert str(found) == "wrong: é \udcff"
    assert found.args == error.args
    assert (found.identifier, found.backend, found.retryable, found.attempts) == (
        "a/\udcff",
        "s3://b/p",
        True,
        3,
    )
    assert found.errno == errno.EXDEV
    assert vars(found)["noted"] == "set later"
    for name in own:
        assert repr(getattr(found, name)) == repr(getattr(error, name))


@every_kind
def test_copies_are_like_pickles(kind: type[StorageError]) -> None:
    error = kind("wrong", identifier="a", attempts=2, **OWN_FIELDS.get(kind, {}))
    for found in (copy.copy(error), copy.deepcopy(error)):
        assert type(found) is kind
        assert (str(found), found.identifier, found.attempts, found.errno) == ("wrong", "a", 2, error.errno)


def test_batch_is_retryable_if_all_its_failures_are() -> None:
    later, never = UnavailableError("later"), NotFoundError("never")
    assert BatchError(failures={"a": later, "b": later}).retryable is True
    assert BatchError(failures={"a": later, "b": never}).retryable is False
    assert BatchError(failures={"a": OSError("a user's class")}).retryable is False
    assert BatchError(failures={}).retryable is False
    assert BatchError().failures == {}
    assert BatchError(failures={"a": never}, retryable=True).retryable is True


def test_only_true_is_retryable() -> None:
    class TheirError(Exception):
        retryable: object = "yes"

    assert is_retryable(TheirError()) is False
    assert is_retryable(OSError()) is False
    error = TheirError()
    error.retryable = True
    assert is_retryable(error) is True


class TestFailures:
    def test_nothing_failed(self) -> None:
        failures = Failures()
        with failures.of("a"):
            pass
        failures.raise_any("read")

    def test_all_are_raised_in_one(self) -> None:
        failures = Failures()
        first, second = NotFoundError("no a"), ValueError("odd")
        with failures.of("a"):
            raise first
        with failures.of("b"):
            raise second
        with pytest.raises(BatchError) as caught:
            failures.raise_any("read", "memory:")
        assert caught.value.failures == {"a": first, "b": second}
        assert caught.value.backend == "memory:"
        assert str(caught.value) == "cannot read 2 objects; the first is 'a': no a"

    def test_one_is_one_object(self) -> None:
        failures = Failures()
        with failures.of("a"):
            raise NotFoundError("no a")
        with pytest.raises(BatchError, match=r"^cannot delete 1 object; "):
            failures.raise_any("delete")

    @pytest.mark.parametrize("kind", FATAL, ids=lambda kind: kind.__name__)
    def test_fatal_error_is_raised_at_once(self, kind: type[Exception]) -> None:
        failures = Failures()
        with pytest.raises(kind), failures.of("a"):
            raise kind("stop")
        failures.raise_any("read")

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_interrupt_passes(self, kind: type[BaseException]) -> None:
        failures = Failures()
        with pytest.raises(kind), failures.of("a"):
            raise kind
