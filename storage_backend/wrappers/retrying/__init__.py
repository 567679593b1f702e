"""RetryingStorage: what fails for a moment is tried again."""

from storage_backend.wrappers.retrying.storage import RetryingStorage

__all__ = ["RetryingStorage"]
