"""What the scans of all backends share: entries that are no objects, and one level of a scan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from storage_backend.errors import InvalidIdentifierError, StorageError
from storage_backend.info import ObjectInfo

logger = logging.getLogger(__name__)

OnSkip: TypeAlias = Callable[[StorageError], object]


class FolderMarkerError(InvalidIdentifierError):
    """An empty entry whose name ends in "/", by which a console shows a folder. Nothing is lost where it is passed over."""


def report_skip(on_skip: OnSkip | None, error: Exception, where: str) -> None:
    """Tell *on_skip*, or the log, of an entry that is no object."""
    if on_skip is None:
        logger.warning("skipped in %s: %s", where, error)
        return
    on_skip(error if isinstance(error, StorageError) else InvalidIdentifierError(str(error), backend=where))


def one_level(infos: Iterable[ObjectInfo], prefix: str) -> Iterator[ObjectInfo | str]:
    """Of objects in order beneath *prefix*: those of the first level, and the others once as "name/"."""
    last = None
    for info in infos:
        name, slash, _ = info.identifier[len(prefix) :].partition("/")
        if not slash:
            yield info
        elif name != last:
            last = name
            yield f"{prefix}{name}/"
