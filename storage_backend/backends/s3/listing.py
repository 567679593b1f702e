"""Listing: pages of keys as objects, or as one level of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from storage_backend import identifiers
from storage_backend.backends.s3.calls import Calls
from storage_backend.backends.s3.documents import Entry, Page
from storage_backend.backends.s3.paging import Trail
from storage_backend.errors import InvalidIdentifierError, StorageError
from storage_backend.info import ObjectInfo
from storage_backend.scanning import FolderMarkerError, OnSkip, report_skip

logger = logging.getLogger(__name__)


def objects(calls: Calls, root: str, prefix: str, where: str, on_skip: OnSkip | None) -> Iterator[ObjectInfo]:
    """Every object beneath *root* whose identifier begins with *prefix*, in the order of S3, which is ours.

    Args:
        calls: of the service.
        root: what stands before each identifier: "", or ending in "/".
        prefix: literal.
        where: the storage's location.
        on_skip: hears of keys that are no identifiers.
    """
    start = root + prefix
    skipped = _Skipped(on_skip, where)
    last = None
    for page in _pages(calls, start):
        for entry in page.entries:
            # rclone takes the prefix "/" for "", and names an object twice that several have just written.
            if entry.key == last or not entry.key.startswith(start):
                continue
            last = entry.key
            info = _info(entry, root, where, skipped)
            if info is not None:
                yield info


def level(
    calls: Calls, root: str, prefix: str, where: str, on_skip: OnSkip | None
) -> Iterator[ObjectInfo | str]:
    """One level of it: the objects without a further "/" after *prefix*, and the others once as "name/"."""
    skipped = _Skipped(on_skip, where)
    for page in _pages(calls, root + prefix, "/"):
        found: list[tuple[bytes, ObjectInfo | str]] = []
        for entry in page.entries:
            if not entry.key.startswith(root + prefix):
                continue
            info = _info(entry, root, where, skipped)
            if info is not None:
                found.append((info.identifier.encode(), info))
        for directory in page.prefixes:
            name = directory[len(root) :]
            # "a//": what is beneath has no identifier; a scan names it.
            if identifiers.is_valid(name.removesuffix("/")):
                found.append((name.encode(), name))
            else:
                skipped(_unusable(directory, root, where))
        yield from (item for _, item in sorted(found, key=lambda pair: pair[0]))


def _pages(calls: Calls, start: str, delimiter: str = "") -> Iterator[Page]:
    """All pages of what begins with *start*.

    Raises:
        DocumentError: there is no end to them.
    """
    trail = Trail()
    token = None
    greatest = ""
    while True:
        page = calls.page(start, delimiter=delimiter, token=token)
        yield page
        token = page.token
        if token is None:
            return
        # Not every service lists in order, but none gives many pages that end before those that it gave.
        last = max((*(entry.key for entry in page.entries[-1:]), *page.prefixes[-1:]), default="")
        trail.follow(token, new=last > greatest)
        greatest = max(greatest, last)


def _info(entry: Entry, root: str, where: str, skipped: _Skipped) -> ObjectInfo | None:
    identifier = entry.key[len(root) :]
    try:
        identifiers.check(identifier)
    except InvalidIdentifierError as error:
        if entry.size == 0 and entry.key.endswith("/"):
            skipped(
                FolderMarkerError(
                    f"the key {entry.key!r} in {where} is no object, but the marker of a folder",
                    identifier=identifier,
                    backend=where,
                )
            )
        else:
            skipped(_unusable(entry.key, root, where, error))
        return None
    return ObjectInfo(identifier, entry.size, entry.modified, entry.etag)


class _Skipped:
    """Tells of what is no object; the log, of the markers of folders only once a listing."""

    def __init__(self, on_skip: OnSkip | None, where: str) -> None:
        self._on_skip = on_skip
        self._where = where
        self._marker = False

    def __call__(self, error: StorageError) -> None:
        if self._on_skip is None and isinstance(error, FolderMarkerError):
            if not self._marker:
                logger.info("skipped, as are all markers of folders: %s", error)
            self._marker = True
            return
        report_skip(self._on_skip, error, self._where)


def _unusable(key: str, root: str, where: str, error: Exception | None = None) -> StorageError:
    reason = f": {error}" if error is not None else ""
    return InvalidIdentifierError(
        f"the key {key!r} in {where} is no identifier{reason}", identifier=key[len(root) :], backend=where
    )
