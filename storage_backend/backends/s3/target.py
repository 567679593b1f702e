"""Target: where an object goes; Stored: what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from storage_backend.backends.s3.http import FilePart
from storage_backend.backends.s3.records import Records
from storage_backend.backends.s3.service import Service
from storage_backend.backends.s3.settings import Settings
from storage_backend.backends.s3.workers import Workers

Piece: TypeAlias = bytes | memoryview | FilePart
"""The body of a PUT, or of a part."""


@dataclass(frozen=True)
class Target:
    """Where an object goes.

    Attributes:
        service: of the storage.
        settings: of the storage.
        workers: that send parts.
        records: of unfinished uploads.
        key: in the bucket.
        parameters: what the object is given, in boto3's names.
        conditions: IfMatch or IfNoneMatch.
    """

    service: Service
    settings: Settings
    workers: Workers
    records: Records
    key: str
    parameters: Mapping[str, Any]
    conditions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stored:
    """What has been stored.

    Attributes:
        size: in bytes.
        etag: as the service gave it.
        parts: whether it went in parts; then some services show another etag later (rclone does).
        proven: whether the service told, or is known to have checked, a digest of what it stored.
    """

    size: int
    etag: str | None
    proven: bool
    parts: bool = False


def size_of(body: Piece) -> int:
    """The length of a body, in bytes."""
    return body.size if isinstance(body, FilePart) else len(body)
