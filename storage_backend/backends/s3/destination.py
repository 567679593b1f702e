"""Destination and StoredObject: the input and the result of a write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from storage_backend.backends.s3.file_parts import FilePart
from storage_backend.backends.s3.router import RequestRouter
from storage_backend.backends.s3.settings import S3Settings
from storage_backend.backends.s3.upload_records import UploadRecords
from storage_backend.threads import WorkerThreads

Piece: TypeAlias = bytes | memoryview | FilePart
"""The body of a PUT, or of a part."""


@dataclass(frozen=True)
class Destination:
    """A key to write to, and how.

    Attributes:
        router: sends the requests.
        settings: the settings of the storage.
        workers: threads that send parts.
        records: records of unfinished uploads.
        key: the full key in the bucket.
        parameters: metadata of the object, with boto3's names.
        conditions: IfMatch or IfNoneMatch.
    """

    router: RequestRouter
    settings: S3Settings
    workers: WorkerThreads
    records: UploadRecords
    key: str
    parameters: Mapping[str, Any]
    conditions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """The result of a write.

    Attributes:
        size: in bytes.
        etag: the ETag that the service returned.
        parts: whether it was uploaded in parts; some services (rclone) later return another ETag for these.
        proven: whether the service verified the checksum, or returned a digest that matches.
    """

    size: int
    etag: str | None
    proven: bool
    parts: bool = False
