"""Decides whether an operation is retried, and after which pause: a retry budget and backoff with full jitter."""

from __future__ import annotations

import logging
import random as randomness
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from storage_backend.errors import BatchError, RateLimitedError, StorageError, is_retryable

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER = (
    60.0  # seconds; a longer `retry_after`, if also longer than `longest`, is for the caller to decide
)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The arguments of a RetryingStorage.

    Attributes:
        attempts: the maximum, including attempts that the backend reports to have made itself.
        first: upper bound of the first pause, in seconds; it doubles with each retry.
        longest: upper bound of every pause, in seconds.
        sleep: called with seconds.
        random: returns numbers from 0 to 1; None for `random.random`, which must not be pickled: all copies would
            wait for the same time.
    """

    attempts: int
    first: float
    longest: float
    sleep: Callable[[float], object]
    random: Callable[[], float] | None

    def pause(self, failures: int, error: Exception) -> float | None:
        """Seconds to wait after *failures* failed attempts; None if the backend asks for more than MAX_RETRY_AFTER.

        Full jitter ("Exponential Backoff And Jitter", AWS Architecture Blog): a random time up to the bound, added to
        what the backend asked for.
        """
        bound = min(self.longest, self.first * 2.0 ** min(failures - 1, 64))
        draw = randomness.random if self.random is None else self.random
        retry_after = _retry_after(error)
        if retry_after > max(MAX_RETRY_AFTER, self.longest):
            return None
        return retry_after + draw() * bound


class RetryState:
    """Counts the attempts of one operation.

    Args:
        policy: limits and pauses.
        method: the method, for the log.
        about: its identifier or prefix, for the log; None if it concerns the whole backend.
        where: the backend's location.

    Attributes:
        in_doubt: whether a failed attempt may have taken effect.
    """

    __slots__ = ("_about", "_failures", "_method", "_policy", "_used", "_where", "in_doubt")

    def __init__(self, policy: RetryPolicy, method: str, about: str | None, where: str) -> None:
        self._policy = policy
        self._method = method
        self._about = about
        self._where = where
        self._used = 0
        self._failures = 0
        self.in_doubt = False

    def wait_or_raise(self, error: Exception, *, again: bool = True) -> None:
        """Wait until the next attempt is due.

        Args:
            error: of the last attempt.
            again: whether another attempt is possible at all.

        Raises:
            Exception: *error* itself, with the total of attempts, if there is no further attempt.
        """
        self._used += _attempts_of(error)
        self._failures += 1
        self.in_doubt = self.in_doubt or not proves_nothing_done(error)
        pause = None
        if again and is_retryable(error) and self._used < self._policy.attempts:
            pause = self._policy.pause(self._failures, error)
        if pause is None:
            try:
                raise self.with_total(error)
            finally:
                del error  # its traceback refers to this frame
        # Only our own errors promise that their text has no secret in it.
        reason = (
            f"{type(error).__name__}: {error}" if isinstance(error, StorageError) else type(error).__name__
        )
        on = "" if self._about is None else f" of {self._about!r}"
        logger.warning(
            "%s%s in %s failed, attempt %d of %d; retrying in %.1f s: %s",
            *(self._method, on, self._where, self._used, self._policy.attempts, pause, reason),
        )
        self._policy.sleep(pause)

    def with_total(self, error: Exception) -> Exception:
        """Set the `attempts` of *error* to the total, and return it."""
        if isinstance(getattr(error, "attempts", None), int):
            with suppress(AttributeError, TypeError):  # a user's class may have a read-only attribute
                error.attempts = max(self._used, _attempts_of(error))  # type: ignore[attr-defined]  # just looked
        return error

    def reset(self) -> None:
        """Start counting from zero, after progress that need not be repeated."""
        self._used = self._failures = 0


def proves_nothing_done(error: Exception) -> bool:
    """Whether the operation certainly had no effect: its only request was refused by a rate limit."""
    return isinstance(error, RateLimitedError) and error.attempts <= 1


def _attempts_of(error: Exception) -> int:
    """The attempts behind an error; at least one."""
    found: object = getattr(error, "attempts", 1)
    own = max(1, found) if isinstance(found, int) else 1
    if isinstance(error, BatchError):
        return max([own, *(_attempts_of(failure) for failure in error.failures.values())])
    return own


def _retry_after(error: Exception) -> float:
    """The pause in seconds that the backend asked for."""
    if isinstance(error, BatchError):
        return max((_retry_after(failure) for failure in error.failures.values()), default=0.0)
    found: object = getattr(error, "retry_after", None)
    if isinstance(found, int | float) and not isinstance(found, bool) and found > 0:
        return float(found)
    return 0.0
