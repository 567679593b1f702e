"""CompressedStorage: other bytes are stored, and nothing else is different."""

from __future__ import annotations

import io
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from storage_backend import (
    BatchError,
    Capability,
    CompressedStorage,
    ConfigurationError,
    IntegrityError,
    LocalStorage,
    MemoryStorage,
    NotFoundError,
    ObjectInfo,
    SourceChangedError,
    StorageError,
    UnsupportedOperationError,
    sync,
)
from storage_backend.streams import sha256
from storage_backend.testing import ConformanceSuite, FaultyStorage, Subject
from storage_backend.testing.subject import Source, SourceBrokeError, content_of
from storage_backend.wrappers.blocks import PieceReader
from storage_backend.wrappers.compressed import frames
from tests.conftest import unavailable
from tests.seven import Careless
from tests.tiers import thorough
from tests.topics import ObjectTopics
from tests.wrappers.recoded import FILES, SEVEN, Counting, Rotting, Vouching, growth, readings

BLOCK = frames.BLOCK
TEXT = b"all work and no play makes Jack a dull boy. " * 60_000  # more than two blocks


class TestOverLocal(ConformanceSuite):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return Subject(make=lambda: CompressedStorage(LocalStorage(tmp_path / "base"), level=-5), lacks=FILES)


class TestOverSevenMethods(ObjectTopics):
    @pytest.fixture
    def subject(self) -> Subject:
        storage = CompressedStorage(Careless())
        return Subject(make=lambda: storage, lacks=SEVEN)


@pytest.fixture
def inner() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def storage(inner: MemoryStorage) -> CompressedStorage:
    return CompressedStorage(inner)


def by_hand(content: bytes) -> bytes:
    """The documented format, written a second time."""
    head = struct.pack("<II8sHHQ", 0x184D2A5B, 24, b"sb-zstd\xa5", 1, 0, len(content))
    head += struct.pack("<I", zlib.crc32(head))
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    blocks = [content[at : at + (1 << 20)] for at in range(0, len(content), 1 << 20)]
    compressed = [compressor.compress(block) for block in blocks]
    if len(blocks) < 2:
        return head + b"".join(compressed)
    entries = struct.pack("<III", 32, 0, 0x51D8E999)
    for block, frame in zip(blocks, compressed, strict=True):
        entries += struct.pack("<II", len(frame), len(block)) + frame[-4:]
    entries += struct.pack("<IBI", len(blocks) + 1, 0x80, 0x8F92EAB1)
    return head + b"".join(compressed) + struct.pack("<II", 0x184D2A5E, len(entries)) + entries


# The format


@pytest.mark.parametrize("size", [0, 1, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_stored_bytes_are_as_documented(storage: CompressedStorage, inner: MemoryStorage, size: int) -> None:
    content = content_of(size // 2) + bytes(size - size // 2)
    storage.write("a", content)
    assert inner.read("a") == by_hand(content)
    storage.write_stream("a", io.BytesIO(content))
    assert inner.read("a") == by_hand(content)
    inner.write("a", by_hand(content))
    assert storage.read("a") == content
    assert storage.size("a") == size


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize("kind", ["text", "noise"])
def test_zstd_gives_back_the_content(
    storage: CompressedStorage, inner: MemoryStorage, size: int, kind: str
) -> None:
    program = shutil.which("zstd")
    if program is None:
        unavailable("there is no program zstd")
    content = content_of(size) if kind == "noise" else (TEXT * 2)[:size]
    storage.write("a", content)
    command = [str(program), "-d", "-c"]
    done = subprocess.run(command, input=inner.read("a"), check=True, capture_output=True, timeout=60)
    assert done.stdout == content
    assert done.stderr == b""


def test_every_level_can_be_read_with_and_without_streams(inner: MemoryStorage) -> None:
    for level in (-(1 << 17), -7, -1, 0, 1, 3, 12, 19, 22):
        storage = CompressedStorage(inner, level)
        storage.write("a", TEXT)
        storage.write_stream("b", io.BytesIO(TEXT), verify=True)
        assert storage.read("a") == storage.read("b") == TEXT
        assert CompressedStorage(inner).read("a") == TEXT


def test_text_shrinks_and_noise_hardly_grows(storage: CompressedStorage, inner: MemoryStorage) -> None:
    storage.write("text", TEXT)
    assert inner.size("text") < len(TEXT) // 100
    for size in (1, 100, BLOCK, 5 * BLOCK + 1):
        storage.write("noise", content_of(size))
        assert inner.size("noise") <= size + size // 4000 + 100


def test_level_is_checked() -> None:
    for level in (23, -(1 << 17) - 1, 1 << 40):
        with pytest.raises(ConfigurationError, match="level") as caught:
            CompressedStorage(MemoryStorage(), level)
        assert caught.value.parameter == "level"
    for wrong in ("3", 3.0, None, True):
        with pytest.raises(TypeError, match="level"):
            CompressedStorage(MemoryStorage(), wrong)  # type: ignore[arg-type]  # what is tested


# Raw objects

FOREIGN = zstandard.ZstdCompressor().compress(TEXT)
RAW = {
    "empty": b"",
    "short": b"short",
    "31": b"x" * 31,
    "32": b"x" * 32,
    "text": TEXT,
    "zst": FOREIGN,
    "magic": by_hand(TEXT)[:4],
    "magic and length": by_hand(TEXT)[:8],
    "frame of another": struct.pack("<II8s", 0x184D2A5B, 24, b"whatever") + bytes(16) + FOREIGN,
    "another skippable frame": struct.pack("<II", 0x184D2A5E, 8) + b"whatever" + FOREIGN,
}


@pytest.mark.parametrize("kind", sorted(RAW))
def test_raw_object_is_read_as_it_is(storage: CompressedStorage, inner: MemoryStorage, kind: str) -> None:
    content = RAW[kind]
    inner.write("a", content)
    assert storage.size("a") == storage.stat("a").size == len(content)
    for way, read in readings(storage, "a", len(content)).items():
        assert read() == content, way
    assert storage.read_range("a", 2, 9) == content[2:9]
    assert storage.read_range("a", 1 << 40, 1 << 41) == b""
    assert storage.read_range("a", 0, 1 << 62) == content
    assert storage.checksum("a") == sha256(content)
    storage.copy("a", "b")
    storage.write_stream("c", storage.open("a"))
    assert inner.read("b") == content
    assert storage.read("c") == content


def test_content_that_looks_compressed_is_content(storage: CompressedStorage, inner: MemoryStorage) -> None:
    storage.write("a", by_hand(b"inside"))
    assert storage.read("a") == by_hand(b"inside")
    assert CompressedStorage(storage).read("a") == b"inside"


def test_raw_object_that_is_replaced_while_it_is_measured(inner: MemoryStorage) -> None:
    faulty = FaultyStorage(inner)
    storage = CompressedStorage(faulty)
    raw = b"r" * 5000
    inner.write("a", raw)
    faulty.before("size", lambda: storage.write("a", TEXT))
    assert storage.size("a") == len(TEXT)
    inner.write("a", raw)
    faulty.before("size", lambda: inner.write("a", random.randbytes(5000)), times=None)
    with pytest.raises(SourceChangedError):
        storage.size("a")


# Damage


def outcomes(storage: CompressedStorage, content: bytes) -> set[str]:
    """How each way of reading went: "exact" or "refused"; anything else is an error."""
    found = set()
    for way, read in readings(storage, "a", len(content)).items():
        try:
            assert read() == content, f"wrong bytes from {way}"
        except IntegrityError:
            found.add("refused")
        else:
            found.add("exact")
    return found


def refused(storage: CompressedStorage, content: bytes) -> None:
    assert outcomes(storage, content) == {"refused"}


@pytest.mark.parametrize("content", [b"", b"x", b"some little content " * 3], ids=len)
def test_no_flipped_bit_gives_wrong_bytes(
    storage: CompressedStorage, inner: MemoryStorage, content: bytes
) -> None:
    stored = by_hand(content)
    harmless = 0
    for bit in range(len(stored) * 8):
        damaged = bytearray(stored)
        damaged[bit // 8] ^= 1 << bit % 8
        inner.write("a", bytes(damaged))
        found = outcomes(storage, content)
        assert len(found) == 1, bit
        harmless += found == {"exact"}
        if bit < 32 * 8:
            assert found == {"refused"}, bit
            with pytest.raises(IntegrityError):
                storage.size("a")
            with pytest.raises(IntegrityError):
                storage.stat("a")
    # A zstd decoder ignores the unused bit of a frame header's descriptor (RFC 8878, 3.1.1.1.1).
    assert harmless <= 2


def test_no_flipped_bit_of_several_frames_gives_wrong_bytes(
    storage: CompressedStorage, inner: MemoryStorage
) -> None:
    content = bytes(BLOCK) + b"1" * BLOCK + b"end"
    stored = by_hand(content)
    assert len(stored) < 400
    for bit in range(len(stored) * 8):
        damaged = bytearray(stored)
        damaged[bit // 8] ^= 1 << bit % 8
        inner.write("a", bytes(damaged))
        try:
            assert storage.read("a") == content, bit
            assert storage.read_range("a", BLOCK - 1, BLOCK + 1) == b"\x001", bit
        except IntegrityError:
            continue


@pytest.mark.parametrize("size", [0, 1, 100, 2 * BLOCK + 1])
def test_truncated_object_is_refused(storage: CompressedStorage, inner: MemoryStorage, size: int) -> None:
    content = bytes(size)
    stored = by_hand(content)
    for length in range(len(stored)):
        inner.write("a", stored[:length])
        if length <= 8:
            # Too little to be told from a raw object, as the docstring says.
            assert storage.read("a") == stored[:length]
            continue
        refused(storage, content)


def test_appended_bytes_are_refused(storage: CompressedStorage, inner: MemoryStorage) -> None:
    for content in (b"", b"x", TEXT):
        stored = by_hand(content)
        for more in (b"\0", b"x" * 50, stored, frames.header(0), FOREIGN, bytes(2 * BLOCK)):
            inner.write("a", stored + more)
            refused(storage, content)


def test_exchanged_frames_are_refused(storage: CompressedStorage, inner: MemoryStorage) -> None:
    content = content_of(3 * BLOCK)
    stored = by_hand(content)
    length = (len(stored) - 32 - 8 - 4 * 12 - 9) // 3
    one, two = stored[32 : 32 + length], stored[32 + length : 32 + 2 * length]
    inner.write("a", stored[:32] + two + one + stored[32 + 2 * length :])
    refused(storage, content)
    assert storage.read_range("a", 2 * BLOCK) == content[2 * BLOCK :]


def test_later_version_is_refused(storage: CompressedStorage, inner: MemoryStorage) -> None:
    head = struct.pack("<II8sHHQ", 0x184D2A5B, 24, b"sb-zstd\xa5", 2, 0, 0)
    inner.write("a", head + struct.pack("<I", zlib.crc32(head)))
    with pytest.raises(IntegrityError, match="version 2"):
        storage.read("a")


def bombs() -> dict[str, bytes]:
    huge = bytes(256 << 20)
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    unsized = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False)
    lying = bytearray(compressor.compress(huge))
    # Magic, descriptor (4 bytes of size, window), window; then the size: it claims 1 MiB.
    assert lying[4] >> 6 == 2
    lying[6:10] = struct.pack("<I", BLOCK)
    small = compressor.compress(bytes(BLOCK))
    return {
        "larger than its header says": frames.header(BLOCK) + compressor.compress(huge),
        "no size of its own": frames.header(BLOCK) + unsized.compress(huge),
        "a lying size": frames.header(BLOCK) + bytes(lying),
        "many frames": frames.header(BLOCK) + small * 200,
        "a header of 2^60": frames.header(1 << 60) + small * 3,
        "a header of 2^63 alone": frames.header(1 << 63),
        "a table of many": by_hand(bytes(3 * BLOCK)).replace(
            frames.header(3 * BLOCK), frames.header(300 << 30)
        ),
    }


def test_bombs_are_refused_in_little_memory(storage: CompressedStorage, inner: MemoryStorage) -> None:
    for kind, stored in bombs().items():
        inner.write("a", stored)
        tracemalloc.start()
        try:
            for start, end in ((0, 10), (BLOCK - 10, BLOCK), (0, None)):
                with pytest.raises(IntegrityError):
                    storage.read_range("a", start, end)
            with pytest.raises(IntegrityError):
                storage.read("a")
            storage.stat("a")
            assert tracemalloc.get_traced_memory()[1] < 8 << 20, kind
        finally:
            tracemalloc.stop()


# What is told of the content


def test_nothing_of_the_stored_bytes_is_told_as_the_contents(tmp_path: Path) -> None:
    inner = Vouching()
    storage = CompressedStorage(inner)
    info = ObjectInfo("a", len(TEXT), content_type="text/plain")
    storage.write_stream("a", io.BytesIO(TEXT), info=info)
    stored = inner.stat("a")
    found = storage.stat("a")
    expected = (len(TEXT), stored.modified, stored.etag, None, "text/plain")
    assert (found.size, found.modified, found.etag, found.sha256, found.content_type) == expected
    (shown,) = storage.scan()
    assert shown == ObjectInfo("a", None, stored.modified, stored.etag, None, "text/plain")
    assert list(storage.scan_level()) == [shown]
    assert storage.hooks.last_written("a") == shown
    assert list(storage.stat_many(["a", "gone"])) == [found]
    assert list(storage.hooks.sha256_many(["a"])) == []
    assert storage.checksum("a") == sha256(TEXT)
    assert not storage.capabilities & (Capability.CHECKSUM | Capability.URL)
    assert Capability.RANGES | Capability.SERVER_COPY in storage.capabilities
    with pytest.raises(UnsupportedOperationError):
        storage.get_url("a")
    storage.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == TEXT


def test_no_range_is_promised_where_the_inner_backend_has_none() -> None:
    assert CompressedStorage(Careless()).capabilities == Capability(0)


def test_size_is_one_small_request(inner: MemoryStorage) -> None:
    faulty = FaultyStorage(inner)
    storage = CompressedStorage(faulty)
    storage.write("a", TEXT)
    inner.write("short", b"raw")
    faulty.calls.clear()
    assert storage.size("a") == len(TEXT)
    assert storage.size("short") == 3
    assert storage.stat("a").size == len(TEXT)
    assert [call.method for call in faulty.calls] == ["read_range", "read_range", "stat", "read_range"]


def test_range_moves_what_it_touches() -> None:
    inner = Counting()
    storage = CompressedStorage(inner)
    content = content_of(32 * BLOCK)
    storage.write("a", content)
    for start in (0, 5 * BLOCK - 3, 32 * BLOCK - 10):
        inner.moved = 0
        assert storage.read_range("a", start, start + 6) == content[start : start + 6]
        assert inner.moved < 3 * BLOCK
    inner.moved = 0
    with storage.open("a") as reader:
        reader.seek(20 * BLOCK)
        assert reader.read(10) == content[20 * BLOCK :][:10]
        assert inner.moved < 2 * BLOCK
        reader.seek(0)
        for at in range(0, len(content), 100_000):
            assert reader.read(100_000) == content[at : at + 100_000]
    assert inner.moved < 36 * BLOCK


def test_copy_and_move_are_the_inner_backends(inner: MemoryStorage) -> None:
    faulty = FaultyStorage(inner)
    storage = CompressedStorage(faulty)
    storage.write("a", TEXT)
    stored = inner.read("a")
    faulty.calls.clear()
    storage.copy("a", "b")
    storage.move("b", "c")
    assert [call.method for call in faulty.calls] == ["copy", "move"]
    assert inner.read("c") == stored


def test_create_and_replace_store_compressed_bytes(storage: CompressedStorage, inner: MemoryStorage) -> None:
    assert storage.create("a", TEXT) is True
    assert storage.create("a", b"other") is False
    assert inner.read("a") == by_hand(TEXT)
    etag = storage.replace("a", Source(TEXT * 2, most=100_000).as_binary(), str(storage.stat("a").etag))
    assert etag == inner.stat("a").etag
    assert inner.read("a") == by_hand(TEXT * 2)


# Writing


def test_one_write_is_one_write(inner: MemoryStorage) -> None:
    faulty = FaultyStorage(inner)
    CompressedStorage(faulty).write("a", TEXT)
    assert [call.method for call in faulty.calls] == ["write"]


def test_long_stream_of_known_size_arrives_as_it_comes() -> None:
    class Watching(MemoryStorage):
        @override
        def write_stream(
            self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
        ) -> bool:
            assert info is not None
            assert info.size is None
            first = reader.read(BLOCK)
            assert 0 < source.position < len(content) // 2
            return super().write_stream(identifier, io.BytesIO(first + reader.read()), info=info)

    content = content_of(40 * BLOCK)
    source = Source(content)
    storage = CompressedStorage(Watching())
    storage.write_stream("a", source.as_binary(), info=ObjectInfo("a", len(content)))
    assert storage.read("a") == content


@pytest.mark.parametrize("size", [100, 10 * BLOCK])
@pytest.mark.parametrize("wrong", [-1, 1])
def test_wrong_promise_keeps_the_old_object(
    storage: CompressedStorage, inner: MemoryStorage, size: int, wrong: int
) -> None:
    storage.write("a", b"old")
    with pytest.raises(IntegrityError):
        storage.write_stream("a", io.BytesIO(content_of(size)), info=ObjectInfo("a", size + wrong))
    info = ObjectInfo("a", size, sha256="0" * 64)
    with pytest.raises(IntegrityError):
        storage.write_stream("a", io.BytesIO(content_of(size)), info=info, verify=True)
    with pytest.raises(SourceBrokeError):
        storage.write_stream(
            "a", Source(content_of(size), breaks_at=size // 2).as_binary(), info=ObjectInfo("a", size)
        )
    assert storage.read("a") == b"old"


def test_size_that_the_inner_backend_is_told_is_its_own(inner: MemoryStorage) -> None:
    # MemoryStorage checks it against what arrives.
    storage = CompressedStorage(inner)
    for size in (0, 10, 3 * BLOCK, 9 * BLOCK):
        content = content_of(size)
        for info in (None, ObjectInfo("x", size), ObjectInfo("x")):
            storage.write_stream("a", io.BytesIO(content), info=info, verify=True)
            assert storage.read("a") == content
        storage.write_many([(ObjectInfo("b", size, sha256=sha256(content)), content)], verify=True)
        assert storage.read("b") == content


def test_verify_notices_what_the_store_spoils() -> None:
    storage = CompressedStorage(Rotting())
    with pytest.raises(IntegrityError):
        storage.write_stream("a", io.BytesIO(b"content"), verify=True)
    with pytest.raises(BatchError) as caught:
        storage.write_many([("a", b"content")], verify=True)
    assert isinstance(caught.value.failures["a"], IntegrityError)
    storage.write("a", b"content")
    with pytest.raises(IntegrityError):
        storage.read("a")


def test_verify_decompresses_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = MemoryStorage()
    storage = CompressedStorage(inner)
    storage.write("a", b"old")
    lying = frames.decoded
    monkeypatch.setattr(frames, "decoded", lambda frame, size, fault: lying(frame, size, fault)[::-1])
    with pytest.raises(IntegrityError, match="does not decompress"):
        storage.write_stream("a", io.BytesIO(b"new"), verify=True)
    storage.write_stream("b", io.BytesIO(b"new"))
    monkeypatch.undo()
    assert storage.read("a") == b"old"


def test_late_fault_of_the_source_is_never_an_end() -> None:
    reader = PieceReader(b"x" * (6 // (3 - number)) for number in range(5))
    assert reader.read(2) == b"xx"
    assert reader.read(7) == b"x" * 7
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            reader.read(5)


@given(st.lists(st.binary(max_size=5)), st.lists(st.integers(-1, 7)))
def test_piece_reader_is_a_reader(pieces: list[bytes], sizes: list[int]) -> None:
    reader, model = PieceReader(iter(pieces)), io.BytesIO(b"".join(pieces))
    for size in [*sizes, -1, 3]:
        assert reader.read(size) == model.read(size)


# Batches


def test_damaged_object_of_a_batch_is_reported_after_the_others(
    storage: CompressedStorage, inner: MemoryStorage
) -> None:
    for name in "abcd":
        storage.write(name, name.encode() * 100)
    inner.write("b", inner.read("b")[:-1])
    found: dict[str, bytes] = {}
    with pytest.raises(BatchError) as caught:
        found.update(storage.read_many(["a", "gone", "b", "c", "d"]))
    assert found == {name: name.encode() * 100 for name in "acd"}
    kinds = {name: type(error) for name, error in caught.value.failures.items()}
    assert kinds == {"gone": NotFoundError, "b": IntegrityError}


def test_failures_of_the_source_of_a_batch_stay_its_own(storage: CompressedStorage) -> None:
    source = MemoryStorage()
    source.write("a", b"1")
    with pytest.raises(BatchError, match="read") as caught:
        storage.write_many(source.read_many(["a", "gone"]))
    assert list(caught.value.failures) == ["gone"]


def test_last_of_a_repeated_identifier_counts(storage: CompressedStorage) -> None:
    bad, good = (ObjectInfo("a", 3), b"12"), (ObjectInfo("a", 2), b"12")
    assert storage.write_many([bad, good]) == 1
    with pytest.raises(BatchError):
        storage.write_many([good, bad])
    assert storage.read("a") == b"12"


def test_transfers_see_the_content() -> None:
    source, target = CompressedStorage(MemoryStorage()), CompressedStorage(MemoryStorage())
    objects = {f"d/{number}": content_of(number * 9000) for number in range(30)}
    source.write_many(objects.items())
    assert sync(source, target).copied == 30
    assert dict(target.read_many(objects)) == objects
    assert sync(source, target).copied == 0


# Ranges and seeks against plain bytes

MODEL = content_of(2 * BLOCK) + bytes(BLOCK) + content_of(777)
EDGES = st.sampled_from([0, 1, BLOCK, 2 * BLOCK, 3 * BLOCK, len(MODEL)]).flatmap(
    lambda edge: st.integers(max(0, edge - 3), edge + 3)
)
POSITIONS = st.one_of(EDGES, st.integers(0, len(MODEL) + 10))


@pytest.fixture(scope="module")
def modelled() -> CompressedStorage:
    storage = CompressedStorage(MemoryStorage())
    storage.write("a", MODEL)
    return storage


@thorough(200, deadline=None)
@given(start=POSITIONS, end=st.none() | POSITIONS)
def test_range_is_a_slice(modelled: CompressedStorage, start: int, end: int | None) -> None:
    assert modelled.read_range("a", start, end) == MODEL[start:end]


@thorough(200, deadline=None)
@given(st.lists(st.tuples(POSITIONS, st.integers(0, 300_000)), max_size=6))
def test_seeks_are_those_of_a_file(modelled: CompressedStorage, steps: list[tuple[int, int]]) -> None:
    with modelled.open("a") as reader:
        for position, size in steps:
            assert reader.seek(position) == position
            assert reader.read(size) == MODEL[position : position + size]


# The rest


@pytest.mark.soak
def test_memory_stays_bounded(tmp_path: Path) -> None:
    program = """
import sys, tempfile
from pathlib import Path
from storage_backend import CompressedStorage, LocalStorage, ObjectInfo
from tests.wrappers.recoded import Pattern
storage = CompressedStorage(LocalStorage(sys.argv[1]))
tempfile.tempdir = sys.argv[1]
def work(size):
    storage.write_stream("known", Pattern(size), info=ObjectInfo("known", size), verify=True)
    storage.write_stream("unknown", Pattern(size))
    with storage.open("known") as reader:
        while reader.read(1 << 20):
            pass
    storage.download("unknown", Path(sys.argv[1]) / "down")
    assert storage.size("unknown") == size == (Path(sys.argv[1]) / "down").stat().st_size
work(24 << 20)
# work
work(400 << 20)
"""
    assert growth(program, tmp_path) < 24 << 20


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_closing_a_reader_closes_the_inner_one(tmp_path: Path) -> None:
    storage = CompressedStorage(LocalStorage(tmp_path))
    storage.write("a", TEXT)
    before = descriptors()
    with storage.open("a") as reader:
        reader.read(10)
        assert descriptors() == before + 1
    assert descriptors() == before
    (tmp_path / "a").write_bytes(by_hand(TEXT)[:-1])
    with pytest.raises(IntegrityError):
        storage.open("a")
    assert descriptors() == before


def test_pickle_has_the_configuration(tmp_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(CompressedStorage(LocalStorage(tmp_path), 7)))
    copy.write("a", TEXT)
    assert (copy.level, copy.read("a")) == (7, TEXT)


def test_missing_library_is_named_when_it_is_first_needed() -> None:
    program = """
import sys
sys.modules["zstandard"] = None
from storage_backend import CompressedStorage, MemoryStorage, MissingClientError
storage = CompressedStorage(MemoryStorage())
storage.backend.write("raw", b"raw")
assert storage.read("raw") == b"raw"
try:
    storage.write("a", b"")
except MissingClientError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "storage-backend[compression]" in done.stdout


def test_what_is_larger_than_asked_for_is_read_in_no_way(tmp_path: Path) -> None:
    store = MemoryStorage()
    CompressedStorage(store).write_stream("bomb", io.BytesIO(bytes(40 * BLOCK)))
    CompressedStorage(store).write("fits", bytes(3 * BLOCK))
    assert store.size("bomb") < BLOCK
    storage = CompressedStorage(store, max_object_size=3 * BLOCK)
    readings: list[Callable[[], object]] = [
        lambda: storage.read("bomb"),
        lambda: [*storage.read_many(["bomb"])],
        lambda: storage.read_range("bomb", 0, 1),
        lambda: storage.open("bomb"),
        lambda: storage.download("bomb", tmp_path / "file"),
        lambda: storage.checksum("bomb"),
    ]
    for read in readings:
        with pytest.raises(StorageError, match="max_object_size"):
            read()
    assert storage.read("fits") == bytes(3 * BLOCK)
    assert storage.size("bomb") == 40 * BLOCK
    with pytest.raises(ConfigurationError, match="max_object_size"):
        CompressedStorage(store, max_object_size=-1)


READS_A_BOMB = """
import io, resource, sys
from storage_backend import CompressedStorage, MemoryStorage, StorageError

storage = CompressedStorage(MemoryStorage())
class Zeros:
    left = 160
    def read(self, size):
        self.left -= 1
        return bytes(1 << 20) if self.left >= 0 else b""
storage.write_stream("bomb", Zeros())
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20),) * 2)
for read in (lambda: storage.read("bomb"), lambda: storage.read_range("bomb", 1)):
    try:
        read()
    except StorageError as error:
        print("memory" in str(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_what_does_not_fit_into_memory_is_an_error_of_ours() -> None:
    found = subprocess.run([sys.executable, "-c", READS_A_BOMB], capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["True"] * 2, found.stderr
