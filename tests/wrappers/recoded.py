"""What the tests of the wrappers that store other bytes than they are given share."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from typing_extensions import override

from storage_backend import Capability, MemoryStorage, ObjectInfo, StorageBackend
from storage_backend.hooks import Hooks
from storage_backend.streams import ranged_reader
from tests.seven import Seven

SHARED = {"shared": "the objects live in one instance, in one process"}
FILES = {"content_type": "a file has no place for one"}
SEVEN = {
    "content_type": "it has no place for one",
    "errors": "it raises built-in errors",
    "modified": "it has no place for one",
    "refusals": "it takes every identifier",
    **SHARED,
}


class Vouching(MemoryStorage):
    """Vouches for the stored bytes' digest and has URLs, as S3 does; shows receipts."""

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        found = super().stat(identifier)
        return ObjectInfo(identifier, found.size, found.modified, found.etag, "ab" * 32, found.content_type)

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        return "ab" * 32

    @override
    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        return f"https://example.org/{identifier}"

    @property
    @override
    def capabilities(self) -> Capability:
        return super().capabilities | Capability.CHECKSUM | Capability.URL

    @property
    @override
    def hooks(self) -> Hooks:
        return VouchingHooks(self)


class VouchingHooks(Hooks):
    @override
    def last_written(self, identifier: str) -> ObjectInfo | None:
        return self.backend.stat(identifier)

    @override
    def sha256_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, str]]:
        return ((identifier, "ab" * 32) for identifier in identifiers)


class Counting(MemoryStorage):
    """Counts the bytes that readers and ranges move.

    Attributes:
        moved: how many bytes that were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        if mode == "wb":
            return super().open(identifier, mode)
        content = super().read(identifier)

        def fetch(start: int, end: int) -> bytes:
            self.moved += end - start
            return content[start:end]

        return ranged_reader(fetch, len(content), 4096)


class Rotting(Seven):
    """Stores something else than it was given."""

    @override
    def write(self, identifier: str, content: bytes) -> bool:
        return super().write(identifier, content[:-1] + bytes([content[-1] ^ 1]))


def readings(storage: StorageBackend, identifier: str, size: int) -> dict[str, Callable[[], object]]:
    """Every way of reading the whole object, which had *size* bytes."""

    def opened() -> bytes:
        with storage.open(identifier) as reader:
            return b"".join(iter(lambda: reader.read(1000), b""))

    def batch() -> bytes:
        failures: list[bytes] = []
        try:
            failures += [content for _, content in storage.read_many([identifier])]
        except Exception as error:
            raise getattr(error, "failures", {}).get(identifier, error) from error
        return failures[0]

    def copied() -> bytes:
        target = MemoryStorage()
        with storage.open(identifier) as reader:
            target.write_stream("copy", reader)
        return target.read("copy")

    return {
        "read": lambda: storage.read(identifier),
        "open": opened,
        "read_range": lambda: storage.read_range(identifier, 0),
        "clamped": lambda: storage.read_range(identifier, 0, size + 100),
        "read_many": batch,
        "copied": copied,
    }


def growth(program: str, place: Path) -> int:
    """How many bytes of memory a child's peak has grown by, over that after its first lines.

    Args:
        program: has `SETUP` and the work apart by a line "# work".
        place: of files it makes.
    """
    setup, work = program.split("# work\n")
    measure = "import resource; peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10\n"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{measure}{setup}\nbefore = peak()\n{work}\nprint(peak() - before)",
            str(place),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return int(done.stdout)


class Pattern(io.RawIOBase):
    """Gives *size* bytes that do not compress well, in bounded memory."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._piece = bytes(range(256)) * 1024

    def read(self, size: int = -1, /) -> bytes:
        taken = self._piece[: min(self._left, len(self._piece) if size < 0 else size)]
        self._left -= len(taken)
        return taken
