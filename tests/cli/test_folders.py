"""A folder, or a prefix, where an object should be."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from storage_backend import open_storage
from tests.cli.conftest import Program

if TYPE_CHECKING:
    from tests.s3_servers import BucketPlace
    from tests.ssh_servers import SSHPlace

At: TypeAlias = Callable[[str], str]

COMMANDS = [
    (["cat"], "'ls' shows the objects in it"),
    (["stat"], "'ls -l' shows the objects in it"),
    (["checksum"], "'checksum -r' takes all objects in it"),
    (["rm"], "'rm -r' takes all objects in it"),
    (["get"], "'get -r' takes all objects in it"),
    (["url"], "'ls' shows the objects in it"),
    (["cp", "memory:#x"], "objects in it"),
    (["mv", "memory:#x"], "'migrate --delete-source' moves the objects in it"),
]


def filled(place: str) -> None:
    with open_storage(place, create=True) as storage:
        for name in ("d/a", "d/e/b"):
            storage.write(name, b"1")


@pytest.fixture
def folder(tmp_path: Path) -> At:
    filled(str(tmp_path / "place"))
    return lambda name: f"{tmp_path}/place/{name}"


@pytest.fixture
def database(tmp_path: Path) -> At:
    filled(f"sqlite:///{tmp_path}/place.db")
    return lambda name: f"sqlite:///{tmp_path}/place.db#{name}"


@pytest.fixture
def bucket(strict_bucket: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> At:
    for name, value in {
        "AWS_ACCESS_KEY_ID": strict_bucket.access_key,
        "AWS_SECRET_ACCESS_KEY": strict_bucket.secret_key,
        "AWS_DEFAULT_REGION": strict_bucket.region,
        "AWS_ENDPOINT_URL_S3": strict_bucket.url,
        "AWS_CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    filled(f"s3://{strict_bucket.bucket}/p")
    return lambda name: f"s3://{strict_bucket.bucket}/p/{name}"


@pytest.fixture
def server(openssh_place: SSHPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> At:
    pytest.importorskip("paramiko")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = openssh_place
    query = urllib.parse.urlencode(
        {"key_filename": place.key_filename, "known_hosts": place.known_hosts, "agent": "false"}
    )
    filled(str(place.local))
    return lambda name: f"ssh://{place.user}@{place.host}:{place.port}{place.base}/{name}?{query}"


@pytest.fixture(params=["folder", "file URL", "database", "bucket", "server", "cache"])
def at(request: pytest.FixtureRequest, tmp_path: Path) -> At:
    if request.param == "file URL":
        below: At = request.getfixturevalue("folder")
        return lambda name: Path(below(name)).as_uri()
    if request.param == "cache":
        below = request.getfixturevalue("folder")
        return lambda name: f"cached+{Path(below(name)).as_uri()}?cache_dir={tmp_path}/cache"
    found: At = request.getfixturevalue(request.param)
    return found


def test_a_folder_is_told_as_one(program: Program, at: At, tmp_path: Path) -> None:
    for (command, *rest), says in COMMANDS:
        result = program(command, at("d"), *rest)
        assert (result.code, result.out) == (2, b""), command
        assert f"{at('d')!r} is a folder, not an object; " in result.err
        assert says in result.err
        assert len(result.err.splitlines()) == 1


def test_what_is_missing_is_no_folder(program: Program, at: At) -> None:
    for command in ("cat", "stat", "checksum", "rm"):
        result = program(command, at("gone"))
        assert result.code == 3
        assert "folder" not in result.err


def test_the_others_are_done_all_the_same(program: Program, at: At) -> None:
    result = program("cat", at("d"), at("d/a"))
    assert (result.code, result.out) == (1, b"1")
    assert program("rm", at("d"), at("d/a")).code == 1
    assert program("cat", at("d/a")).code == 3


def test_a_location_that_is_always_a_place(program: Program, folder: At, database: At) -> None:
    for location in (folder("d/"), folder("d/.."), database("").rstrip("#"), "s3://bucket/d/"):
        result = program("rm", location)
        assert result.code == 2
        assert "'rm -r' takes all objects in it" in result.err


def test_a_folder_on_a_server_where_an_object_would_be_stored(
    program: Program, server: At, folder: At
) -> None:
    for command in ("cp", "mv", "put"):
        result = program(command, folder("d/a"), server("d/e"))
        assert result.code == 2
        assert "'e' is a folder; to store in it, end the location with \"/\"" in result.err
    assert program("put", folder("d/a"), server("d/e/")).code == 0
    assert program("cat", server("d/e/a")).out == b"1"


def test_ls_of_a_folder_on_a_server(program: Program, server: At, openssh_place: SSHPlace) -> None:
    (openssh_place.local / "link").symlink_to("d")
    (openssh_place.local / "empty").mkdir()
    for name in ("d", "d/", "link"):
        assert program("ls", server(name)).lines == ["a", "e/"]
        assert program("ls", "-R", server(name)).lines == ["a", "e/b"]
    assert program("ls", server("empty")) == (0, b"", "")
    assert program("ls", server("d/a")).lines == ["a"]
    assert program("ls", server("gone")).code == 3
    assert program("ls", server("gone/gone")).code == 3


def test_ls_of_a_folder_on_a_server_connects_once(program: Program, server: At) -> None:
    logged = program("ls", "-v", server("d")).err
    assert logged.count(": connected to ") == 1
