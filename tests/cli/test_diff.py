"""diff: what is not the same in two places."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from storage_backend import open_storage
from tests.cli.conftest import Program
from tests.cli.test_program import on_a_terminal

OLD, NEW = 1_600_000_000, 1_700_000_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    for name in ("d/same", "d/size", "d/time", "content", "missing"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(name.encode())
        os.utime(place / name, (OLD, OLD))
    return place


@pytest.fixture(params=["directory", "sqlite"])
def target(request: pytest.FixtureRequest, program: Program, source: Path, tmp_path: Path) -> str:
    """A place that held the same, before things changed on both sides."""
    found = {"directory": f"{tmp_path}/target", "sqlite": f"sqlite:///{tmp_path}/target.db"}[
        str(request.param)
    ]
    assert program("sync", source, found).code == 0
    assert program("diff", source, found) == (0, b"", "")
    assert program("diff", "--checksum", source, found) == (0, b"", "")
    with open_storage(found) as storage:
        storage.write("extra", b"new")
        storage.delete("missing")
    (source / "d/size").write_bytes(b"longer than it was")
    os.utime(source / "d/time", (NEW, NEW))
    (source / "content").write_bytes(b"tnetnoc")
    os.utime(source / "content", (OLD, OLD))
    return found


def test_by_size_and_time(program: Program, source: Path, target: str) -> None:
    result = program("diff", source, target)
    assert (result.code, result.err) == (4, "")
    assert result.lines == ["size     d/size", "time     d/time", "extra    extra", "missing  missing"]
    back = program("diff", target, source)
    assert back.code == 4
    assert back.lines == ["size     d/size", "time     d/time", "missing  extra", "extra    missing"]


def test_by_checksum(program: Program, source: Path, target: str) -> None:
    result = program("diff", "--checksum", source, target)
    assert (result.code, result.err) == (4, "")
    assert sorted(result.lines) == [
        "digest   content",
        "extra    extra",
        "missing  missing",
        "size     d/size",
    ]


def test_json(program: Program, source: Path, target: str) -> None:
    for flags, differences in (
        ([], {"d/size": "size", "d/time": "time"}),
        (["--checksum"], {"d/size": "size", "content": "digest"}),
    ):
        result = program("diff", "--json", *flags, source, target)
        assert result.code == 4
        records = [json.loads(line) for line in result.lines]
        assert {record["identifier"]: record["difference"] for record in records} == {
            **differences,
            "extra": "extra",
            "missing": "missing",
        }


def test_only_what_is_asked_for(program: Program, source: Path, target: str) -> None:
    assert program("diff", "--pattern", "d/*", source, target).lines == ["size     d/size", "time     d/time"]
    assert program("diff", "--exclude", "d/**", source, target).lines == [
        "extra    extra",
        "missing  missing",
    ]
    for flags in ([], ["--checksum"]):
        assert program("diff", *flags, "--include", "**/same", source, target) == (0, b"", "")
        assert program("diff", "-q", *flags, source, target) == (4, b"", "")


def test_a_missing_place_is_no_difference(program: Program, source: Path, tmp_path: Path) -> None:
    for flags in ([], ["--checksum"]):
        for pair in ((source, tmp_path / "gone"), (tmp_path / "gone", source)):
            result = program("diff", *flags, *pair)
            assert (result.code, result.out) == (3, b"")
            assert "gone" in result.err
    assert not (tmp_path / "gone").exists()


def test_what_cannot_be_compared_is_told(program: Program, source: Path, tmp_path: Path) -> None:
    assert program("sync", source, tmp_path / "target").code == 0
    (source / "link").symlink_to("/etc/passwd")
    for flags in ([], ["--checksum"]):
        result = program("diff", *flags, source, tmp_path / "target")
        assert (result.code, result.out) == (1, b"")
        assert "link" in result.err


def test_a_place_is_the_same_as_itself(program: Program, source: Path) -> None:
    assert program("diff", source, source) == (0, b"", "")
    assert program("diff", source, source / "d").code == 4


@pytest.mark.parametrize("target", ["directory"], indirect=True)
def test_differences_are_coloured_on_a_terminal(
    environment: dict[str, str], source: Path, target: str
) -> None:
    environment = {name: value for name, value in environment.items() if name != "NO_COLOR"} | {
        "TERM": "xterm"
    }
    for command in (["diff"], ["diff", "--checksum"], ["verify"]):
        code, shown = on_a_terminal(environment, *command, source, target)
        assert code == 4
        assert "\x1b[32mextra   \x1b[0m extra" in shown
        assert "\x1b[31mmissing \x1b[0m missing" in shown
        assert "\x1b[33msize    \x1b[0m d/size" in shown


def test_where_nothing_matches_it_says_why(program: Program, source: Path, tmp_path: Path) -> None:
    for flags in ([], ["--checksum"]):
        result = program("diff", *flags, "--pattern", "*.pdf", source, source)
        assert (result.code, result.out) == (0, b"")
        assert "matches --pattern '*.pdf'; \"*\" stays inside a segment" in result.err
        assert program("diff", "-q", *flags, "--pattern", "*.pdf", source, source) == (0, b"", "")
        assert "holds no objects" in program("diff", *flags, "memory:", source).err
