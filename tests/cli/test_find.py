"""find: what is found, and that other commands take what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage_backend import DatabaseStorage, ObjectInfo, open_storage
from tests.cli.conftest import Program

NOW = datetime.now(UTC)
AWKWARD = ["a b", "new\nline", "100%", "#1?x=y&z", "-n", "é", "it's", "deep/er/-r"]


@pytest.fixture(params=["directory", "file URL", "sqlite", "sqlite with a prefix"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "directory": f"{tmp_path}/pla#ce",
        "file URL": f"file://{tmp_path}/pla%23ce/",
        "sqlite": f"sqlite:///{tmp_path}/place.db",
        "sqlite with a prefix": f"sqlite:///{tmp_path}/place.db#p%20q/",
    }[str(request.param)]


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A place with objects of many sizes and ages."""
    found = str(tmp_path / "place")
    with open_storage(found, create=True) as storage:
        for name, size, days in (
            ("a.pdf", 10, 0),
            ("b.txt", 2048, 10),
            ("d/a.pdf", 5000, 20),
            ("d/e/c.pdf", 1 << 20, 40),
        ):
            storage.write(name, bytes(size))
            moment = (NOW - timedelta(days=days)).timestamp()
            os.utime(storage.get_path(name), (moment, moment))
    return found


def found(program: Program, place: str, *conditions: str) -> list[str]:
    result = program("find", place, *conditions)
    assert (result.code, bool(result.err)) == (0, not result.lines)
    return [line.removeprefix(f"{place}/") for line in result.lines]


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        ([], ["a.pdf", "b.txt", "d/a.pdf", "d/e/c.pdf"]),
        (["--name", "*.pdf"], ["a.pdf", "d/a.pdf", "d/e/c.pdf"]),
        (["--name", "[ab].*"], ["a.pdf", "b.txt", "d/a.pdf"]),
        (["--pattern", "*.pdf"], ["a.pdf"]),
        (["--pattern", "d/**"], ["d/a.pdf", "d/e/c.pdf"]),
        (["--pattern", "**/e/*"], ["d/e/c.pdf"]),
        (["--size", "+2k"], ["b.txt", "d/a.pdf", "d/e/c.pdf"]),
        (["--size", "-2k"], ["a.pdf", "b.txt"]),
        (["--size", "1k..5000"], ["b.txt", "d/a.pdf"]),
        (["--size", "2k"], ["b.txt"]),
        (["--newer", "15d"], ["a.pdf", "b.txt"]),
        (["--older", "15d"], ["d/a.pdf", "d/e/c.pdf"]),
        (["--older", "5d", "--newer", "3w"], ["b.txt", "d/a.pdf"]),
        (["--older", (NOW - timedelta(days=30)).isoformat()], ["d/e/c.pdf"]),
        (["--older", "2000-01-01"], []),
        (["--name", "*.pdf", "--size", "+1k", "--older", "30d"], ["d/e/c.pdf"]),
    ],
)
def test_conditions(program: Program, place: str, conditions: list[str], names: list[str]) -> None:
    assert found(program, place, *conditions) == names


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        (["--name", "a/b"], "only the last part"),
        (["--pattern", "../x"], "outside base directory"),
        (["--size", "much"], "write +10M (at least)"),
        (["--newer", "now"], "90s, 30m, 12h, 7d, 2w"),
        (["--older", "2026-02-30"], "neither an age"),
    ],
)
def test_conditions_that_mean_nothing(program: Program, conditions: list[str], says: str) -> None:
    result = program("find", "memory:", *conditions)
    assert result.code == 2
    assert says in result.err
    assert conditions[0] in result.err
    assert len(result.err.splitlines()) == 1


def test_what_it_prints_is_what_the_others_take(program: Program, location: str) -> None:
    with open_storage(location, create=True) as storage:
        for name in [*AWKWARD, *(["\udcff"] if "place.db" not in location else [])]:
            storage.write(name, name.encode("utf-8", "surrogateescape"))
        names = storage.list()
    assert len(names) >= len(AWKWARD)
    listed = [os.fsdecode(line) for line in program("find", location, "-0").out.split(b"\0")[:-1]]
    whole = program("cat", *listed)
    assert whole.code == 0
    assert whole.out == b"".join(name.encode("utf-8", "surrogateescape") for name in names)
    # One alone is found under the very location.
    assert program("find", listed[0], "-0").out == os.fsencode(listed[0]) + b"\0"
    assert program("rm", *listed).code == 0
    with open_storage(location) as storage:
        assert storage.list() == []


def test_xargs_runs_the_others(environment: dict[str, str], place: str) -> None:
    program = f"{sys.executable} -m storage_backend"
    done = subprocess.run(
        ["bash", "-c", f"{program} find {place} --older 5d -0 | xargs -0 -r {program} rm"],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    with open_storage(place) as storage:
        assert storage.list() == ["a.pdf"]


def test_json(program: Program, place: str) -> None:
    records = [json.loads(line) for line in program("find", "--json", place, "--name", "c*").lines]
    assert [(record["location"], record["identifier"], record["size"]) for record in records] == [
        (f"{place}/d/e/c.pdf", "d/e/c.pdf", 1 << 20)
    ]


def test_nothing_is_found_where_there_is_nothing(program: Program, tmp_path: Path) -> None:
    location = f"sqlite:///{tmp_path}/place.db"
    with open_storage(location, create=True) as storage:
        storage.write("d/e", b"")
    nothing = "storage-backend: no object meets all conditions"
    assert program("find", f"{location}#d", "--pattern", "x/**") == (0, b"", f"{nothing}\n")
    assert program("find", location, "--pattern", "*e").err.startswith(
        f'{nothing}; "*" stays inside a segment'
    )
    assert program("find", "-q", location, "--pattern", "*e") == (0, b"", "")
    assert program("find", f"{location}#d/e").lines == [f"{location}#d/e"]
    assert program("find", f"{location}#gone", location, "--pattern", "d/*").lines == [f"{location}#d/e"]
    assert program("find", f"{location}#gone").code == 3
    assert program("find", tmp_path / "gone").code == 3


def test_objects_without_a_time_are_neither_newer_nor_older(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = f"sqlite:///{tmp_path}/place.db"
    with open_storage(location, create=True) as storage:
        storage.write("a", b"1")
    monkeypatch.setattr(DatabaseStorage, "scan", lambda *_, **__: iter([ObjectInfo("a"), ObjectInfo("b")]))
    # Where only the listing lacks it, the object is asked for; "b" has gone meanwhile.
    assert program("find", location, "--newer", "1h").lines == [f"{location}#a"]
    monkeypatch.setattr(DatabaseStorage, "stat", lambda _, identifier: ObjectInfo(identifier, 1))
    for condition in ("--newer", "--older"):
        result = program("find", location, condition, "1h")
        assert (result.code, result.lines) == (0, [])
        assert result.err == "storage-backend: left out 2 objects whose time is unknown\n"
        assert not program("find", "-q", location, condition, "1h").err
