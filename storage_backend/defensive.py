"""Calls to backends that may be a user's class or a mock: what they answer is checked, not trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage_backend.base import StorageBackend


def overrides(backend: StorageBackend, method: str) -> bool:
    """Whether the backend's class has a *method* of its own, not StorageBackend's; also if it has none, as that of a mock."""
    found = getattr(type(backend), method, None)
    return getattr(found, "__module__", None) != "storage_backend.base"
