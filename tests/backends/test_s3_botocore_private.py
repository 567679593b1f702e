"""Versions of botocore that have, or lack, the private attributes that the choice of our own HTTP client rests on."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_backend import IntegrityError, ObjectInfo, S3Storage
from storage_backend.backends.s3.botocore_private import is_plain
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

LOGGER = "storage_backend.backends.s3.botocore_private"


class Lacking:
    """An object as it is, but for one attribute."""

    def __init__(self, found: Any, name: str) -> None:
        self._found = found
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._found, name)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with S3Server() as server:
        server.create_bucket("bucket")
        yield server


def storage_lacking(server: S3Server, holder: str, name: str) -> S3Storage:
    storage = S3Storage(
        "bucket",
        endpoint_url=server.url,
        region=server.region,
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
    )
    owner, _, last = holder.rpartition(".")
    parent = storage.client
    for part in owner.split("."):
        parent = getattr(parent, part)
    setattr(parent, last, Lacking(getattr(parent, last), name))
    return storage


@pytest.mark.parametrize(
    ("holder", "name"),
    [
        ("meta.events", "_emitter"),
        ("meta.events._emitter", "_lookup_cache"),
        ("meta.events._emitter", "_unique_id_handlers"),
        ("meta.events._emitter", "_handlers"),
        ("_endpoint.http_session", "_verify"),
        ("_endpoint.http_session", "_cert_file"),
    ],
)
def test_what_is_missing_sends_requests_through_boto3_and_says_so_once(
    server: S3Server, caplog: pytest.LogCaptureFixture, holder: str, name: str
) -> None:
    with caplog.at_level(logging.WARNING, LOGGER):
        for _ in range(2):
            with storage_lacking(server, holder, name) as storage:
                storage.write("a", b"content")
                assert storage.read("a") == b"content"
                assert storage.stat("a").size == 7
                with pytest.raises(IntegrityError):
                    storage.write_stream("a", io.BytesIO(b"other"), info=ObjectInfo("a", 9))
                assert storage.read_range("a", 1, 3) == b"on"
    warnings = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert len(warnings) == 1
    assert f"client.{holder}.{name}" in warnings[0]
    assert "go through boto3" in warnings[0]
    agents = {request.headers.get("user-agent", "").split("/")[0] for request in server.actions}
    assert agents == {"Boto3"}


@pytest.mark.quick  # so .ci/bounds asks the oldest and the newest version that we allow
def test_this_version_of_botocore_lacks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    client = S3Storage(
        "bucket", endpoint_url="http://127.0.0.1:9", region="eu-west-1", access_key="a", secret_key="b"
    ).client
    with caplog.at_level(logging.WARNING, LOGGER):
        assert is_plain(client)
    assert not caplog.records
