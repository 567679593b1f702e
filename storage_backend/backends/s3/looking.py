"""Looking: what is known of many objects, by requests side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TypeVar

from storage_backend.backends.s3.objects import Objects
from storage_backend.backends.s3.workers import Answers
from storage_backend.errors import Failures
from storage_backend.info import ObjectInfo

T = TypeVar("T")

_MTIME = re.compile(r"-?\d{1,12}(\.\d{1,9})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def stat_many(
    objects: Objects, stat: Callable[[str], ObjectInfo], identifiers: Iterable[str]
) -> Iterator[ObjectInfo]:
    """What *stat* gives of each object that is there, as it comes."""
    return _of_many(objects, stat, identifiers)


def kept_times(objects: Objects, identifiers: Iterable[str]) -> Iterator[tuple[str, datetime]]:
    """The time that each object's source had when it was uploaded, where its metadata tell."""

    def look(identifier: str) -> tuple[str, datetime | None]:
        with objects.mapped("look at", identifier):
            return identifier, _time_in(objects.facts(identifier).metadata.get("mtime", ""))

    for identifier, moment in _of_many(objects, look, identifiers):
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


def _of_many(objects: Objects, look: Callable[[str], T], identifiers: Iterable[str]) -> Iterator[T]:
    failures = Failures()
    answers: Answers[str, T] = Answers(objects.workers, look)

    def take() -> Iterator[T]:
        identifier, found, error = answers.take()
        if error is None:
            yield found
        elif not isinstance(error, Exception):
            raise error
        elif not isinstance(error, FileNotFoundError):
            failures.note(identifier, error)

    try:
        for identifier in identifiers:
            while answers.pending >= objects.settings.max_concurrency:
                yield from take()
            answers.ask(identifier)
        while answers.pending:
            yield from take()
    finally:
        answers.settle()
    failures.raise_any("look at", objects.location)
