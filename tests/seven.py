"""A user's backend: the seven methods, plain bytes, no call of `super().__init__()`."""

from __future__ import annotations

from typing_extensions import override

from storage_backend import StorageBackend


class Seven(StorageBackend):
    """As a user writes it: built-in errors, the order of a dictionary, no thought of the rest."""

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
        assert pattern is None, "generic code asks a user's class for everything"
        return list(self.objects)

    def get_path(self, identifier: str) -> str:
        return f"/seven/{identifier}"

    def size(self, identifier: str) -> int:
        return len(self.read(identifier))


class Careless(Seven):
    """`write` returns None, and `list` is unsorted with repetitions."""

    @override
    def write(self, identifier: str, content: bytes) -> bool:
        super().write(identifier, content)
        return None  # type: ignore[return-value]  # as careless classes do

    @override
    def list(self, pattern: str | None = None) -> list[str]:
        return sorted(super().list(pattern), reverse=True) * 2
