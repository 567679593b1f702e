"""ObjectInfo: the metadata of an object; Capability: the optional features of a backend."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

# Kernels round file times to a clock tick, SFTP to seconds: a second write within this time may leave size and time
# unchanged (git calls such a file "racily clean": Documentation/technical/racy-git).
RACY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """The metadata that a backend knows of an object without reading it.

    Attributes:
        identifier: its name.
        size: its length in bytes; None where that would cost a request.
        modified: when it last changed, aware, in UTC; None where unknown.
        etag: opaque; equal means unchanged. None rather than a weak one, and never parsed.
        sha256: lower-case hex, only where the backend guarantees it.
        content_type: its media type, where the backend keeps one.
    """

    identifier: str
    size: int | None = None
    modified: datetime | None = None
    etag: str | None = None
    sha256: str | None = None
    content_type: str | None = None


def is_racy(modified: float, looked: float) -> bool:
    """Whether an object with that time, seen at *looked*, may change again without a change of its time."""
    return modified >= looked - RACY_SECONDS


class Capability(enum.Flag):
    """Optional features of a backend. Without its flag, a method is slower or raises UnsupportedOperationError."""

    CREATE = enum.auto()
    """`create` is atomic."""
    REPLACE = enum.auto()
    """`replace` is atomic."""
    URL = enum.auto()
    """`get_url` returns a URL."""
    RANGES = enum.auto()
    """`read_range` transfers only the range."""
    SERVER_COPY = enum.auto()
    """`copy` transfers no bytes through this process."""
    CHECKSUM = enum.auto()
    """`checksum` transfers no bytes through this process."""
    DIRECTORIES = enum.auto()
    """The store has directories: `a` and `a/b` cannot both be objects."""
    FLUSH = enum.auto()
    """`flush` makes all earlier writes survive power loss."""
