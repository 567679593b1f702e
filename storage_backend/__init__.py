"""One interface to local directories, databases, SSH servers and S3, and verified migration between any two of them.

A module imports only from modules in the same line or above (`tests/test_layering.py`). To read the package, begin with `base`:

* `errors`, `identifiers`, `info`: the exceptions, the rules for identifiers and patterns, and `ObjectInfo`.
* `url_escaping`, `paths`, `secrets`, `lineage`: parts of URLs, "~" in paths, passwords, and whether two directories overlap.
* `forks`, `threads`, `owners`: fork safety, worker threads, and which temporary files belong to a process that has ended.
* `streams`, `file_rights`, `files`, `destinations`: readers and writers, modes and ACLs, files that appear whole, download targets.
* `scanning`, `last_seen`, `counted`, `defensive`, `hooks`: what all backends share.
* `base`: `StorageBackend`, seven abstract methods and the defaults built on them. `markers`: whether two backends are one store.
* `backends`: memory first, then local, sql, remote (SSH), s3.
* `wrappers`: cache, retry, fallback, compression, encryption and more, around any backend.
* `transfer`: `sync`, `migrate` and `verify` between any two backends. `testing`: the conformance suite for authors of backends.
* `location_parser`, `schemes`, `config`: `open_storage`, which opens the backend at a path or URL. `cli`: the command line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from storage_backend.backends.local import LocalStorage
    from storage_backend.backends.memory import MemoryStorage
    from storage_backend.backends.remote import RemoteStorage
    from storage_backend.backends.s3 import S3Storage
    from storage_backend.backends.sql import DatabaseStorage
    from storage_backend.base import StorageBackend
    from storage_backend.config import open_storage
    from storage_backend.hooks import Hooks
    from storage_backend.info import Capability, ObjectInfo
    from storage_backend.transfer import TransferOptions, TransferReport, migrate, plan, sync, verify
    from storage_backend.wrappers.cached import CachedStorage
    from storage_backend.wrappers.compressed import CompressedStorage
    from storage_backend.wrappers.encrypted import EncryptedStorage
    from storage_backend.wrappers.fallback import FallbackStorage
    from storage_backend.wrappers.prefixed import PrefixedStorage
    from storage_backend.wrappers.readonly import ReadOnlyStorage
    from storage_backend.wrappers.retrying import RetryingStorage

__version__ = "0.1.0"

# Imported on first use, so that a program pays only for what it uses.
_HOMES = {
    "CachedStorage": "wrappers.cached",
    "Capability": "info",
    "CompressedStorage": "wrappers.compressed",
    "DatabaseStorage": "backends.sql",
    "EncryptedStorage": "wrappers.encrypted",
    "FallbackStorage": "wrappers.fallback",
    "Hooks": "hooks",
    "LocalStorage": "backends.local",
    "MemoryStorage": "backends.memory",
    "ObjectInfo": "info",
    "PrefixedStorage": "wrappers.prefixed",
    "ReadOnlyStorage": "wrappers.readonly",
    "RemoteStorage": "backends.remote",
    "RetryingStorage": "wrappers.retrying",
    "S3Storage": "backends.s3",
    "StorageBackend": "base",
    "TransferOptions": "transfer",
    "TransferReport": "transfer",
    "migrate": "transfer",
    "open_storage": "config",
    "plan": "transfer",
    "sync": "transfer",
    "verify": "transfer",
}

__all__ = [
    "AccessDeniedError",
    "AlreadyExistsError",
    "AuthenticationError",
    "BaseDirectoryNotFoundError",
    "BatchError",
    "BucketNotFoundError",
    "CachedStorage",
    "Capability",
    "CompressedStorage",
    "ConfigurationError",
    "DatabaseStorage",
    "EncryptedStorage",
    "FallbackStorage",
    "Hooks",
    "IntegrityError",
    "InvalidIdentifierError",
    "LocalStorage",
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
    "RemoteStorage",
    "RetryingStorage",
    "S3Storage",
    "SourceChangedError",
    "StorageBackend",
    "StorageError",
    "StorageTimeoutError",
    "TransferOptions",
    "TransferReport",
    "UnavailableError",
    "UnsupportedOperationError",
    "__version__",
    "migrate",
    "open_storage",
    "plan",
    "sync",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
