"""The wrappers that store other bytes, over real servers and a database: what is wrapped is far away."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from storage_backend import (
    CompressedStorage,
    DatabaseStorage,
    EncryptedStorage,
    RemoteStorage,
    S3Storage,
    StorageBackend,
)
from storage_backend.testing import ConformanceSuite, Subject
from tests.s3_servers import BucketPlace
from tests.ssh_servers import SSHPlace

if TYPE_CHECKING:
    from storage_backend.backends.remote import SSHConfig

KEY = "env:SB_TEST_KEY"


def both(backend: StorageBackend) -> StorageBackend:
    return CompressedStorage(EncryptedStorage(backend, KEY))


class TestS3(ConformanceSuite):
    @pytest.fixture
    def subject(self, moto_bucket: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> Subject:
        place = moto_bucket
        monkeypatch.setenv("SB_TEST_KEY", "5a" * 32)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", place.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", place.secret_key)
        return Subject(
            make=lambda: both(S3Storage(place.bucket, endpoint_url=place.url, region=place.region)),
            lacks={
                "modified": "listings show when an object was stored",
                "newlines": "moto's router finds no route for a path with a line feed",
                "one deleter": "S3 deletes without saying whether there was anything",
            },
        )


class TestSSH(ConformanceSuite):
    @pytest.fixture
    def subject(self, openssh_place: SSHPlace, monkeypatch: pytest.MonkeyPatch) -> Subject:
        monkeypatch.setenv("SB_TEST_KEY", "5a" * 32)
        return Subject(
            make=lambda: both(RemoteStorage(cast("SSHConfig", openssh_place.config()), openssh_place.base)),
            lacks={"content_type": "a file has no place for one"},
        )


class TestSqlite(ConformanceSuite):
    @pytest.fixture
    def subject(self, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Subject:
        monkeypatch.setenv("SB_TEST_KEY", "5a" * 32)
        return Subject(make=lambda: both(DatabaseStorage(sqlite_url)))
