"""MemoryStorage: a dictionary under a lock. The reference implementation: read it first."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO

from typing_extensions import override

from storage_backend import identifiers, url_escaping
from storage_backend.base import Identifiers, StorageBackend, not_found
from storage_backend.errors import PreconditionFailedError
from storage_backend.hooks import Hooks
from storage_backend.info import Capability, ObjectInfo
from storage_backend.scanning import OnSkip
from storage_backend.streams import (
    Content,
    check_arrived,
    check_range,
    plain,
    read_all,
    sha256,
    whole,
)


@dataclass(frozen=True, slots=True)
class _MemoryObject:
    content: bytes
    modified: datetime
    etag: str
    content_type: str | None = None


class MemoryStorage(StorageBackend):
    """Objects in the memory of this process.

    A pickle and a forked child have a copy of the objects; writes to the copy do not change the original.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _MemoryObject] = {}
        self._version = 0
        self._locks: dict[int, threading.RLock] = {}
        self._token = os.urandom(8).hex()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {
                "_entries": dict(self._entries),
                "_version": self._version,
                "_locks": {},
                "_token": os.urandom(8).hex(),
            }

    @property
    def _lock(self) -> threading.RLock:
        """This process's lock. One per process: a lock held by another thread during a fork is never released in the child."""
        return self._locks.setdefault(os.getpid(), threading.RLock())

    @override
    def exists(self, identifier: str) -> bool:
        return identifiers.is_valid(identifier) and identifier in self._entries

    @override
    def read(self, identifier: str) -> bytes:
        return self._entry(identifier).content

    @override
    def write(self, identifier: str, content: Content) -> bool:
        identifiers.check(identifier)
        content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        self._store(identifier, content)
        return True

    @override
    def delete(self, identifier: str) -> bool:
        identifiers.check(identifier)
        with self._lock:
            if self._entries.pop(identifier, None) is None:
                raise not_found(identifier, self.location)
        return True

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        glob = identifiers.glob(pattern) if pattern is not None else None
        names = (info.identifier for info in self.scan(glob.stem if glob else ""))
        return [name for name in names if glob is None or glob.matches(name)]

    @override
    def get_path(self, identifier: str) -> str:
        identifiers.check(identifier)
        return f"memory:{url_escaping.escaped(identifier)}"

    @override
    def size(self, identifier: str) -> int:
        return len(self._entry(identifier).content)

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        identifiers.check(dest_id)
        with self._lock:
            entry = self._entry(source_id)
            if source_id != dest_id:
                self._store(dest_id, entry.content, entry.modified, entry.content_type)
        return True

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        with self._lock:
            self.copy(source_id, dest_id)
            if source_id != dest_id:
                del self._entries[source_id]
        return True

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        identifiers.check(identifier)
        content = read_all(reader)
        check_arrived(info, identifier, len(content), sha256(content) if verify else None)
        info = info or ObjectInfo(identifier)
        self._store(identifier, content, info.modified, info.content_type)
        return True

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        return _info(identifier, self._entry(identifier))

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        with self._lock:
            found = [item for item in self._entries.items() if item[0].startswith(prefix)]
        found.sort(key=lambda item: identifiers.encode(item[0]))
        return (_info(identifier, entry) for identifier, entry in found)

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        check_range(start, end)
        return self._entry(identifier).content[start:end]

    @override
    def create(self, identifier: str, content: Content) -> bool:
        identifiers.check(identifier)
        stored = whole(content)
        with self._lock:
            if identifier in self._entries:
                return False
            self._store(identifier, stored)
        return True

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        identifiers.check(identifier)
        stored = whole(content)
        with self._lock:
            entry = self._entries.get(identifier)
            if entry is None or entry.etag != etag:
                raise PreconditionFailedError(
                    f"{identifier!r} in {self.location} is {'gone' if entry is None else 'another version'}",
                    identifier=identifier,
                    backend=self.location,
                )
            return self._store(identifier, stored).etag

    @property
    @override
    def capabilities(self) -> Capability:
        return Capability.CREATE | Capability.REPLACE | Capability.RANGES | Capability.SERVER_COPY

    @property
    @override
    def keeps_modified(self) -> bool:
        return True

    @property
    @override
    def hooks(self) -> Hooks:
        return _MemoryHooks(self)

    def _entry(self, identifier: str) -> _MemoryObject:
        identifiers.check(identifier)
        entry = self._entries.get(identifier)
        if entry is None:
            raise not_found(identifier, self.location)
        return entry

    def _store(
        self,
        identifier: str,
        content: bytes,
        modified: datetime | None = None,
        content_type: str | None = None,
    ) -> _MemoryObject:
        with self._lock:
            self._version += 1
            entry = _MemoryObject(content, modified or datetime.now(UTC), str(self._version), content_type)
            self._entries[identifier] = entry
        return entry


class _MemoryHooks(Hooks):
    def __init__(self, storage: MemoryStorage) -> None:
        super().__init__(storage)
        self._token = storage._token

    @property
    @override
    def is_near(self) -> bool:
        return True

    @property
    @override
    def instance(self) -> str:
        return self._token


def _info(identifier: str, entry: _MemoryObject) -> ObjectInfo:
    return ObjectInfo(
        identifier, len(entry.content), entry.modified, entry.etag, content_type=entry.content_type
    )
