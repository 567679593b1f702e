"""RemotePath: an object's identifier and path; StagedUpload: a complete file under a temporary name; conversion of SFTP times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from storage_backend.backends.remote.sftp_packets import Attributes
from storage_backend.info import ObjectInfo


class RemotePath(NamedTuple):
    """An object's identifier and the path of its file, relative to the base directory or absolute."""

    identifier: str
    path: bytes


@dataclass(frozen=True)
class StagedUpload:
    """A complete file under a temporary name.

    Attributes:
        temporary: its path.
        old: attributes of what it will replace; None if nothing.
        new: its own attributes after CLOSE.
    """

    temporary: bytes
    old: Attributes | None
    new: Attributes | None = None


def in_seconds(modified: datetime | None) -> int | None:
    """The time in whole seconds since 1970; None if SFTP cannot represent it."""
    return None if modified is None else unambiguous(int(modified.timestamp() // 1))


def unambiguous(seconds: int | None) -> int | None:
    """*seconds*, or None if ambiguous: from 2**31 (2038) on it may be a time before 1970, modulo 2**32."""
    return seconds if seconds is not None and 0 <= seconds < 1 << 31 else None


def info_of(identifier: str, attributes: Attributes) -> ObjectInfo:
    """The ObjectInfo of an object with these attributes."""
    seconds = unambiguous(attributes.modified)
    modified = None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return ObjectInfo(identifier, attributes.size, modified)
