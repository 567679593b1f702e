"""Wrapper: nothing of the inner backend is lost."""

import io
from unittest.mock import MagicMock

import pytest

from storage_backend import Capability, MemoryStorage, ObjectInfo, StorageBackend, StorageError
from storage_backend.wrappers.base import Wrapper
from tests.seven import Careless

pytestmark = pytest.mark.quick

CALLS = {
    "exists": ("a",),
    "read": ("a",),
    "delete": ("a",),
    "list": ("*.x",),
    "get_path": ("a",),
    "size": ("a",),
    "copy": ("a", "b"),
    "move": ("a", "b"),
    "stat": ("a",),
    "open": ("a", "wb"),
    "read_range": ("a", 1, 2),
    "read_many": (["a"],),
    "delete_many": (["a"],),
    "download": ("a", "/tmp/a"),
    "upload": ("/tmp/a", "a"),
    "create": ("a", b"1"),
    "replace": ("a", b"1", "e"),
    "checksum": ("a", "md5"),
    "get_url": ("a", 60),
    "flush": (),
    "close": (),
}


@pytest.mark.parametrize("method", sorted(CALLS))
def test_forwards_arguments_and_result(method: str) -> None:
    inner = MagicMock(spec=StorageBackend)
    result = getattr(Wrapper(inner), method)(*CALLS[method])
    getattr(inner, method).assert_called_once_with(*CALLS[method])
    if method not in {"delete", "close"}:
        assert result is getattr(inner, method).return_value


def test_forwards_keywords() -> None:
    inner = MagicMock(spec=StorageBackend)
    wrapper, reader, info = Wrapper(inner), io.BytesIO(), ObjectInfo("a")
    wrapper.write_stream("a", reader, info=info, verify=True)
    inner.write_stream.assert_called_once_with("a", reader, info=info, verify=True)
    wrapper.write_many([], verify=True)
    inner.write_many.assert_called_once_with([], verify=True)
    wrapper.scan("p", on_skip=print)
    inner.scan.assert_called_once_with("p", on_skip=print)


def test_gives_write_of_a_users_class_bytes_only() -> None:
    inner = Careless()
    wrapper = Wrapper(inner)
    assert wrapper.write("a", bytearray(b"1")) is True
    assert wrapper.write("b", io.BytesIO(b"2")) is True
    assert inner.objects == {"a": b"1", "b": b"2"}
    with pytest.raises(TypeError):
        wrapper.write("c", "text")  # type: ignore[arg-type]  # what is tested


def test_false_from_write_is_a_failure() -> None:
    inner = MagicMock(spec=StorageBackend)
    inner.write.return_value = False
    with pytest.raises(StorageError, match="did not store 'a'"):
        Wrapper(inner).write("a", b"")


def test_list_of_a_users_class_is_sorted_unique_and_matched() -> None:
    inner = Careless()
    inner.objects = {"b.x": b"", "a.x": b"", "d/c.x": b"", "a.y": b""}
    assert Wrapper(inner).list("*.x") == ["a.x", "b.x"]
    assert Wrapper(Wrapper(inner)).list("**/*.x") == ["a.x", "b.x", "d/c.x"]


def test_tells_the_inner_capabilities_and_location() -> None:
    inner = MemoryStorage()
    assert Wrapper(inner).capabilities == inner.capabilities
    assert Wrapper(inner).location == inner.location
    mock = MagicMock(spec=StorageBackend)
    assert Wrapper(mock).capabilities == Capability(0)
    assert isinstance(Wrapper(mock).location, str)


def test_leaving_a_with_closes_the_inner_backend() -> None:
    inner = MagicMock(spec=StorageBackend)
    with Wrapper(inner) as wrapper:
        assert wrapper.backend is inner
    inner.close.assert_called_once_with()


def test_refuses_what_is_no_backend() -> None:
    with pytest.raises(TypeError, match="StorageBackend"):
        Wrapper("/data")  # type: ignore[arg-type]  # what is tested
