"""Decides whether a failed request or read is tried again, and after how long.

`SignedRequests._send` asks `request_delay`; readers ask `read_delay` about bodies that break off (`reading`, `object_reader`).
Besides, `_send` repeats a request at once after it found an idle connection closed, and once each after it corrected the region,
the clock or the credentials. boto3 has its own retries, with the same limit of attempts (`boto3_client`).
"""

from __future__ import annotations

import random
import ssl

from storage_backend.backends.s3.errors import DAMAGED, S3ResponseError, rule_of
from storage_backend.backends.s3.file_parts import FileChangedError
from storage_backend.errors import StorageError

BACKOFF_BASE = 0.2  # seconds; the upper bound of the first delay, doubled with each attempt
BACKOFF_CAP = 10.0  # seconds
PATIENCE = 60.0  # seconds; after a longer Retry-After the request fails, and the caller decides
DAMAGED_ATTEMPTS = (
    3  # damage in transit is rare: if it repeats, something between here and the service causes it
)


def request_delay(error: Exception, attempt: int, limit: int) -> float | None:
    """Seconds to wait before a request is sent again; None if *error* is final.

    Args:
        error: an S3ResponseError, an UnexpectedResponseError, or an OSError of the network or the file that is sent.
        attempt: the number of the attempt that failed, from 1.
        limit: attempts allowed.
    """
    retry_after = None
    if isinstance(error, S3ResponseError):
        retry_after = error.retry_after
        if error.code in DAMAGED:
            limit = min(limit, DAMAGED_ATTEMPTS)
        elif not is_transient(error):
            return None
    elif not isinstance(error, OSError):
        # A proxy may have cut a chunked body short, which then looks complete, or answered in the service's place.
        limit = min(limit, DAMAGED_ATTEMPTS)
    elif isinstance(error, FileChangedError | ssl.SSLCertVerificationError):
        return None
    if attempt >= limit or (retry_after or 0.0) > PATIENCE:
        return None
    return backoff(attempt, retry_after)


def read_delay(error: StorageError, attempt: int, limit: int) -> float | None:
    """Seconds to wait before the rest of an object is requested again; None if *error* is final.

    A request that failed has already had its attempts.
    """
    if not error.retryable or max(attempt, error.attempts) >= limit:
        return None
    return backoff(attempt)


def is_transient(refusal: S3ResponseError) -> bool:
    """Whether the same request may succeed later."""
    return rule_of(refusal.status, refusal.code).kind.default_retryable


def backoff(attempt: int, retry_after: float | None = None) -> float:
    """Seconds to wait after attempt number *attempt*: random, and at least *retry_after*.

    The randomness spreads clients out ("full jitter": "Exponential Backoff And Jitter", AWS Architecture Blog).
    """
    bound = min(BACKOFF_CAP, BACKOFF_BASE * 2 ** (attempt - 1))
    return max(random.uniform(0, bound), retry_after or 0.0)  # noqa: S311 - not for secrecy
