"""Each public method of each wrapper of the package is either forwarded or overridden, and the table says which."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from typing_extensions import override

import storage_backend.wrappers
from storage_backend import (
    CachedStorage,
    CompressedStorage,
    EncryptedStorage,
    FallbackStorage,
    MemoryStorage,
    PrefixedStorage,
    ReadOnlyStorage,
    RetryingStorage,
    StorageBackend,
)
from storage_backend.base import Item
from storage_backend.testing import FaultyStorage
from storage_backend.wrappers.base import Wrapper

pytestmark = pytest.mark.quick

PUBLIC = {name for name in vars(StorageBackend) if not name.startswith("_")}
RECODED = {
    "read", "write", "scan", "scan_level", "open", "read_range", "read_many", "write_many", "download", "upload", "checksum",
    "get_url", "capabilities", "hooks",
}  # fmt: skip
COMPRESSED = RECODED | {"size", "write_stream", "stat", "stat_many", "create", "replace"}
ENCRYPTED = COMPRESSED | {"copy", "move"}
FORWARDED = {
    "CachedStorage": {
        "exists", "list", "get_path", "size", "stat", "stat_many", "scan", "scan_level", "checksum", "get_url", "flush",
        "capabilities", "location", "keeps_modified",
    },
    "CompressedStorage": {
        "exists", "delete", "list", "get_path", "copy", "move", "delete_many", "flush", "location", "keeps_modified",
        "close",
    },
    "EncryptedStorage": {
        "exists", "delete", "list", "get_path", "delete_many", "flush", "location", "keeps_modified", "close",
    },
    "FaultyStorage": {"capabilities", "keeps_modified", "location", "hooks", "close"},
    "PrefixedStorage": {"flush", "capabilities", "keeps_modified", "close"},
    "RecodingWrapper": PUBLIC - RECODED,
    "ReadOnlyStorage": {
        "exists", "read", "list", "get_path", "size", "stat", "stat_many", "scan", "scan_level", "read_range", "read_many",
        "download", "checksum", "get_url", "flush", "location", "keeps_modified", "hooks", "close",
    },
    "RetryingStorage": {"capabilities", "keeps_modified", "location", "close"},
}  # fmt: skip
OVERRIDDEN = {
    "CachedStorage": {
        "read", "write", "delete", "copy", "move", "write_stream", "open", "read_range", "read_many", "write_many",
        "delete_many", "download", "upload", "create", "replace", "hooks", "close",
    },
    "CompressedStorage": COMPRESSED,
    "EncryptedStorage": ENCRYPTED,
    "FaultyStorage": PUBLIC - {"capabilities", "keeps_modified", "location", "hooks", "close"},
    "PrefixedStorage": {
        "exists", "read", "write", "delete", "list", "get_path", "size", "copy", "move", "write_stream", "stat",
        "stat_many", "scan", "scan_level", "hooks", "open", "read_range", "read_many", "write_many", "delete_many", "download", "upload", "create",
        "replace", "checksum", "get_url", "location",
    },
    "RecodingWrapper": RECODED,
    "ReadOnlyStorage": {
        "write", "delete", "copy", "move", "write_stream", "open", "write_many", "delete_many", "upload", "create",
        "replace", "capabilities",
    },
    "RetryingStorage": PUBLIC - {"capabilities", "keeps_modified", "location", "close"},
}  # fmt: skip


class Old(MemoryStorage):
    """A user's class from before `progress`."""

    @override
    def read_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, bytes]]:  # type: ignore[override]  # on purpose
        return super().read_many(identifiers)

    @override
    def write_many(self, items: Iterable[Item], *, verify: bool = False) -> int:  # type: ignore[override]  # on purpose
        return super().write_many(items, verify=verify)

    @override
    def delete_many(self, identifiers: Iterable[str]) -> int:  # type: ignore[override]  # on purpose
        return super().delete_many(identifiers)


MADE: dict[str, Callable[[Path], StorageBackend]] = {
    "cached": lambda folder: CachedStorage(Old(), folder / "cache"),
    "compressed": lambda _: CompressedStorage(Old()),
    "encrypted": lambda _: EncryptedStorage(Old(), key=bytes(32)),
    "fallback": lambda _: FallbackStorage(Old(), Old()),
    "faulty": lambda _: FaultyStorage(Old()),
    "prefixed": lambda _: PrefixedStorage(Old(), "in/it"),
    "retrying": lambda _: RetryingStorage(Old()),
    "wrapper": lambda _: Wrapper(Old()),
    "nested": lambda folder: PrefixedStorage(CachedStorage(CompressedStorage(Old()), folder / "cache"), "in"),
}


@pytest.mark.parametrize("kind", MADE)
def test_progress_counts_what_the_caller_sees_and_is_not_passed_on(kind: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def progress(objects: int, size: int) -> None:
        told.append((objects, size))

    with MADE[kind](tmp_path) as storage:
        objects = {f"{number}": b"x" * number for number in range(10)}
        assert storage.write_many(objects.items(), progress=progress) == 10
        assert told[-1] == (10, 45)
        assert dict(storage.read_many(objects, progress=progress)) == objects
        assert told[-10:] == sorted(told[-10:])
        assert told[-1] == (10, 45)
        shown = ReadOnlyStorage(storage)
        assert dict(shown.read_many(["3", "4"], progress=progress)) == {"3": b"xxx", "4": b"xxxx"}
        assert told[-1] == (2, 7)
        assert storage.delete_many([*objects, "1"], progress=progress) == 10
        assert told[-1] == (10, 0)


def test_a_prefetch_tells_what_it_fetches(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    backend = Old()
    backend.write_many([("a", b"1"), ("b", b"22"), ("c", b"333")])
    with CachedStorage(backend, tmp_path / "cache") as cache:
        cache.read("a")
        assert cache.prefetch("abc", progress=lambda *so_far: told.append(so_far)) == 2
    assert told[-1] == (2, 5)
    assert len(told) == 2


def wrappers() -> list[type[Wrapper]]:
    for module in pkgutil.walk_packages(storage_backend.wrappers.__path__, "storage_backend.wrappers."):
        importlib.import_module(module.name)
    found: list[type[Wrapper]] = [FaultyStorage]
    pending = [Wrapper]
    while pending:
        for kind in pending.pop().__subclasses__():
            pending.append(kind)
            if kind.__module__.startswith("storage_backend.") and kind not in found:
                found.append(kind)
    return found


def test_wrapper_itself_forwards_everything() -> None:
    assert set(vars(Wrapper)) >= PUBLIC


def test_every_method_of_every_wrapper_is_in_the_table() -> None:
    kinds = wrappers()
    assert {kind.__name__ for kind in kinds} == set(FORWARDED) == set(OVERRIDDEN)
    for kind in kinds:
        name = kind.__name__
        assert FORWARDED[name] | OVERRIDDEN[name] == PUBLIC, name
        assert not FORWARDED[name] & OVERRIDDEN[name], name


def test_the_table_tells_the_truth() -> None:
    for kind in wrappers():
        own = {method for base in kind.__mro__ if base in wrappers() for method in vars(base)} & PUBLIC
        assert own == OVERRIDDEN[kind.__name__], kind.__name__


def test_overrides_keep_the_signature() -> None:
    for kind in wrappers():
        for method in PUBLIC & set(vars(kind)):
            theirs, ours = vars(Wrapper)[method], vars(kind)[method]
            if not isinstance(theirs, property):
                assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
