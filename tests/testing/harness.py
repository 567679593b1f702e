"""Runs a topic of the conformance suite against a backend, inside one test."""

from __future__ import annotations

import gc
import inspect
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from storage_backend import StorageBackend
from storage_backend.testing import SourceBrokeError, Subject, Topic

# What a broken backend makes a test end with: a failed assertion, "did not raise", or an error that the contract
# names. Anything else (TypeError, NameError, ...) says that the mutant or the suite is broken in another way.
CAUGHT = (AssertionError, pytest.fail.Exception, OSError, SourceBrokeError)


B = TypeVar("B", bound=StorageBackend)


@dataclass(frozen=True)
class Mutant:
    """A backend with one fault.

    Attributes:
        name: of the class.
        kind: the class.
        topic: must catch it.
        test: the test of that topic that must fail.
    """

    name: str
    kind: type[StorageBackend]
    topic: type[Topic]
    test: str


def catalogue(mutants: list[Mutant]) -> Callable[[type[Topic], str], Callable[[type[B]], type[B]]]:
    """A decorator that adds a broken class to *mutants*, with the test that must catch it."""

    def caught_by(topic: type[Topic], test: str) -> Callable[[type[B]], type[B]]:
        def add(kind: type[B]) -> type[B]:
            mutants.append(Mutant(kind.__name__, kind, topic, test))
            return kind

        return add

    return caught_by


class Meeting:
    """Holds a caller until another one has come as far, so that a race is lost each time; gives up soon if none comes."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2)

    def wait(self) -> None:
        try:
            self._barrier.wait(0.1)
        except threading.BrokenBarrierError:
            self._barrier.reset()


@dataclass
class Outcome:
    """How the tests of a topic ended."""

    passed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, BaseException] = field(default_factory=dict)


def tests_of(topic: type[Topic]) -> Iterator[str]:
    return (name for name in dir(topic) if name.startswith("test_"))


def run(
    topic: type[Topic], make: Callable[[Path], Subject], folder: Path, request: pytest.FixtureRequest
) -> Outcome:
    """Run each test of *topic* against a subject of its own."""
    outcome = Outcome()
    for name in tests_of(topic):
        place = folder / name
        place.mkdir()
        subject = make(place / "base")
        try:
            with subject.make() as backend:
                fixtures: dict[str, Any] = {"subject": subject, "backend": backend}
                for name_of_folder in ("tmp_path", "files"):
                    fixtures[name_of_folder] = place / name_of_folder
                    fixtures[name_of_folder].mkdir()
                method = getattr(topic(), name)
                wanted = inspect.signature(method).parameters
                method(
                    **{
                        key: fixtures[key] if key in fixtures else request.getfixturevalue(key)
                        for key in wanted
                    }
                )
        except pytest.skip.Exception:
            outcome.skipped.append(name)
        except BaseException as error:  # noqa: BLE001 - judged by the caller
            outcome.failed[name] = _without_frames(error)
        else:
            outcome.passed.append(name)
    return outcome


def _without_frames(error: BaseException) -> BaseException:
    """The error, holding on to nothing that the test used."""
    traceback.clear_frames(error.__traceback__)
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


@contextmanager
def leaks_forgiven() -> Iterator[None]:
    """Let what a mutant left open go without the warnings that it deserves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()
