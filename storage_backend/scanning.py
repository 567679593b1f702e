"""Shared by the scans of all backends: skipped entries, and one level of a scan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from storage_backend.errors import InvalidIdentifierError, StorageError
from storage_backend.info import ObjectInfo

logger = logging.getLogger(__name__)

OnSkip: TypeAlias = Callable[[StorageError], object]


class FolderMarkerError(InvalidIdentifierError):
    """An empty entry whose name ends in "/", which some consoles create to show a folder. Skipping it loses nothing."""


def report_skip(on_skip: OnSkip | None, error: Exception, where: str) -> None:
    """Report an entry that is not an object to *on_skip*, or log it."""
    if on_skip is None:
        logger.warning("skipped in %s: %s", where, error)
        return
    on_skip(error if isinstance(error, StorageError) else InvalidIdentifierError(str(error), backend=where))


def one_level(infos: Iterable[ObjectInfo], prefix: str) -> Iterator[ObjectInfo | str]:
    """Of ordered objects under *prefix*: those of the first level, and for the others "name/", once each."""
    last = None
    for info in infos:
        name, slash, _ = info.identifier[len(prefix) :].partition("/")
        if not slash:
            yield info
        elif name != last:
            last = name
            yield f"{prefix}{name}/"
