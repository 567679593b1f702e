"""Runs a topic of the conformance suite against a backend, inside one test."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from storage_backend import StorageBackend
from storage_backend.testing import SourceBrokeError, Subject, Topic

# What a broken backend makes a test end with: a failed assertion, "did not raise", or an error that the contract
# names. Anything else (TypeError, NameError, ...) says that the mutant or the suite is broken in another way.
CAUGHT = (AssertionError, pytest.fail.Exception, OSError, SourceBrokeError)


@dataclass(frozen=True)
class Mutant:
    """A backend with one fault.

    Attributes:
        make: gives it, over a folder that is its own.
        topic: must catch it.
        test: the test of that topic that must fail.
        lacks: as the Subject's, beyond what the unbroken class lacks.
    """

    make: Callable[[Path], StorageBackend]
    topic: type[Topic]
    test: str
    lacks: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return getattr(self.make, "__name__", repr(self.make))


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
            outcome.failed[name] = error
        else:
            outcome.passed.append(name)
    return outcome
