"""Readers and writers of `open`."""

from __future__ import annotations

import gc
import gzip
import io
import threading
import warnings
import zipfile
from typing import Any, cast

import pytest

from storage_backend.base import StorageBackend
from storage_backend.errors import SourceChangedError, UnavailableError
from storage_backend.testing.faults import FaultyStorage
from storage_backend.testing.subject import (
    ALL_BYTES,
    SourceBrokeError,
    Subject,
    Topic,
    content_of,
    everything,
    fill,
    named,
    same,
)

MEGABYTE = 1 << 20


class Streams(Topic):
    """`open(identifier)`: a seekable reader."""

    def test_reader_gives_the_content(self, backend: StorageBackend) -> None:
        for content in (b"", ALL_BYTES, content_of(3 * MEGABYTE)):
            backend.write("a", content)
            with backend.open("a") as reader:
                assert same(reader.read(), content)
                assert reader.read() == b""
                assert reader.read(10) == b""

    def test_reader_gives_pieces(self, backend: StorageBackend) -> None:
        content = content_of(100_001)
        backend.write("a", content)
        for size in (1000, 65_536, 99_999, 200_000):
            with backend.open("a", "rb") as reader:
                pieces = list(iter(lambda reader=reader, size=size: reader.read(size), b""))  # type: ignore[misc] # defaults bind the loop's names
            assert same(b"".join(pieces), content)
            assert all(type(piece) is bytes for piece in pieces)

    def test_reader_seeks(self, backend: StorageBackend) -> None:
        content = content_of(100_000)
        backend.write("a", content)
        with backend.open("a") as reader:
            assert reader.seekable()
            assert reader.readable()
            assert reader.tell() == 0
            assert reader.seek(70_000) == 70_000
            assert same(reader.read(10), content[70_000:70_010])
            assert reader.tell() == 70_010
            assert reader.seek(-20, io.SEEK_CUR) == 69_990
            assert same(reader.read(5), content[69_990:69_995])
            assert reader.seek(-10, io.SEEK_END) == 99_990
            assert same(reader.read(), content[-10:])
            assert reader.seek(200_000) == 200_000
            assert reader.read(5) == b""
            assert reader.seek(0) == 0
            assert reader.read(0) == b""
            assert same(reader.read(), content)
            with pytest.raises((ValueError, OSError)):
                reader.seek(-1)

    def test_reader_is_a_file_to_others(self, backend: StorageBackend) -> None:
        lines = [b"first\n", b"\r\n", b"third without end"]
        backend.write("text", b"".join(lines))
        with backend.open("text") as reader:
            assert list(reader) == lines
        with backend.open("text") as reader:
            assert reader.readline() == b"first\n"
        with io.TextIOWrapper(backend.open("text"), encoding="ascii", newline="") as text:
            assert text.read() == "first\n\r\nthird without end"
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("inner.txt", b"inner")
        backend.write("a.zip", packed.getvalue())
        with backend.open("a.zip") as reader, zipfile.ZipFile(reader) as archive:
            assert archive.read("inner.txt") == b"inner"

    def test_reader_reads_into_a_buffer(self, backend: StorageBackend) -> None:
        backend.write("a", b"0123456789")
        with backend.open("a") as reader:
            buffer = bytearray(4)
            assert cast(Any, reader).readinto(buffer) == 4
            assert bytes(buffer) == b"0123"

    def test_closed_reader_refuses(self, backend: StorageBackend) -> None:
        fill(backend, "a")
        with backend.open("a") as reader:
            assert not reader.closed
        assert reader.closed
        with pytest.raises(ValueError):
            reader.read()
        reader.close()

    def test_missing_object_is_not_found_at_open(self, backend: StorageBackend) -> None:
        fill(backend, "a")
        for identifier in ("absent", "absent/too", "a/b"):
            with pytest.raises(FileNotFoundError):
                backend.open(identifier)

    def test_other_modes_are_refused(self, backend: StorageBackend) -> None:
        fill(backend, "a")
        for mode in ("r", "w", "r+b", "ab", "xb", "", "rbwb"):
            with pytest.raises(ValueError):
                cast(Any, backend).open("a", mode)
        assert everything(backend) == {"a": named("a")}

    def test_readers_are_independent(self, backend: StorageBackend) -> None:
        content = content_of(100_000)
        backend.write("a", content)
        with backend.open("a") as one, backend.open("a") as two:
            assert same(one.read(50_000), content[:50_000])
            assert same(two.read(10), content[:10])
            assert same(one.read(), content[50_000:])
            assert same(two.read(), content[10:])

    def test_open_reader_never_mixes_two_versions(self, backend: StorageBackend) -> None:
        size = 5 * MEGABYTE
        for change in ("write", "shorter", "delete"):
            backend.write("a", b"1" * size)
            with backend.open("a") as reader:
                start = reader.read(10)
                if change == "write":
                    backend.write("a", b"2" * size)
                elif change == "shorter":
                    backend.write("a", b"2" * 10)
                else:
                    backend.delete("a")
                try:
                    rest = reader.read()
                except (SourceChangedError, FileNotFoundError):
                    continue
                assert same(start + rest, b"1" * size), change

    def test_writing_goes_on_while_a_reader_stands_open(self, backend: StorageBackend) -> None:
        backend.write("a", content_of(MEGABYTE))
        with backend.open("a") as reader:
            reader.read(1)
            fill(backend, "b")
            backend.write("a", b"new")
            assert backend.read("a") == b"new"
        assert backend.read("b") == named("b")

    def test_reader_that_is_cut_raises(self, backend: StorageBackend) -> None:
        backend.write("a", content_of(MEGABYTE))
        faulty = FaultyStorage(backend)
        faulty.cut("open", at=1000)
        with faulty.open("a") as reader:
            assert same(reader.read(600), content_of(MEGABYTE)[:600])
            with pytest.raises(UnavailableError):
                reader.read()
        with faulty.open("a") as reader:
            assert same(reader.read(), content_of(MEGABYTE))


class Writers(Topic):
    """`open(identifier, "wb")`: the object is published whole, and only by a clean exit."""

    def test_clean_exit_publishes(self, backend: StorageBackend) -> None:
        fill(backend, "old")
        for identifier in ("old", "folder/new"):
            with backend.open(identifier, "wb") as writer:
                assert writer.write(b"one ") == 4
                assert writer.write(bytearray(b"two ")) == 4
                assert writer.write(memoryview(b"three")) == 5
                assert writer.tell() == 13
            assert writer.closed
            assert backend.read(identifier) == b"one two three"

    def test_nothing_is_seen_before(self, backend: StorageBackend) -> None:
        fill(backend, "old")
        before = everything(backend)
        with backend.open("old", "wb") as old, backend.open("new", "wb") as new:
            for writer in (old, new):
                writer.write(content_of(3 * MEGABYTE))
                writer.flush()
            assert same(everything(backend), before)
            assert backend.exists("new") is False
        assert same(everything(backend), dict.fromkeys(("old", "new"), content_of(3 * MEGABYTE)))

    def test_empty_writer_makes_an_empty_object(self, backend: StorageBackend) -> None:
        with backend.open("a", "wb"):
            pass
        assert backend.read("a") == b""

    def test_exception_discards(self, backend: StorageBackend) -> None:
        fill(backend, "old")
        before = everything(backend)
        for identifier in ("old", "new", "folder/new"):
            for error in (SourceBrokeError, KeyboardInterrupt):
                with pytest.raises(error), backend.open(identifier, "wb") as writer:
                    writer.write(content_of(MEGABYTE))
                    raise error
                assert same(everything(backend), before)

    def test_inner_close_does_not_publish(self, backend: StorageBackend) -> None:
        fill(backend, "old")
        before = everything(backend)
        for identifier in ("old", "new"):
            with pytest.raises(SourceBrokeError), backend.open(identifier, "wb") as writer:
                with io.TextIOWrapper(writer, encoding="utf-8") as text:
                    text.write("half")
                raise SourceBrokeError
            with pytest.raises(SourceBrokeError), backend.open(identifier, "wb") as writer:
                writer.write(b"half")
                writer.close()
                assert same(everything(backend), before)
                raise SourceBrokeError
            assert same(everything(backend), before)

    def test_writers_can_be_wrapped(self, backend: StorageBackend) -> None:
        with backend.open("text", "wb") as writer, io.TextIOWrapper(writer, encoding="utf-8") as text:
            text.write("zwölf\n" * 10_000)
        assert same(backend.read("text"), ("zwölf\n" * 10_000).encode())
        with backend.open("a.gz", "wb") as writer, gzip.GzipFile(fileobj=writer, mode="wb") as packed:
            packed.write(ALL_BYTES)
        assert gzip.decompress(backend.read("a.gz")) == ALL_BYTES
        with backend.open("a.zip", "wb") as writer, zipfile.ZipFile(writer, "w") as archive:
            archive.writestr("inner", ALL_BYTES)
        with backend.open("a.zip") as reader, zipfile.ZipFile(reader) as archive:
            assert archive.read("inner") == ALL_BYTES

    def test_close_publishes_a_writer_that_was_never_entered(self, backend: StorageBackend) -> None:
        writer = backend.open("a", "wb")
        writer.write(b"content")
        assert backend.exists("a") is False
        writer.close()
        assert same(backend.read("a"), b"content")
        backend.write("a", b"newer")
        writer.close()
        assert backend.read("a") == b"newer"

    def test_collected_writer_is_discarded(self, backend: StorageBackend) -> None:
        fill(backend, "old")
        before = everything(backend)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for identifier in ("old", "new"):
                for size in (10, 10 * MEGABYTE):
                    writer = backend.open(identifier, "wb")
                    writer.write(content_of(size))
                    del writer
                    gc.collect()
                assert same(everything(backend), before)
        assert [str(warning.message) for warning in heard] == []

    def test_closed_writer_refuses(self, backend: StorageBackend) -> None:
        with backend.open("a", "wb") as writer:
            writer.write(b"content")
        with pytest.raises(ValueError):
            writer.write(b"more")
        with pytest.raises(ValueError):
            writer.__enter__()
        assert same(backend.read("a"), b"content")

    def test_text_is_refused(self, backend: StorageBackend) -> None:
        with pytest.raises(TypeError), backend.open("a", "wb") as writer:
            cast(Any, writer).write("text")
        assert backend.exists("a") is False

    def test_two_writers_of_one_object_do_not_mix(self, backend: StorageBackend) -> None:
        with backend.open("a", "wb") as one, backend.open("a", "wb") as two:
            for _ in range(40):
                one.write(b"1" * 65_536)
                two.write(b"2" * 65_536)
        assert backend.read("a") in {b"1" * 40 * 65_536, b"2" * 40 * 65_536}

    def test_writer_can_be_handed_to_another_thread(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("threads")
        with backend.open("a", "wb") as writer:
            writer.write(b"here ")
            thread = threading.Thread(target=writer.write, args=(b"there",))
            thread.start()
            thread.join()
        assert backend.read("a") == b"here there"

    def test_old_object_can_be_read_into_its_new_version(self, backend: StorageBackend) -> None:
        fill(backend, "a")
        with backend.open("a") as reader, backend.open("a", "wb") as writer:
            writer.write(b"prefix ")
            writer.write(reader.read())
        assert backend.read("a") == b"prefix " + named("a")
