from __future__ import annotations

import array
import errno
import gc
import gzip
import hashlib
import io
import mmap
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import Buffer, override

from storage_backend import ConfigurationError, IntegrityError, ObjectInfo, StorageError
from storage_backend.streams import (
    SPOOL,
    HashingReader,
    SpooledSink,
    Writer,
    check_arrived,
    check_digest,
    check_range,
    chunks,
    hashing,
    new_digest,
    plain,
    ranged_reader,
    read_all,
    sha256,
    whole,
)
from storage_backend.testing import Source, SourceBrokeError
from tests.tiers import thorough

pytestmark = pytest.mark.quick

CONTENT = bytes(range(256)) * 20


class TestPlain:
    def test_bytes_pass_uncopied(self) -> None:
        content = b"abc"
        assert plain(content) is content

    @pytest.mark.parametrize(
        "content",
        [
            bytearray(b"abcd"),
            memoryview(b"abcd"),
            memoryview(b"a-b-c-d")[::2],
            memoryview(b"dcba")[::-1],
            memoryview(b"abcd").cast("B", (2, 2)),
            array.array("B", b"abcd"),
            type("Sub", (bytes,), {})(b"abcd"),
        ],
    )
    def test_buffer_becomes_bytes_of_its_own(self, content: Buffer) -> None:
        found = plain(content)
        assert type(found) is bytes
        assert found == b"abcd"

    def test_wide_items_are_their_bytes(self) -> None:
        numbers = array.array("I", [1, 2])
        assert plain(numbers) == numbers.tobytes()

    def test_reader_passes_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(CONTENT)
        with (
            (tmp_path / "file").open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            for reader in (file, io.BytesIO(), gzip.GzipFile(fileobj=io.BytesIO()), Source(b""), mapped):
                assert plain(cast(BinaryIO, reader)) is reader

    @pytest.mark.parametrize(
        "content",
        ["text", "", None, 3, ["a"], {"a": 1}, object(), io.StringIO("text"), type("T", (str,), {})("x")],
    )
    def test_all_else_is_an_error_of_type(self, content: Any) -> None:
        for take in (plain, whole):
            with pytest.raises(TypeError, match="bytes or a binary reader"):
                take(content)

    def test_reader_of_text_is_an_error_of_type(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("text")
        with (tmp_path / "file").open() as file, pytest.raises(TypeError, match="encode text first"):
            plain(cast(BinaryIO, file))

    def test_whole_reads_on_from_the_position(self) -> None:
        reader = io.BytesIO(b"0123456789")
        reader.seek(4)
        assert whole(reader) == b"456789"
        assert whole(b"abc") == b"abc"
        assert whole(bytearray(b"abc")) == b"abc"


class Stingy:
    """Answers each read, also one for everything, with a few bytes; each a buffer of the kind asked for."""

    def __init__(self, content: bytes, kind: Callable[[bytes], object] = bytes) -> None:
        self._left = io.BytesIO(content)
        self._kind = kind

    def read(self, size: int = -1) -> object:
        return self._kind(self._left.read(3 if size < 0 else min(size, 3)))


class TestReading:
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_raw_streams_are_read_to_their_end(self, kind: Callable[[bytes], object]) -> None:
        reader = cast(BinaryIO, Stingy(CONTENT, kind))
        assert read_all(reader) == CONTENT
        assert type(read_all(cast(BinaryIO, Stingy(b"abc", kind)))) is bytes
        assert b"".join(chunks(cast(BinaryIO, Stingy(CONTENT, kind)))) == CONTENT

    def test_nothing_is_nothing(self) -> None:
        assert read_all(io.BytesIO()) == b""
        assert list(chunks(io.BytesIO())) == []

    @pytest.mark.parametrize("answer", ["text", "", None, 3])
    def test_other_answers_are_errors_of_type(self, answer: object) -> None:
        class Odd:
            def read(self, _: int = -1) -> object:
                return answer

        for take in (read_all, lambda reader: list(chunks(reader)), whole):
            with pytest.raises(TypeError, match="must return bytes"):
                take(cast(BinaryIO, Odd()))

    def test_text_after_bytes_is_an_error_too(self) -> None:
        class Turncoat:
            answers = iter([b"bytes", "text"])

            def read(self, _: int = -1) -> object:
                return next(self.answers)

        with pytest.raises(TypeError):
            read_all(cast(BinaryIO, Turncoat()))

    def test_chunks_are_no_larger_than_asked_for(self) -> None:
        assert [len(chunk) for chunk in chunks(io.BytesIO(CONTENT), 2000)] == [2000, 2000, 1120]


class TestDigests:
    def test_known_algorithms(self) -> None:
        for algorithm in ("sha256", "md5", "sha1", "sha512", "blake2b", "sha3_256"):
            digest = new_digest(algorithm)
            digest.update(CONTENT)
            assert digest.hexdigest() == hashlib.new(algorithm, CONTENT, usedforsecurity=False).hexdigest()

    @pytest.mark.parametrize("algorithm", ["", "crc32", "shake_128", "shake_256", "sha256\0", 7, None])
    def test_unknown_algorithm_is_named(self, algorithm: Any) -> None:
        with pytest.raises(ConfigurationError, match="sha256") as caught:
            new_digest(algorithm)
        assert caught.value.parameter == "algorithm"
        assert isinstance(caught.value, ValueError)

    def test_hashing_reader_digests_what_passed(self) -> None:
        reader = HashingReader(io.BytesIO(CONTENT))
        assert reader.hexdigest() == sha256(b"")
        assert reader.read(100) == CONTENT[:100]
        assert (reader.size, reader.hexdigest()) == (100, sha256(CONTENT[:100]))
        assert reader.read() == CONTENT[100:]
        assert reader.read() == b""
        assert (reader.size, reader.hexdigest()) == (len(CONTENT), sha256(CONTENT))

    def test_hashing_reuses_a_fresh_sha256_only(self) -> None:
        fresh = HashingReader(io.BytesIO(CONTENT))
        assert hashing(cast(BinaryIO, fresh)) is fresh
        fresh.read(1)
        assert hashing(cast(BinaryIO, fresh)) is not fresh
        other = HashingReader(io.BytesIO(CONTENT), "md5")
        assert hashing(cast(BinaryIO, other)) is not other
        plain_reader = hashing(io.BytesIO(CONTENT))
        plain_reader.read()
        assert plain_reader.hexdigest() == sha256(CONTENT)


class TestChecks:
    def test_what_is_unknown_passes(self) -> None:
        check_arrived(None, "a", 5, "00")
        check_arrived(ObjectInfo("a"), "a", 5, "00")
        check_arrived(ObjectInfo("a", size=5, sha256="ff"), "a", 5)
        check_digest("a", None, "00", "it")

    def test_other_size_is_an_error(self) -> None:
        with pytest.raises(IntegrityError, match=r"4 of 5,000 bytes arrived") as caught:
            check_arrived(ObjectInfo("other", size=5000), "a", 4)
        assert caught.value.identifier == "a"

    def test_size_zero_is_a_promise(self) -> None:
        with pytest.raises(IntegrityError):
            check_arrived(ObjectInfo("a", size=0), "a", 1)

    def test_other_digest_is_an_error(self) -> None:
        with pytest.raises(IntegrityError, match=r"ff.*00"):
            check_arrived(ObjectInfo("a", size=5, sha256="00"), "a", 5, "ff")

    def test_ranges(self) -> None:
        for start, end in ((0, None), (0, 0), (5, 2), (1 << 70, None)):
            check_range(start, end)
        for start, end in ((-1, None), (0, -1), (-2, -1)):
            with pytest.raises(ValueError):
                check_range(start, end)


class TestRangedReader:
    @thorough(300)
    @given(data=st.data())
    def test_it_is_a_file_whatever_is_done(self, data: st.DataObject) -> None:
        content = CONTENT[: data.draw(st.integers(0, 300), "size")]
        buffer = data.draw(st.integers(1, 64), "buffer")
        model = io.BytesIO(content)
        reader = ranged_reader(lambda start, end: content[start:end], len(content), buffer)
        for _ in range(data.draw(st.integers(1, 12), "steps")):
            step = data.draw(
                st.sampled_from(["read", "all", "seek", "end", "current", "tell", "into", "line"]), "step"
            )
            number = data.draw(st.integers(0, 350), "number")
            if step == "read":
                assert reader.read(number) == model.read(number)
            elif step == "all":
                assert reader.read() == model.read()
            elif step == "seek":
                assert reader.seek(number) == model.seek(number)
            elif step == "end":
                back = -min(number, len(content))
                assert reader.seek(back, io.SEEK_END) == model.seek(back, io.SEEK_END)
            elif step == "current":
                assert reader.seek(number, io.SEEK_CUR) == model.seek(number, io.SEEK_CUR)
            elif step == "into":
                ours, theirs = bytearray(number), bytearray(number)
                assert cast(Any, reader).readinto(ours) == model.readinto(theirs)
                assert ours == theirs
            elif step == "line":
                assert reader.readline() == model.readline()
            assert reader.tell() == model.tell()

    def test_it_fetches_within_the_object_only(self) -> None:
        asked: list[tuple[int, int]] = []

        def fetch(start: int, end: int) -> bytes:
            asked.append((start, end))
            return CONTENT[start:end]

        reader = ranged_reader(fetch, len(CONTENT), 1000)
        reader.seek(len(CONTENT) - 10)
        assert reader.read() == CONTENT[-10:]
        reader.seek(len(CONTENT) + 10)
        assert reader.read(5) == b""
        assert all(0 <= start < end <= len(CONTENT) for start, end in asked)

    def test_reading_all_takes_large_ranges(self) -> None:
        asked: list[int] = []

        def fetch(start: int, end: int) -> bytes:
            asked.append(end - start)
            return bytes(end - start)

        size = 3 * SPOOL + 1
        assert len(ranged_reader(fetch, size).read()) == size
        assert len(asked) <= 5

    def test_error_of_a_range_passes(self) -> None:
        def fetch(start: int, end: int) -> bytes:
            raise SourceBrokeError

        reader = ranged_reader(fetch, 10)
        with pytest.raises(SourceBrokeError):
            reader.read()
        with pytest.raises(SourceBrokeError):
            reader.read(1)

    def test_bad_seeks_are_errors_of_value(self) -> None:
        reader = ranged_reader(lambda *_: b"", 10)
        for arguments in ((-1,), (-1, io.SEEK_CUR), (-11, io.SEEK_END), (0, 7)):
            with pytest.raises(ValueError):
                reader.seek(*arguments)

    def test_it_takes_text_apart(self) -> None:
        content = "zwölf\r\nBoxkämpfer\n".encode()
        reader = ranged_reader(lambda start, end: content[start:end], len(content), 4)
        assert io.TextIOWrapper(reader, encoding="utf-8").read() == "zwölf\nBoxkämpfer\n"


class Place:
    """A sink that remembers."""

    def __init__(self, *, full: bool = False) -> None:
        self.content = bytearray()
        self.published: list[bytes] = []
        self.discarded = 0
        self._full = full

    def write(self, data: Buffer, /) -> object:
        self.content += memoryview(data)
        return None

    def publish(self) -> None:
        if self._full:
            raise OSError(28, "full")
        self.published.append(bytes(self.content))

    def discard(self) -> None:
        self.discarded += 1


class TestWriter:
    def test_close_publishes_once(self) -> None:
        place = Place()
        writer = Writer(place)
        assert writer.write(b"abc") == 3
        assert writer.tell() == 3
        assert place.published == []
        writer.close()
        writer.close()
        assert place.published == [b"abc"]
        assert place.discarded == 1
        assert writer.closed

    @pytest.mark.parametrize("within", [False, True])
    def test_after_a_failed_write_nothing_is_published(self, within: bool) -> None:
        class Full(Place):
            full = True

            @override
            def write(self, data: Buffer, /) -> object:
                if self.full:
                    self.full = False
                    raise OSError(errno.ENOSPC, "no space")
                return super().write(data)

        place = Full()
        writer = Writer(place)
        if within:
            writer.__enter__()
        with pytest.raises(OSError, match="no space"):
            writer.write(b"lost")
        writer.write(b"stored")  # whoever catches the error and goes on leaves a gap
        with pytest.raises(StorageError, match="nothing was stored"):
            (writer.__exit__ if within else lambda *_: writer.close())(None, None, None)
        assert (place.published, place.discarded) == ([], 1)

    def test_clean_exit_publishes_once(self) -> None:
        place = Place()
        with Writer(place) as writer:
            writer.writelines([b"a", bytearray(b"b"), memoryview(b"c")])
        writer.close()
        assert place.published == [b"abc"]
        assert place.discarded == 1

    @pytest.mark.parametrize("error", [SourceBrokeError, KeyboardInterrupt, GeneratorExit])
    def test_error_discards(self, error: type[BaseException]) -> None:
        place = Place()
        with pytest.raises(error), Writer(place) as writer:  # noqa: PT012 - the whole `with` is the point
            writer.write(b"abc")
            raise error
        writer.close()
        assert place.published == []
        assert place.discarded == 1

    def test_close_inside_leaves_the_decision_to_the_exit(self) -> None:
        place = Place()
        with Writer(place) as writer:
            writer.write(b"abc")
            writer.close()
            assert writer.closed
            assert place.published == []
            with pytest.raises(ValueError):
                writer.write(b"more")
        assert place.published == [b"abc"]

    def test_publish_that_fails_is_raised_and_discarded(self) -> None:
        uses: tuple[Callable[[Writer], object], ...] = (
            lambda writer: writer.close(),
            lambda writer: writer.__enter__().__exit__(None, None, None),
        )
        for use in uses:
            place = Place(full=True)
            writer = Writer(place)
            with pytest.raises(OSError, match="full"):
                use(writer)
            assert place.discarded == 1
            writer.close()
            assert place.discarded == 1

    def test_collected_writer_does_nothing(self) -> None:
        place = Place()
        writer = Writer(place)
        writer.write(b"abc")
        del writer
        gc.collect()
        assert place.published == []
        assert not isinstance(Writer(place), io.IOBase)

    def test_text_is_refused(self) -> None:
        place = Place()
        writer = Writer(place)
        for data in ("text", None, 3):
            with pytest.raises(TypeError):
                writer.write(cast(Any, data))
        assert writer.tell() == 0
        assert not place.content

    def test_length_is_in_bytes(self) -> None:
        assert Writer(Place()).write(array.array("I", [1, 2, 3])) == 12

    def test_it_says_what_it_is(self) -> None:
        writer = Writer(Place())
        assert (writer.readable(), writer.writable(), writer.seekable(), writer.isatty()) == (
            *(False, True),
            *(False, False),
        )
        assert writer.mode == "wb"
        writer.flush()

    def test_entered_twice_is_the_same_writer(self) -> None:
        place = Place()
        with Writer(place) as writer:
            writer.write(b"a")
        with pytest.raises(ValueError), writer:
            pass


class TestSpooledSink:
    @pytest.mark.parametrize("size", [0, 1, SPOOL, SPOOL + 1])
    def test_it_delivers_everything_at_once(self, size: int) -> None:
        delivered: list[bytes] = []
        sink = SpooledSink(lambda spool: delivered.append(spool.read()))
        content = os.urandom(size)
        for start in range(0, size, 1 << 20):
            sink.write(content[start : start + (1 << 20)])
        sink.publish()
        sink.discard()
        assert delivered == [content]

    def test_large_content_is_not_kept_in_memory(self) -> None:
        sink = SpooledSink(lambda _: None)
        sink.write(bytes(SPOOL + 1))
        assert cast(Any, sink)._spool._rolled
        sink.discard()
        sink.discard()

    def test_dropped_sink_warns_of_nothing_and_leaves_no_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            sink = SpooledSink(lambda _: None)
            sink.write(bytes(SPOOL + 1))
            del sink
            gc.collect()
        assert not heard
        assert list(tmp_path.iterdir()) == []
