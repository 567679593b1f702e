"""What counts as the same: nothing stale stays because of its time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage_backend import (
    CompressedStorage,
    ConfigurationError,
    LocalStorage,
    MemoryStorage,
    ObjectInfo,
    PrefixedStorage,
    S3Storage,
    StorageBackend,
    migrate,
    plan,
    sync,
    verify,
)
from storage_backend.hooks import Hooks
from storage_backend.wrappers.base import Wrapper, WrapperHooks
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.transfer.samples import OLD, contents, later, memory, put

OBJECTS = {f"{number % 3}/{number}": b"%03d" % number for number in range(40)}


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket("bucket")
        yield server


@pytest.fixture
def bucket(server: S3Server) -> Iterator[S3Storage]:
    with S3Storage(
        "bucket", endpoint_url=server.url, region="us-east-1", access_key=ACCESS_KEY, secret_key=SECRET_KEY
    ) as storage:
        yield storage


def asked(server: S3Server) -> dict[str, int]:
    operations = [record.operation for record in server.actions]
    server.actions.clear()
    return {name: operations.count(name) for name in set(operations)}


class Far(Wrapper):
    """As a source that is a server: nothing is read from it on a mere suspicion."""

    @property
    def hooks(self) -> Hooks:
        return FarHooks(self)


class FarHooks(WrapperHooks):
    @property
    def is_near(self) -> bool:
        return False


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("verify", ["size", "digest"])
def test_a_file_that_was_restored_with_an_old_time_is_copied_to_s3(
    far: bool, verify: str, bucket: S3Storage, server: S3Server, tmp_path: Path
) -> None:
    folder = LocalStorage(tmp_path / "folder")
    for name, content in OBJECTS.items():
        put(folder, name, content)
    source: StorageBackend = Far(folder) if far else folder
    assert sync(source, bucket).copied == 40
    put(folder, "1/1", b"???", later(-86400))  # from a backup
    put(folder, "2/2", b"002", later(-86400))  # an old time, the same content
    server.actions.clear()
    report = sync(source, bucket, verify=verify)
    assert report.ok
    assert (report.copied, report.compared) == (1, 39)
    assert bucket.read("1/1") == b"???"
    expected = {"ListObjectsV2": 1, "PutObject": 1}
    assert asked(server).items() >= expected.items()
    again = sync(source, bucket)
    assert again.copied == 0
    assert asked(server) == {"ListObjectsV2": 1} | ({"HeadObject": 40} if far else {})


def test_what_was_stored_in_parts_is_known_by_its_time(bucket: S3Storage, server: S3Server) -> None:
    large = os.urandom(1 << 20) * 20
    source = MemoryStorage()
    put(source, "large", large)
    assert sync(source, bucket).copied == 1
    server.actions.clear()
    assert sync(source, bucket).skipped == {"same-size-and-time": 1}
    assert asked(server) == {"ListObjectsV2": 1, "HeadObject": 1}
    put(source, "large", large[::-1], later(-50))
    assert sync(source, bucket).copied == 1
    assert bucket.read("large") == large[::-1]


def test_between_buckets_the_listings_tell(bucket: S3Storage, server: S3Server) -> None:
    one, other = PrefixedStorage(bucket, "one"), PrefixedStorage(bucket, "other")
    server.clock = lambda: datetime(2024, 1, 1, tzinfo=UTC).timestamp()
    one.write_many(OBJECTS.items())
    server.clock = lambda: datetime(2024, 1, 2, tzinfo=UTC).timestamp()
    assert sync(one, other).copied == 40
    server.actions.clear()
    assert sync(one, other).skipped == {"checksum": 40}
    assert asked(server) == {"ListObjectsV2": 2}


def test_a_compressed_bucket_is_compared_by_what_it_holds(bucket: S3Storage) -> None:
    source, target = memory(OBJECTS), CompressedStorage(bucket)
    assert sync(source, target).copied == 40
    put(source, "1/1", b"???", later(-86400))
    assert sync(source, target).copied == 1
    assert contents(target) == contents(source)


def test_a_target_with_times_of_its_own_is_read_where_nothing_else_tells() -> None:
    class Stamping(MemoryStorage):
        """Its times are those of the writes."""

        @property
        def keeps_modified(self) -> bool:
            return False

        def stat(self, identifier: str) -> ObjectInfo:
            return ObjectInfo(identifier, self.size(identifier), later(9999))

        def scan(self, prefix: str = "", **_: object) -> Iterator[ObjectInfo]:
            return (self.stat(info.identifier) for info in super().scan(prefix))

    source, target = memory(OBJECTS), Stamping()
    sync(source, target)
    put(source, "1/1", b"???", later(-5))
    report = sync(source, target)
    assert (report.copied, report.compared) == (1, 39)
    assert contents(target) == contents(source)


def test_checksum_finds_what_has_the_same_size_and_time(bucket: S3Storage, tmp_path: Path) -> None:
    source = memory(OBJECTS)
    targets: list[StorageBackend] = [memory(OBJECTS), LocalStorage(tmp_path / "folder"), bucket]
    for target in targets:
        sync(source, target)
        put(target, "1/1", b"???", OLD)
    for target in targets:
        assert sync(source, target).copied == 0
        put(target, "1/1", b"???", OLD)
        assert {str(action) for action in plan(source, target, checksum=True)} == {"compare/asked"}
        report = sync(source, target, checksum=True)
        assert (report.copied, report.compared) == (1, 39)
        assert contents(target) == OBJECTS
    with pytest.raises(ConfigurationError, match="digest"):
        verify(source, targets[0], checksum=True)


def test_checksum_of_a_migration_trusts_no_journal(tmp_path: Path) -> None:
    source, target = memory(OBJECTS), memory({})
    assert migrate(source, target, journal=tmp_path / "j").copied == 40
    put(target, "1/1", b"???", OLD)
    assert migrate(source, target, journal=tmp_path / "j").skipped["journal"] == 40
    report = migrate(source, target, journal=tmp_path / "j", checksum=True)
    assert (report.copied, report.compared) == (1, 39)
