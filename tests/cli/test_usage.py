"""du, tree; and that all commands that list hold only what they need."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_backend import DatabaseStorage, MemoryStorage, ObjectInfo, open_storage
from tests.cli.conftest import Program
from tests.cli.test_program import on_a_terminal

SIZES = {"a.txt": 1, "d": 10, "d.x": 100, "d/b": 1000, "d/e/f/c": 10_000, "z/q": 100_000}


@pytest.fixture
def location(tmp_path: Path) -> str:
    found = f"sqlite:///{tmp_path}/place.db"
    with open_storage(found, create=True) as storage:
        storage.write_many((name, bytes(size)) for name, size in SIZES.items())
    return found


def du(program: Program, *arguments: str | Path) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in program("du", *arguments).lines]


def test_du_sums_up_each_folder(program: Program, location: str) -> None:
    deep = [("10000", "1", "d/e/f/"), ("10000", "1", "d/e/")]
    first = [("11000", "2", "d/"), ("100000", "1", "z/"), ("111111", "6", location)]
    assert du(program, location) == deep + first
    assert du(program, "--depth", "1", location) == first
    assert du(program, "-d", "2", location) == deep[1:] + first
    assert du(program, "-s", location) == du(program, "--depth", "0", location) == first[2:]
    assert du(program, f"{location}#d") == [
        ("10000", "1", "e/f/"),
        ("10000", "1", "e/"),
        ("11000", "2", f"{location}#d"),
    ]


def test_du_is_what_gnu_du_says(program: Program, tmp_path: Path) -> None:
    place = tmp_path / "place"
    for name in ("a/b/c", "a/d", "e/f/g/h", "i"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(bytes(len(name) * 100))
    theirs = subprocess.run(
        ["du", "--apparent-size", "-b", "-s", *(place / name for name in ("a/b/c", "a/d", "e/f/g/h", "i"))],
        capture_output=True,
        text=True,
        check=False,
    )
    if theirs.returncode:
        pytest.skip("du is not GNU's")
    total = sum(int(line.split()[0]) for line in theirs.stdout.splitlines())
    assert du(program, "-s", place) == [(str(total), "4", str(place))]


def test_du_of_several_has_a_total(program: Program, location: str, tmp_path: Path) -> None:
    result = program("du", "-s", "-h", location, tmp_path / "gone", f"{location}#d/b")
    assert result.code == 1
    assert "gone" in result.err
    assert result.lines == [
        f"  109 KiB          6  {location}",
        f"   1000 B          1  {location}#d/b",
        "  109 KiB          7  total",
    ]


def test_du_json(program: Program, location: str) -> None:
    records = [json.loads(line) for line in program("du", "--json", "-d", "1", location).lines]
    assert records == [
        {"location": location, "prefix": "d/", "size": 11_000, "objects": 2},
        {"location": location, "prefix": "z/", "size": 100_000, "objects": 1},
        {"location": location, "prefix": "", "size": 111_111, "objects": 6},
    ]


def test_du_of_nothing(program: Program, location: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert du(program, tmp_path / "empty") == [("0", "0", str(tmp_path / "empty"))]
    for missing in (tmp_path / "gone", f"{location}#gone", f"sqlite:///{tmp_path}/gone.db"):
        assert program("du", missing).code == 3
        assert program("tree", missing).code == 3
    assert program("du", "-s", "-d", "1", location).code == 2


def test_sizes_that_a_listing_does_not_show_are_asked_for(
    program: Program, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = DatabaseStorage.scan

    def bare(self: DatabaseStorage, *arguments: Any, **keywords: Any) -> Iterator[ObjectInfo]:
        yield from (ObjectInfo(info.identifier) for info in scan(self, *arguments, **keywords))
        yield ObjectInfo("zz/vanished meanwhile")

    monkeypatch.setattr(DatabaseStorage, "scan", bare)
    assert du(program, "-s", location) == [("111111", "6", location)]
    assert program("tree", location).lines[-1] == "5 folders, 7 objects"
    assert program("find", location, "--size", "+10k").lines == [f"{location}#z/q"]


TREE = """
├── a.txt
├── d
├── d.x
├── d/
│   ├── b
│   └── e/
│       └── f/
│           └── c
└── z/
    └── q

4 folders, 6 objects, 109 KiB
"""


def test_tree(program: Program, location: str) -> None:
    assert program("tree", location).out.decode() == f"{location}{TREE}"
    assert program("tree", "-q", f"{location}#d/e").lines == [f"{location}#d/e", "└── f/", "    └── c"]
    assert program("tree", f"{location}#z/q").lines[1:] == ["└── q", "", "0 folders, 1 object, 97.7 KiB"]


def test_tree_looks_only_as_deep_as_asked(
    program: Program, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scan(*_: object, **__: object) -> None:
        pytest.fail("two levels do not need a walk through all of it")

    monkeypatch.setattr(DatabaseStorage, "scan", scan)
    assert program("tree", "--depth", "2", location).lines[4:] == [
        "├── d/",
        "│   ├── b",
        "│   └── e/",
        "└── z/",
        "    └── q",
        "",
        "3 folders, 5 objects, 98.7 KiB",
    ]


def test_tree_json(program: Program, location: str) -> None:
    *records, end = [json.loads(line) for line in program("tree", "--json", location).lines]
    assert [record.get("prefix") or record["identifier"] for record in records] == [
        "a.txt",
        "d",
        "d.x",
        "d/",
        "d/b",
        "d/e/",
        "d/e/f/",
        "d/e/f/c",
        "z/",
        "z/q",
    ]
    assert end == {"location": location, "folders": 4, "objects": 6, "size": 111_111}


def test_a_long_folder_is_not_waited_for(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [ObjectInfo(f"d/{number:05}", 1) for number in range(10_100)]
    monkeypatch.setattr(MemoryStorage, "scan", lambda *_, **__: iter(infos))
    lines = program("tree", "-q", "memory:").lines
    assert lines[:3] == ["memory:", "├── d/", "│   ├── 00000"]
    assert lines[-2:] == ["│   ├── 10098", "│   └── 10099"]


def test_folders_are_coloured_on_a_terminal(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "place" / "sub").mkdir(parents=True)
    (tmp_path / "place" / "sub" / "object").touch()
    folder = "\x1b[1;34msub/\x1b[0m"
    environment = {name: value for name, value in environment.items() if name not in {"NO_COLOR", "TERM"}}
    plain = {"NO_COLOR": "1"}, {"TERM": "dumb"}
    for verb, colours in (("ls", 1), ("tree", 1), ("find", 0)):
        code, shown = on_a_terminal({**environment, "TERM": "xterm"}, verb, tmp_path / "place")
        assert (code, shown.count(folder), shown.count("\x1b")) == (0, colours, 2 * colours)
    for settings in plain:
        assert "\x1b" not in on_a_terminal({**environment, **settings}, "ls", tmp_path / "place")[1]
    assert (
        folder in on_a_terminal({**environment, **plain[1]}, "ls", "--color", "always", tmp_path / "place")[1]
    )
    assert "\x1b" not in on_a_terminal(environment, "ls", "--color", "never", tmp_path / "place")[1]


def test_elsewhere_nothing_is_coloured_unasked(program: Program, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert program("ls", tmp_path).lines == ["sub/"]
    assert program("ls", "--color", "always", tmp_path).lines == ["\x1b[1;34msub/\x1b[0m"]
    assert program("ls", "--color", "always", "-0", tmp_path).out == b"sub/\0"


MEASURED = """
import sys, tracemalloc
from storage_backend import MemoryStorage, ObjectInfo
from storage_backend.cli import run
import storage_backend.transfer
scan = lambda *_, **__: (ObjectInfo(f"{number // 100:05}/{number:07}", 1) for number in range(10_000))
nothing = MemoryStorage.scan
for command in (
    "ls -R -l memory:", "du memory:", "tree memory:", "tree --json memory:", "find --name *7 --size 1 memory:",
    "diff memory: memory:", "ls -R --sort size memory:",
):
    MemoryStorage.scan = nothing
    run(command.split())  # so that all is imported
    MemoryStorage.scan = scan
    tracemalloc.start()
    assert run(command.split()) == 0
    print("peak", tracemalloc.get_traced_memory()[1], command, file=sys.stderr)
    tracemalloc.stop()
"""


@pytest.mark.soak
def test_what_is_not_needed_is_not_held(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = [line.split(" ", 2) for line in done.stderr.splitlines()]
    peaks = {command: int(peak) for what, peak, command in told if what == "peak"}
    everything = peaks.pop("ls -R --sort size memory:")
    assert len(peaks) == 6
    assert everything > 1 << 20
    # A tree waits for the end of a folder, up to 10,000 lines.
    assert {command: peak for command, peak in peaks.items() if peak > everything / 8} == {}
