"""A user's backend: the seven methods, plain bytes, no call of `super().__init__()`."""

from storage_backend import StorageBackend


class Seven(StorageBackend):
    """Careless on purpose: `write` returns None, `list` is unsorted with repetitions, errors are the built-in ones."""

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
        return None  # type: ignore[return-value]  # as careless classes do

    def delete(self, identifier: str) -> bool:
        self.read(identifier)
        del self.objects[identifier]
        return True

    def list(self, pattern: str | None = None) -> list[str]:
        assert pattern is None, "generic code asks a user's class for everything"
        return sorted(self.objects, reverse=True) * 2

    def get_path(self, identifier: str) -> str:
        return f"/seven/{identifier}"

    def size(self, identifier: str) -> int:
        return len(self.read(identifier))
