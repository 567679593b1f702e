"""Scans and batches that go on after an error with what has not come yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

from storage_backend import identifiers as names
from storage_backend.errors import BatchError, Failures, StorageError, is_retryable
from storage_backend.scanning import OnSkip
from storage_backend.wrappers.retrying.attempts import RetryState

T = TypeVar("T")

MOST_SKIPS = 10_000  # remembered, so as not to tell of them twice


def resumed_scan(
    attempts: RetryState,
    start: Callable[[OnSkip | None], Iterator[T]],
    name: Callable[[T], str],
    on_skip: OnSkip | None,
) -> Iterator[T]:
    """What *start* gives, in order; begun again where it breaks, and what came before is left out."""
    heard = None if on_skip is None else _SkipsOnce(on_skip)
    found: Iterator[T] | None = None
    last: T | None = None
    after: bytes | None = None
    while True:
        try:
            if found is None:
                found = iter(start(heard))
            item = next(found)
        except StopIteration:
            return
        except Exception as error:
            if heard is not None and error is heard.raised:
                raise
            found = None
            after = None if last is None else names.encode(name(last))
            if heard is not None:
                heard.again(after)
            attempts.failed(error)
            continue
        if after is not None:
            if names.encode(name(item)) <= after:
                continue
            after = None
        attempts.progressed()
        last = item
        yield item


def resumed_batch(
    attempts: RetryState,
    group: list[str],
    start: Callable[[list[str]], Iterator[T]],
    name: Callable[[T], str],
    failures: Failures,
) -> Iterator[T]:
    """What *start* gives of the group; where it breaks, it is asked for those that have not come. Final errors are noted."""
    pending = Counter(group)
    came = False
    found: Iterator[T] | None = None
    while True:
        try:
            if found is None:
                found = iter(start([*pending.elements()]))
            item = next(found)
        except StopIteration:
            return
        except BatchError as error:
            again = _retryable(error, failures)
            if not again:
                return
            pending = Counter({each: pending[each] or 1 for each in again})
            found = None
            if not _goes_on(attempts, error, again, failures):
                return
            continue
        except Exception as error:  # noqa: BLE001 - raised by `failed`, or logged there
            found = None
            if came:
                attempts.progressed()
            came = False
            attempts.failed(error)
            continue
        came = True
        pending[name(item)] -= 1
        yield item


def repeated(
    attempts: RetryState,
    group: list[T],
    call: Callable[[list[T]], object],
    pick: Callable[[list[str]], list[T]],
    failures: Failures,
) -> None:
    """Make *call* with the group, then with what *pick* gives of those that failed for a moment. Final errors are noted."""
    while group:
        try:
            call(group)
        except BatchError as error:
            again = _retryable(error, failures)
            if not again or not _goes_on(attempts, error, again, failures):
                return
            group = pick(again)
        except Exception as error:  # noqa: BLE001 - raised by `failed`, or logged there
            attempts.failed(error)
        else:
            return


def _retryable(error: BatchError, failures: Failures) -> list[str]:
    """Note those failures that are final; the identifiers of the others."""
    again = []
    for name, failure in error.failures.items():
        if is_retryable(failure):
            again.append(name)
        else:
            failures.note(name, failure)
    return again


def _goes_on(attempts: RetryState, error: BatchError, again: list[str], failures: Failures) -> bool:
    """Wait for another try at those that failed for a moment, or note their errors: then there is none."""
    # The error as a whole is not retryable where a failure in it is final: what is left of it is.
    rest = {name: error.failures[name] for name in again}
    first = next(iter(rest))
    left = BatchError(
        f"{len(rest)} of them, the first is {first!r} ({type(rest[first]).__name__})", failures=rest
    )
    try:
        attempts.failed(left)
    except BatchError as final:
        if final is not left:
            raise
        for name, failure in rest.items():
            failures.note(name, attempts.told(failure))
        return False
    return True


class _SkipsOnce:
    """Tells the caller's callback of each skipped entry once, though a scan is begun again.

    Attributes:
        raised: what the callback raised, which is not the scan's.
    """

    def __init__(self, on_skip: OnSkip) -> None:
        self.raised: BaseException | None = None
        self._on_skip = on_skip
        self._heard: set[tuple[str | None, str]] = set()
        self._after: bytes | None = None

    def again(self, after: bytes | None) -> None:
        """The scan begins again; all up to *after* has been told."""
        self._after = after

    def __call__(self, error: StorageError) -> None:
        entry = (error.identifier, str(error))
        if entry in self._heard or self._is_before(error.identifier):
            return
        if len(self._heard) == MOST_SKIPS:
            self._heard.clear()
        self._heard.add(entry)
        try:
            self._on_skip(error)
        except BaseException as raised:
            self.raised = raised
            raise

    def _is_before(self, identifier: str | None) -> bool:
        if self._after is None or identifier is None:
            return False
        return identifier.encode("utf-8", "surrogatepass") <= self._after
