"""What a display is told of the bytes of single objects: all of them, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage_backend import (
    CompressedStorage,
    DatabaseStorage,
    LocalStorage,
    MemoryStorage,
    PrefixedStorage,
    ReadOnlyStorage,
    S3Storage,
    StorageBackend,
)
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

SIZE = 12 << 20
CONTENT = bytes(range(256)) * (SIZE >> 8)


def bucket() -> Iterator[StorageBackend]:
    with S3Server() as server:
        server.create_bucket("bucket")
        with S3Storage(
            "bucket",
            endpoint_url=server.url,
            region="us-east-1",
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            multipart_threshold=5 << 20,
            multipart_chunk_size=5 << 20,
        ) as storage:
            yield storage


MAKE: dict[str, Callable[[Path], StorageBackend]] = {
    "memory": lambda _: MemoryStorage(),
    "local": LocalStorage,
    "sqlite": lambda folder: DatabaseStorage(f"sqlite:///{folder}/x.db"),
    "prefixed": lambda folder: PrefixedStorage(LocalStorage(folder), "in/it"),
    "compressed": lambda _: CompressedStorage(MemoryStorage()),
}


@pytest.fixture(params=[*MAKE, "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageBackend]:
    (tmp_path / "store").mkdir()
    if request.param == "s3":
        yield from bucket()
        return
    with MAKE[request.param](tmp_path / "store") as backend:
        yield backend


def test_all_bytes_are_told_once(storage: StorageBackend, tmp_path: Path) -> None:
    file, copy = tmp_path / "file", tmp_path / "copy"
    file.write_bytes(CONTENT)
    moved: list[int] = []
    assert storage.hooks.upload(file, "large", moved.append)
    assert sum(moved) == SIZE
    moved.clear()
    assert storage.hooks.download("large", copy, moved.append)
    assert sum(moved) == SIZE
    assert copy.read_bytes() == CONTENT
    moved.clear()
    digest = storage.hooks.checksum("large", "sha256", moved.append)
    assert digest == storage.checksum("large")
    assert sum(moved) == SIZE
    moved.clear()
    assert ReadOnlyStorage(storage).hooks.download("large", copy, moved.append)
    assert sum(moved) == SIZE
