"""read_many, stat_many and delete_many, where each side has a part of the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain

from storage_backend.base import StorageBackend
from storage_backend.errors import BatchError, Failures
from storage_backend.info import ObjectInfo
from storage_backend.wrappers.fallback.pair import FallbackPair, is_absence
from storage_backend.wrappers.fallback.writing import failures_of


def read_many(pair: FallbackPair, identifiers: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """As `StorageBackend.read_many`: one call to each side, the second for the objects that the first lacks."""
    front, back = pair.order(None)
    asked = RequestedIdentifiers(identifiers, pair.strayed if front is pair.primary else ())
    failures = Failures()
    errors: dict[str, Exception] = {}  # the first side's, for objects that are requested from the second
    down: Exception | None = None
    try:
        for name, content in front.read_many(asked):
            asked.came(name)
            yield name, content
    except Exception as error:
        if error is asked.raised:
            raise
        if isinstance(error, BatchError):
            pair.warn_skipped([e for e in error.failures.values() if pair.should_skip(front, e)])
            for name, failure in error.failures.items():
                if is_absence(failure) or pair.should_skip(front, failure):
                    errors[name] = failure
                else:
                    failures.note(name, failure)
                    asked.came(name, all_of_it=True)
        elif pair.warn_if_skipped(front, error):
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
                failures.note(name, pair.of_both(name, first, failure))
                continue
            # Expected on the second side only, but gone from there: the first side has not been asked yet.
            found = None
            with failures.of(name):
                found = pair.first(name, partial(_read, name))
            if found is not None:
                yield name, found
    failures.raise_any("read", pair.location)


def delete_many(pair: FallbackPair, identifiers: Iterable[str]) -> int:
    """As `StorageBackend.delete_many`, from both sides."""
    distinct = dict.fromkeys(identifiers)
    front, back = pair.order(None)
    failures = Failures()
    hidden = failures_of(lambda: back.delete_many([*distinct]))
    # If the hidden copy could not be deleted, the visible one stays: else the hidden one would become visible.
    kept = {name for name, error in hidden.items() if not is_absence(error)}
    seen = failures_of(lambda: front.delete_many([name for name in distinct if name not in kept]))
    for name in distinct:
        errors = [(side, found[name]) for side, found in ((back, hidden), (front, seen)) if name in found]
        faults = [error for _, error in errors if not is_absence(error)]
        if faults:
            failures.note(name, faults[0])
        elif len(errors) == 2:
            failures.note(name, pair.absence(name, errors))
        else:
            pair.forget(name)
    failures.raise_any("delete", pair.location)
    return len(distinct)


def _read(identifier: str, side: StorageBackend) -> bytes:
    return side.read(identifier)


class RequestedIdentifiers:
    """Yields the identifiers of a batch, and keeps those whose content has not come yet.

    Args:
        identifiers: the caller's.
        aside: identifiers that are not requested from the first side.

    Attributes:
        raised: the error that the caller's iterable raised.
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
        """Mark one as received; with *all_of_it* all its repetitions."""
        self._pending[identifier] -= 1
        if all_of_it or self._pending[identifier] <= 0:
            del self._pending[identifier]

    def pending(self) -> list[str]:
        """Those that have not come yet."""
        return [*self._pending.elements()]


def stat_many(
    pair: FallbackPair,
    identifiers: Iterable[str],
    one_by_one: Callable[[Iterable[str]], Iterator[ObjectInfo]],
) -> Iterator[ObjectInfo]:
    """The `stat` of objects from the first side that has each.

    Args:
        pair: the sides.
        identifiers: the objects.
        one_by_one: asks for those whose stat failed on a side, by the rules of `stat`; raises a BatchError.
    """
    pending = dict.fromkeys(identifiers)
    failed: list[str] = []
    for side in pair.order(None):
        try:
            for info in side.stat_many([*pending]):
                pending.pop(info.identifier, None)
                yield info
        except BatchError as error:
            # The other side must not answer for these, but must be asked for the rest.
            for identifier in error.failures:
                pending.pop(identifier, None)
            failed += error.failures
    yield from one_by_one(failed)
