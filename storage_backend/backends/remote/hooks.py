"""RemoteHooks: what transfers, caches and displays may ask of a server reached by SSH."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from typing_extensions import override

from storage_backend.backends.remote import listing
from storage_backend.backends.remote.operations import in_seconds
from storage_backend.hooks import Hooks
from storage_backend.info import ObjectInfo
from storage_backend.streams import Moved

if TYPE_CHECKING:
    from storage_backend.backends.remote.storage import RemoteStorage


class RemoteHooks(Hooks):
    """The hooks of a RemoteStorage."""

    def __init__(self, storage: RemoteStorage) -> None:
        super().__init__(storage)
        self._storage = storage
        self._objects = storage._objects

    @override
    def last_read(self, identifier: str) -> ObjectInfo | None:
        return self._objects.last_seen.take(identifier)

    @override
    def last_written(self, identifier: str) -> ObjectInfo | None:
        found = self._objects.receipts.pop(identifier, None)
        return None if found is None or found.size is None else listing.info_of(identifier, found)

    @override
    def sha256_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, str]]:
        found = self._objects.digests(map(self._storage._place, identifiers))
        return ((place.identifier, digest) for place, digest in found.items())

    @override
    def keeps_time(self, modified: datetime) -> bool:
        return in_seconds(modified) is not None

    @override
    def tidy(self) -> int:
        return self._storage._tidy()

    @override
    def download(self, identifier: str, path: str | os.PathLike[str], moved: Moved) -> bool:
        return self._storage._download(identifier, path, moved)

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str, moved: Moved) -> bool:
        return self._storage._upload(path, identifier, moved)

    @override
    def checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        return self._storage._checksum(identifier, algorithm, moved)
