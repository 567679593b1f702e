"""Python's own library folder through SSH and S3 and back; and a tree of many files: nothing is lost, or sent twice."""

from __future__ import annotations

import logging
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from storage_backend import LocalStorage, RemoteStorage, migrate, sync, verify
from storage_backend.backends.remote import SSHConfig
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.ssh_servers import SSHPlace
from tests.transfer.test_library import library, migrated, run  # noqa: F401 - a fixture


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with S3Server() as server:
        server.create_bucket("bucket")
        yield f"s3://bucket/lib?region={server.region}&endpoint_url={server.url}"


def url_of(place: SSHPlace, path: str) -> str:
    parameters = urllib.parse.urlencode(
        {
            "key_filename": place.key_filename,
            "known_hosts": place.known_hosts,
            "agent": "false",
            "connection_timeout": "20",
        }
    )
    return f"ssh://{place.user}@{place.host}:{place.port}{place.base}/{path}?{parameters}"


def nothing_is_copied(directory: Path, source: str | Path, target: str | Path) -> None:
    again = run(directory, "migrate", source, target)
    assert again.code == 0, again.errors
    assert again.report["copied"] == 0


@pytest.mark.soak
def test_the_library_survives_ssh_and_s3_and_back(
    openssh_place: SSHPlace,
    internal_sftp_place: SSHPlace,
    bucket: str,
    tmp_path: Path,
    library: Path,  # noqa: F811
) -> None:
    there, further = url_of(openssh_place, "one"), url_of(internal_sftp_place, "two")
    back = tmp_path / "back"
    first = migrated(tmp_path, library, there)
    assert first["copied"] > 100
    assert first["verified"] == first["copied"]
    nothing_is_copied(tmp_path, library, there)
    assert migrated(tmp_path, there, bucket)["copied"] == first["copied"]
    nothing_is_copied(tmp_path, there, bucket)
    # Without a shell there, what was stored is read back.
    assert migrated(tmp_path, bucket, further)["verified"] == first["copied"]
    assert migrated(tmp_path, further, back)["bytes"] == first["bytes"]
    nothing_is_copied(tmp_path, further, back)
    # Times are S3's by now, and empty folders and links are no objects.
    difference = subprocess.run(
        ["diff", "-r", "--exclude=__pycache__", library, back],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "differ" not in difference.stdout
    assert [line for line in difference.stdout.splitlines() if f"Only in {back}" in line] == []
    assert difference.stderr == ""
    # The same by digests, of both servers.
    with (
        RemoteStorage(cast(SSHConfig, openssh_place.config()), f"{openssh_place.base}/one") as one,
        LocalStorage(back) as copy,
    ):
        report = verify(one, copy)
        assert report.ok
        assert report.differences == {}


def test_a_tree_of_many_files(
    openssh_place: SSHPlace, tmp_path: Path, soak: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    count = 100_000 if soak else 1_500
    source = LocalStorage(tmp_path / "many")
    names = [f"{number % 97:02}/{number % 11}/{number:06}.txt" for number in range(count)]
    source.write_many((name, name.encode()) for name in names)
    with RemoteStorage(cast(SSHConfig, openssh_place.config()), openssh_place.base) as remote:
        report = migrate(source, remote, journal=tmp_path / "journal")
        assert report.ok
        assert report.verified == report.copied == count
        assert remote.list() == sorted(names)
        assert [info.identifier for info in remote.scan()] == sorted(names)
        again = sync(source, remote)
        assert again.copied == 0
        assert sum(again.skipped.values()) == count
