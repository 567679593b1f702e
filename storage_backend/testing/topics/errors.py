"""Errors: their classes, fields and messages."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from storage_backend.base import StorageBackend
from storage_backend.defensive import location_of
from storage_backend.errors import (
    BatchError,
    InvalidIdentifierError,
    NotFoundError,
    StorageError,
    is_retryable,
)
from storage_backend.testing.subject import Subject, Topic, fill


class ErrorClasses(Topic):
    """Errors are StorageErrors and the matching built-in errors, name operation, object and location, and pickle."""

    def raised(self, subject: Subject, backend: StorageBackend) -> Iterator[tuple[str, StorageError]]:
        """The errors for an absent object, with the name of the method that raised each."""
        calls: dict[str, Callable[[str], Any]] = {
            "read": backend.read,
            "size": backend.size,
            "stat": backend.stat,
            "open": backend.open,
            "delete": backend.delete,
            "checksum": backend.checksum,
            "read_range": lambda name: backend.read_range(name, 0, 1),
            "copy": lambda name: backend.copy(name, "new"),
            "move": lambda name: backend.move(name, "new"),
            "copy onto itself": lambda name: backend.copy(name, name),
            "move onto itself": lambda name: backend.move(name, name),
        }
        if not subject.has("missing delete"):
            del calls["delete"]
        for method, call in calls.items():
            with pytest.raises(StorageError) as caught:
                call("folder/absent")
            yield method, caught.value

    def test_missing_object_has_its_own_class(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("errors")
        for method, error in self.raised(subject, backend):
            assert isinstance(error, NotFoundError), method
            assert isinstance(error, FileNotFoundError), method
            assert not is_retryable(error), method

    def test_error_names_the_identifier_and_the_place(
        self, subject: Subject, backend: StorageBackend
    ) -> None:
        subject.require("errors")
        for method, error in self.raised(subject, backend):
            assert error.identifier == "folder/absent", method
            assert error.backend is not None, method
            assert error.attempts >= 1, method
            assert "folder/absent" in str(error), method
            assert "[Errno" not in str(error), method
            assert error.errno is not None, method

    def test_errors_keep_class_and_fields_through_pickle(
        self, subject: Subject, backend: StorageBackend
    ) -> None:
        subject.require("errors")
        errors = [error for _, error in self.raised(subject, backend)]
        if subject.has("refusals"):
            with pytest.raises(InvalidIdentifierError) as caught:
                backend.read("../a")
            errors.append(caught.value)
        with pytest.raises(BatchError) as batch:
            list(backend.read_many(["gone", "gone too"]))
        errors.append(batch.value)
        for error in errors:
            copy = pickle.loads(pickle.dumps(error))
            assert type(copy) is type(error)
            assert str(copy) == str(error)
            assert copy.errno == error.errno
            for name in ("identifier", "backend", "retryable", "attempts"):
                assert getattr(copy, name) == getattr(error, name)
        copied = pickle.loads(pickle.dumps(batch.value))
        assert {name: type(error) for name, error in copied.failures.items()} == {
            "gone": NotFoundError,
            "gone too": NotFoundError,
        }

    def test_location_names_the_place(self, subject: Subject, backend: StorageBackend) -> None:
        assert isinstance(backend.location, str)
        assert backend.location
        assert location_of(backend) == backend.location == subject.make().location
        assert isinstance(repr(backend), str)

    def test_mutable_answers_are_the_callers(self, backend: StorageBackend) -> None:
        fill(backend, "a", "b")
        backend.list().clear()
        assert sorted(backend.list()) == ["a", "b"]
