"""Many objects by requests side by side, in bounded memory: read, write, delete, and look up their metadata."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import TypeAlias, TypeVar

from storage_backend.backends.s3.bucket import Bucket
from storage_backend.backends.s3.errors import response_error_of, translate
from storage_backend.backends.s3.parallel import ParallelTasks
from storage_backend.backends.s3.xml_documents import EmbeddedError, ErrorDocument, can_be_xml
from storage_backend.base import Identifiers, Item
from storage_backend.errors import FATAL, Failures, StorageError
from storage_backend.info import ObjectInfo
from storage_backend.streams import plain

T = TypeVar("T")

BATCH = 1000  # keys that one DeleteObjects takes ("DeleteObjects", Amazon S3 API Reference)
UNDER_WAY_MOST = 64 << 20  # bytes of objects of one batch that are held at a time

GROUP = 8  # small objects that a thread is handed at a time: handing over costs as much as half a request
GROUP_BYTES = 1 << 20  # of a group; objects of this size go one by one

_MTIME = re.compile(r"-?\d{1,12}(\.\d{1,9})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Item: TypeAlias = tuple[ObjectInfo, bytes]
_Outcome: TypeAlias = tuple[str, bytes, Exception | None]


def read_many(
    bucket: Bucket, read: Callable[[str], bytes], identifiers: Iterable[str]
) -> Iterator[tuple[str, bytes]]:
    """Each object with its identifier, as they come. *read* gives one."""
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
    """Store each item; how many were."""
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
    """Remove each object, there or not; how many distinct ones."""
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


def stat_many(
    bucket: Bucket, stat: Callable[[str], ObjectInfo], identifiers: Iterable[str]
) -> Iterator[ObjectInfo]:
    """The result of *stat* for each object that is there, as it comes."""
    return _look_up(bucket, stat, identifiers)


def kept_times(bucket: Bucket, identifiers: Iterable[str]) -> Iterator[tuple[str, datetime]]:
    """The time that each object's source had when it was uploaded, where its metadata tell."""

    def look(identifier: str) -> tuple[str, datetime | None]:
        with bucket.translated_errors("look up", identifier):
            return identifier, _time_in(bucket.head(identifier).metadata.get("mtime", ""))

    for identifier, moment in _look_up(bucket, look, identifiers):
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


def _look_up(bucket: Bucket, look: Callable[[str], T], identifiers: Iterable[str]) -> Iterator[T]:
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
    """Groups to be written, as `ParallelTasks.map` takes them: None waits for a result."""
    group: list[_Item] = []
    size = 0
    for key, content in items:
        info = key if isinstance(key, ObjectInfo) else ObjectInfo(key)
        if info.identifier in under_way:
            # Of one identifier never two at a time, so that the last one stays.
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
    """Read one after the other; those that are left when there is enough to hand over."""
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
    """Delete by one request: the keys that were not deleted, and why; None if the service has no such request."""
    if not together:
        return {}
    if bucket.deletes_singly:
        return None
    try:
        with bucket.translated_errors("delete objects in"):
            try:
                return bucket.requests.delete_batch(together)
            except Exception as error:
                refused = response_error_of(error)
                if refused is None or refused.status not in {405, 501}:
                    raise
                # Google Cloud Storage has no DeleteObjects; from now on it is not asked again.
                bucket.deletes_singly = True
                return None
    except FATAL:
        raise
    except StorageError as error:
        # None of them is known to be gone; the batches after this one may fare better.
        failures.errors.update(dict.fromkeys((keys[key] for key in together), error))
        return {}


def _delete_singly(bucket: Bucket, alone: Iterable[str], keys: Mapping[str, str], failures: Failures) -> None:
    """Delete each by a request of its own, several at a time."""

    def delete(key: str) -> None:
        with bucket.translated_errors("delete", keys[key]):
            try:
                bucket.requests.delete(key)
            except Exception as error:
                refused = response_error_of(error)
                # Google Cloud Storage answers so if the object is gone already; Amazon S3 never does.
                if refused is None or refused.code != "NoSuchKey":
                    raise

    with ParallelTasks(bucket.workers, delete) as tasks:
        for key, _, error in tasks.map(alone, lambda: bucket.settings.max_concurrency):
            with failures.of(keys[key]):
                if error is not None:
                    raise error


class _BatchWindow:
    """How many objects may be under way, so that together they stay small, and how many go together.

    Args:
        most: groups under way at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._largest = 1
        # At first each goes by itself: there may be no more than these, and all threads work.
        self._alone = 2 * most

    def now(self) -> int:
        return max(1, min(self._most, UNDER_WAY_MOST // self._largest))

    def group(self) -> int:
        if self._alone:
            self._alone -= 1
            return 1
        return max(1, min(GROUP, GROUP_BYTES // self._largest))

    def learn(self, size: int) -> None:
        # It forgets, slowly: one large object does not make thousands of small ones slow.
        self._largest = max(size, self._largest - (self._largest >> 5), 1)
