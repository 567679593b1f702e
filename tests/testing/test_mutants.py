"""The conformance suite catches seeded bugs, each by the topic that is about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from storage_backend import MemoryStorage, StorageBackend
from storage_backend.testing import ConformanceSuite, Subject, Topic
from storage_backend.testing.topics import processes
from tests.testing.harness import CAUGHT, Mutant, run
from tests.testing.memory_mutants import MUTANTS as MEMORY

TOPICS: tuple[type[Topic], ...] = ConformanceSuite.__bases__
LACKS = {"shared": "the objects live in one instance, in one process"}


def memory_subject(make: Callable[[Path], StorageBackend]) -> Callable[[Path], Subject]:
    def subject(folder: Path) -> Subject:
        storage = make(folder)
        return Subject(make=lambda: storage, lacks=LACKS)

    return subject


@pytest.mark.parametrize("mutant", MEMORY, ids=lambda mutant: mutant.name)
def test_mutant_of_memory_is_caught(
    mutant: Mutant, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 4.0)  # for the mutants that hang
    outcome = run(mutant.topic, memory_subject(mutant.make), tmp_path, request)
    assert mutant.test in outcome.failed, f"not caught; {outcome}"
    assert isinstance(outcome.failed[mutant.test], CAUGHT), repr(outcome.failed[mutant.test])


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.__name__)
def test_unbroken_memory_passes(topic: type[Topic], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    outcome = run(topic, memory_subject(lambda _: MemoryStorage()), tmp_path, request)
    assert outcome.failed == {}
    assert outcome.passed


def test_mutants_are_many_and_spread_over_the_topics() -> None:
    assert len(MEMORY) >= 25
    assert len({mutant.name for mutant in MEMORY}) == len(MEMORY)
    assert {mutant.topic for mutant in MEMORY} == set(TOPICS)
