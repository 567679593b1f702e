"""Writing from bytes and readers, and verification."""

from __future__ import annotations

import io
from array import array
from datetime import UTC, datetime, timedelta
from typing import BinaryIO, cast

import pytest

from storage_backend.base import StorageBackend
from storage_backend.errors import IntegrityError, UnavailableError
from storage_backend.info import ObjectInfo
from storage_backend.streams import HashingReader, sha256
from storage_backend.testing.faults import FaultyStorage
from storage_backend.testing.subject import (
    ALL_BYTES,
    SIZES,
    Source,
    SourceBrokeError,
    Subject,
    Topic,
    content_of,
    everything,
    fill,
    same,
    write_any,
)

MEGABYTE = 1 << 20


class Writing(Topic):
    """`write` and `write_stream`."""

    def test_every_size_round_trips(self, backend: StorageBackend) -> None:
        for size in SIZES:
            content = content_of(size)
            assert backend.write("bytes", content) is True
            assert backend.size("bytes") == size
            assert same(backend.read("bytes"), content), f"{size} bytes"

    def test_every_size_round_trips_as_a_stream(self, backend: StorageBackend) -> None:
        for size in SIZES:
            content = content_of(size, seed=1)
            assert backend.write_stream("stream", io.BytesIO(content)) is True
            assert backend.size("stream") == size
            assert same(backend.read("stream"), content), f"{size} bytes"

    def test_no_byte_is_changed(self, backend: StorageBackend) -> None:
        for content in (ALL_BYTES, b"\r\n", b"\n", b"\r", b"\x1a", b"\xef\xbb\xbftext", b"\x00" * 1000):
            backend.write("bytes", content)
            backend.write_stream("stream", io.BytesIO(content))
            assert same(backend.read("bytes"), content)
            assert same(backend.read("stream"), content)

    def test_overwrite_leaves_nothing_of_the_old(self, backend: StorageBackend) -> None:
        for size in (100_000, 10, 0, 70_000, 1):
            backend.write("a", content_of(size))
            assert same(backend.read("a"), content_of(size))
        assert backend.list() == ["a"]

    def test_parents_are_created(self, backend: StorageBackend) -> None:
        backend.write("one/two/three/four", b"deep")
        backend.write_stream("one/2/3", io.BytesIO(b"stream"))
        assert everything(backend) == {"one/two/three/four": b"deep", "one/2/3": b"stream"}

    def test_written_bytes_are_not_shared_with_the_caller(
        self, subject: Subject, backend: StorageBackend
    ) -> None:
        subject.require("content")
        content = bytearray(b"before")
        write_any(backend, "a", content)
        content[:] = b"after!"
        assert same(backend.read("a"), b"before")

    def test_every_buffer_is_taken(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("content")
        numbers = array("I", [1, 2, 3])
        for content in (bytearray(b"abc"), memoryview(b"xabcx")[1:4], memoryview(b"a-b-c")[::2], numbers):
            assert write_any(backend, "a", content) is True
            assert same(backend.read("a"), bytes(memoryview(content)))

    def test_reader_is_taken(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("content")
        reader = io.BytesIO(ALL_BYTES)
        assert write_any(backend, "a", reader) is True
        assert backend.read("a") == ALL_BYTES
        assert not reader.closed
        assert write_any(backend, "b", Source(ALL_BYTES, most=7)) is True
        assert backend.read("b") == ALL_BYTES

    def test_reader_is_consumed_from_where_it_is_and_left_open(self, backend: StorageBackend) -> None:
        for size in (100, 3 * MEGABYTE):
            content = content_of(size)
            reader = io.BytesIO(content)
            reader.seek(size // 3)
            backend.write_stream("a", reader)
            assert not reader.closed
            assert reader.tell() == size
            assert same(backend.read("a"), content[size // 3 :])
        exhausted = io.BytesIO(b"gone")
        exhausted.read()
        backend.write_stream("a", exhausted)
        assert backend.read("a") == b""

    def test_reader_needs_only_read(self, backend: StorageBackend) -> None:
        content = content_of(300_000)
        source = Source(content, most=70_001)
        backend.write_stream("a", source.as_binary())
        assert source.position == len(content)
        assert same(backend.read("a"), content)
        backend.write_stream("b", Source(content[:2000], most=1).as_binary())
        assert same(backend.read("b"), content[:2000])

    def test_text_is_refused_before_anything_is_touched(
        self, subject: Subject, backend: StorageBackend
    ) -> None:
        subject.require("content")
        fill(backend, "old")
        before = everything(backend)
        for content in ("text", io.StringIO("text"), io.TextIOWrapper(io.BytesIO(b"text")), 7, None, ["a"]):
            for identifier in ("old", "new"):
                with pytest.raises(TypeError):
                    write_any(backend, identifier, content)
        assert same(everything(backend), before)

    def test_reader_of_text_is_refused(self, backend: StorageBackend) -> None:
        fill(backend, "old")
        before = everything(backend)
        for identifier in ("old", "new"):
            with pytest.raises(TypeError):
                backend.write_stream(identifier, io.StringIO("text"))  # type: ignore[arg-type] # on purpose
        assert same(everything(backend), before)

    def test_source_that_breaks_changes_nothing(self, backend: StorageBackend) -> None:
        fill(backend, "old")
        before = everything(backend)
        for size, at in ((10, 0), (10, 5), (3 * MEGABYTE, 2 * MEGABYTE), (10 * MEGABYTE, 9 * MEGABYTE)):
            for identifier in ("old", "new", "folder/new"):
                source = Source(content_of(size), breaks_at=at)
                with pytest.raises(SourceBrokeError):
                    backend.write_stream(identifier, source.as_binary())
                assert same(everything(backend), before)

    def test_write_of_a_source_that_breaks_changes_nothing(
        self, subject: Subject, backend: StorageBackend
    ) -> None:
        subject.require("content")
        fill(backend, "old")
        before = everything(backend)
        for identifier in ("old", "new"):
            with pytest.raises(SourceBrokeError):
                write_any(backend, identifier, Source(content_of(MEGABYTE), breaks_at=MEGABYTE // 2))
            assert same(everything(backend), before)

    def test_interrupt_changes_nothing(self, backend: StorageBackend) -> None:
        fill(backend, "old")
        before = everything(backend)

        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            backend.write_stream("old", Source(b"new", watch=interrupt).as_binary())
        assert same(everything(backend), before)
        fill(backend, "old", "new")

    def test_cut_stream_of_another_backend_changes_nothing(self, backend: StorageBackend) -> None:
        faulty = FaultyStorage(backend)
        backend.write("source", content_of(2 * MEGABYTE))
        fill(backend, "old")
        before = everything(backend)
        for identifier in ("old", "new"):
            faulty.cut("open", at=MEGABYTE)
            with faulty.open("source") as reader, pytest.raises(UnavailableError):
                backend.write_stream(identifier, reader)
            faulty.cut("write", at=MEGABYTE)
            with pytest.raises(UnavailableError):
                faulty.write(identifier, content_of(2 * MEGABYTE))
            assert same(everything(backend), before)

    def test_object_can_be_written_from_itself(self, backend: StorageBackend) -> None:
        content = content_of(3 * MEGABYTE)
        backend.write("a", content)
        with backend.open("a") as reader:
            backend.write_stream("a", reader)
        assert same(backend.read("a"), content)

    def test_source_may_be_longer_than_it_looks(self, backend: StorageBackend) -> None:
        # A file that grows while it is read is longer than a seek to its end showed before.
        class Growing(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if self.tell() == 0:
                    self.seek(0, io.SEEK_END)
                    self.write(b"y" * 10)
                    self.seek(0)
                return super().read(size)

        backend.write_stream("a", Growing(b"x" * 10))
        assert backend.read("a") == b"x" * 10 + b"y" * 10


class Verifying(Topic):
    """`write_stream` with `info` (size, time, media type) and `verify`."""

    def test_promised_size_is_checked(self, backend: StorageBackend) -> None:
        fill(backend, "old")
        before = everything(backend)
        content = content_of(MEGABYTE)
        for promised in (0, MEGABYTE - 1, MEGABYTE + 1):
            for identifier in ("old", "new"):
                info = ObjectInfo(identifier, size=promised)
                with pytest.raises(IntegrityError):
                    backend.write_stream(identifier, io.BytesIO(content), info=info)
                assert same(everything(backend), before)
        assert backend.write_stream("new", io.BytesIO(content), info=ObjectInfo("new", size=MEGABYTE)) is True
        assert same(backend.read("new"), content)

    def test_info_of_another_identifier_is_only_about_the_content(self, backend: StorageBackend) -> None:
        backend.write_stream("here", io.BytesIO(b"abc"), info=ObjectInfo("elsewhere/there", size=3))
        assert everything(backend) == {"here": b"abc"}

    def test_verified_write_stores(self, backend: StorageBackend) -> None:
        for size in (0, 1, 3 * MEGABYTE):
            content = content_of(size)
            assert backend.write_stream("a", io.BytesIO(content), verify=True) is True
            assert same(backend.read("a"), content)
            info = ObjectInfo("a", size=size, sha256=sha256(content))
            assert backend.write_stream("a", io.BytesIO(content), info=info, verify=True) is True
            assert same(backend.read("a"), content)

    def test_reader_that_hashes_is_left_with_the_digest(self, backend: StorageBackend) -> None:
        # A transfer wraps its source in a digesting reader and needs the digest afterwards.
        content = content_of(MEGABYTE + 1)
        for verify in (True, False):
            reader = HashingReader(io.BytesIO(content))
            backend.write_stream("a", cast(BinaryIO, reader), verify=verify)
            assert (reader.size, reader.hexdigest()) == (len(content), sha256(content))
            assert same(backend.read("a"), content)
        # The digest of a caller's reader says nothing of what is to be stored.
        other = HashingReader(io.BytesIO(content), "md5")
        info = ObjectInfo("a", size=len(content), sha256=sha256(content))
        assert backend.write_stream("a", cast(BinaryIO, other), info=info) is True
        assert same(backend.read("a"), content)

    def test_promised_digest_is_checked(self, backend: StorageBackend) -> None:
        fill(backend, "old")
        before = everything(backend)
        for identifier in ("old", "new"):
            info = ObjectInfo(identifier, size=3, sha256=sha256(b"abd"))
            with pytest.raises(IntegrityError):
                backend.write_stream(identifier, io.BytesIO(b"abc"), info=info, verify=True)
            assert same(everything(backend), before)

    def test_backend_says_whether_it_keeps_the_time(self, subject: Subject, backend: StorageBackend) -> None:
        assert backend.keeps_modified is subject.has("modified")

    def test_time_is_kept(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("modified")
        for modified in (
            datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC),
            datetime(2024, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        ):
            info = ObjectInfo("a", modified=modified)
            backend.write_stream("a", io.BytesIO(b"abc"), info=info)
            backend.write_stream("verified", io.BytesIO(b"abc"), info=info, verify=True)
            backend.write_many([(ObjectInfo("batch", modified=modified), b"abc")])
            for identifier in ("a", "verified", "batch"):
                found = backend.stat(identifier).modified
                assert found is not None
                assert found.tzinfo is not None
                # Stores round times, FAT to two seconds.
                assert abs(found - modified) <= timedelta(seconds=2), identifier
                assert {info.modified for info in backend.scan(identifier)} == {found}

    def test_time_is_now_when_none_is_given(self, backend: StorageBackend) -> None:
        old = datetime(2001, 2, 3, tzinfo=UTC)
        backend.write_stream("a", io.BytesIO(b"abc"), info=ObjectInfo("a", modified=old))
        backend.write("a", b"new")
        found = backend.stat("a").modified
        assert found is None or found > old + timedelta(days=365)

    def test_media_type_is_kept(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("content_type")
        backend.write_stream("a", io.BytesIO(b"{}"), info=ObjectInfo("a", content_type="application/json"))
        assert backend.stat("a").content_type == "application/json"
        backend.write("a", b"plain")
        assert backend.stat("a").content_type != "application/json"

    def test_source_that_breaks_a_verified_write_changes_nothing(self, backend: StorageBackend) -> None:
        fill(backend, "old")
        before = everything(backend)
        source = Source(content_of(MEGABYTE), breaks_at=MEGABYTE // 2)
        with pytest.raises(SourceBrokeError):
            backend.write_stream("old", source.as_binary(), verify=True)
        assert same(everything(backend), before)
