"""The program with buckets."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_backend import open_storage
from tests.cli.conftest import Program
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    import boto3

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with S3Server() as server:
        server.create_bucket("bucket")
        for name, value in {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": server.url,
            "AWS_CONFIG_FILE": "/dev/null",
        }.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "folder"
    (place / "d").mkdir(parents=True)
    (place / "a.txt").write_bytes(CONTENT)
    (place / "d" / "b c#?.txt").write_bytes(b"b")
    return place


def test_folder_goes_there_and_back(
    program: Program, server: S3Server, process: Program, folder: Path, tmp_path: Path
) -> None:
    assert process("migrate", folder, "s3://bucket/some/where").code == 0
    assert server.objects("bucket") == {"some/where/a.txt": CONTENT, "some/where/d/b c#?.txt": b"b"}
    again = program("migrate", folder, "s3://bucket/some/where", "--json")
    assert again.code == 0
    assert '"copied": 0' in again.lines[-1]
    assert program("verify", folder, "s3://bucket/some/where").code == 0
    assert program("migrate", "s3://bucket/some/where/", tmp_path / "back").code == 0
    assert (tmp_path / "back" / "d" / "b c#?.txt").read_bytes() == b"b"
    assert program("sync", folder, "s3://new-bucket").code == 0
    assert set(server.objects("new-bucket")) == {"a.txt", "d/b c#?.txt"}


def test_what_is_there_and_what_differs(
    program: Program, server: S3Server, folder: Path, tmp_path: Path
) -> None:
    place = "s3://bucket/some/where"
    assert program("sync", folder, place).code == 0
    assert program("du", place).lines[-1].split() == [str(len(CONTENT) + 1), "2", place]
    assert program("tree", "-q", "--depth", "1", place).lines == [place, "├── a.txt", "└── d/"]
    found = program("find", "s3://bucket/", "--size", "-1k", "--newer", "1h").lines
    assert found == [f"{place}/d/b%20c%23%3F.txt"]
    assert program("cat", *found).out == b"b"
    # The bucket keeps no times of its sources: what it has is only older where the source is newer.
    assert program("diff", folder, place) == (0, b"", "")
    soon = time.time() + 1  # one that is further off tells nothing
    os.utime(folder / "a.txt", (soon, soon))
    assert program("diff", folder, place).lines == ["time     a.txt"]
    assert program("diff", "--checksum", folder, place) == (0, b"", "")
    assert program("rm", *found).code == 0
    assert program("diff", "--checksum", folder, place).lines == ["missing  d/b c#?.txt"]
    assert program("du", "s3://bucket/nowhere").code == 3


def test_objects_by_their_keys(program: Program, server: S3Server, folder: Path, tmp_path: Path) -> None:
    assert program("put", folder / "a.txt", "s3://bucket/x/one.txt").code == 0
    assert program("put", folder / "a.txt", "s3://bucket/x/").code == 0
    assert program("put", folder / "a.txt", "s3://bucket").code == 0
    assert set(server.objects("bucket")) == {"x/one.txt", "x/a.txt", "a.txt"}
    assert program("cat", "s3://bucket/x/one.txt").out == CONTENT
    assert program("get", "s3://bucket/x/one.txt", tmp_path / "got").code == 0
    assert (tmp_path / "got").read_bytes() == CONTENT
    assert program("ls", "s3://bucket/x").lines == ["a.txt", "one.txt"]
    assert program("ls", "s3://bucket").lines == ["a.txt", "x/"]
    assert program("cp", "s3://bucket/x/one.txt", "s3://bucket/y%20z/two.txt").code == 0
    assert [record.operation for record in server.actions if record.operation == "CopyObject"] != []
    assert program("mv", "s3://bucket/a.txt", "s3://bucket/y%20z/").code == 0
    assert program("rm", "s3://bucket/x/one.txt").code == 0
    assert set(server.objects("bucket")) == {"x/a.txt", "y z/two.txt", "y z/a.txt"}
    assert program("rm", "-r", "--yes", "s3://bucket/y%20z").code == 0
    assert set(server.objects("bucket")) == {"x/a.txt"}


def test_url_opens_the_object(program: Program, server: S3Server, folder: Path) -> None:
    import urllib.request

    program("put", folder / "a.txt", "s3://bucket/a b.txt")
    result = program("url", "s3://bucket/a%20b.txt", "--expires-in", "60")
    assert result.code == 0
    with urllib.request.urlopen(result.lines[0], timeout=60) as answer:
        assert answer.read() == CONTENT
    assert program("url", "s3://bucket/gone").code == 3
    assert program("url", "s3://bucket/a%20b.txt", "--expires-in", "9999999").code == 7


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("s3:///key", "has no bucket"),
        ("s3://key:s3cr3t@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("s3://bucket?secret_key=s3cr3t", "unknown parameter 'secret_key'"),
        ("s3://bucket?anonymous=perhaps", "anonymous"),
        ("s3://bucket?endpoint_url=ftp://host", "endpoint_url"),
        ("s3://bucket?max_concurrency=x", "max_concurrency"),
    ],
)
def test_wrong_location_is_a_usage_error(program: Program, location: str, words: str) -> None:
    result = program("ls", location)
    assert result.code == 2
    assert words in result.err
    assert "s3cr3t" not in result.err


def test_missing_bucket_is_a_missing_place(program: Program, server: S3Server, folder: Path) -> None:
    result = program("ls", "s3://nowhere")
    assert result.code == 3
    assert "nowhere" in result.err
    assert program("cat", "s3://bucket/").code == 2


def test_each_key_is_removed_by_its_own_location(program: Program, server: S3Server) -> None:
    names = ["100%.txt", "100%25.txt", "picture #1.jpg", "what?.txt", "a+b", "~"]
    with open_storage("s3://bucket") as storage:
        for name in names:
            storage.write(name, b"1")
        left = set(names)
        for name in names:
            assert program("rm", storage.get_path(name)).code == 0
            left.remove(name)
            assert set(server.objects("bucket")) == left
        storage.write("picture /1.jpg", b"1")
        for location in ("s3://bucket/picture #1.jpg", "s3://bucket/picture /1%.jpg"):
            assert program("rm", location).code == 2
        assert storage.list() == ["picture /1.jpg"]
