"""Whether an operation is tried again, and after which pause: a retry budget and backoff with full jitter."""

from __future__ import annotations

import logging
import random as randomness
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from storage_backend.errors import BatchError, RateLimitedError, StorageError, is_retryable

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds; if a store asks for a longer pause than this and than `longest`, its error is raised at once


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What RetryingStorage was given.

    Attributes:
        attempts: tries at most, those included that an error says were made beneath.
        first: the longest pause before the second try, in seconds; it doubles with each.
        longest: the longest pause of all, in seconds.
        sleep: called with seconds.
        random: gives numbers from 0 to 1; None for `random.random`, which is not to be in a pickle: copies would all
            wait for the same time.
    """

    attempts: int
    first: float
    longest: float
    sleep: Callable[[float], object]
    random: Callable[[], float] | None

    def pause(self, failures: int, error: Exception) -> float | None:
        """Seconds to wait after so many *failures*; None if the store asks for more than PATIENCE.

        Full jitter ("Exponential Backoff And Jitter", AWS Architecture Blog): anything from nothing to the bound, on
        top of what the store asked for.
        """
        bound = min(self.longest, self.first * 2.0 ** min(failures - 1, 64))
        draw = randomness.random if self.random is None else self.random
        asked = _asked_for(error)
        if asked > max(PATIENCE, self.longest):
            return None
        return asked + draw() * bound


class RetryState:
    """The attempts of one operation.

    Args:
        policy: how many, how far apart.
        method: what is tried.
        about: on what; None for the store as a whole.
        where: the store's location.

    Attributes:
        in_doubt: whether one that failed may have been done all the same.
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

    def failed(self, error: Exception, *, again: bool = True) -> None:
        """Wait until the next try is due.

        Args:
            error: of the last try.
            again: whether another try is possible at all.

        Raises:
            Exception: *error* itself, with the number of all tries, if there is to be no other.
        """
        self._used += _attempts_of(error)
        self._failures += 1
        self.in_doubt = self.in_doubt or not proves_nothing_done(error)
        pause = None
        if again and is_retryable(error) and self._used < self._policy.attempts:
            pause = self._policy.pause(self._failures, error)
        if pause is None:
            try:
                raise self.told(error)
            finally:
                del error  # its traceback leads to this frame
        # Only our own errors promise that their text has no secret in it.
        reason = (
            f"{type(error).__name__}: {error}" if isinstance(error, StorageError) else type(error).__name__
        )
        on = "" if self._about is None else f" of {self._about!r}"
        logger.warning(
            "%s%s in %s failed, try %d of %d; again in %.1f s: %s",
            *(self._method, on, self._where, self._used, self._policy.attempts, pause, reason),
        )
        self._policy.sleep(pause)

    def told(self, error: Exception) -> Exception:
        """*error*, which now has the number of all tries."""
        if isinstance(getattr(error, "attempts", None), int):
            with suppress(AttributeError, TypeError):  # a user's class may have it as a constant
                error.attempts = max(self._used, _attempts_of(error))  # type: ignore[attr-defined]  # just looked
        return error

    def progressed(self) -> None:
        """Count anew: what was got by now need not be got again."""
        self._used = self._failures = 0


def proves_nothing_done(error: Exception) -> bool:
    """Whether an operation that failed so was certainly not done: the store turned the one request down unread."""
    return isinstance(error, RateLimitedError) and error.attempts <= 1


def _attempts_of(error: Exception) -> int:
    """How many tries an error stands for; at least one."""
    found: object = getattr(error, "attempts", 1)
    own = max(1, found) if isinstance(found, int) else 1
    if isinstance(error, BatchError):
        return max([own, *(_attempts_of(failure) for failure in error.failures.values())])
    return own


def _asked_for(error: Exception) -> float:
    """The seconds that the store asked for."""
    if isinstance(error, BatchError):
        return max((_asked_for(failure) for failure in error.failures.values()), default=0.0)
    found: object = getattr(error, "retry_after", None)
    if isinstance(found, int | float) and not isinstance(found, bool) and found > 0:
        return float(found)
    return 0.0
