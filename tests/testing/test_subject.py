from __future__ import annotations

import itertools
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import storage_backend.testing
from storage_backend import MemoryStorage
from storage_backend.testing import (
    FEATURES,
    AwkwardIdentifiers,
    Capabilities,
    Conditions,
    ConformanceSuite,
    Deleting,
    Directories,
    Listing,
    Moving,
    Processes,
    Replacing,
    Scanning,
    Source,
    SourceBrokeError,
    Subject,
    Topic,
)
from storage_backend.testing.subject import same
from tests.testing import harness

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent.parent


class TestSubject:
    def test_unknown_feature_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="golbs"):
            Subject(MemoryStorage, lacks={"golbs": "misspelled"})
        with pytest.raises(ValueError, match="golbs"):
            Subject(MemoryStorage).has("golbs")
        with pytest.raises(ValueError, match="golbs"):
            Subject(MemoryStorage).require("golbs")

    @pytest.mark.parametrize("reason", ["", "  ", "\n"])
    def test_lacking_needs_a_reason(self, reason: str) -> None:
        with pytest.raises(ValueError, match="globs"):
            Subject(MemoryStorage, lacks={"globs": reason})

    def test_skip_gives_the_reason(self) -> None:
        subject = Subject(MemoryStorage, lacks={"globs": "it has no patterns"})
        assert not subject.has("globs")
        subject.require("order")
        with pytest.raises(pytest.skip.Exception, match="it has no patterns"):
            subject.require("globs")

    def test_every_feature_is_asked_for_somewhere(self) -> None:
        folder = Path(storage_backend.testing.__file__).parent / "topics"
        text = "".join(path.read_text() for path in folder.glob("*.py"))
        asked = set(re.findall(r'subject\.(?:has|require)\("([^"]+)"\)', text))
        assert asked == set(FEATURES)

    def test_only_the_subject_skips(self) -> None:
        folder = Path(storage_backend.testing.__file__).parent
        found = [
            path.name
            for path in folder.rglob("*.py")
            if re.search(r"\bskip(if)?\(|xfail|importorskip", path.read_text())
        ]
        assert found == ["subject.py"]


def test_suite_is_the_union_of_the_topics() -> None:
    assert all(issubclass(topic, Topic) for topic in ConformanceSuite.__bases__)
    exported = {
        name
        for name in storage_backend.testing.__all__
        if name in {t.__name__ for t in ConformanceSuite.__bases__}
    }
    assert exported == {topic.__name__ for topic in ConformanceSuite.__bases__}


LEFT_OUT: dict[str, set[str]] = {
    "beneath": {"test_objects_beneath_an_object", "test_write_onto_a_directory"},
    "conditions": {
        "test_counting_by_replace_loses_nothing",
        "test_one_of_many_creators_wins",
        "test_one_of_many_replacers_wins",
        "test_replace_needs_the_very_version",
        "test_replace_of_a_missing_object_fails",
    },
    "long names": set(),
    "newlines": set(),
    "processes": {
        "test_child_that_ends_in_the_ordinary_way_hurts_nothing",
        "test_spawned_child_can_use_it",
    },
    "urls": set(),
    "whole reads": {"test_readers_see_whole_versions"},
}
"""Feature -> the tests that a store without it skips; of others it leaves out a name or a line."""


@pytest.mark.parametrize(
    "topic",
    [
        AwkwardIdentifiers,
        Capabilities,
        Conditions,
        Deleting,
        Directories,
        Listing,
        Moving,
        Processes,
        Replacing,
        Scanning,
    ],
)
def test_narrow_features_leave_out_no_more_than_they_must(
    topic: type[Topic], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def make(_: Path) -> Subject:
        storage = MemoryStorage()
        return Subject(
            lambda: storage, lacks={"shared": "one instance", **dict.fromkeys(LEFT_OUT, "on purpose")}
        )

    outcome = harness.run(topic, make, tmp_path, request)
    assert outcome.failed == {}
    expected = {"test_other_instances_see_the_old_object_too", *itertools.chain(*LEFT_OUT.values())}
    assert set(outcome.skipped) == expected & set(harness.tests_of(topic))


class TestSource:
    def test_it_is_a_reader(self) -> None:
        source = Source(b"0123456789", most=3)
        assert [source.read(2), source.read(5), source.read(), source.read(), source.read(0)] == [
            *(b"01", b"234", b"567", b"89"),
            b"",
        ]
        assert Source(b"abc").read(None) == b"abc"  # type: ignore[arg-type] # as io's readers take it

    def test_it_breaks_where_it_is_told(self) -> None:
        source = Source(b"0123456789", breaks_at=4)
        assert source.read() == b"0123"
        for _ in range(2):
            with pytest.raises(SourceBrokeError):
                source.read()

    def test_it_is_watched(self) -> None:
        seen: list[int] = []
        source = Source(b"abc", watch=lambda: seen.append(source.position))
        source.read(2)
        source.read(2)
        assert seen == [0, 2]


AUTHORS_FILE = """
import pytest
from storage_backend import StorageBackend
from storage_backend.testing import ConformanceSuite, Subject


class Mine(StorageBackend):
    def __init__(self):
        self.objects = {}

    def exists(self, identifier):
        return identifier in self.objects

    def read(self, identifier):
        if identifier not in self.objects:
            raise FileNotFoundError(identifier)
        return self.objects[identifier]

    def write(self, identifier, content):
        self.objects[identifier] = content
        return True

    def delete(self, identifier):
        self.read(identifier)
        del self.objects[identifier]
        return True

    def list(self, pattern=None):
        return list(self.objects)

    def get_path(self, identifier):
        return "mine:" + identifier

    def size(self, identifier):
        return len(self.read(identifier))BUG


class TestMine(ConformanceSuite):
    @pytest.fixture
    def subject(self):
        mine = Mine()
        lacks = dict.fromkeys(
            ["content", "content_type", "errors", "globs", "modified", "order", "refusals", "shared"], "seven methods"
        )
        return Subject(make=lambda: mine, lacks=lacks)


class TestForgotten(ConformanceSuite):
    pass
"""


class TestAuthorsFile:
    """An author of a backend has pytest, and nothing else of ours."""

    def run(self, folder: Path, bug: str, *arguments: str) -> str:
        (folder / "test_mine.py").write_text(AUTHORS_FILE.replace("BUG", bug))
        command = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-p",
            "no:cacheprovider",
            *arguments,
        ]
        done = subprocess.run(
            command,
            cwd=folder,
            env={
                **os.environ,
                "PYTEST_ADDOPTS": "-W error",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    @pytest.mark.soak
    def test_seven_methods_pass(self, tmp_path: Path) -> None:
        output = self.run(tmp_path, "", "-k", "TestMine")
        assert re.search(r"\d\d\d passed, \d+ skipped", output), output
        assert "lacks 'globs': seven methods" in output

    def test_bug_is_shown_with_its_values(self, tmp_path: Path) -> None:
        output = self.run(tmp_path, " + 1", "-k", "TestMine and test_size_is_that_of_the_content")
        # Only a rewritten assertion says what it compared.
        assert "assert [1, 2, 256, 4097, 100002] == [0, 1, 255, 4096, 100001]" in output, output

    def test_forgotten_fixture_is_told(self, tmp_path: Path) -> None:
        output = self.run(tmp_path, "", "-k", "TestForgotten and test_nothing_is_fine")
        assert "TestForgotten must define a fixture `subject` that gives a Subject" in output, output


def test_no_client_and_no_plugin_is_imported() -> None:
    program = "import sys, storage_backend.testing; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "pytest" in loaded
    assert not loaded & {"hypothesis", "sqlalchemy", "psycopg", "click", "rich", "pgserver"}


def test_fixture_classes_do_not_pickle_by_accident() -> None:
    # What travels to other processes is the backend, never the subject with its closures.
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(Subject(make=lambda: MemoryStorage()))  # noqa: PLW0108 - a closure on purpose


class TestSame:
    def test_equal_contents_are_the_same(self) -> None:
        assert same(b"a", b"a") is True
        assert same({"a": b"1"}, {"a": b"1"}) is True

    @pytest.mark.parametrize(
        ("found", "expected", "account"),
        [
            (b"x" * 9_000_000, b"x" * 8_999_999 + b"y", "9,000,000 bytes for 9,000,000; from byte 8,999,999 on b'x'"),
            (b"short", b"short and more", "5 bytes for 14; from byte 5 on b'' instead of b' and more'"),
            (b"", b"x", "0 bytes for 1; from byte 0 on"),
            ({"a": b"1"}, {"a": b"1", "b": b"2"}, "1 differ; 'b' is missing"),
            ({"a": b"1", "c": b"3"}, {"a": b"1"}, "1 differ; 'c' is too many"),
            ({"a": b"1", "c": b"3"}, {"a": b"1", "c": b"4"}, "1 differ; 'c': 1 bytes for 1; from byte 0"),
            ("text", b"text", "'text' instead of b'text'"),
        ],
    )  # fmt: skip
    def test_what_differs_is_told_shortly(self, found: object, expected: object, account: str) -> None:
        told = same(found, expected)
        assert not told
        assert repr(told).startswith(account)
