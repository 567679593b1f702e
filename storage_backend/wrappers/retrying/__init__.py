"""RetryingStorage: retries operations that failed with a retryable error.

* `storage`: the public methods: which are retried, and how.
* `attempts`: decides whether there is another attempt, and after which pause (backoff with full jitter).
* `resuming`: resumes scans and batches after an error.
* `reader`: a reader that resumes at its offset if the object is unchanged.
"""

from storage_backend.wrappers.retrying.storage import RetryingStorage

__all__ = ["RetryingStorage"]
