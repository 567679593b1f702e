"""The wrappers over a local disk, S3 and SSH, several deep: what a server answers comes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from storage_backend.testing import (
    Deleting,
    Moving,
    Ranges,
    Reading,
    Streams,
    Subject,
    Verifying,
    Writers,
    Writing,
)
from tests.backends.test_remote import empty
from tests.backends.test_remote import storage_at as remote_at
from tests.backends.test_s3 import LACKS, AtPlace

if TYPE_CHECKING:
    from tests.s3_servers import BucketPlace
    from tests.ssh_servers import OpenSSH, SSHPlace

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


@pytest.fixture(scope="class")
def place(openssh_server: OpenSSH) -> Iterator[SSHPlace]:
    """A directory for all tests of a class."""
    with openssh_server.place() as place:
        yield place


@pytest.fixture(scope="class")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for what they cache."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="class")
def instance(place: SSHPlace, cache: Path) -> Iterator[StorageBackend]:
    """A storage for all tests of a class."""
    with three_deep(lambda: remote_at(place), cache)() as storage:
        yield storage


class TestThreeDeepOverSSH(Reading, Writing, Verifying, Deleting, Moving, Ranges, Streams, Writers):
    @pytest.fixture
    def subject(self, place: SSHPlace, cache: Path, instance: CachedStorage) -> Subject:
        empty(place.local)
        instance.clear_cache()
        return Subject(three_deep(lambda: remote_at(place), cache), FILES, instance)


class TestRecodedOverS3(Reading, Writing, Verifying, Deleting, Moving, Ranges, Streams, Writers):
    @pytest.fixture
    def subject(self, s3: Make, tmp_path: Path) -> Subject:
        return Subject(make=recoded(s3, tmp_path), lacks=LACKS)
