"""A location names one object exactly, whatever its name, on every backend."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage_backend import (
    ConfigurationError,
    DatabaseStorage,
    LocalStorage,
    MemoryStorage,
    PrefixedStorage,
    RemoteStorage,
    S3Storage,
    StorageBackend,
    open_storage,
)
from storage_backend.identifiers import is_valid
from storage_backend.location_parser import locations_in, parse_location, split_location
from storage_backend.schemes import SCHEMES
from tests.cli.conftest import Program

program = pytest.importorskip("tests.cli.conftest").program

AWKWARD = st.text(st.sampled_from("a~%25#?&=+/ .:é\n\\\"'@[]*-\x7f"), min_size=1, max_size=8).filter(is_valid)
IDENTIFIERS = AWKWARD | st.text(min_size=1, max_size=20).filter(is_valid)
ARN = "arn:aws:s3:us-west-2:123456789012:accesspoint/mine"


def opened(location: str) -> StorageBackend:
    """As `open_storage`, but that nothing is there before the first write, and that no server is asked."""
    place = parse_location(location)
    if isinstance(place, str) or place.scheme != "ssh":
        return open_storage(location, create=True)
    arguments = SCHEMES["ssh"].arguments(place, False)
    found = RemoteStorage(**arguments, auto_connect=False)
    return found if place.fragment is None else PrefixedStorage(found, unquote(place.fragment))


def remote(base_dir: str) -> RemoteStorage:
    config = {"user": "a@b", "endpoints": [["::1", 22], ["h", 23]], "key_filename": "/k", "agent": False}
    return RemoteStorage(config, base_dir, auto_connect=False)  # type: ignore[arg-type] # a plain dict


PLACES: dict[str, Callable[[], StorageBackend]] = {
    "local": lambda: LocalStorage("/"),
    "sqlite": lambda: DatabaseStorage("sqlite:////d/a%23%3F%25 b.db"),
    "postgresql": lambda: DatabaseStorage("postgresql://u@h:1/d%23b?options=a+b%20c"),
    "s3": lambda: S3Storage("bucket", region="a+b c", endpoint_url="http://h:1"),
    "s3 with a prefix": lambda: S3Storage("bucket", "p %25#?/q"),
    "s3 access point": lambda: S3Storage(ARN, "p"),
    "ssh home": lambda: remote("~"),
    "ssh folder": lambda: remote("~/p %25#?"),
    "ssh root": lambda: remote("/"),
    "ssh folder called ~": lambda: remote("/~"),
    "ssh beneath a folder called ~": lambda: remote("/~/x"),
    "prefix of s3": lambda: PrefixedStorage(PrefixedStorage(S3Storage("bucket", "p"), "q#"), "r"),
    "prefix of a bucket": lambda: PrefixedStorage(S3Storage("bucket"), "q?"),
    "prefix of s3 with parameters": lambda: PrefixedStorage(S3Storage("bucket", "p", region="x"), "~"),
    "prefix of ssh": lambda: PrefixedStorage(remote("~/p"), "~"),
    "prefix of files": lambda: PrefixedStorage(LocalStorage("/"), "~/%"),
    "prefix of sqlite": lambda: PrefixedStorage(DatabaseStorage("sqlite:////d.db"), "a/#"),
}


@pytest.mark.quick
@pytest.mark.parametrize("place", PLACES)
def test_the_location_of_every_object_is_its_own(place: str) -> None:
    storage = PLACES[place]()

    @settings(max_examples=40, deadline=None)
    @given(IDENTIFIERS)
    @example("100%.txt")
    @example("100%25.txt")
    @example("picture #1.jpg")
    @example("what?.txt")
    @example("what?")
    @example("~")
    @example("~/x")
    @example("a+b&c=d")
    def check(identifier: str) -> None:
        base, name = split_location(locations_in(storage.location)(identifier))
        with opened(base) as again:
            assert again.get_path(name) == storage.get_path(identifier)

    with storage:
        check()
        with opened(storage.location) as again:
            assert again.location == storage.location
            assert again.get_path("x") == storage.get_path("x")


@pytest.mark.quick
@pytest.mark.parametrize("place", [name for name in PLACES if "ssh" not in name])
def test_what_get_path_gives_names_that_object(place: str) -> None:
    storage = PLACES[place]()

    @settings(max_examples=40, deadline=None)
    @given(IDENTIFIERS)
    @example("100%25.txt")
    @example("a/what?region=x")
    def check(identifier: str) -> None:
        base, name = split_location(storage.get_path(identifier))
        with opened(base) as again:
            assert again.get_path(name) == storage.get_path(identifier)

    with storage:
        check()


@pytest.mark.quick
@settings(max_examples=40, deadline=None)
@given(IDENTIFIERS)
def test_get_path_of_memory_names_the_object(identifier: str) -> None:
    assert split_location(MemoryStorage().get_path(identifier)) == ("memory:", identifier)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("location", "spelling"),
    [
        ("s3://bucket/100%.txt", "s3://bucket/100%25.txt"),
        ("s3://bucket/what?.txt", "s3://bucket/what%3F.txt"),
        ("s3://bucket/what?", "s3://bucket/what%3F"),
        ("s3://bucket/what?&", "%3F"),
        ("s3://bucket/picture #1.jpg", "s3://bucket/picture %231.jpg"),
        ("ssh://host/~/picture #1.jpg", "ssh://host/~/picture /#1.jpg"),
        ("ssh://host/~/what?.txt", "ssh://host/~/what%3F.txt"),
        ("ssh://host/100%", "100%25"),
        ("cached+s3://bucket/what?", "%3F"),
        ("cached+s3://bucket/p?cache_dir=/100%", "cache_dir"),
        ("file:///d/100%", "100%25"),
        ("file:///d/what?", "what%3F"),
        ("sqlite:////d.db#100%", "100%25"),
        ("sqlite:////d#1.db#x", "%23"),
        ("s3://bucket?region=a&region=b", "occurs twice"),
        ("s3://bucket//p", "empty segment"),
        ("s3://key:s3cr3t@bucket/100%", "%25"),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused(location: str, spelling: str) -> None:
    def use() -> None:
        base, _ = split_location(location)
        open_storage(base)
        open_storage(location)

    with pytest.raises(ConfigurationError) as caught:
        use()
    assert spelling in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.quick
def test_a_file_with_a_hash_is_not_mistaken_for_a_name_in_another(tmp_path: Path) -> None:
    (tmp_path / "picture ").mkdir()
    (tmp_path / "picture " / "1.jpg").write_bytes(b"another")
    location = f"file://{tmp_path}/picture #1.jpg"
    assert split_location(location)[1] == "1.jpg"
    (tmp_path / "picture #1.jpg").write_bytes(b"it")
    (tmp_path / "x#1.db").write_bytes(b"")
    for ambiguous in (location, f"sqlite:///{tmp_path}/x#1.db"):
        with pytest.raises(ConfigurationError, match="%231"):
            open_storage(ambiguous)
        with pytest.raises(ConfigurationError, match="%231"):
            split_location(ambiguous)
    base, name = split_location(location.replace("#", "%23"))
    assert open_storage(base).read(name) == b"it"


@pytest.mark.quick
def test_a_plus_is_a_plus(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with open_storage(f"cached+file://{tmp_path}/data?cache_dir={tmp_path}/a+b") as storage:
        storage.write("x", b"1")
        assert storage.read("x") == b"1"
    assert (tmp_path / "a+b").is_dir()


def test_the_program_takes_what_get_path_and_find_print(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    names = ["100%.txt", "100%25.txt", "picture #1.jpg", "what?.txt", "~", "memory:", "C:\\x"]
    place = tmp_path / "place"
    monkeypatch.chdir(tmp_path)
    for base in (str(place), sqlite_url, f"file://{place}", f"{sqlite_url}#p%23"):
        with open_storage(base, create=True) as storage:
            storage.write_many((name, name.encode()) for name in names)
            for name in names:
                for printed in (storage.get_path(name), locations_in(base)(name)):
                    assert program("cat", printed).out == name.encode(), printed
                assert printed in program("find", "-0", base).out.decode().split("\0")
            assert program("rm", storage.get_path("100%25.txt")).code == 0
            assert set(storage.list()) == {*names} - {"100%25.txt"}


def test_a_parameter_that_ends_in_a_slash_makes_no_place(program: Program, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    cached = f"cached+sqlite:///{tmp_path}/x.db?cache_dir={tmp_path}/cache/#key"
    assert program("put", tmp_path / "a", cached).code == 0
    assert program("put", tmp_path / "a", f"{cached}/").code == 0
    assert (
        program("put", tmp_path / "a", f"cached+file://{tmp_path}/b?cache_dir={tmp_path}/cache2/").code == 0
    )
    assert (tmp_path / "b").read_bytes() == b"1"
    with open_storage(f"sqlite:///{tmp_path}/x.db") as storage:
        assert storage.list() == ["key", "key/a"]


def test_names_that_mean_something_as_a_path(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with open_storage(sqlite_url, create=True) as storage:
        storage.write("a/~", b"1")
    assert program("get", f"{sqlite_url}#a/~").code == 0
    assert Path("./~").read_bytes() == b"1"
    assert not Path("home").exists()
    assert os.fspath(split_location(Path("memory:/x"))[0]) == "./memory:"
    assert (
        open_storage(split_location(Path("memory:/x"))[0], create=True).location
        == f"file://{tmp_path}/memory%3A"
    )
