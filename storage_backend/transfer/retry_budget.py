"""RetryBudget: limits how long work is retried, with backoff, while a side is unreachable."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from storage_backend.errors import is_retryable
from storage_backend.transfer.job import InterruptedTransferError, TransferJob

T = TypeVar("T")

FIRST_PAUSE = 0.2  # seconds; doubled with each retry
LONGEST_PAUSE = 5.0  # seconds
FIRST_CONTACT = 5.0  # seconds for a side that never responded: its name may be mistyped
MORE_ATTEMPTS = 2  # retries of one object while all others succeed: then the connection is not at fault


class RetryBudget:
    """The time that one kind of work may wait for an unreachable side. Used from many threads.

    It is `retry_for` seconds from the first failure, and is renewed by any success.

    Args:
        job: the transfer; its `stop` ends all waiting.
        at_first: the budget in seconds before the first success, if less.
    """

    def __init__(self, job: TransferJob, *, at_first: float | None = None) -> None:
        self._job = job
        self._retry_for = job.options.retry_for
        self._at_first = self._retry_for if at_first is None else min(at_first, self._retry_for)
        self._since: float | None = None
        self.successes = 0

    def worked(self) -> None:
        """Note a success."""
        self.successes += 1
        if self._since is not None:
            self._since = None
            self._job.in_flight.reached(self)

    def run(self, call: Callable[[], T]) -> T:
        """The result of *call*, retried while the connection fails."""
        attempts = self.attempts()
        while True:
            try:
                found = call()
            except Exception as error:
                if not (is_retryable(error) and attempts.wait(error)):
                    raise
            else:
                self.worked()
                return found

    def attempts(self) -> WorkAttempts:
        """A count of the attempts at one piece of work."""
        return WorkAttempts(self)

    def wait(self, error: Exception, number: int) -> bool:
        """Wait before attempt *number*; False once the budget is spent.

        Raises:
            InterruptedTransferError: the transfer is to stop.
        """
        now = time.monotonic()
        since = self._since
        if since is None:
            since = self._since = now
        left = since + (self._retry_for if self.successes else self._at_first) - now
        if left <= 0:
            return False
        self._job.in_flight.unreachable(self, getattr(error, "backend", None), since)
        # Jitter: a recovering server is not contacted by all clients at once.
        pause = min(FIRST_PAUSE * 2 ** min(number, 10), LONGEST_PAUSE) * random.uniform(0.8, 1.2)  # noqa: S311
        retry_after = getattr(error, "retry_after", None)
        if isinstance(retry_after, int | float):
            pause = max(pause, retry_after)
        if self._job.stop.wait(min(pause, left)):
            raise InterruptedTransferError
        return True

    def both_respond(self) -> bool:
        """Whether both sides respond to a request for some object."""
        identifier = self._job.sides.source.first
        if identifier is None:
            return False
        try:
            for backend in (self._job.source, self._job.target):
                backend.exists(identifier)
        except Exception as error:  # noqa: BLE001 - a refusal is a response, too
            return not is_retryable(error)
        return True


class WorkAttempts:
    """Counts the attempts at one piece of work, and decides whether another one is worth it."""

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._number = 0
        self._failed_alone = 0
        self._seen = budget.successes

    def wait(self, error: Exception, *, alone: bool = False) -> bool:
        """As `RetryBudget.wait`; False also if the work failed several times while others succeeded.

        Args:
            error: of the failed attempt.
            alone: no other work failed at the same time, so this work may be at fault: it is if both sides respond to
                another request.
        """
        others = self._budget.successes != self._seen
        if others or (alone and self._budget.both_respond()):
            self._failed_alone += 1
            if self._failed_alone > MORE_ATTEMPTS:
                return False
        self._seen = self._budget.successes
        self._number += 1
        return self._budget.wait(error, self._number - 1)
