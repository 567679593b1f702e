"""Capabilities: what a backend declares, and what it does."""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from storage_backend.base import StorageBackend
from storage_backend.errors import UnsupportedOperationError
from storage_backend.info import Capability
from storage_backend.testing.subject import ALL_BYTES, Subject, Topic, fill
from storage_backend.wrappers.base import Wrapper

METHODS: Mapping[Capability, str] = {
    Capability.CREATE: "create",
    Capability.REPLACE: "replace",
    Capability.URL: "get_url",
    Capability.RANGES: "read_range",
    Capability.SERVER_COPY: "copy",
    Capability.CHECKSUM: "checksum",
    Capability.FLUSH: "flush",
}
"""A backend with the flag overrides the method. DIRECTORIES concerns all methods."""

REFUSED = (Capability.CREATE, Capability.REPLACE, Capability.URL, Capability.FLUSH)
"""Without the flag these methods raise, also if the class overrides them but the server lacks the feature; others are emulated."""


class Capabilities(Topic):
    """`capabilities`: a flag is set if and only if the method works."""

    def test_flags_are_capabilities(self, backend: StorageBackend) -> None:
        assert isinstance(backend.capabilities, Capability)
        assert backend.capabilities == backend.capabilities

    def test_flag_and_override_go_together(self, backend: StorageBackend) -> None:
        # A wrapper overrides all methods; the backend within decides.
        flags = backend.capabilities
        while isinstance(backend, Wrapper):
            backend = backend.backend
        for capability, method in METHODS.items():
            overridden = getattr(type(backend), method) is not getattr(StorageBackend, method)
            assert not (capability in flags and not overridden), f"{capability} without its own {method}()"

    def test_method_works_where_the_flag_is_set_and_is_refused_elsewhere(
        self, backend: StorageBackend
    ) -> None:
        backend.write("folder/a", ALL_BYTES)
        etag = backend.stat("folder/a").etag
        calls: dict[Capability, Callable[[], Any]] = {
            Capability.CREATE: lambda: backend.create("folder/new", b"x"),
            Capability.REPLACE: lambda: backend.replace("folder/a", ALL_BYTES, str(etag)),
            Capability.URL: lambda: backend.get_url("folder/a"),
            Capability.FLUSH: backend.flush,
        }
        for capability, call in calls.items():
            if capability in backend.capabilities:
                assert call(), capability
            else:
                with pytest.raises(UnsupportedOperationError) as caught:
                    call()
                assert isinstance(caught.value, NotImplementedError)
                assert caught.value.identifier in {"folder/a", "folder/new", None}
        assert backend.read("folder/a") == ALL_BYTES

    def test_flush_returns_true(self, backend: StorageBackend) -> None:
        if Capability.FLUSH not in backend.capabilities:
            with pytest.raises(UnsupportedOperationError):
                backend.flush()
            return
        assert backend.flush() is True
        fill(backend, "a")
        assert backend.flush() is True

    def test_url_gives_the_object(self, subject: Subject, backend: StorageBackend) -> None:
        if Capability.URL not in backend.capabilities:
            fill(backend, "a")
            with pytest.raises(UnsupportedOperationError):
                backend.get_url("a")
            return
        for name in ("folder/a", "a b#c?d%20e", "é/😀"):
            backend.write(name, ALL_BYTES)
            url = backend.get_url(name, expires_in=600)
            assert urllib.parse.urlsplit(url).scheme in {"file", "http", "https"}
            if not subject.has("urls"):
                continue
            with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - the scheme was just checked
                assert answer.read() == ALL_BYTES
