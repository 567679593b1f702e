"""Batches: many objects by requests side by side, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from storage_backend.backends.s3.documents import Refused, RefusedInside, can_be_xml
from storage_backend.backends.s3.errors import refusal_of, translate
from storage_backend.backends.s3.objects import Objects
from storage_backend.backends.s3.workers import Answers
from storage_backend.base import Identifiers, Item
from storage_backend.errors import FATAL, Failures, StorageError
from storage_backend.info import ObjectInfo
from storage_backend.streams import plain

BATCH = 1000  # keys that one DeleteObjects takes ("DeleteObjects", Amazon S3 API Reference)
UNDER_WAY_MOST = 64 << 20  # bytes of objects of one batch that are held at a time

GROUP = 8  # small objects that a thread is handed at a time: handing over costs as much as half a request
GROUP_BYTES = 1 << 20  # of a group; objects of this size go one by one

_Item: TypeAlias = tuple[ObjectInfo, bytes]
_Outcome: TypeAlias = tuple[str, bytes, Exception | None]


def read_many(
    objects: Objects, read: Callable[[str], bytes], identifiers: Iterable[str]
) -> Iterator[tuple[str, bytes]]:
    """Each object with its identifier, as they come. *read* gives one."""
    failures = Failures()
    window = _Window(objects.settings.max_concurrency)
    answers: Answers[Sequence[str], tuple[list[_Outcome], Sequence[str]]] = Answers(
        objects.workers, partial(_read_group, read)
    )

    def take() -> Iterator[tuple[str, bytes]]:
        _, found, error = answers.take()
        if error is not None:
            raise error
        outcomes, rest = found
        if rest:
            answers.ask(rest)
        for identifier, content, failure in outcomes:
            if failure is None:
                window.learn(len(content))
                yield identifier, content
                continue
            failures.note(identifier, failure)

    try:
        for group in _grouped(identifiers, window):
            while answers.pending >= window.now():
                yield from take()
            answers.ask(group)
        while answers.pending:
            yield from take()
    finally:
        answers.settle()
    failures.raise_any("read", objects.location)


def write_many(objects: Objects, items: Iterable[Item], *, verify: bool) -> int:
    """Store each item; how many were."""
    failures = Failures()
    window = _Window(objects.settings.max_concurrency)
    answers: Answers[Sequence[_Item], list[_Outcome]] = Answers(
        objects.workers, partial(_write_group, objects, verify)
    )
    under_way: set[str] = set()
    stored = 0

    def take() -> None:
        nonlocal stored
        _, outcomes, error = answers.take()
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

    def send(group: Sequence[_Item]) -> None:
        while answers.pending >= window.now():
            take()
        answers.ask(group)

    group: list[_Item] = []
    size = 0
    try:
        for key, content in items:
            info = key if isinstance(key, ObjectInfo) else ObjectInfo(key)
            if info.identifier in under_way:
                # Of one identifier never two at a time, so that the last one stays.
                if group:
                    send(group)
                    group, size = [], 0
                while info.identifier in under_way:
                    take()
            under_way.add(info.identifier)
            group.append((info, content))
            size += len(content)
            del content
            if len(group) >= window.group() or size >= GROUP_BYTES:
                send(group)
                group, size = [], 0
        if group:
            send(group)
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


def _grouped(identifiers: Iterable[str], window: _Window) -> Iterator[Sequence[str]]:
    group: list[str] = []
    for identifier in identifiers:
        group.append(identifier)
        if len(group) >= window.group():
            yield group
            group = []
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


def _write_group(objects: Objects, verify: bool, group: Sequence[_Item]) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    try:
        for info, content in group:
            try:
                _put(objects, verify, info, content)
            except Exception as error:  # noqa: BLE001 - the caller's, who raises it
                outcomes.append((info.identifier, content, error))
            else:
                outcomes.append((info.identifier, content, None))
        return outcomes
    finally:
        del outcomes  # the errors' tracebacks lead to this frame


def _put(objects: Objects, verify: bool, info: ObjectInfo, content: bytes) -> None:
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
    refused = _delete_together(objects, together, keys, failures)
    if refused is None:
        together, refused = [], {}
    for key, why in refused.items():
        identifier = keys.get(key, key)
        with failures.of(identifier):
            raise translate(RefusedInside(why), identifier, objects.location, "delete")
    _delete_singly(objects, keys.keys() - set(together), keys, failures)


def _delete_together(
    objects: Objects, together: Sequence[str], keys: Mapping[str, str], failures: Failures
) -> Mapping[str, Refused] | None:
    """Delete by one request: the keys that were not deleted, and why; None if the service has no such request."""
    if not together:
        return {}
    if objects.deletes_singly:
        return None
    try:
        with objects.mapped("delete", None):
            try:
                return objects.calls.delete_batch(together)
            except Exception as error:
                refusal = refusal_of(error)
                if refusal is None or refusal.status not in {405, 501}:
                    raise
                # Google's; from now on it is not asked again.
                objects.deletes_singly = True
                return None
    except FATAL:
        raise
    except StorageError as error:
        # None of them is known to be gone; the batches after this one may fare better.
        failures.errors.update(dict.fromkeys((keys[key] for key in together), error))
        return {}


def _delete_singly(
    objects: Objects, alone: Iterable[str], keys: Mapping[str, str], failures: Failures
) -> None:
    """Delete each by a request of its own, several at a time."""

    def delete(key: str) -> None:
        with objects.mapped("delete", keys[key]):
            try:
                objects.calls.delete(key)
            except Exception as error:
                refusal = refusal_of(error)
                # Google's answer for what is gone already; Amazon has none.
                if refusal is None or refusal.code != "NoSuchKey":
                    raise

    answers: Answers[str, None] = Answers(objects.workers, delete)

    def take() -> None:
        key, _, error = answers.take()
        with failures.of(keys[key]):
            if error is not None:
                raise error

    try:
        for key in alone:
            while answers.pending >= objects.settings.max_concurrency:
                take()
            answers.ask(key)
        while answers.pending:
            take()
    finally:
        answers.settle()


class _Window:
    """How many objects may be under way, so that together they stay small, and how many go together.

    Args:
        most: groups under way at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._largest = 1
        self._alone = (
            2 * most
        )  # at first each goes by itself: there may be no more than these, and all threads work

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
