"""Each public method of each wrapper of the package is either forwarded or overridden, and the table says which."""

import importlib
import inspect
import pkgutil

import pytest

import storage_backend.wrappers
from storage_backend import StorageBackend
from storage_backend.testing import FaultyStorage
from storage_backend.wrappers.base import Wrapper

pytestmark = pytest.mark.quick

PUBLIC = {name for name in vars(StorageBackend) if not name.startswith("_")}
RECODED = {
    "read", "write", "scan", "open", "read_range", "read_many", "write_many", "download", "upload", "checksum", "get_url",
    "capabilities",
}  # fmt: skip
COMPRESSED = RECODED | {"size", "write_stream", "stat", "create", "replace"}
ENCRYPTED = COMPRESSED | {"copy", "move"}
FORWARDED = {
    "CachedStorage": {
        "exists", "list", "get_path", "size", "stat", "scan", "checksum", "get_url", "flush", "capabilities",
        "location", "keeps_modified",
    },
    "CompressedStorage": {
        "exists", "delete", "list", "get_path", "copy", "move", "delete_many", "flush", "location", "keeps_modified",
        "close",
    },
    "EncryptedStorage": {
        "exists", "delete", "list", "get_path", "delete_many", "flush", "location", "keeps_modified", "close",
    },
    "FaultyStorage": {"capabilities", "keeps_modified", "location", "close"},
    "PrefixedStorage": {"flush", "capabilities", "keeps_modified", "close"},
    "RecodingWrapper": PUBLIC - RECODED,
    "ReadOnlyStorage": {
        "exists", "read", "list", "get_path", "size", "stat", "scan", "read_range", "read_many", "download",
        "checksum", "get_url", "flush", "location", "keeps_modified", "close",
    },
    "RetryingStorage": {"capabilities", "keeps_modified", "location", "close"},
}  # fmt: skip
OVERRIDDEN = {
    "CachedStorage": {
        "read", "write", "delete", "copy", "move", "write_stream", "open", "read_range", "read_many", "write_many",
        "delete_many", "download", "upload", "create", "replace", "close",
    },
    "CompressedStorage": COMPRESSED,
    "EncryptedStorage": ENCRYPTED,
    "FaultyStorage": PUBLIC - {"capabilities", "keeps_modified", "location", "close"},
    "PrefixedStorage": {
        "exists", "read", "write", "delete", "list", "get_path", "size", "copy", "move", "write_stream", "stat",
        "scan", "open", "read_range", "read_many", "write_many", "delete_many", "download", "upload", "create",
        "replace", "checksum", "get_url", "location",
    },
    "RecodingWrapper": RECODED,
    "ReadOnlyStorage": {
        "write", "delete", "copy", "move", "write_stream", "open", "write_many", "delete_many", "upload", "create",
        "replace", "capabilities",
    },
    "RetryingStorage": PUBLIC - {"capabilities", "keeps_modified", "location", "close"},
}  # fmt: skip


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
