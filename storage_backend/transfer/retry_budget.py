"""RetryBudget: how long a side that cannot be reached is waited for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from storage_backend.errors import is_retryable
from storage_backend.transfer.copying import InterruptedTransferError, TransferJob

T = TypeVar("T")

FIRST_PAUSE = 0.2  # seconds; each further one is twice as long
LONGEST_PAUSE = 5.0
FIRST_CONTACT = 5.0  # seconds for a side that nothing was heard of: its name may be mistyped
TURNS = 2  # further tries of one object while all else works: then it is not the connection


class RetryBudget:
    """The connection failures of one kind of work. Used from many threads.

    Args:
        job: of which *stop* ends all waiting.
        retry_for: seconds without any success, after which a failure is final.
        at_first: the same before the first success; as *retry_for* if it is not given.
        known: gives an identifier that both sides can be asked for, if there is one.
    """

    def __init__(
        self,
        job: TransferJob,
        retry_for: float,
        *,
        at_first: float | None = None,
        known: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._known = known
        self._job = job
        self._retry_for = retry_for
        self._at_first = retry_for if at_first is None else min(at_first, retry_for)
        self._since: float | None = None
        self._successes = 0

    def worked(self) -> None:
        """Take note that the sides are there."""
        self._successes += 1
        if self._since is not None:
            self._since = None
            self._job.in_flight.there_again(self)

    def run(self, call: Callable[[], T]) -> T:
        """What *call* gives, tried again while it fails for the connection."""
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

    def attempts(self) -> RetryAttempts:
        """The attempts at one piece of work."""
        return RetryAttempts(self)

    def wait(self, error: Exception, number: int) -> bool:
        """Wait before another try; False if it has gone on for too long.

        Raises:
            InterruptedTransferError: the transfer is to stop.
        """
        now = time.monotonic()
        since = self._since
        if since is None:
            since = self._since = now
        left = since + (self._retry_for if self._successes else self._at_first) - now
        if left <= 0:
            return False
        self._job.in_flight.unreachable(self, getattr(error, "backend", None), since)
        # Not all at the same instant: a server that comes back has others to serve, too.
        pause = min(FIRST_PAUSE * 2 ** min(number, 10), LONGEST_PAUSE) * random.uniform(0.8, 1.2)  # noqa: S311
        asked_for = getattr(error, "retry_after", None)
        if isinstance(asked_for, int | float):
            pause = max(pause, asked_for)
        if self._job.stop.wait(min(pause, left)):
            raise InterruptedTransferError
        return True

    def both_answer(self) -> bool:
        """Whether the sides answer when they are asked for some object."""
        identifier = self._known()
        if identifier is None:
            return False
        try:
            for backend in (self._job.source, self._job.target):
                backend.exists(identifier)
        except Exception as error:  # noqa: BLE001 - also a refusal is an answer
            return not is_retryable(error)
        return True

    @property
    def successes(self) -> int:
        """How often something worked."""
        return self._successes


class RetryAttempts:
    """How often one piece of work was tried, and whether it is worth another try."""

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget
        self._number = 0
        self._turns = 0
        self._seen = budget.successes

    def wait(self, error: Exception, *, alone: bool = False) -> bool:
        """As `RetryBudget.wait`; False also if it failed several times while others went on.

        Args:
            error: what it failed with.
            alone: others that were tried with it did not fail, or there were none: it may be at fault itself, which is so if both
                sides answer otherwise.
        """
        others = self._budget.successes != self._seen
        if others or (alone and self._budget.both_answer()):
            self._turns += 1
            if self._turns > TURNS:
                return False
        self._seen = self._budget.successes
        self._number += 1
        return self._budget.wait(error, self._number - 1)
