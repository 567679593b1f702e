"""What follows from seven methods, for a class that has nothing else."""

from __future__ import annotations

import pytest

from storage_backend import StorageBackend
from storage_backend.testing import ConformanceSuite, Subject
from storage_backend.wrappers.base import Wrapper


class Plain(StorageBackend):
    """As a user writes it: plain bytes, built-in errors, the order of a dictionary, no thought of the rest."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def exists(self, identifier: str) -> bool:
        return identifier in self.objects

    def read(self, identifier: str) -> bytes:
        if identifier not in self.objects:
            raise FileNotFoundError(identifier)
        return self.objects[identifier]

    def write(self, identifier: str, content: bytes) -> bool:
        assert type(content) is bytes
        self.objects[identifier] = content
        return True

    def delete(self, identifier: str) -> bool:
        if self.objects.pop(identifier, None) is None:
            raise FileNotFoundError(identifier)
        return True

    def list(self, pattern: str | None = None) -> list[str]:
        assert pattern is None, "generic code asks for everything"
        return list(self.objects)

    def get_path(self, identifier: str) -> str:
        return f"/plain/{identifier}"

    def size(self, identifier: str) -> int:
        return len(self.read(identifier))


LACKS = {
    "content": "its write takes bytes only",
    "content_type": "it has no place for one",
    "errors": "it raises built-in errors",
    "modified": "it has no place for one",
    "refusals": "it looks at no identifier",
    "shared": "the objects live in one instance, in one process",
}


class TestPlain(ConformanceSuite):
    @pytest.fixture
    def subject(self) -> Subject:
        storage = Plain()
        return Subject(
            make=lambda: storage,
            lacks={
                **LACKS,
                "globs": "its list ignores the pattern",
                "order": "its list is in order of writing",
            },
        )


class TestPlainInAWrapper(ConformanceSuite):
    """Wrapped, it lists as every backend does, and takes every content."""

    @pytest.fixture
    def subject(self) -> Subject:
        storage = Wrapper(Plain())
        lacks = {feature: reason for feature, reason in LACKS.items() if feature != "content"}
        return Subject(make=lambda: storage, lacks=lacks)
