"""Python's own library folder through S3 and a database and back, and from bucket to bucket: nothing is lost, or sent twice."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_backend import S3Storage, migrate, sync, verify
from storage_backend.testing.subject import same
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_servers import BucketPlace
from tests.transfer.test_library import SMALL, library, migrated, run  # noqa: F401 - a fixture

MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket("bucket")
        yield server


def credentials(place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """For boto3 to find, here and in children."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", place.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", place.secret_key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def url_of(place: BucketPlace, prefix: str) -> str:
    return f"s3://{place.bucket}/{prefix}?region={place.region}&endpoint_url={place.url}"


def operations(server: S3Server) -> set[str]:
    return {record.operation for record in server.actions}


def nothing_is_copied(directory: Path, source: str | Path, target: str | Path) -> None:
    again = run(directory, "migrate", source, target)
    assert again.code == 0, again.errors
    assert again.report["copied"] == 0
    # What is younger than two seconds is looked at again.
    assert set(again.report["skipped"]) <= {"journal", "checksum"}


@pytest.mark.parametrize(
    "where", ["own", *(pytest.param(where, marks=pytest.mark.soak) for where in ("moto", "rclone"))]
)
@pytest.mark.soak
def test_the_library_survives_s3_and_a_database_and_back(
    where: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    library: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = library if where == "own" else SMALL  # the others take minutes for thousands of files
    server: S3Server | None = None
    if where == "own":
        server = request.getfixturevalue("server")
        assert server is not None
        place = BucketPlace(server.url, "bucket", ACCESS_KEY, SECRET_KEY)
    else:
        place = request.getfixturevalue(f"{where}_bucket")
    credentials(place, monkeypatch)
    bucket, sqlite, back = url_of(place, "lib"), f"sqlite:///{tmp_path}/archive.db", tmp_path / "back"
    first = migrated(tmp_path, folder, bucket)
    assert first["copied"] > 100
    if server is not None:
        # Each answer to a write proves what was stored.
        assert "GetObject" not in operations(server)
        server.actions.clear()
    nothing_is_copied(tmp_path, folder, bucket)
    if server is not None:
        assert operations(server) == {"ListObjectsV2"}
        pages = [record for record in server.actions if "continuation-token" in record.query]
        assert len(pages) == (first["copied"] - 1) // 1000
    assert migrated(tmp_path, bucket, sqlite)["copied"] == first["copied"]
    nothing_is_copied(tmp_path, bucket, sqlite)
    assert migrated(tmp_path, sqlite, back)["bytes"] == first["bytes"]
    nothing_is_copied(tmp_path, sqlite, back)
    difference = subprocess.run(["diff", "-r", folder, back], capture_output=True, text=True, check=False)
    assert (difference.returncode, difference.stdout) == (0, "")
    if server is not None:
        server.actions.clear()
        synced = run(tmp_path, "sync", folder, bucket)
        assert synced.code == 0, synced.errors
        assert synced.report["copied"] == 0
        # The MD5 of a listing is compared with that of a small file; of a large one, the time that S3 keeps is asked for.
        asked = {record.key for record in server.actions if record.operation != "ListObjectsV2"}
        large = {path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20}
        assert asked == {f"lib/{path.relative_to(folder)}" for path in large}
        assert operations(server) <= {"ListObjectsV2", "HeadObject"}
        assert server.uploads("bucket") == {}


@pytest.mark.soak
def test_from_bucket_to_bucket(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    server.create_bucket("other")
    objects = {f"data/{number % 7}/{number:05} é+%.txt": b"%d" % number * 20 for number in range(1300)}
    objects |= {f"data/large-{number}": bytes([number]) * (20 * MIB + number) for number in range(2)}
    # Older than the copies by more than the second that S3's times have.
    server.clock = lambda: time.time() - 3600
    for name, content in objects.items():
        server.put("bucket", f"from/{name}", content)
    server.clock = time.time

    def at(bucket: str, prefix: str) -> S3Storage:
        return S3Storage(
            bucket,
            prefix,
            endpoint_url=server.url,
            region="us-east-1",
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
        )

    source, target = at("bucket", "from"), at("other", "into/it")
    report = migrate(source, target)
    assert report.ok
    assert report.copied == report.verified == len(objects)
    assert same(server.objects("other"), {f"into/it/{name}": content for name, content in objects.items()})
    assert server.uploads("other") == {}
    server.actions.clear()
    for again in (migrate(source, target), sync(source, target)):
        assert again.ok
        assert again.copied == 0
    # Of an object that was stored in parts no listing tells more than its size.
    looked_at = [record for record in server.actions if record.operation == "HeadObject"]
    assert len(looked_at) <= 2
    assert operations(server) <= {"ListObjectsV2", "HeadObject"}
    assert verify(source, target).ok


def test_a_listing_asks_for_each_page_once(server: S3Server) -> None:
    server.settings.page_size = 7
    for number in range(100):
        server.put("bucket", f"{number:03}", b"x")
    storage = S3Storage(
        "bucket", endpoint_url=server.url, region="us-east-1", access_key=ACCESS_KEY, secret_key=SECRET_KEY
    )
    assert [info.identifier for info in storage.scan()] == [f"{number:03}" for number in range(100)]
    tokens = [record.query.get("continuation-token") for record in server.actions]
    assert len(tokens) == len(set(tokens)) == 15
