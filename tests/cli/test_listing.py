"""ls, stat, checksum."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage_backend import StorageBackend, open_storage
from tests.cli.conftest import Program

NAMES = ["a", "d.x", "d/b", "d/e/c", "z"]


@pytest.fixture(params=["directory", "sqlite", "sqlite with a prefix", "file URL"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    found = {
        "directory": f"{tmp_path}/place",
        "file URL": f"file://{tmp_path}/place",
        "sqlite": f"sqlite:///{tmp_path}/place.db",
        "sqlite with a prefix": f"sqlite:///{tmp_path}/place.db#p%20q",
    }[request.param]
    with open_storage(found, create=True) as storage:
        for name in NAMES:
            storage.write(name, name.encode())
    return found


def test_ls_shows_one_level(program: Program, location: str) -> None:
    result = program("ls", location)
    assert (result.code, result.lines, result.err) == (0, ["a", "d.x", "d/", "z"], "")


def test_ls_r_shows_all_levels(program: Program, location: str) -> None:
    assert program("ls", "-R", location).lines == NAMES


def test_ls_l_shows_size_and_time(program: Program, location: str) -> None:
    before = datetime.now(UTC)
    lines = [line.split() for line in program("ls", "-l", location).lines]
    assert [(size, name) for size, _, name in lines] == [("1", "a"), ("3", "d.x"), ("-", "d/"), ("1", "z")]
    moment = datetime.fromisoformat(lines[0][1])
    assert abs((before - moment).total_seconds()) < 60


def test_ls_h_shows_sizes_as_people_read_them(program: Program, tmp_path: Path) -> None:
    for name, size in (("small", 1), ("large", 3 << 20)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "sub").mkdir()
    lines = program("ls", "-l", "-h", tmp_path).lines
    assert [line[:11] for line in lines] == [" 3.00 MiB  ", "      1 B  ", "        -  "]


def test_ls_sorts(program: Program, tmp_path: Path) -> None:
    for name, size, moment in (("a", 2, 3000.0), ("b", 1, 1000.0), ("c", 3, 2000.0), ("d", 2, 2000.0)):
        (tmp_path / name).write_bytes(bytes(size))
        os.utime(tmp_path / name, (moment, moment))
    (tmp_path / "e").mkdir()
    for flags, names in (
        (["--sort", "name"], ["a", "b", "c", "d", "e/"]),
        (["-r"], ["e/", "d", "c", "b", "a"]),
        (["--sort", "size"], ["c", "a", "d", "b", "e/"]),
        (["--sort", "time"], ["a", "c", "d", "b", "e/"]),
        (["--sort", "size", "--reverse"], ["e/", "b", "d", "a", "c"]),
    ):
        assert program("ls", *flags, tmp_path).lines == names
        records = [json.loads(line) for line in program("ls", "--json", *flags, tmp_path).lines]
        assert [record.get("identifier", record.get("prefix")) for record in records] == names


def test_ls_json(program: Program, location: str) -> None:
    records = [json.loads(line) for line in program("ls", "--json", location).lines]
    assert [record.get("identifier", record.get("prefix")) for record in records] == ["a", "d.x", "d/", "z"]
    assert records[1]["size"] == 3
    assert datetime.fromisoformat(records[1]["modified"]).tzinfo is not None


def below(location: str, name: str) -> str:
    if "#" in location:
        return f"{location}/{name}"
    return f"{location}#{name}" if location.startswith("sqlite") else f"{location}/{name}"


def test_ls_of_what_is_deeper_and_of_one_object(program: Program, location: str) -> None:
    assert program("ls", below(location, "d")).lines == ["b", "e/"]
    assert program("ls", "-R", below(location, "d")).lines == ["b", "e/c"]
    one = program("ls", below(location, "d/b"))
    assert one.code == 0
    assert len(one.lines) == 1
    assert one.lines[0].endswith("b")


def test_ls_of_what_is_missing(program: Program, location: str, tmp_path: Path) -> None:
    for missing in (below(location, "nothing"), str(tmp_path / "gone"), f"sqlite:///{tmp_path}/gone.db"):
        result = program("ls", missing)
        assert result.code == 3
        assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "gone.db").exists()


def test_ls_of_several_goes_on_past_a_missing_one(program: Program, location: str) -> None:
    result = program("ls", below(location, "gone"), location)
    assert result.code == 1
    assert "gone" in result.err
    assert result.lines == ["", f"{location}:", "a", "d.x", "d/", "z"]


def test_ls_of_an_empty_place_prints_nothing(program: Program, tmp_path: Path) -> None:
    assert program("ls", tmp_path) == (0, b"", "")
    assert program("ls", "memory:") == (0, b"", "")


def test_ls_streams_and_one_level_is_not_a_walk(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").touch()

    def scan(*_: object, **__: object) -> None:
        pytest.fail("one level of a directory does not need a walk through all of it")

    from storage_backend import LocalStorage

    monkeypatch.setattr(LocalStorage, "scan", scan)
    assert program("ls", tmp_path).lines == ["a", "deep/"]


def test_stat_shows_what_is_known(program: Program, location: str) -> None:
    result = program("stat", below(location, "d/b"), below(location, "gone"))
    assert result.code == 1
    shown = dict(line.split(":", 1) for line in result.lines)
    assert shown["size"].strip() == "3"
    assert shown["identifier"].strip().endswith("b")
    record = json.loads(program("stat", "--json", below(location, "d/b")).out)
    assert record["size"] == 3
    assert record["path"].endswith("d/b")


@pytest.mark.parametrize("algorithm", ["sha256", "md5", "blake2b"])
def test_checksum_is_that_of_the_content(program: Program, location: str, algorithm: str) -> None:
    place = below(location, "d/b")
    result = program("checksum", "-a", algorithm, place)
    assert result.lines == [f"{hashlib.new(algorithm, b'd/b').hexdigest()}  {place}"]
    record = json.loads(program("checksum", "--json", "-a", algorithm, place).out)
    assert record == {
        "name": place,
        "algorithm": algorithm,
        "digest": hashlib.new(algorithm, b"d/b").hexdigest(),
    }


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_sha256sum_checks_what_checksum_prints(program: Program, tmp_path: Path) -> None:
    place = tmp_path / "place"
    storage: StorageBackend = open_storage(place, create=True)
    for name in ["plain", "new\nline", "back\\slash", "\udcff", "d/x", " edge "]:
        storage.write(name, name.encode("utf-8", "surrogateescape"))
    result = program("checksum", "-r", place)
    assert result.code == 0
    (tmp_path / "SUMS").write_bytes(result.out)
    checked = subprocess.run(
        ["sha256sum", "--strict", "-c", tmp_path / "SUMS"], cwd=place, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count(b": OK") == 6
    (place / "plain").write_text("changed")
    assert subprocess.run(
        ["sha256sum", "-c", tmp_path / "SUMS"], cwd=place, capture_output=True, check=False
    ).returncode


def test_checksum_goes_on_past_a_missing_one(program: Program, location: str) -> None:
    result = program("checksum", below(location, "gone"), below(location, "a"))
    assert result.code == 1
    assert len(result.lines) == 1
