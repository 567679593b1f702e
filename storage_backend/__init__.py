"""One interface over the places that hold named bytes, and a verified migration between any two of them."""

from __future__ import annotations

from storage_backend.backends.memory import MemoryStorage
from storage_backend.base import StorageBackend
from storage_backend.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    AuthenticationError,
    BaseDirectoryNotFoundError,
    BatchError,
    BucketNotFoundError,
    ConfigurationError,
    IntegrityError,
    InvalidIdentifierError,
    MissingClientError,
    NoEndpointError,
    NotAFileError,
    NotFoundError,
    PreconditionFailedError,
    QuotaExceededError,
    RateLimitedError,
    SourceChangedError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
    UnsupportedOperationError,
)
from storage_backend.info import Capability, ObjectInfo
from storage_backend.wrappers.prefixed import PrefixedStorage
from storage_backend.wrappers.readonly import ReadOnlyStorage

__version__ = "0.1.0"

__all__ = [
    "AccessDeniedError",
    "AlreadyExistsError",
    "AuthenticationError",
    "BaseDirectoryNotFoundError",
    "BatchError",
    "BucketNotFoundError",
    "Capability",
    "ConfigurationError",
    "IntegrityError",
    "InvalidIdentifierError",
    "MemoryStorage",
    "MissingClientError",
    "NoEndpointError",
    "NotAFileError",
    "NotFoundError",
    "ObjectInfo",
    "PreconditionFailedError",
    "PrefixedStorage",
    "QuotaExceededError",
    "RateLimitedError",
    "ReadOnlyStorage",
    "SourceChangedError",
    "StorageBackend",
    "StorageError",
    "StorageTimeoutError",
    "UnavailableError",
    "UnsupportedOperationError",
    "__version__",
]
