"""Reads one object as a whole or a range of it; `object_reader` has the seekable reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from storage_backend.backends.s3 import checksums, retries
from storage_backend.backends.s3.errors import is_foreign, is_refusal, translate
from storage_backend.backends.s3.object_head import ObjectHead
from storage_backend.backends.s3.requests import GetResponse
from storage_backend.backends.s3.router import RequestRouter
from storage_backend.backends.s3.settings import S3Settings
from storage_backend.errors import StorageError, UnavailableError
from storage_backend.info import ObjectInfo
from storage_backend.last_seen import LastSeen
from storage_backend.streams import CHUNK

PIECE_MOST = 16 << 20  # bytes read at a time of a response that is longer than the range


@dataclass(frozen=True, slots=True)
class ReadSource:
    """One object to be read.

    Attributes:
        router: sends the requests.
        key: the full key in the bucket.
        identifier: the object's identifier.
        settings: the settings of the storage.
        parameters: parameters of each GET (VersionId).
        last_seen: records the metadata of what was read, except of older versions.
    """

    router: RequestRouter
    key: str
    identifier: str
    settings: S3Settings
    parameters: Mapping[str, Any]
    last_seen: LastSeen

    def saw(self, head: ObjectHead | None) -> None:
        """Record the metadata of what was read; None when a read begins."""
        if head is None or self.parameters:
            self.last_seen.note(None)
            return
        info = ObjectInfo(self.identifier, head.size, head.modified, head.etag, None, head.content_type)
        self.last_seen.note(info)

    def error(self, error: Exception) -> StorageError:
        """Translate an error of S3 or the network.

        Raises:
            Exception: *error* itself, if it is any other.
        """
        if not isinstance(error, OSError) and not is_foreign(error):
            raise error
        return translate(error, self.identifier, self.settings.location, "read")

    def broken(self, reason: str) -> UnavailableError:
        """The error for a response that does not match the request."""
        where = self.settings.location
        return UnavailableError(
            f"cannot read {self.identifier!r} in {where}: {reason}", identifier=self.identifier, backend=where
        )

    def get(self, **parameters: Any) -> GetResponse:
        """GetObject.

        Raises:
            StorageError: the translated error.
        """
        try:
            return self.router.requests.get(self.key, **self.parameters, **parameters)
        except Exception as error:  # noqa: BLE001 - raised as ours
            raise_as(self.error(error), error)


def raise_as(found: StorageError, error: Exception) -> NoReturn:
    """Raise *found*, with *error* as its cause.

    No frame keeps a reference to either: with the traceback it would be a cycle, which keeps the connections of a dropped
    storage open until a garbage collection.
    """
    try:
        if found is error:
            raise found
        raise found from error
    finally:
        del found, error


def read_whole(source: ReadSource) -> bytes | None:
    """The object, if its length and, where the service returns one, its checksum match.

    None if the response broke off or is damaged: then the caller calls `object_reader.read_again`.
    """
    source.saw(None)
    got = source.get()
    try:
        content = got.body.read()
    except Exception as error:  # noqa: BLE001 - raised as ours
        found = source.error(error)
        try:
            if not found.retryable:
                raise_as(found, error)
        finally:
            del found
        return None
    finally:
        got.body.close()
    expected = got.head.size if got.length is None else got.length
    if expected not in {None, len(content)} or not _has_digest(content, got.head):
        return None
    source.saw(got.head)
    return content


def read_span(source: ReadSource, start: int, end: int | None) -> bytes:
    """The bytes of [start, end)."""
    empty = end is not None and end <= start
    if empty:
        end = start + 1  # requests a byte all the same, since a missing object must be an error
    source.saw(None)
    try:
        got, content = taken(
            source,
            lambda got: _sliced(source, got, start, end),
            Range=f"bytes={start}-{'' if end is None else end - 1}",
        )
    except StorageError as error:
        if is_refusal(error.__cause__, 416):
            return b""
        raise
    source.saw(got.head)
    return b"" if empty else content


def taken(
    source: ReadSource,
    take: Callable[[GetResponse], bytes],
    got: GetResponse | None = None,
    **parameters: str,
) -> tuple[GetResponse, bytes]:
    """A response (*got*, or a new one) and the result of *take* for it; if the body breaks off, the request is repeated."""
    attempt = 0
    while True:
        attempt += 1
        got = got or source.get(**parameters)
        try:
            return got, take(got)
        except Exception as error:  # noqa: BLE001 - raised as ours
            delay = delay_or_raise(source, error, attempt)
        finally:
            got.body.close()
        got = None
        source.settings.sleep(delay)


def delay_or_raise(source: ReadSource, error: Exception, attempt: int) -> float:
    """Seconds to wait before the next attempt; if there is none, raise *error* as ours."""
    found = source.error(error)
    try:
        delay = retries.read_delay(found, attempt, source.settings.attempts)
        if delay is None:
            # A failed request has counted its own attempts.
            found.attempts = max(found.attempts, attempt)
            raise_as(found, error)
        return delay
    finally:
        del found  # its traceback leads to this frame


def _sliced(source: ReadSource, got: GetResponse, start: int, end: int | None) -> bytes:
    """The requested range from a response that may be the whole object or begin before *start*."""
    if got.start > start:
        raise source.broken(f"requested bytes from {start}, received bytes from {got.start}")
    skipped = 0
    while skipped < start - got.start:
        piece = got.body.read(min(CHUNK, start - got.start - skipped))
        if not piece:
            break
        skipped += len(piece)
    content = got.body.read() if end is None else _exactly(got, end - start)
    whole = got.head.size
    expected = None if whole is None else max(0, min(whole, whole if end is None else end) - start)
    if expected is not None and len(content) != expected:
        raise source.broken(f"received {len(content):,} of {expected:,} bytes")
    return content


def _exactly(got: GetResponse, size: int) -> bytes:
    if got.length is not None and got.length <= size:
        return got.body.read()
    pieces = []
    while size > 0 and (piece := got.body.read(min(size, PIECE_MOST))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def checked_algorithm(head: ObjectHead) -> str | None:
    """The first algorithm among the object's digests that can be computed here; None if there is none."""
    for name in head.digests:
        if checksums.known(name):
            return name
    return None


def _has_digest(content: bytes, head: ObjectHead) -> bool:
    """Whether *content* matches the digest of the object, if one is known."""
    name = checked_algorithm(head)
    if name is None:
        return True
    running = checksums.running_digest(name)
    running.update(content)
    return checksums.base64_of(running.digest()) == head.digests[name]
