"""Lineage: a place and all that encloses it, each as a value that does not depend on the name by which it is reached."""

from __future__ import annotations

import os
from typing import TypeAlias

Lineage: TypeAlias = tuple[object, ...]
"""Values of which each stands for a place that lies in the one before; the last is the place itself."""


def lineage(path: str | os.PathLike[str]) -> Lineage:
    """The lineage of a file or folder, by device and inode; by name from the first on that does not exist."""
    found: Lineage = (_identity("/"),)
    at = "/"
    for name in os.path.realpath(path).split("/"):
        if name:
            at = os.path.join(at, name)  # noqa: PTH118 - many times a call
            found = (*found, _identity(at) or (found[-1], name))
    return found


def within(place: Lineage, prefix: str) -> Lineage:
    """The lineage of what is beneath *prefix*, segments joined by "/", in a place without folders; of the place itself for ""."""
    for segment in filter(None, prefix.split("/")):
        place = (*place, (place[-1], segment))
    return place


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - as above
    except OSError:
        return None
    return found.st_dev, found.st_ino
