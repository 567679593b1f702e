"""Reading, and metadata."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import pytest

from storage_backend.base import StorageBackend
from storage_backend.errors import ConfigurationError
from storage_backend.testing.subject import ALL_BYTES, Subject, Topic, content_of, fill

CLOCKS_APART = timedelta(minutes=5)
"""The largest clock difference to a server that is allowed."""


class Reading(Topic):
    """`exists`, `read`, `size`, `stat` and `checksum`."""

    def test_read_gives_what_was_written(self, backend: StorageBackend) -> None:
        backend.write("folder/object.bin", ALL_BYTES)
        found = backend.read("folder/object.bin")
        assert found == ALL_BYTES
        assert type(found) is bytes

    def test_reading_twice_gives_the_same(self, backend: StorageBackend) -> None:
        backend.write("a", b"once")
        assert [backend.read("a"), backend.read("a")] == [b"once", b"once"]

    def test_missing_object_is_not_found(self, backend: StorageBackend) -> None:
        fill(backend, "present")
        for call in (backend.read, backend.size, backend.stat, backend.checksum, backend.open):
            with pytest.raises(FileNotFoundError):
                call("absent")

    def test_exists_tells_present_from_absent(self, backend: StorageBackend) -> None:
        fill(backend, "a/b")
        assert backend.exists("a/b") is True
        assert backend.exists("a/c") is False
        assert backend.exists("b") is False
        assert backend.exists("a/b/c") is False

    def test_a_prefix_is_no_object(self, backend: StorageBackend) -> None:
        fill(backend, "folder/object")
        assert backend.exists("folder") is False
        assert backend.exists("folder/obj") is False
        # No object in either kind of store; one with directories raises another class.
        with pytest.raises((FileNotFoundError, IsADirectoryError)):
            backend.read("folder")
        with pytest.raises(FileNotFoundError):
            backend.read("folder/obj")

    def test_size_is_that_of_the_content(self, backend: StorageBackend) -> None:
        sizes = [0, 1, 255, 4096, 100_001]
        for size in sizes:
            backend.write(f"{size}", content_of(size))
        assert [backend.size(f"{size}") for size in sizes] == sizes
        assert [backend.stat(f"{size}").size for size in sizes] == sizes

    def test_size_follows_an_overwrite(self, backend: StorageBackend) -> None:
        backend.write("a", b"long content")
        backend.write("a", b"short")
        assert backend.size("a") == 5
        assert backend.read("a") == b"short"

    def test_stat_tells_the_truth(self, backend: StorageBackend) -> None:
        content = content_of(1000)
        backend.write("folder/a", content)
        info = backend.stat("folder/a")
        assert info.identifier == "folder/a"
        assert info.size == 1000
        assert info.sha256 in {None, hashlib.sha256(content).hexdigest()}
        assert info.etag is None or (isinstance(info.etag, str) and info.etag)
        if info.modified is not None:
            assert info.modified.tzinfo is not None
            assert info.modified.utcoffset() == timedelta(0)
            assert abs(info.modified - datetime.now(UTC)) < CLOCKS_APART

    def test_equal_etags_mean_equal_content(self, backend: StorageBackend) -> None:
        tags = []
        for content in (b"first", b"other", b"third"):
            backend.write("a", content)
            tags.append(backend.stat("a").etag)
        known = [tag for tag in tags if tag is not None]
        assert len(set(known)) == len(known)

    def test_etag_stays_while_nothing_is_written(self, backend: StorageBackend) -> None:
        fill(backend, "a", "b")
        before = backend.stat("a")
        fill(backend, "b", "c")
        backend.read("a")
        assert backend.stat("a") == before

    def test_checksum_is_that_of_the_content(self, backend: StorageBackend) -> None:
        backend.write("a", ALL_BYTES)
        assert backend.checksum("a") == hashlib.sha256(ALL_BYTES).hexdigest()
        for algorithm in ("md5", "sha1", "sha512", "blake2b"):
            expected = hashlib.new(algorithm, ALL_BYTES, usedforsecurity=False).hexdigest()
            assert backend.checksum("a", algorithm) == expected
        backend.write("a", b"")
        assert backend.checksum("a") == hashlib.sha256(b"").hexdigest()

    def test_unknown_algorithm_is_refused(self, backend: StorageBackend) -> None:
        fill(backend, "a")
        with pytest.raises(ConfigurationError, match="crc-nonsense"):
            backend.checksum("a", "crc-nonsense")

    def test_another_instance_sees_the_object(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("shared")
        fill(backend, "a/b")
        with subject.make() as other:
            assert other.exists("a/b") is True
            assert other.read("a/b") == backend.read("a/b")
            assert other.list() == ["a/b"]
            other.write("a/b", b"from the other")
        assert backend.read("a/b") == b"from the other"

    def test_path_needs_no_object(self, backend: StorageBackend) -> None:
        with suppress(FileNotFoundError):  # FallbackStorage has a path only for objects that exist
            path = backend.get_path("folder/not there")
            assert isinstance(path, str)
            assert "not there" in unquote(path)  # a URL has it percent-encoded
        assert backend.exists("folder/not there") is False
        assert backend.list() == []
