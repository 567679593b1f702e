"""Looking: what is known of many objects, by requests side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from storage_backend.backends.s3.objects import Objects
from storage_backend.backends.s3.workers import Answers
from storage_backend.errors import Failures
from storage_backend.info import ObjectInfo


def stat_many(
    objects: Objects, stat: Callable[[str], ObjectInfo], identifiers: Iterable[str]
) -> Iterator[ObjectInfo]:
    """What *stat* gives of each object that is there, as it comes."""
    failures = Failures()
    answers: Answers[str, ObjectInfo] = Answers(objects.workers, stat)

    def take() -> Iterator[ObjectInfo]:
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
