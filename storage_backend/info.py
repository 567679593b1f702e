"""ObjectInfo and Capability: what is known of an object, and of a backend."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a backend knows of one object without reading it.

    Attributes:
        identifier: its name.
        size: its length in bytes; None where that would cost a request.
        modified: when it last changed, aware, in UTC; None where unknown.
        etag: opaque; equal means unchanged. None rather than a weak one, and never parsed.
        sha256: lower-case hex, only where the store vouches for it.
        content_type: its media type, where the store keeps one.
    """

    identifier: str
    size: int | None = None
    modified: datetime | None = None
    etag: str | None = None
    sha256: str | None = None
    content_type: str | None = None


class Capability(enum.Flag):
    """What a backend can do beyond what all can. Each flag belongs to a method, which raises UnsupportedOperationError without it or does it more slowly."""

    CREATE = enum.auto()
    """`create` is atomic."""
    REPLACE = enum.auto()
    """`replace` is atomic."""
    URL = enum.auto()
    """`get_url` gives a URL."""
    RANGES = enum.auto()
    """`read_range` moves only the range."""
    SERVER_COPY = enum.auto()
    """`copy` moves no bytes through this process."""
    CHECKSUM = enum.auto()
    """`checksum` moves no bytes through this process."""
    DIRECTORIES = enum.auto()
    """There are directories underneath: `a` and `a/b` cannot both be objects."""
    FLUSH = enum.auto()
    """`flush` makes all writes so far survive power loss."""
