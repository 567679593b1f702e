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


class Seven(StorageBackend):
    """What a user writes: the seven methods, in a dictionary, and nothing else."""

    def exists(self, identifier: str) -> bool:
        return identifier in self.objects

    def read(self, identifier: str) -> bytes:
        try:
            return self.objects[identifier]
        except KeyError:
            raise FileNotFoundError(identifier) from None

    def write(self, identifier: str, content: bytes) -> bool:
        assert type(content) is bytes
        self.objects[identifier] = content
        return True

    def delete(self, identifier: str) -> bool:
        self.read(identifier)
        del self.objects[identifier]
        return True

    def list(self, pattern: str | None = None) -> list[str]:
        assert pattern is None
        return [*reversed(self.objects), *self.objects]

    def get_path(self, identifier: str) -> str:
        return identifier

    def size(self, identifier: str) -> int:
        return len(self.read(identifier))

    @property
    def objects(self) -> dict[str, bytes]:
        found: dict[str, bytes] = self.__dict__.setdefault("_objects", {})
        return found
