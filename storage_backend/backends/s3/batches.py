"""Batches: many objects by requests side by side, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

from storage_backend.backends.s3.documents import RefusedInside, can_be_xml
from storage_backend.backends.s3.errors import translate
from storage_backend.backends.s3.objects import Objects
from storage_backend.backends.s3.workers import Answers, spread
from storage_backend.base import Identifiers, Item
from storage_backend.errors import FATAL, Failures, StorageError
from storage_backend.info import ObjectInfo
from storage_backend.streams import plain

BATCH = 1000  # keys that one DeleteObjects takes ("DeleteObjects", Amazon S3 API Reference)
UNDER_WAY_MOST = 64 << 20  # bytes of objects of one batch that are held at a time

_Item: TypeAlias = tuple[ObjectInfo, bytes]


def read_many(
    objects: Objects, read: Callable[[str], bytes], identifiers: Iterable[str]
) -> Iterator[tuple[str, bytes]]:
    """Each object with its identifier, as they come. *read* gives one."""
    failures = Failures()
    window = _Window(objects.settings.max_concurrency)
    for identifier, content, error in spread(objects.workers, read, identifiers, window.now):
        if error is None:
            window.learn(len(content))
            yield identifier, content
            continue
        with failures.of(identifier):
            raise error
    failures.raise_any("read", objects.location)


def write_many(objects: Objects, items: Iterable[Item], *, verify: bool) -> int:
    """Store each item; how many were."""
    failures = Failures()
    window = _Window(objects.settings.max_concurrency)
    answers: Answers[_Item, None] = Answers(objects.workers, partial(_put, objects, verify))
    under_way: set[str] = set()
    stored = 0

    def take() -> None:
        nonlocal stored
        (info, content), _, error = answers.take()
        under_way.discard(info.identifier)
        window.learn(len(content))
        with failures.of(info.identifier):
            if error is not None:
                raise error
            failures.errors.pop(info.identifier, None)
            stored += 1

    try:
        for key, content in items:
            info = key if isinstance(key, ObjectInfo) else ObjectInfo(key)
            # Of one identifier never two at a time, so that the last one stays.
            while answers.pending >= window.now() or info.identifier in under_way:
                take()
            under_way.add(info.identifier)
            answers.ask((info, content))
            del content
        while answers.pending:
            take()
    finally:
        answers.settle()
    failures.raise_any("write", objects.location)
    return stored


def delete_many(objects: Objects, identifiers: Iterable[str]) -> int:
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
            _delete(objects, batch, failures)
            batch = []
    if batch:
        _delete(objects, batch, failures)
    failures.raise_any("delete", objects.location)
    return len(seen)


def _put(objects: Objects, verify: bool, item: _Item) -> None:
    info, content = item
    found = plain(content)
    if not isinstance(found, bytes):
        raise TypeError("write_many takes bytes; use write_stream for readers")
    objects.put(info.identifier, objects.key(info.identifier), found, info, verify=verify)


def _delete(objects: Objects, batch: Identifiers, failures: Failures) -> None:
    keys: dict[str, str] = {}
    for identifier in batch:
        with failures.of(identifier):
            keys[objects.key(identifier)] = identifier
    together = [key for key in keys if can_be_xml(key)]
    try:
        with objects.mapped("delete", None):
            refused = objects.calls.delete_batch(together) if together else {}
    except FATAL:
        raise
    except StorageError as error:
        # None of them is known to be gone; the batches after this one may fare better.
        failures.errors.update(dict.fromkeys((keys[key] for key in together), error))
        refused = {}
    for key, why in refused.items():
        identifier = keys.get(key, key)
        with failures.of(identifier):
            raise translate(RefusedInside(why), identifier, objects.location, "delete")
    for key in keys.keys() - set(together):
        with failures.of(keys[key]), objects.mapped("delete", keys[key]):
            objects.calls.delete(key)


class _Window:
    """How many objects may be under way, so that together they stay small."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._largest = 1

    def now(self) -> int:
        return max(1, min(self._most, UNDER_WAY_MOST // self._largest))

    def learn(self, size: int) -> None:
        # It forgets, slowly: one large object does not make thousands of small ones slow.
        self._largest = max(size, self._largest - (self._largest >> 5), 1)
