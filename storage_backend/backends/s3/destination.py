"""Where an object is stored, and what was stored there."""

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
    """Where an object is stored.

    Attributes:
        router: of the storage.
        settings: of the storage.
        workers: that send parts.
        records: of unfinished uploads.
        key: in the bucket.
        parameters: what the object is given, in boto3's names.
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
    """What was stored.

    Attributes:
        size: in bytes.
        etag: as the service gave it.
        parts: whether it was uploaded in parts; some services then show another etag later (rclone does).
        proven: whether the service told, or is known to have checked, a digest of what it stored.
    """

    size: int
    etag: str | None
    proven: bool
    parts: bool = False
