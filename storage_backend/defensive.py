"""Checked calls to backends that may be a third-party class or a mock."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, cast

from storage_backend import identifiers
from storage_backend.errors import StorageError
from storage_backend.info import Capability, ObjectInfo

if TYPE_CHECKING:
    from storage_backend.base import StorageBackend


def capabilities_of(backend: StorageBackend) -> Capability:
    """The backend's capabilities; none if the value is invalid, as a mock's."""
    value: object = backend.capabilities
    return value if isinstance(value, Capability) else Capability(0)


def location_of(backend: StorageBackend) -> str:
    """The backend's location; its class's name if the value is invalid, as a mock's."""
    value: object = backend.location
    return value if isinstance(value, str) else type(backend).__name__


def store(backend: StorageBackend, identifier: str, content: bytes) -> bool:
    """Call `write`. False counts as a failure, None as success.

    Raises:
        StorageError: it returned False.
    """
    if backend.write(identifier, content) is False:
        where = location_of(backend)
        raise StorageError(f"{where} did not store {identifier!r}", identifier=identifier, backend=where)
    return True


def matching(backend: StorageBackend, pattern: str | None) -> list[str]:
    """The result of `list`, computed from `scan` unless the class has its own: a user's `list` may ignore patterns or order."""
    if overrides(backend, "scan"):
        return backend.list(pattern)
    glob = identifiers.glob(pattern) if pattern is not None else None
    found = (info.identifier for info in backend.scan(glob.stem if glob else ""))
    return [identifier for identifier in found if glob is None or glob.matches(identifier)]


def info_of(value: object, identifier: str) -> ObjectInfo:
    """An ObjectInfo from the result of `stat` or `scan`; fields of a wrong type count as unknown."""

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
    """Whether the backend's class does not inherit *method* from StorageBackend; true for a mock, too."""
    # By the class: a decorated method may claim the module of the one that it replaces (functools.wraps).
    for kind in type(backend).__mro__:
        if method in vars(kind):
            return kind.__module__ != "storage_backend.base"
    return True
