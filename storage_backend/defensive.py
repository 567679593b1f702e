"""Calls to backends that may be a user's class or a mock: what they return is checked, not trusted."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, cast

from storage_backend import identifiers
from storage_backend.errors import StorageError
from storage_backend.info import Capability, ObjectInfo

if TYPE_CHECKING:
    from storage_backend.base import StorageBackend


def capabilities_of(backend: StorageBackend) -> Capability:
    """The backend's capabilities; none if it does not say, as a mock does not."""
    value: object = backend.capabilities
    return value if isinstance(value, Capability) else Capability(0)


def location_of(backend: StorageBackend) -> str:
    """The backend's location; its class's name if it does not say, as a mock does not."""
    value: object = backend.location
    return value if isinstance(value, str) else type(backend).__name__


def store(backend: StorageBackend, identifier: str, content: bytes) -> bool:
    """Call `write` of a class that may be a user's: None is taken as done, False as a failure.

    Raises:
        StorageError: it returned False.
    """
    if backend.write(identifier, content) is False:
        where = location_of(backend)
        raise StorageError(f"{where} did not store {identifier!r}", identifier=identifier, backend=where)
    return True


def matching(backend: StorageBackend, pattern: str | None) -> list[str]:
    """What `list` must give, also from a class that may be a user's with its own idea of patterns, order or type."""
    if overrides(backend, "scan"):
        return backend.list(pattern)
    glob = identifiers.glob(pattern) if pattern is not None else None
    found = (info.identifier for info in backend.scan(glob.stem if glob else ""))
    return [identifier for identifier in found if glob is None or glob.matches(identifier)]


def info_of(value: object, identifier: str) -> ObjectInfo:
    """What a backend's `stat` or `scan` gave, with fields of a wrong type taken as unknown."""

    def field(name: str, kind: type) -> object:
        found = getattr(value, name, None)
        return found if isinstance(found, kind) and not isinstance(found, bool) else None

    modified = cast("datetime | None", field("modified", datetime))
    return ObjectInfo(
        identifier,
        size=cast("int | None", field("size", int)),
        modified=modified if modified is not None and modified.tzinfo is not None else None,
        etag=cast("str | None", field("etag", str)),
        sha256=cast("str | None", field("sha256", str)),
        content_type=cast("str | None", field("content_type", str)),
    )


def overrides(backend: StorageBackend, method: str) -> bool:
    """Whether the backend's class has a *method* of its own, not StorageBackend's; also if it has none, as that of a mock."""
    found = getattr(type(backend), method, None)
    return getattr(found, "__module__", None) != "storage_backend.base"
