"""Lists keys page by page, all or one level of them; detects a listing that never ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from storage_backend import identifiers
from storage_backend.backends.s3.requests import ObjectRequests
from storage_backend.backends.s3.xml_documents import ListedObject, ListingPage, unexpected
from storage_backend.errors import InvalidIdentifierError, StorageError
from storage_backend.info import ObjectInfo
from storage_backend.scanning import FolderMarkerError, OnSkip, report_skip

logger = logging.getLogger(__name__)

EMPTY_MOST = (
    1000  # consecutive pages with nothing new; S3 sends some empty ones after many objects were deleted
)


def objects(
    requests: ObjectRequests, root: str, prefix: str, where: str, on_skip: OnSkip | None
) -> Iterator[ObjectInfo]:
    """Every object beneath *root* whose identifier begins with *prefix*, in the order of the UTF-8 bytes.

    Args:
        requests: sends ListObjectsV2.
        root: put before each identifier to make a key: "", or ending in "/".
        prefix: literal.
        where: the storage's location.
        on_skip: called for keys that are not valid identifiers.
    """
    start = root + prefix
    skipped = _SkipReporter(on_skip, where)
    last = None
    for page in _pages(requests, start):
        for entry in page.entries:
            # rclone treats the prefix "/" as "", and lists an object twice after concurrent writes.
            if entry.key == last or not entry.key.startswith(start):
                continue
            last = entry.key
            info = _info(entry, root, where, skipped)
            if info is not None:
                yield info


def level(
    requests: ObjectRequests, root: str, prefix: str, where: str, on_skip: OnSkip | None
) -> Iterator[ObjectInfo | str]:
    """One level: the objects without another "/" after *prefix*; deeper ones once, as "name/"."""
    skipped = _SkipReporter(on_skip, where)
    for page in _pages(requests, root + prefix, "/"):
        found: list[tuple[bytes, ObjectInfo | str]] = []
        for entry in page.entries:
            if not entry.key.startswith(root + prefix):
                continue
            info = _info(entry, root, where, skipped)
            if info is not None:
                found.append((info.identifier.encode(), info))
        for directory in page.prefixes:
            name = directory[len(root) :]
            # Below "a//" no key is a valid identifier; a scan reports each.
            if identifiers.is_valid(name.removesuffix("/")):
                found.append((name.encode(), name))
            else:
                skipped(_unusable(directory, root, where))
        yield from (item for _, item in sorted(found, key=lambda pair: pair[0]))


def _pages(requests: ObjectRequests, start: str, delimiter: str = "") -> Iterator[ListingPage]:
    """All pages of the keys that begin with *start*.

    Raises:
        UnexpectedResponseError: the listing does not end.
    """
    trail = PageLoopDetector()
    token = None
    greatest = ""
    while True:
        page = requests.page(start, delimiter=delimiter, token=token)
        yield page
        token = page.token
        if token is None:
            return
        # Not every service sorts its listing, but none sends many pages that end before an earlier one.
        last = max((*(entry.key for entry in page.entries[-1:]), *page.prefixes[-1:]), default="")
        trail.follow(token, new=last > greatest)
        greatest = max(greatest, last)


def _info(entry: ListedObject, root: str, where: str, skipped: _SkipReporter) -> ObjectInfo | None:
    identifier = entry.key[len(root) :]
    try:
        identifiers.check(identifier)
    except InvalidIdentifierError as error:
        if entry.size == 0 and entry.key.endswith("/"):
            skipped(
                FolderMarkerError(
                    f"the key {entry.key!r} in {where} is not an object, but a folder marker",
                    identifier=identifier,
                    backend=where,
                )
            )
        else:
            skipped(_unusable(entry.key, root, where, error))
        return None
    return ObjectInfo(identifier, entry.size, entry.modified, entry.etag)


class _SkipReporter:
    """Reports keys that are not valid identifiers; logs folder markers only once per listing."""

    def __init__(self, on_skip: OnSkip | None, where: str) -> None:
        self._on_skip = on_skip
        self._where = where
        self._marker = False

    def __call__(self, error: StorageError) -> None:
        if self._on_skip is None and isinstance(error, FolderMarkerError):
            if not self._marker:
                logger.info("skipped, as are all folder markers: %s", error)
            self._marker = True
            return
        report_skip(self._on_skip, error, self._where)


def _unusable(key: str, root: str, where: str, error: Exception | None = None) -> StorageError:
    reason = f": {error}" if error is not None else ""
    return InvalidIdentifierError(
        f"the key {key!r} in {where} is not a valid identifier{reason}",
        identifier=key[len(root) :],
        backend=where,
    )


class PageLoopDetector:
    """Detects cycles in the continuation tokens of one listing, remembering one token at a time."""

    def __init__(self) -> None:
        self._kept: object = None
        self._count = 0
        self._next = 1
        self._empty = 0

    def follow(self, token: object, *, new: bool) -> None:
        """Add the next token; *new*: whether the page before it had anything new.

        Raises:
            UnexpectedResponseError: the listing does not end.
        """
        self._empty = 0 if new else self._empty + 1
        if self._empty > EMPTY_MOST:
            raise unexpected("the end of the listing", f"{self._empty:,} consecutive pages with nothing new")
        if token == self._kept:
            raise unexpected("a new continuation token", f"{token!r} again")
        # Brent's cycle detection: the token to compare is replaced at powers of two, so it finally is one of the cycle
        # ("An improved Monte Carlo factorization algorithm", R. P. Brent, 1980).
        self._count += 1
        if self._count == self._next:
            self._kept = token
            self._next *= 2
