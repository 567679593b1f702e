"""Markers: short-lived objects that reveal whether two backends access the same storage."""

from __future__ import annotations

import logging
import os
import re

from storage_backend.base import StorageBackend
from storage_backend.defensive import location_of, store
from storage_backend.errors import ConfigurationError

logger = logging.getLogger(__name__)

STEM = "storage-backend-marker-"
_MARKER = re.compile(rf"(?:.*/)?{STEM}[0-9a-f]{{40}}", re.DOTALL)
_CONTENT = b"storage-backend looks whether two places are one. This object lasts a moment; left behind, it may be deleted.\n"


def fresh(folder: str, pair: str) -> str:
    """A new identifier of a marker.

    Args:
        folder: "", or ending in "/".
        pair: 24 hexadecimal digits that identify its creator.
    """
    return f"{folder}{STEM}{pair}{os.urandom(8).hex()}"


def is_marker(identifier: str) -> bool:
    """Whether *identifier* is that of a marker."""
    return STEM in identifier and _MARKER.fullmatch(identifier) is not None


def write(backend: StorageBackend, marker: str) -> None:
    """Store a marker."""
    store(backend, marker, _CONTENT)


def remove(backend: StorageBackend, marker: str) -> None:
    """Remove a marker. If that fails, a warning is logged."""
    try:
        backend.delete(marker)
    except FileNotFoundError:
        pass
    except Exception as error:  # noqa: BLE001 - a leftover marker is harmless
        logger.warning("%r is left in %s and may be deleted: %s", marker, location_of(backend), error)


def refuse_one_object(one: StorageBackend, source_id: str, other: StorageBackend, dest_id: str) -> None:
    """Refuse two names of one object, before the first is deleted because of the second.

    Raises:
        ConfigurationError: they are one, or the marker was removed meanwhile.
        StorageError: a side is unreachable, or refuses the marker.
    """
    name = fresh("", os.urandom(12).hex())
    here, there = (identifier[: identifier.rfind("/") + 1] + name for identifier in (source_id, dest_id))
    try:
        write(other, there)
        seen = one.exists(here)
        still = other.exists(there)
    finally:
        remove(other, there)
    if seen or not still:
        raise ConfigurationError(
            f"{one.get_path(source_id)} and {other.get_path(dest_id)} "
            + ("are one object under two names" if seen else "cannot be proven to be two objects")
            + "; nothing was deleted",
            parameter="target",
        )
