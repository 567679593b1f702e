"""Batches that are read or deleted, of which each side has a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain

from storage_backend.base import StorageBackend
from storage_backend.errors import BatchError, Failures
from storage_backend.wrappers.fallback.sides import Sides, is_absence
from storage_backend.wrappers.fallback.writing import failures_of


def read_many(sides: Sides, identifiers: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """As `StorageBackend.read_many`: each side is asked once, the second for what the first has not."""
    front, back = sides.order(None)
    asked = _Asked(identifiers, sides.strayed if front is sides.primary else ())
    failures = Failures()
    errors: dict[str, Exception] = {}  # the first side's, of those that the second is asked for
    down: Exception | None = None
    try:
        for name, content in front.read_many(asked):
            asked.came(name)
            yield name, content
    except Exception as error:
        if error is asked.raised:
            raise
        if isinstance(error, BatchError):
            sides.say_down([e for e in error.failures.values() if sides.is_out(front, e)])
            for name, failure in error.failures.items():
                if is_absence(failure) or sides.is_out(front, failure):
                    errors[name] = failure
                else:
                    failures.note(name, failure)
                    asked.came(name, all_of_it=True)
        elif sides.is_down(front, error):
            down = error
        else:
            raise
    missed = asked.pending()
    second = missed if down is None else chain(missed, asked)
    try:
        for name, content in back.read_many(second) if missed or down is not None else ():
            yield name, content
    except BatchError as error:
        if error is asked.raised:
            raise
        for name, failure in error.failures.items():
            first = errors.get(name, down)
            if first is not None or not is_absence(failure):
                failures.note(name, sides.of_both(name, first, failure))
                continue
            # Put aside, and gone from where it was: the first side has not been asked.
            found = None
            with failures.of(name):
                found = sides.first(name, partial(_read, name))
            if found is not None:
                yield name, found
    failures.raise_any("read", sides.location)


def delete_many(sides: Sides, identifiers: Iterable[str]) -> int:
    """As `StorageBackend.delete_many`, from both sides."""
    distinct = dict.fromkeys(identifiers)
    front, back = sides.order(None)
    failures = Failures()
    hidden = failures_of(lambda: back.delete_many([*distinct]))
    # What is seen stays as long as what is behind it does.
    kept = {name for name, error in hidden.items() if not is_absence(error)}
    seen = failures_of(lambda: front.delete_many([name for name in distinct if name not in kept]))
    for name in distinct:
        errors = [(side, found[name]) for side, found in ((back, hidden), (front, seen)) if name in found]
        faults = [error for _, error in errors if not is_absence(error)]
        if faults:
            failures.note(name, faults[0])
        elif len(errors) == 2:
            failures.note(name, sides.absence(name, errors))
        else:
            sides.forget(name)
    failures.raise_any("delete", sides.location)
    return len(distinct)


def _read(identifier: str, side: StorageBackend) -> bytes:
    return side.read(identifier)


class _Asked:
    """The identifiers of a batch as they are asked for, and those that have not come yet.

    Args:
        identifiers: the caller's.
        aside: those that are not to be asked for the first time.

    Attributes:
        raised: what the caller's iterable raised.
    """

    def __init__(self, identifiers: Iterable[str], aside: Iterable[str]) -> None:
        self.raised: BaseException | None = None
        self._rest = iter(identifiers)
        self._aside = aside
        self._pending: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        try:
            for identifier in self._rest:
                self._pending[identifier] += 1
                if identifier not in self._aside:
                    yield identifier
        except Exception as error:
            self.raised = error
            raise

    def came(self, identifier: str, *, all_of_it: bool = False) -> None:
        """This one need not be asked for again."""
        self._pending[identifier] -= 1
        if all_of_it or self._pending[identifier] <= 0:
            del self._pending[identifier]

    def pending(self) -> list[str]:
        """Those that have not come, as of now."""
        return [*self._pending.elements()]
