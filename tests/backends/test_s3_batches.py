"""S3Storage: batches whose objects are handed to threads in groups."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator

import pytest

from storage_backend import AccessDeniedError, BatchError, NotFoundError, S3Storage
from storage_backend.backends.s3 import batches
from storage_backend.testing.subject import content_of, same
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_server_faults import reply


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket("bucket")
        yield server


@pytest.fixture
def storage(server: S3Server) -> Iterator[S3Storage]:
    with S3Storage(
        "bucket",
        endpoint_url=server.url,
        region=server.region,
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        max_concurrency=4,
    ) as storage:
        yield storage


def test_large_ones_among_small_ones(storage: S3Storage) -> None:
    # A group that turns out large is handed over in pieces.
    sizes = (
        [10] * 100 + [batches.GROUP_BYTES // 2 + 1] * 24 + [0] * 50 + [3 * batches.GROUP_BYTES] * 4 + [5] * 50
    )
    objects = {f"{number:04}": content_of(size, seed=number) for number, size in enumerate(sizes)}
    assert storage.write_many(objects.items()) == len(objects)
    assert same(dict(storage.read_many(objects)), objects)


def test_last_of_a_repeated_identifier_stays_in_a_group_too(server: S3Server, storage: S3Storage) -> None:
    names = [f"{number % 7}" for number in range(500)]
    random.Random(1).shuffle(names)
    items = [(name, b"%d" % number) for number, name in enumerate(names)]
    assert storage.write_many(items) == 500
    assert server.objects("bucket") == dict(items)


def test_failure_of_one_is_not_that_of_its_group(server: S3Server, storage: S3Storage) -> None:
    names = [f"{number:03}" for number in range(200)]
    for name in names:
        server.put("bucket", name, name.encode())
    asked = [name for pair in zip(names, [f"gone/{name}" for name in names], strict=True) for name in pair]
    found: dict[str, bytes] = {}
    with pytest.raises(BatchError) as caught:
        found.update(storage.read_many(asked))
    assert found == {name: name.encode() for name in names}
    assert sorted(caught.value.failures) == [f"gone/{name}" for name in names]
    assert all(isinstance(error, NotFoundError) for error in caught.value.failures.values())
    with pytest.raises(BatchError) as caught:
        storage.write_many(
            (name if number % 3 else f"../{name}", b"new") for number, name in enumerate(names)
        )
    assert len(caught.value.failures) == 67
    assert sum(content == b"new" for content in server.objects("bucket").values()) == 133


def test_abandoned_batch_leaves_nothing_under_way(server: S3Server, storage: S3Storage) -> None:
    names = [f"{number:03}" for number in range(300)]
    for name in names:
        server.put("bucket", name, name.encode())
    found = storage.read_many(names)
    assert isinstance(found, Generator)
    for _ in range(100):
        next(found)
    found.close()
    count = len(server.actions)
    assert storage.read("000") == b"000"
    assert len(server.actions) == count + 1


@pytest.mark.parametrize("status", [501, 405])
@pytest.mark.parametrize("own", [True, False])
def test_a_service_without_batches_of_deletes_is_asked_once(
    server: S3Server, storage: S3Storage, status: int, own: bool
) -> None:
    names = [f"{number:03}" for number in range(50)]
    for name in names:
        server.put("bucket", name, b"")
    server.faults.add(reply(status, "NotImplemented"), "DeleteObjects", times=None)
    server.faults.add(reply(404, "NoSuchKey"), "DeleteObject", key="gone", times=None)  # as Google answers
    server.deny(["s3:DeleteObject"], "kept")
    server.put("bucket", "kept", b"")
    if not own:
        storage = S3Storage("bucket", client=storage.client)
    assert storage.delete_many(["gone", *names[:30]]) == 31
    with pytest.raises(BatchError) as caught:
        storage.delete_many([*names[30:], "kept", "a\vb"])
    assert {name: type(error) for name, error in caught.value.failures.items()} == {"kept": AccessDeniedError}
    assert list(server.objects("bucket")) == ["kept"]
    assert [record.operation for record in server.actions].count("DeleteObjects") == 1
    assert storage.delete_many(["again"]) == 1
