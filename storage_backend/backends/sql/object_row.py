"""ObjectRow: a row of the table of objects, and the versions that rows point to."""

from __future__ import annotations

import functools
import itertools
import os
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from storage_backend import owners
from storage_backend.info import ObjectInfo

CHUNK_SIZE = 512 << 10  # bytes; half of it is slower on both databases, twice of it is not faster
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class ObjectRow(NamedTuple):
    """A row of `sb_objects`; the fields are columns.

    Attributes:
        name: the identifier's bytes.
        version: of the chunks that hold the object's bytes; in hexadecimal it is the etag.
        size: of the object, in bytes.
        chunk_size: of each of its chunks except the last, in bytes.
        sha256: of the bytes that were written.
        modified: microseconds since 1970 in UTC.
        content_type: its media type.
    """

    name: bytes
    version: bytes
    size: int
    chunk_size: int
    sha256: bytes
    modified: int
    content_type: str | None = None

    @property
    def chunks(self) -> int:
        """The number of chunks."""
        return -(-self.size // self.chunk_size)

    def info(self, identifier: str) -> ObjectInfo:
        """The ObjectInfo of the row, without the digest: it is of the bytes as written, which may have been damaged since."""
        modified = _EPOCH + self.modified * _MICROSECOND
        return ObjectInfo(identifier, self.size, modified, self.version.hex(), content_type=self.content_type)


def new_row(
    identifier: str, version: bytes, size: int, sha256: str, info: ObjectInfo | None = None
) -> ObjectRow:
    """The row of a new object. Its modification time is that of *info*, else now."""
    modified = info.modified if info is not None and info.modified is not None else datetime.now(UTC)
    return ObjectRow(
        identifier.encode(),
        version,
        size,
        CHUNK_SIZE,
        bytes.fromhex(sha256),
        (modified - _EPOCH) // _MICROSECOND,
        info.content_type if info is not None else None,
    )


def new_version() -> bytes:
    """A unique version: 6 bytes of time, so that new rows are adjacent; 7 that identify the process; 3 of a counter."""
    tag, numbers = _numbers(os.getpid())
    return (
        (time.time_ns() // 1_000_000).to_bytes(6, "big") + tag + (next(numbers) & 0xFFFFFF).to_bytes(3, "big")
    )


def tag_of(version: bytes) -> bytes:
    """The tag (`owners.tag`) of the process that created a version."""
    return version[6:13]


@functools.lru_cache(maxsize=1)
def _numbers(pid: int) -> tuple[bytes, Iterator[int]]:  # noqa: ARG001 - a forked child needs its own
    return owners.tag(), itertools.count(secrets.randbits(24))


def version_of(etag: str) -> bytes | None:
    """The version of an etag; None if *etag* is not one."""
    try:
        version = bytes.fromhex(etag)
    except (ValueError, TypeError):
        return None
    return version if version.hex() == etag else None
