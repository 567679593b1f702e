"""S3Hooks: what transfers, caches and displays may ask of a bucket."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from typing_extensions import override

from storage_backend.backends.s3 import looking
from storage_backend.hooks import Hooks
from storage_backend.info import ObjectInfo
from storage_backend.streams import Moved

if TYPE_CHECKING:
    from storage_backend.backends.s3.storage import S3Storage


class S3Hooks(Hooks):
    """The hooks of an S3Storage."""

    def __init__(self, storage: S3Storage) -> None:
        super().__init__(storage)
        self._storage = storage
        self._objects = storage._objects

    @override
    def last_read(self, identifier: str) -> ObjectInfo | None:
        return self._objects.last_seen.take(identifier)

    @override
    def last_written(self, identifier: str) -> ObjectInfo | None:
        return self._objects.receipts.pop(identifier, None)

    @override
    def md5_in(self, info: ObjectInfo) -> str | None:
        # The ETag is no MD5 of an object encrypted with a key of its own ("Object", Amazon S3 API Reference); then no other object has it.
        return info.etag if info.etag is not None and re.fullmatch("[0-9a-f]{32}", info.etag) else None

    @override
    def kept_times(self, identifiers: Iterable[str]) -> Iterator[tuple[str, datetime]]:
        return looking.kept_times(self._objects, identifiers)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str], moved: Moved) -> bool:
        return self._storage._download(identifier, path, moved)

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str, moved: Moved) -> bool:
        return self._storage._upload(path, identifier, moved)

    @override
    def checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        return self._storage._checksum(identifier, algorithm, moved)
