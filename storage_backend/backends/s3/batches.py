"""Reads, writes, deletes and looks up many objects by parallel requests, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import TypeAlias, TypeVar

from storage_backend.backends.s3.bucket import Bucket
from storage_backend.backends.s3.errors import is_refusal, translate
from storage_backend.backends.s3.parallel import ParallelTasks
from storage_backend.backends.s3.xml_documents import EmbeddedError, ErrorDocument, can_be_xml
from storage_backend.base import Identifiers, Item
from storage_backend.errors import FATAL, Failures, StorageError
from storage_backend.info import ObjectInfo
from storage_backend.streams import plain

T = TypeVar("T")

BATCH = 1000  # keys that one DeleteObjects takes ("DeleteObjects", Amazon S3 API Reference)
UNDER_WAY_MOST = 64 << 20  # bytes of one batch that are in memory at a time

GROUP = 8  # small objects per task: starting a task costs as much as half a request
GROUP_BYTES = 1 << 20  # of a group; an object of this size is a task of its own

_MTIME = re.compile(r"-?\d{1,12}(\.\d{1,9})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Item: TypeAlias = tuple[ObjectInfo, bytes]
_Outcome: TypeAlias = tuple[str, bytes, Exception | None]


def read_many(
    bucket: Bucket, read: Callable[[str], bytes], identifiers: Iterable[str]
) -> Iterator[tuple[str, bytes]]:
    """Each identifier with its content, in the order of arrival; *read* reads one object."""
    failures = Failures()
    window = _BatchWindow(bucket.settings.max_concurrency)
    tasks: ParallelTasks[Sequence[str], tuple[list[_Outcome], Sequence[str]]]
    with ParallelTasks(bucket.workers, partial(_read_group, read)) as tasks:
        for _, found, error in tasks.map(_grouped(identifiers, window), window.now):
            if error is not None:
                raise error
            outcomes, rest = found
            if rest:
                tasks.submit(rest)
            for identifier, content, failure in outcomes:
                if failure is None:
                    window.learn(len(content))
                    yield identifier, content
                else:
                    failures.note(identifier, failure)
    failures.raise_any("read", bucket.location)


def write_many(bucket: Bucket, items: Iterable[Item], *, verify: bool) -> int:
    """Store each item; return how many were stored."""
    failures = Failures()
    window = _BatchWindow(bucket.settings.max_concurrency)
    under_way: set[str] = set()
    stored = 0
    tasks: ParallelTasks[Sequence[_Item], list[_Outcome]]
    with ParallelTasks(bucket.workers, partial(_write_group, bucket, verify)) as tasks:
        for _, outcomes, error in tasks.map(_grouped_items(items, window, under_way), window.now):
            if error is not None:
                raise error
            for identifier, content, failure in outcomes:
                under_way.discard(identifier)
                window.learn(len(content))
                if failure is not None:
                    failures.note(identifier, failure)
                    continue
                failures.errors.pop(identifier, None)
                stored += 1
    failures.raise_any("write", bucket.location)
    return stored


def delete_many(bucket: Bucket, identifiers: Iterable[str]) -> int:
    """Delete each object, present or not; return the number of distinct identifiers."""
    failures = Failures()
    seen: set[str] = set()
    batch: Identifiers = []
    for identifier in identifiers:
        if identifier in seen:
            continue
        seen.add(identifier)
        batch.append(identifier)
        if len(batch) == BATCH:
            _delete(bucket, batch, failures)
            batch = []
    if batch:
        _delete(bucket, batch, failures)
    failures.raise_any("delete", bucket.location)
    return len(seen)


def kept_times(bucket: Bucket, identifiers: Iterable[str]) -> Iterator[tuple[str, datetime]]:
    """The modification time of each object's source, if it is in the object's metadata."""

    def look(identifier: str) -> tuple[str, datetime | None]:
        with bucket.translated_errors("look up", identifier):
            return identifier, _time_in(bucket.head(identifier).metadata.get("mtime", ""))

    for identifier, moment in look_up(bucket, look, identifiers):
        if moment is not None:
            yield identifier, moment


def _time_in(text: str) -> datetime | None:
    """The time in x-amz-meta-mtime, seconds since 1970 as a decimal number (see `uploading.mtime_metadata`)."""
    if not _MTIME.fullmatch(text):
        return None
    try:
        return _EPOCH + timedelta(microseconds=int(Decimal(text) * 1_000_000))
    except OverflowError:
        return None


def look_up(bucket: Bucket, look: Callable[[str], T], identifiers: Iterable[str]) -> Iterator[T]:
    """The result of *look* for each object that exists, in the order of arrival."""
    failures = Failures()
    with ParallelTasks(bucket.workers, look) as tasks:
        for identifier, found, error in tasks.map(identifiers, lambda: bucket.settings.max_concurrency):
            if error is None:
                yield found
            elif not isinstance(error, Exception):
                raise error
            elif not isinstance(error, FileNotFoundError):
                failures.note(identifier, error)
    failures.raise_any("look up", bucket.location)


def _grouped(identifiers: Iterable[str], window: _BatchWindow) -> Iterator[Sequence[str]]:
    group: list[str] = []
    for identifier in identifiers:
        group.append(identifier)
        if len(group) >= window.group():
            yield group
            group = []
    if group:
        yield group


def _grouped_items(
    items: Iterable[Item], window: _BatchWindow, under_way: set[str]
) -> Iterator[Sequence[_Item] | None]:
    """Groups to write, with the None markers of `ParallelTasks.map`."""
    group: list[_Item] = []
    size = 0
    for key, content in items:
        info = key if isinstance(key, ObjectInfo) else ObjectInfo(key)
        if info.identifier in under_way:
            # Never two writes of one identifier at a time, so that the last one wins.
            if group:
                yield group
                group, size = [], 0
            while info.identifier in under_way:
                yield None
        under_way.add(info.identifier)
        group.append((info, content))
        size += len(content)
        del content
        if len(group) >= window.group() or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _read_group(read: Callable[[str], bytes], group: Sequence[str]) -> tuple[list[_Outcome], Sequence[str]]:
    """Read the objects of a group; also the identifiers left over once `GROUP_BYTES` have been read."""
    outcomes: list[_Outcome] = []
    size = 0
    try:
        for number, identifier in enumerate(group):
            if size >= GROUP_BYTES:
                return outcomes, group[number:]
            try:
                content = read(identifier)
            except Exception as error:  # noqa: BLE001 - the caller's, who raises it
                outcomes.append((identifier, b"", error))
            else:
                outcomes.append((identifier, content, None))
                size += len(content)
        return outcomes, ()
    finally:
        del outcomes  # the errors' tracebacks lead to this frame


def _write_group(bucket: Bucket, verify: bool, group: Sequence[_Item]) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    try:
        for info, content in group:
            try:
                _put(bucket, verify, info, content)
            except Exception as error:  # noqa: BLE001 - the caller's, who raises it
                outcomes.append((info.identifier, content, error))
            else:
                outcomes.append((info.identifier, content, None))
        return outcomes
    finally:
        del outcomes  # the errors' tracebacks lead to this frame


def _put(bucket: Bucket, verify: bool, info: ObjectInfo, content: bytes) -> None:
    found = plain(content)
    if not isinstance(found, bytes):
        raise TypeError("write_many takes bytes; use write_stream for readers")
    bucket.put(info.identifier, found, info, verify=verify)


def _delete(bucket: Bucket, batch: Identifiers, failures: Failures) -> None:
    keys: dict[str, str] = {}
    for identifier in batch:
        with failures.of(identifier):
            keys[bucket.key(identifier)] = identifier
    together = [key for key in keys if can_be_xml(key)]
    refused = _delete_together(bucket, together, keys, failures)
    if refused is None:
        together, refused = [], {}
    for key, why in refused.items():
        identifier = keys.get(key, key)
        with failures.of(identifier):
            raise translate(EmbeddedError(why), identifier, bucket.location, "delete")
    _delete_singly(bucket, keys.keys() - set(together), keys, failures)


def _delete_together(
    bucket: Bucket, together: Sequence[str], keys: Mapping[str, str], failures: Failures
) -> Mapping[str, ErrorDocument] | None:
    """Delete by one request; an error for each key that was not deleted, or None if the service does not support it."""
    if not together:
        return {}
    if bucket.deletes_singly:
        return None
    try:
        with bucket.translated_errors("delete objects in"):
            try:
                return bucket.requests.delete_batch(together)
            except Exception as error:
                if not is_refusal(error, 405, 501):
                    raise
                # Google Cloud Storage does not support DeleteObjects.
                bucket.deletes_singly = True
                return None
    except FATAL:
        raise
    except StorageError as error:
        # Any of them may still exist; later batches may succeed.
        failures.errors.update(dict.fromkeys((keys[key] for key in together), error))
        return {}


def _delete_singly(bucket: Bucket, alone: Iterable[str], keys: Mapping[str, str], failures: Failures) -> None:
    """Delete each by its own request, in parallel."""

    def delete(key: str) -> None:
        with bucket.translated_errors("delete", keys[key]):
            try:
                bucket.requests.delete(key)
            except Exception as error:
                # Google Cloud Storage sends this if the object is already gone; Amazon S3 never does.
                if not is_refusal(error, "NoSuchKey"):
                    raise

    with ParallelTasks(bucket.workers, delete) as tasks:
        for key, _, error in tasks.map(alone, lambda: bucket.settings.max_concurrency):
            with failures.of(keys[key]):
                if error is not None:
                    raise error


class _BatchWindow:
    """The number of tasks at a time, and of objects in each, that keeps their content within `UNDER_WAY_MOST`.

    Args:
        most: maximum number of tasks at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._largest = 1
        # The first ones are tasks of their own: if there are no more, all threads work.
        self._alone = 2 * most

    def now(self) -> int:
        return max(1, min(self._most, UNDER_WAY_MOST // self._largest))

    def group(self) -> int:
        if self._alone:
            self._alone -= 1
            return 1
        return max(1, min(GROUP, GROUP_BYTES // self._largest))

    def learn(self, size: int) -> None:
        # Decays slowly, so that one large object does not slow down thousands of small ones.
        self._largest = max(size, self._largest - (self._largest >> 5), 1)
