"""S3Hooks: the hooks of an S3Storage for transfers, caches and progress displays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import datetime

from typing_extensions import override

from storage_backend.backends.s3 import batches, downloading
from storage_backend.backends.s3.bucket import Bucket
from storage_backend.backends.s3.object_head import MD5
from storage_backend.base import StorageBackend
from storage_backend.destinations import write_file
from storage_backend.hooks import Hooks, digest_of
from storage_backend.info import ObjectInfo
from storage_backend.streams import Moved, new_digest


class S3Hooks(Hooks):
    """The hooks of an S3Storage."""

    def __init__(self, storage: StorageBackend, bucket: Bucket) -> None:
        super().__init__(storage)
        self._storage = storage
        self._bucket = bucket

    @override
    def last_read(self, identifier: str) -> ObjectInfo | None:
        return self._bucket.last_seen.take(identifier)

    @override
    def last_written(self, identifier: str) -> ObjectInfo | None:
        return self._bucket.receipts.pop(identifier, None)

    @override
    def md5_in(self, info: ObjectInfo) -> str | None:
        # With SSE-KMS or SSE-C the ETag is not an MD5 ("Object", Amazon S3 API Reference), but then it matches no other
        # object's, so a false match is impossible.
        return info.etag if info.etag is not None and MD5.fullmatch(info.etag) else None

    @override
    def kept_times(self, identifiers: Iterable[str]) -> Iterator[tuple[str, datetime]]:
        return batches.kept_times(self._bucket, identifiers)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str], moved: Moved) -> bool:
        source = self._bucket.read_source(identifier, None)
        write_file(path, lambda staged: downloading.fill(source, staged, self._bucket.workers, moved))
        return True

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str, moved: Moved) -> bool:
        self._bucket.upload(path, identifier, moved)
        return True

    @override
    def checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        new_digest(algorithm)
        with self._bucket.translated_errors("read", identifier):
            verified = self._bucket.requests.verifies_checksums
        known = self._bucket.head(identifier, ChecksumMode="ENABLED").digest(algorithm) if verified else None
        return known or digest_of(self._storage, identifier, algorithm, moved)
