"""Backends with old objects in them, so that size and time prove something."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from storage_backend import MemoryStorage, ObjectInfo, StorageBackend

OLD = datetime(2024, 5, 17, 12, 30, 15, 123456, tzinfo=UTC)


def put(storage: StorageBackend, identifier: str, content: bytes, modified: datetime = OLD) -> None:
    storage.write_stream(identifier, io.BytesIO(content), info=ObjectInfo(identifier, len(content), modified))


def memory(objects: Mapping[str, bytes], modified: datetime = OLD) -> MemoryStorage:
    storage = MemoryStorage()
    for identifier, content in objects.items():
        put(storage, identifier, content, modified)
    return storage


def contents(storage: StorageBackend) -> dict[str, bytes]:
    return {identifier: storage.read(identifier) for identifier in storage.list()}


def later(seconds: float) -> datetime:
    return OLD + timedelta(seconds=seconds)
