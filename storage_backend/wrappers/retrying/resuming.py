"""Resumes scans and batches after an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

from storage_backend import identifiers as names
from storage_backend.errors import BatchError, Failures, StorageError, is_retryable
from storage_backend.scanning import OnSkip
from storage_backend.wrappers.retrying.attempts import RetryState

T = TypeVar("T")

MAX_REMEMBERED_SKIPS = 10_000


def resumed_scan(
    attempts: RetryState,
    start: Callable[[OnSkip | None], Iterator[T]],
    name: Callable[[T], str],
    on_skip: OnSkip | None,
) -> Iterator[T]:
    """The ordered items of *start*, which is called again after an error; items up to the last one yielded are dropped."""
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
                heard.after = after
            attempts.wait_or_raise(error)
            continue
        if after is not None:
            if names.encode(name(item)) <= after:
                continue
            after = None
        attempts.reset()
        last = item
        yield item


def resumed_batch(
    attempts: RetryState,
    group: list[str],
    start: Callable[[list[str]], Iterator[T]],
    name: Callable[[T], str],
    failures: Failures,
) -> Iterator[T]:
    """The items of *start* for the group; after an error it is called with those still missing. Notes final errors."""
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
        except Exception as error:  # noqa: BLE001 - raised or logged by `wait_or_raise`
            found = None
            if came:
                attempts.reset()
            came = False
            attempts.wait_or_raise(error)
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
    """Call *call* with the group, then with what *pick* selects of those with retryable errors. Notes final errors."""
    while group:
        try:
            call(group)
        except BatchError as error:
            again = _retryable(error, failures)
            if not again or not _goes_on(attempts, error, again, failures):
                return
            group = pick(again)
        except Exception as error:  # noqa: BLE001 - raised or logged by `wait_or_raise`
            attempts.wait_or_raise(error)
        else:
            return


def _retryable(error: BatchError, failures: Failures) -> list[str]:
    """Note the final failures; return the identifiers of the others."""
    again = []
    for name, failure in error.failures.items():
        if is_retryable(failure):
            again.append(name)
        else:
            failures.note(name, failure)
    return again


def _goes_on(attempts: RetryState, error: BatchError, again: list[str], failures: Failures) -> bool:
    """Wait for the next attempt at *again*; if there is none, note their errors and return False."""
    # The whole error is not retryable if one failure in it is final; the rest of it is.
    rest = {name: error.failures[name] for name in again}
    first = next(iter(rest))
    left = BatchError(
        f"{len(rest)} objects, the first is {first!r} ({type(rest[first]).__name__})", failures=rest
    )
    try:
        attempts.wait_or_raise(left)
    except BatchError as final:
        if final is not left:
            raise
        for name, failure in rest.items():
            failures.note(name, attempts.with_total(failure))
        return False
    return True


class _SkipsOnce:
    """Reports each skipped entry to the caller's callback once, although a scan is restarted.

    Attributes:
        raised: what the callback raised: no error of the scan.
        after: entries up to this name were reported before the restart.
    """

    def __init__(self, on_skip: OnSkip) -> None:
        self.raised: BaseException | None = None
        self._on_skip = on_skip
        self.after: bytes | None = None
        self._heard: set[tuple[str | None, str]] = set()

    def __call__(self, error: StorageError) -> None:
        entry = (error.identifier, str(error))
        if entry in self._heard or self._is_before(error.identifier):
            return
        if len(self._heard) == MAX_REMEMBERED_SKIPS:
            self._heard.clear()
        self._heard.add(entry)
        try:
            self._on_skip(error)
        except BaseException as raised:
            self.raised = raised
            raise

    def _is_before(self, identifier: str | None) -> bool:
        if self.after is None or identifier is None:
            return False
        return identifier.encode("utf-8", "surrogatepass") <= self.after
