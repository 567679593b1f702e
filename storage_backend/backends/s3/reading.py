"""One object to be read, as a whole or a range of it; `object_reader` has the seekable reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from storage_backend.backends.s3 import checksums, retries
from storage_backend.backends.s3.errors import is_foreign, response_error_of, translate
from storage_backend.backends.s3.object_head import ObjectHead
from storage_backend.backends.s3.requests import GetResponse
from storage_backend.backends.s3.router import RequestRouter
from storage_backend.backends.s3.settings import S3Settings
from storage_backend.errors import StorageError, UnavailableError
from storage_backend.info import ObjectInfo
from storage_backend.last_seen import LastSeen
from storage_backend.streams import CHUNK

PIECE_MOST = 16 << 20  # bytes of a longer response that are read at a time


@dataclass(frozen=True, slots=True)
class ReadSource:
    """One object to be read.

    Attributes:
        router: that sends requests.
        key: in the bucket.
        identifier: in the caller's spelling.
        settings: of the storage.
        parameters: of each GET (VersionId).
        last_seen: told what `read_whole` and `read_span` saw; not of older versions.
    """

    router: RequestRouter
    key: str
    identifier: str
    settings: S3Settings
    parameters: Mapping[str, Any]
    last_seen: LastSeen

    def saw(self, head: ObjectHead | None) -> None:
        """Note what a read saw; None at its beginning."""
        if head is None or self.parameters:
            self.last_seen.note(None)
            return
        info = ObjectInfo(self.identifier, head.size, head.modified, head.etag, None, head.content_type)
        self.last_seen.note(info)

    def error(self, error: Exception) -> StorageError:
        """Our error for one of S3 or the network.

        Raises:
            Exception: *error* itself, if it is neither.
        """
        if not isinstance(error, OSError) and not is_foreign(error):
            raise error
        return translate(error, self.identifier, self.settings.location, "read")

    def broken(self, reason: str) -> UnavailableError:
        """The error for a response that is not what was asked for."""
        where = self.settings.location
        return UnavailableError(
            f"cannot read {self.identifier!r} in {where}: {reason}", identifier=self.identifier, backend=where
        )

    def get(self, **parameters: Any) -> GetResponse:
        """GetObject.

        Raises:
            StorageError: translated.
        """
        try:
            return self.router.requests.get(self.key, **self.parameters, **parameters)
        except Exception as error:  # noqa: BLE001 - raised as ours
            raise_as(self.error(error), error)


def raise_as(found: StorageError, error: Exception) -> NoReturn:
    """Raise *found*, with *error* as its cause.

    No frame keeps either: with its traceback that would be a cycle, and what a dropped storage held would wait for the
    garbage collector.
    """
    try:
        if found is error:
            raise found
        raise found from error
    finally:
        del found, error


def read_whole(source: ReadSource) -> bytes | None:
    """The object, compared with its length and, where the service gives one, its checksum.

    None if it broke off or came damaged: then `object_reader.read_again` tries once more.
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
        end = start + 1  # an object that is not there must be found out
    source.saw(None)
    try:
        got, content = taken(
            source,
            lambda got: _sliced(source, got, start, end),
            Range=f"bytes={start}-{'' if end is None else end - 1}",
        )
    except StorageError as error:
        refused = response_error_of(error.__cause__)
        if refused is not None and refused.status == 416:
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
    """A response, *got* or a new one, and what *take* reads from it; if its body breaks off, the request is repeated."""
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
    """What was asked for, of a response that may be the whole object or begin before *start*."""
    if got.start > start:
        raise source.broken(f"asked for bytes from {start}, got bytes from {got.start}")
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
        raise source.broken(f"{len(content):,} bytes of {expected:,} came")
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
    """The name of the first digest that can be computed here, if the object has any."""
    for name in head.digests:
        if checksums.known(name):
            return name
    return None


def _has_digest(content: bytes, head: ObjectHead) -> bool:
    """Whether *content* has the digest of the object, where one is known."""
    name = checked_algorithm(head)
    if name is None:
        return True
    running = checksums.RunningDigests(name)
    running.update(content)
    return running.base64(name) == head.digests[name]
