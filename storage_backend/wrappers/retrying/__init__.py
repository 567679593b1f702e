"""RetryingStorage: what fails for a moment is tried again.

* `storage`: the verbs, and what may be done twice of each.
* `attempts`: whether there is another attempt, and after which pause (backoff with full jitter).
* `resuming`: scans and batches go on after an error with what has not come yet.
* `reader`: a reader goes on at its offset, if the object is still the same.
"""

from storage_backend.wrappers.retrying.storage import RetryingStorage

__all__ = ["RetryingStorage"]
