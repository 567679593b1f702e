"""The conformance suite catches seeded bugs, each by the topic that is about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from storage_backend import LocalStorage, MemoryStorage, StorageBackend
from storage_backend.testing import ConformanceSuite, Subject, Topic
from storage_backend.testing.topics import processes
from tests.testing.harness import CAUGHT, Mutant, leaks_forgiven, run
from tests.testing.mutants import LOCAL, MEMORY

TOPICS: tuple[type[Topic], ...] = ConformanceSuite.__bases__
MUTANTS = [*MEMORY, *LOCAL]


def family_and_name(mutant: Mutant) -> str:
    return f"{'local' if issubclass(mutant.kind, LocalStorage) else 'memory'}-{mutant.name}"


def subjects(kind: type[StorageBackend]) -> Callable[[Path], Subject]:
    """Subjects of a class of either family, which lack what the unbroken class lacks."""

    def local(base: Path) -> Subject:
        return Subject(lambda: kind(base), lacks={"content_type": "files have none"})  # type: ignore[call-arg] # LocalStorage's

    def memory(_: Path) -> Subject:
        storage = kind()
        return Subject(lambda: storage, lacks={"shared": "the objects live in one instance, in one process"})

    return local if issubclass(kind, LocalStorage) else memory


@pytest.mark.soak
@pytest.mark.parametrize(
    "mutant", MUTANTS, ids=lambda mutant: f"{mutant.kind.__mro__[-3].__name__}-{mutant.name}"
)
def test_mutant_is_caught(
    mutant: Mutant, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 4.0)  # for the mutants that hang
    # Where these are set, pytest spells out the whole of each difference, and here nearly everything differs.
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    with leaks_forgiven():
        outcome = run(mutant.topic, subjects(mutant.kind), tmp_path, request)
    assert mutant.test in outcome.failed, f"not caught; {outcome}"
    assert isinstance(outcome.failed[mutant.test], CAUGHT), repr(outcome.failed[mutant.test])


@pytest.mark.soak
@pytest.mark.parametrize("kind", [MemoryStorage, LocalStorage])
@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.__name__)
def test_unbroken_class_passes(
    kind: type[StorageBackend], topic: type[Topic], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    outcome = run(topic, subjects(kind), tmp_path, request)
    assert outcome.failed == {}
    assert outcome.passed


def test_mutants_are_many_and_spread_over_the_topics() -> None:
    for family in (MEMORY, LOCAL):
        assert len(family) >= 25
        assert len({mutant.name for mutant in family}) == len(family)
    assert {mutant.topic for mutant in MUTANTS} == set(TOPICS)


def test_no_topic_hides_a_test_of_another() -> None:
    seen: dict[str, type[Topic]] = {}
    for topic in TOPICS:
        for name in vars(topic):
            if not name.startswith("__"):
                assert name not in seen, f"{topic.__name__} and {seen[name].__name__} both have {name}"
                seen[name] = topic
