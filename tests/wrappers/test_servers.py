"""The wrappers over a local disk, S3 and SSH, several deep: the conformance suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from storage_backend import (
    CachedStorage,
    CompressedStorage,
    EncryptedStorage,
    PrefixedStorage,
    RetryingStorage,
    StorageBackend,
)
from storage_backend.testing import ConformanceSuite, Subject
from tests.backends.test_remote import storage_at as remote_at
from tests.backends.test_s3 import LACKS, AtPlace

if TYPE_CHECKING:
    from tests.s3_servers import BucketPlace
    from tests.ssh_servers import SSHPlace

Make: TypeAlias = Callable[[], StorageBackend]
KEY = "env:SB_TEST_KEY"
FILES = {"content_type": "a file has no media type"}


def three_deep(make: Make, cache: Path) -> Make:
    return lambda: CachedStorage(RetryingStorage(PrefixedStorage(make(), "p")), cache, ttl_seconds=0)


def recoded(make: Make, cache: Path) -> Make:
    return lambda: CachedStorage(
        CompressedStorage(EncryptedStorage(make(), KEY)), cache, 100, engine="diskcache"
    )


@pytest.fixture
def s3(strict_bucket: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("SB_TEST_KEY", "5a" * 32)
    place = AtPlace(strict_bucket, monkeypatch)
    return place.storage


@pytest.fixture
def ssh(openssh_place: SSHPlace, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("SB_TEST_KEY", "5a" * 32)
    return lambda: remote_at(openssh_place)


class TestThreeDeepOverSSH(ConformanceSuite):
    @pytest.fixture
    def subject(self, ssh: Make, tmp_path: Path) -> Subject:
        return Subject(make=three_deep(ssh, tmp_path), lacks=FILES)


class TestRecodedOverS3(ConformanceSuite):
    @pytest.fixture
    def subject(self, s3: Make, tmp_path: Path) -> Subject:
        return Subject(make=recoded(s3, tmp_path), lacks=LACKS)
