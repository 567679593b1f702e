"""`close`, and objects that are never closed."""

from __future__ import annotations

import gc
import warnings

import pytest

from storage_backend.base import StorageBackend
from storage_backend.testing.subject import Subject, Topic, content_of, everything, fill, named, same


class Closing(Topic):
    """`close` and `with`."""

    def test_closing_twice_is_harmless(self, backend: StorageBackend) -> None:
        fill(backend, "a")
        backend.close()
        backend.close()

    def test_closing_before_use_is_harmless(self, subject: Subject) -> None:
        backend = subject.make()
        backend.close()
        fill(backend, "a")
        assert backend.read("a") == named("a")
        backend.close()

    def test_closed_instance_can_be_used_again(self, backend: StorageBackend) -> None:
        fill(backend, "a")
        for number in range(3):
            backend.close()
            assert backend.read("a") == named("a")
            fill(backend, f"b{number}")
        backend.close()
        assert len(everything(backend)) == 4

    def test_with_gives_the_instance_and_closes_it(self, subject: Subject) -> None:
        backend = subject.make()
        with backend as entered:
            assert entered is backend
            fill(backend, "a")
        with backend as entered:
            assert entered.read("a") == named("a")

    def test_error_passes_through_with(self, subject: Subject) -> None:
        with pytest.raises(ZeroDivisionError), subject.make():
            raise ZeroDivisionError

    def test_what_was_written_outlives_the_instance(self, subject: Subject) -> None:
        subject.require("shared")
        with subject.make() as first:
            first.write("a", content_of(300_000))
        with subject.make() as second:
            assert same(second.read("a"), content_of(300_000))

    def test_unclosed_instance_warns_of_nothing(self, subject: Subject) -> None:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            backend = subject.make()
            fill(backend, "a/b", "c")
            backend.list()
            next(backend.scan())
            with backend.open("c") as reader:
                reader.read(1)
            del backend, reader
            gc.collect()
        assert [str(warning.message) for warning in heard] == []
