"""How long to wait before a request is tried again. Whether it is: `SignedRequests._send`, `reading`, and botocore."""

from __future__ import annotations

import random

FIRST = 0.2  # seconds that the first pause has at most; each further one twice as many
LONGEST = 10.0  # seconds
PATIENCE = 60.0  # seconds that a Retry-After is obeyed for; a longer one is for the caller to decide


def pause(tries: int, retry_after: float | None = None) -> float:
    """Seconds to wait after *tries* tries: random, and not less than the service asked for.

    The randomness keeps clients apart ("full jitter": "Exponential Backoff And Jitter", AWS Architecture Blog).
    """
    jitter = random.uniform(0, min(LONGEST, FIRST * 2 ** (tries - 1)))  # noqa: S311 - not for secrecy
    return max(jitter, retry_after or 0.0)
