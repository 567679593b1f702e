"""Lineage: a location and all its ancestors, as values that do not depend on the path used (device and inode)."""

from __future__ import annotations

import os
from typing import TypeAlias

Lineage: TypeAlias = tuple[object, ...]
"""One value for each ancestor, outermost first; the last is the location itself."""


def lineage(path: str | os.PathLike[str]) -> Lineage:
    """The lineage of a file or folder, by device and inode; by name from the first missing component."""
    found: Lineage = (_identity("/"),)
    at = "/"
    for name in os.path.realpath(path).split("/"):
        if name:
            at = os.path.join(at, name)  # noqa: PTH118 - many times a call
            found = (*found, _identity(at) or (found[-1], name))
    return found


def within(place: Lineage, prefix: str) -> Lineage:
    """The lineage of *prefix*, segments joined by "/", in a store without folders; of the store itself for ""."""
    for segment in filter(None, prefix.split("/")):
        place = (*place, (place[-1], segment))
    return place


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - as above
    except OSError:
        return None
    return found.st_dev, found.st_ino
