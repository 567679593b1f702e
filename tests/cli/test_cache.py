"""The program's cache commands, and locations that go through a cache."""

import json
from pathlib import Path

from storage_backend import CachedStorage, LocalStorage
from tests.cli.conftest import Program


def test_a_location_goes_through_the_cache(program: Program, tmp_path: Path) -> None:
    papers = LocalStorage(tmp_path / "papers")
    papers.write("a b.txt", b"hello")
    cache = tmp_path / "cache"
    location = f"cached+file://{tmp_path}/papers/a%20b.txt?cache_dir={cache}&max_mb=1&ttl=1e9"
    assert program("cat", location).out == b"hello"
    papers.delete("a b.txt")
    assert program("cat", location).out == b"hello"
    found = json.loads(program("cache", "stats", cache, "--json").out)
    assert (found["file_count"], found["size"], found["hits"], found["misses"]) == (1, 5, 1, 1)
    assert program("cache", "stats", cache).lines[:3] == [
        "entries      1",
        "size         0.0 MiB",
        "reads        2: 1 hits, 1 misses, 50.0% hit",
    ]
    assert program("cache", "clear", cache).lines == ["removed 1 entries, 0.0 MiB"]
    missing = program("cat", location)
    assert (missing.code, missing.out) == (3, b"")


def test_writing_through_the_cache(program: Program, tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    parameters = f"?cache_dir={tmp_path}/cache"
    object_at = f"cached+file://{tmp_path}/papers/a{parameters}"
    for content in (b"2", b"1"):
        assert program("put", "-", object_at, stdin=content).code == 0
        assert program("cat", object_at).out == content
    assert program("ls", f"cached+file://{tmp_path}/papers{parameters}").lines == ["a"]
    assert (tmp_path / "papers/a").read_bytes() == b"1"


def test_check_tells_of_damage_and_mends_it(program: Program, tmp_path: Path) -> None:
    cached = CachedStorage(LocalStorage(tmp_path / "papers"), tmp_path / "cache")
    for name in "abc":
        cached.write(name, name.encode() * 1000)
    cached.close()
    assert program("cache", "check", tmp_path / "cache").code == 0
    blob = next(path for path in (tmp_path / "cache" / "blobs").rglob("*") if path.is_file())
    with blob.open("r+b") as file:
        file.write(b"z")
    found = program("cache", "check", tmp_path / "cache", "--json")
    assert found.code == 4
    assert json.loads(found.out) == {"entries": 2, "size": 2000, "damaged": 1, "strays": 0, "missing": 0}
    assert program("cache", "check", tmp_path / "cache").lines == [
        "2 entries are whole, 0.0 MiB; removed 0 damaged, 0 stray files; 0 were missing"
    ]


def test_what_is_no_cache_is_not_made_one(program: Program, tmp_path: Path) -> None:
    for command in ("stats", "clear", "check"):
        for place in (tmp_path, tmp_path / "missing", tmp_path / "file"):
            (tmp_path / "file").write_bytes(b"")
            found = program("cache", command, place)
            assert found.code == 3
            assert "no cache in" in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_format_is_refused_and_kept(program: Program, tmp_path: Path) -> None:
    (tmp_path / "format.9").touch()
    found = program("cache", "clear", tmp_path)
    assert found.code == 7
    assert "format 9" in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["format.9"]


def test_the_help_says_how_a_program_reads_many_objects(program: Program) -> None:
    text = program("cache", "--help").out.decode()
    assert "read_many(ids)" in text
    assert "prefetch(ids)" in text
