"""EncryptedStorage: without the key nothing is read, and nothing that was tampered with is read with it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import io
import logging
import pickle
import re
import struct
import subprocess
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from storage_backend import (
    AuthenticationError,
    BatchError,
    Capability,
    ConfigurationError,
    EncryptedStorage,
    IntegrityError,
    LocalStorage,
    MemoryStorage,
    NotFoundError,
    ObjectInfo,
    PrefixedStorage,
    SourceChangedError,
    UnavailableError,
    UnsupportedOperationError,
    sync,
)
from storage_backend.streams import sha256
from storage_backend.testing import ConformanceSuite, FaultyStorage, Subject
from storage_backend.testing.subject import Source, SourceBrokeError, content_of
from storage_backend.wrappers.encrypted import chunks
from tests.seven import Careless, Seven
from tests.tiers import thorough
from tests.topics import ObjectTopics
from tests.wrappers.recoded import FILES, SEVEN, Counting, Rotting, Vouching, growth, readings

KEY = bytes(range(32))
OLD = bytes(range(100, 132))
CHUNK = 64 << 10
SEALED = CHUNK + 16
HEAD = 56
REFERENCE = "env:SB_TEST_KEY"


@pytest.fixture(autouse=True)
def key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_TEST_KEY", KEY.hex())


class TestOverLocal(ConformanceSuite):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return Subject(make=lambda: EncryptedStorage(LocalStorage(tmp_path / "base"), REFERENCE), lacks=FILES)


class TestOverSevenMethods(ObjectTopics):
    @pytest.fixture
    def subject(self) -> Subject:
        storage = EncryptedStorage(Careless(), REFERENCE)
        return Subject(make=lambda: storage, lacks=SEVEN)


@pytest.fixture
def inner() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def storage(inner: MemoryStorage) -> EncryptedStorage:
    return EncryptedStorage(inner, KEY)


# The format, written a second time from its description and with HKDF by the letter of RFC 5869


def id_by_hand(key: bytes) -> bytes:
    return hmac.new(key, b"storage-backend encrypted key id", hashlib.sha256).digest()[:8]


def cipher_by_hand(key: bytes, salt: bytes) -> AESGCM:
    extracted = hmac.new(salt, key, hashlib.sha256).digest()
    expanded = hmac.new(extracted, b"storage-backend encrypted object\x01", hashlib.sha256).digest()
    return AESGCM(expanded)


def encrypted_by_hand(identifier: str, content: bytes, key: bytes = KEY, salt: bytes = b"s" * 32) -> bytes:
    head = b"\x93sb-aead" + b"\x01\0\0\0" + id_by_hand(key) + salt
    head += struct.pack(">I", zlib.crc32(head))
    cipher = cipher_by_hand(key, salt)
    pieces = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)] or [b""]
    sealed = [
        cipher.encrypt(
            number.to_bytes(11, "big") + (b"\x01" if number == len(pieces) - 1 else b"\0"),
            piece,
            head + identifier.encode("utf-8", "surrogateescape"),
        )
        for number, piece in enumerate(pieces)
    ]
    return head + b"".join(sealed)


SIZES = [0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 77]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("identifier", ["a", "folder/é😀 \n'"])
def test_stored_bytes_are_as_documented(
    storage: EncryptedStorage, inner: MemoryStorage, size: int, identifier: str
) -> None:
    content = content_of(size)
    writes: list[Callable[[], Any]] = [
        lambda: storage.write(identifier, content),
        lambda: storage.write_stream(identifier, Source(content, most=70_000).as_binary()),
        lambda: storage.write_many([(identifier, content)]),
        lambda: storage.create(identifier, content),
    ]
    for write in writes:
        with contextlib.suppress(NotFoundError):
            inner.delete(identifier)
        write()
        stored = inner.read(identifier)
        assert stored == encrypted_by_hand(identifier, content, salt=stored[20:52])
    inner.write(identifier, encrypted_by_hand(identifier, content))
    assert storage.size(identifier) == size
    for way, read in readings(storage, identifier, size).items():
        assert read() == content, way


def test_names_that_are_not_utf8_are_authenticated_too(tmp_path: Path) -> None:
    inner = LocalStorage(tmp_path)
    storage = EncryptedStorage(inner, KEY)
    storage.write("\udcff", b"content")
    assert inner.read("\udcff")[HEAD:] != b"content"
    assert storage.read("\udcff") == b"content"
    inner.copy("\udcff", "\udcfe")
    with pytest.raises(IntegrityError):
        storage.read("\udcfe")


def test_same_content_is_never_stored_the_same(storage: EncryptedStorage, inner: MemoryStorage) -> None:
    content = b"secret " * 20_000
    seen = set()
    for number in range(50):
        storage.write("a", content)
        storage.copy("a", f"copy/{number}")
        seen |= {inner.read("a")[20:52], inner.read(f"copy/{number}")[20:52]}
        assert b"secret" not in inner.read("a")
    assert len(seen) == 100


@given(st.one_of(st.integers(0, 1 << 50), st.integers(0, 300).map(lambda number: number * CHUNK)))
def test_sizes_follow_from_each_other(size: int) -> None:
    for near in (size, size + 1, max(0, size - 1)):
        assert chunks.content_size(chunks.stored_size(near)) == near
    possible = {chunks.stored_size(near) for near in range(max(0, size - 40), size + 40)}
    for stored in range(chunks.stored_size(size) - 20, chunks.stored_size(size) + 20):
        assert (chunks.content_size(stored) is not None) == (stored in possible)


# Attacks


def refused(storage: EncryptedStorage, identifier: str = "a", size: int = 0) -> None:
    for way, read in readings(storage, identifier, size).items():
        with pytest.raises(IntegrityError) as caught:
            read()
        assert caught.value.identifier == identifier, way
    with pytest.raises(IntegrityError):
        storage.checksum(identifier)
    with pytest.raises(IntegrityError):
        storage.copy(identifier, "copy of it")
    assert not storage.exists("copy of it")


@pytest.mark.parametrize("content", [b"", b"x", b"thirty-one bytes of some content"], ids=len)
def test_every_flipped_bit_is_noticed(
    storage: EncryptedStorage, inner: MemoryStorage, content: bytes
) -> None:
    stored = encrypted_by_hand("a", content)
    for bit in range(len(stored) * 8):
        damaged = bytearray(stored)
        damaged[bit // 8] ^= 1 << bit % 8
        inner.write("a", bytes(damaged))
        refused(storage, size=len(content))


def test_flipped_bits_of_several_chunks_are_noticed(storage: EncryptedStorage, inner: MemoryStorage) -> None:
    content = content_of(3 * CHUNK + 100)
    stored = encrypted_by_hand("a", content)
    for at in [0, 20, 51, 52, HEAD, HEAD + CHUNK, HEAD + SEALED - 1, HEAD + SEALED, len(stored) - 1]:
        damaged = bytearray(stored)
        damaged[at] ^= 0x10
        inner.write("a", bytes(damaged))
        refused(storage, size=len(content))


def test_damage_of_one_chunk_does_not_spoil_the_others(
    storage: EncryptedStorage, inner: MemoryStorage
) -> None:
    content = content_of(12 * CHUNK)
    damaged = bytearray(encrypted_by_hand("a", content))
    damaged[HEAD + 8 * SEALED + 5] ^= 1
    inner.write("a", bytes(damaged))
    broken = 8 * CHUNK
    assert storage.read_range("a", 0, broken) == content[:broken]
    assert storage.read_range("a", broken + CHUNK) == content[broken + CHUNK :]
    for start, end in (
        (broken, broken + 1),
        (broken - 1, broken + 1),
        (9 * CHUNK - 1, 10 * CHUNK),
        (0, None),
    ):
        with pytest.raises(IntegrityError, match="chunk 8"):
            storage.read_range("a", start, end)
    with storage.open("a") as reader:
        # Nothing of the damaged chunk comes, however it is asked for.
        assert reader.read(1000) == content[:1000]
        with pytest.raises(IntegrityError):
            reader.read()
        for _ in range(3):
            reader.seek(broken)
            with pytest.raises(IntegrityError):
                reader.read(1)
        reader.seek(broken + CHUNK)
        assert reader.read() == content[broken + CHUNK :]


@pytest.mark.parametrize("size", [0, 1, 40])
def test_every_truncation_is_noticed(storage: EncryptedStorage, inner: MemoryStorage, size: int) -> None:
    stored = encrypted_by_hand("a", content_of(size))
    for length in range(len(stored)):
        inner.write("a", stored[:length])
        refused(storage, size=size)


def test_truncation_between_chunks_is_noticed(storage: EncryptedStorage, inner: MemoryStorage) -> None:
    content = content_of(3 * CHUNK + 100)
    stored = encrypted_by_hand("a", content)
    for count in range(4):
        for more in (-1, 0, 1, 15, 16, 17):
            inner.write("a", stored[: HEAD + count * SEALED + more])
            refused(storage, size=len(content))
    inner.write("a", stored[: HEAD + 2 * SEALED])
    # A range within what is left is what was written; that the object ends there is a lie, and not told.
    assert storage.read_range("a", 10, 20) == content[10:20]
    for start, end in ((2 * CHUNK, 2 * CHUNK + 1), (1 << 40, 1 << 41), (3 * CHUNK, None), (0, 1 << 62)):
        with pytest.raises(IntegrityError):
            storage.read_range("a", start, end)


def test_false_end_is_not_told_by_a_seek(storage: EncryptedStorage, inner: MemoryStorage) -> None:
    content = content_of(3 * CHUNK + 100)
    inner.write("a", encrypted_by_hand("a", content)[: HEAD + 2 * SEALED])
    with storage.open("a") as reader:
        with pytest.raises(IntegrityError):
            reader.seek(0, io.SEEK_END)
        reader.seek(1 << 40)
        with pytest.raises(IntegrityError):
            reader.read(1)


def test_object_that_changes_between_two_requests_is_looked_at_again(inner: MemoryStorage) -> None:
    faulty = FaultyStorage(inner)
    storage = EncryptedStorage(faulty, KEY)
    storage.write("a", content_of(3 * CHUNK))
    calls: list[Callable[[], bytes]] = [
        lambda: storage.read_range("a", CHUNK, CHUNK + 9),
        lambda: storage.open("a").read()[CHUNK:][:9],
    ]
    for call in calls:
        faulty.fail("open", error=SourceChangedError("changed"), times=3)
        assert call() == content_of(3 * CHUNK)[CHUNK:][:9]
        faulty.fail("open", error=SourceChangedError("changed"), times=None)
        with pytest.raises(SourceChangedError):
            call()
        faulty.heal()


def test_rearranged_chunks_are_noticed(storage: EncryptedStorage, inner: MemoryStorage) -> None:
    content = bytes(3 * CHUNK) + content_of(CHUNK)
    stored = encrypted_by_hand("a", content)
    head, body = stored[:HEAD], stored[HEAD:]
    one, two, three, last = (body[at : at + SEALED] for at in range(0, len(body), SEALED))
    assert storage.write("a", content)
    for kind, pieces in {
        "exchanged": [two, one, three, last],
        "exchanged with the last": [one, two, last, three],
        "repeated": [one, one, three, last],
        "inserted": [one, two, two, three, last],
        "dropped first": [two, three, last],
        "dropped middle": [one, three, last],
        "dropped last": [one, two, three],
        "only last": [last],
        "last repeated": [one, two, three, last, last],
        "emptied": [],
        "appended": [one, two, three, last, b"x" * 100],
        "appended tag": [one, two, three, last, bytes(16)],
        "appended whole object": [one, two, three, last, stored],
    }.items():
        inner.write("a", head + b"".join(pieces))
        with pytest.raises(IntegrityError):
            raise AssertionError(f"{kind}: {storage.read('a')[:10]!r}")
        refused(storage, size=len(content))


def test_mixed_objects_are_noticed(storage: EncryptedStorage, inner: MemoryStorage) -> None:
    content = content_of(2 * CHUNK)
    storage.write("a", content)
    one = inner.read("a")
    storage.write("a", content)
    two = inner.read("a")
    for mixture in (one[:HEAD] + two[HEAD:], one[:-SEALED] + two[-SEALED:], one + two, two + one[HEAD:]):
        inner.write("a", mixture)
        refused(storage, size=len(content))


def test_object_of_another_identifier_is_noticed(storage: EncryptedStorage, inner: MemoryStorage) -> None:
    storage.write("a", b"content of a")
    storage.write("b", b"content of b")
    one, two = inner.read("a"), inner.read("b")
    inner.write("a", two)
    inner.write("b", one)
    refused(storage, "a")
    refused(storage, "b")
    inner.write("a", one)
    for other in ("ab", "folder/a", "A", "a ", "a/a"):
        inner.copy("a", other)
        refused(storage, other)
    assert storage.read("a") == b"content of a"


def test_what_is_not_encrypted_is_never_content(storage: EncryptedStorage, inner: MemoryStorage) -> None:
    for plain in (b"", b"x", b"plain text " * 20_000, bytes(56), bytes(72), b"\x93sb-aead", KEY):
        inner.write("a", plain)
        refused(storage, size=len(plain))
        with pytest.raises(IntegrityError):
            storage.key_id("a")
        with pytest.raises(IntegrityError):
            storage.rotate("a")


def test_later_version_is_refused(storage: EncryptedStorage, inner: MemoryStorage) -> None:
    head = b"\x93sb-aead" + b"\x02\0\0\0" + id_by_hand(KEY) + bytes(32)
    inner.write("a", head + struct.pack(">I", zlib.crc32(head)) + bytes(16))
    with pytest.raises(IntegrityError, match="version 2"):
        storage.read("a")


def test_reserved_bytes_are_authenticated(storage: EncryptedStorage, inner: MemoryStorage) -> None:
    stored = bytearray(encrypted_by_hand("a", b"content"))
    stored[10] = 7
    stored[52:56] = struct.pack(">I", zlib.crc32(stored[:52]))
    inner.write("a", bytes(stored))
    refused(storage)


def test_forged_key_id_is_no_way_in(inner: MemoryStorage) -> None:
    storage = EncryptedStorage(inner, KEY, keys={id_by_hand(OLD).hex(): OLD})
    stored = bytearray(encrypted_by_hand("a", b"content"))
    stored[12:20] = id_by_hand(OLD)
    stored[52:56] = struct.pack(">I", zlib.crc32(stored[:52]))
    inner.write("a", bytes(stored))
    refused(storage)


def test_bytes_lost_with_an_error_are_never_skipped() -> None:
    class Flaky(MemoryStorage):
        @override
        def open(self, identifier: str, mode: Any = "rb") -> Any:
            reader = super().open(identifier, mode)
            read, calls = reader.read, iter(range(1000))

            def once_failing(size: int = -1) -> bytes:
                if next(calls) == 2:
                    raise UnavailableError("once")
                return read(size)

            spied = MagicMock(wraps=reader)
            spied.read = once_failing
            return spied

    storage = EncryptedStorage(Flaky(), KEY)
    content = content_of(20 * CHUNK)
    storage.write("a", content)
    with storage.open("a") as reader:
        assert reader.read(100) == content[:100]
        with pytest.raises(UnavailableError):
            reader.read(8 * CHUNK)
        for _ in range(2):
            with pytest.raises(UnavailableError):
                reader.read(10)
        reader.seek(reader.tell())
        at = reader.tell()
        assert reader.read() == content[at:]
        reader.seek(100)
        assert reader.read(8 * CHUNK) == content[100:][: 8 * CHUNK]


# Keys


def test_unknown_key_is_named(inner: MemoryStorage) -> None:
    EncryptedStorage(inner, OLD).write("a", b"content")
    storage = EncryptedStorage(inner, KEY)
    for read in readings(storage, "a", 7).values():
        with pytest.raises(AuthenticationError, match=id_by_hand(OLD).hex()) as caught:
            read()
        assert caught.value.identifier == "a"
        assert id_by_hand(KEY).hex() in str(caught.value)
    with pytest.raises(AuthenticationError):
        storage.rotate("a")
    assert storage.key_id("a") == id_by_hand(OLD).hex()


def test_old_keys_read_and_rotation_ends_their_use(inner: MemoryStorage) -> None:
    old = EncryptedStorage(inner, OLD)
    content = content_of(3 * CHUNK)
    info = ObjectInfo("a", content_type="text/csv")
    old.write_stream("a", io.BytesIO(content), info=info)
    modified = old.stat("a").modified
    storage = EncryptedStorage(inner, KEY, keys={old.current_key_id: OLD})
    assert storage.read("a") == content
    assert storage.key_id("a") == old.current_key_id == id_by_hand(OLD).hex()
    assert storage.rotate("a") is True
    assert storage.key_id("a") == storage.current_key_id == id_by_hand(KEY).hex()
    assert (storage.stat("a").modified, storage.stat("a").content_type) == (modified, "text/csv")
    before = inner.read("a")
    assert storage.rotate("a") is False
    assert inner.read("a") == before
    assert EncryptedStorage(inner, KEY).read("a") == content
    with pytest.raises(AuthenticationError):
        old.read("a")
    old.write("b", b"old")
    storage.copy("b", "c")
    assert storage.key_id("c") == storage.current_key_id
    with pytest.raises(NotFoundError):
        storage.rotate("gone")


def test_failed_rotation_keeps_the_object(inner: MemoryStorage) -> None:
    EncryptedStorage(inner, OLD).write("a", content_of(3 * CHUNK))
    stored = bytearray(inner.read("a"))
    stored[-1] ^= 1
    inner.write("damaged", bytes(stored))
    faulty = FaultyStorage(inner)
    storage = EncryptedStorage(faulty, KEY, keys={id_by_hand(OLD).hex(): OLD})
    before = {name: inner.read(name) for name in inner.list()}
    faulty.cut("write_stream", at=CHUNK)
    with pytest.raises(UnavailableError):
        storage.rotate("a")
    faulty.cut("open", at=2 * CHUNK)
    with pytest.raises(UnavailableError):
        storage.rotate("a")
    with pytest.raises(IntegrityError):
        storage.rotate("damaged")
    assert {name: inner.read(name) for name in inner.list()} == before


SPELLINGS = [
    KEY,
    bytearray(KEY),
    memoryview(KEY),
    KEY.hex(),
    KEY.hex().upper(),
    base64.b64encode(KEY).decode(),
    base64.urlsafe_b64encode(KEY).decode().rstrip("="),
]


@pytest.mark.parametrize("key", SPELLINGS, ids=lambda key: type(key).__name__)
def test_every_spelling_of_a_key_is_the_key(inner: MemoryStorage, key: Any, tmp_path: Path) -> None:
    EncryptedStorage(inner, KEY).write("a", b"content")
    assert EncryptedStorage(inner, key).read("a") == b"content"
    assert EncryptedStorage(inner, OLD, keys={id_by_hand(KEY).hex(): key}).read("a") == b"content"
    if isinstance(key, str):
        (tmp_path / "key").write_text(f"{key}\n")
        assert EncryptedStorage(inner, f"file:{tmp_path}/key").read("a") == b"content"


@pytest.mark.parametrize(
    "key",
    [b"", b"x" * 31, b"x" * 33, "", "hunter2-hunter2-hunter2", KEY.hex()[:-1], KEY.hex() + "00", "é" * 32],
)
def test_what_is_no_key_is_refused_and_not_quoted(key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    makes: list[Callable[[], object]] = [
        lambda: EncryptedStorage(MemoryStorage(), key),
        lambda: EncryptedStorage(MemoryStorage(), KEY, keys={"00" * 8: key}),
    ]
    for make in makes:
        with pytest.raises(ConfigurationError, match="not a key") as caught:
            make()
        assert caught.value.parameter in {"key", "keys"}
        assert len(key) < 10 or str(key) not in str(caught.value)
    if isinstance(key, str):
        monkeypatch.setenv("SB_WRONG", key)
        storage = EncryptedStorage(MemoryStorage(), "env:SB_WRONG")
        with pytest.raises(ConfigurationError, match="env:SB_WRONG"):
            storage.write("a", b"")


def test_wrong_arguments_are_refused() -> None:
    for key in (None, 7, ["x"] * 32, object()):
        with pytest.raises(TypeError, match="key"):
            EncryptedStorage(MemoryStorage(), key)  # type: ignore[arg-type]  # what is tested
    for name in ("", "2024", id_by_hand(OLD).hex().upper(), "x" * 16, 7):
        with pytest.raises(ConfigurationError, match="an id has"):
            EncryptedStorage(MemoryStorage(), KEY, keys={name: OLD})  # type: ignore[dict-item]  # what is tested
    with pytest.raises(ConfigurationError, match=id_by_hand(OLD).hex()):
        EncryptedStorage(MemoryStorage(), KEY, keys={id_by_hand(KEY).hex(): OLD})


def test_key_by_reference_is_looked_up_when_it_is_needed(
    inner: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    EncryptedStorage(inner, KEY).write("a", b"content")
    storage = EncryptedStorage(inner, "env:SB_LATER", keys={id_by_hand(OLD).hex(): "env:SB_NEVER"})
    assert storage.list() == ["a"]
    assert storage.size("a") == 7
    with pytest.raises(ConfigurationError, match="SB_LATER"):
        storage.read("a")
    monkeypatch.setenv("SB_LATER", KEY.hex())
    assert storage.read("a") == b"content"
    monkeypatch.setenv("SB_NEVER", KEY.hex())
    EncryptedStorage(inner, OLD).write("b", b"content")
    with pytest.raises(ConfigurationError, match=id_by_hand(OLD).hex()):
        storage.read("b")


def test_pickle_never_holds_a_key(tmp_path: Path) -> None:
    inner = LocalStorage(tmp_path)
    for storage in (
        EncryptedStorage(inner, KEY),
        EncryptedStorage(inner, KEY.hex()),
        EncryptedStorage(inner, REFERENCE, keys={id_by_hand(OLD).hex(): OLD}),
    ):
        with pytest.raises(ConfigurationError, match="pickle") as caught:
            pickle.dumps(storage)
        assert caught.value.parameter in {"key", "keys"}
    storage = EncryptedStorage(inner, REFERENCE)
    storage.write("a", b"content")
    pickled = pickle.dumps(storage)
    assert KEY not in pickled
    assert KEY.hex().encode() not in pickled
    assert pickle.loads(pickled).read("a") == b"content"


def test_key_is_shown_nowhere(inner: MemoryStorage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    storage = EncryptedStorage(inner, KEY, keys={id_by_hand(OLD).hex(): OLD})
    shown = [
        repr(storage),
        str(vars(storage)),
        storage.location,
        repr(vars(storage._keyring)),
        storage.get_path("a"),
    ]
    EncryptedStorage(inner, b"z" * 32).write("a", b"content")
    for call in (storage.read, storage.rotate, storage.open):
        with pytest.raises(AuthenticationError) as caught:
            call("a")
        shown.append("".join(traceback.format_exception(caught.value)))
    inner.write("a", b"plain")
    with pytest.raises(IntegrityError) as damaged:
        storage.read("a")
    shown += [str(damaged.value), caplog.text]
    for text in shown:
        for key in (KEY, OLD):
            for spelling in (
                key.hex(),
                base64.b64encode(key).decode()[:40],
                repr(key)[2:-1],
                str([*key])[1:-1],
            ):
                assert spelling not in text


# What is told


def test_sizes_are_the_contents_and_cost_no_reading(inner: MemoryStorage) -> None:
    faulty = FaultyStorage(inner)
    storage = EncryptedStorage(faulty, KEY)
    for number, size in enumerate(SIZES):
        storage.write(f"{number}", content_of(size))
    faulty.calls.clear()
    assert [storage.size(f"{number}") for number in range(len(SIZES))] == SIZES
    assert [storage.stat(f"{number}").size for number in range(len(SIZES))] == SIZES
    assert [info.size for info in storage.scan()] == SIZES
    assert {call.method for call in faulty.calls} == {"size", "stat", "scan"}
    for impossible in (0, 71, HEAD + SEALED + 16):
        inner.write("x", bytes(impossible))
        assert [info.size for info in storage.scan("x")] == [None]
        assert storage.stat("x").size is None
        with pytest.raises(IntegrityError):
            storage.size("x")


def test_nothing_of_the_stored_bytes_is_told_as_the_contents(tmp_path: Path) -> None:
    inner = Vouching()
    storage = EncryptedStorage(inner, KEY)
    storage.write_stream("a", io.BytesIO(b"content"), info=ObjectInfo("a", 7, content_type="text/plain"))
    stored = inner.stat("a")
    shown = ObjectInfo("a", 7, stored.modified, stored.etag, None, "text/plain")
    assert storage.stat("a") == shown
    assert list(storage.scan()) == list(storage.scan_level()) == [shown]
    assert storage.hooks.last_written("a") == shown
    assert list(storage.stat_many(["a", "gone"])) == [shown]
    assert list(storage.hooks.sha256_many(["a"])) == []
    assert storage.checksum("a") == sha256(b"content")
    gone = Capability.CHECKSUM | Capability.URL | Capability.SERVER_COPY
    assert not storage.capabilities & gone
    assert Capability.RANGES | Capability.CREATE in storage.capabilities
    with pytest.raises(UnsupportedOperationError):
        storage.get_url("a")
    storage.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"content"


def test_range_moves_what_it_touches() -> None:
    inner = Counting()
    storage = EncryptedStorage(inner, KEY)
    content = content_of(400 * CHUNK)
    storage.write("a", content)
    for start in (0, 5 * CHUNK - 3, 400 * CHUNK - 10):
        inner.moved = 0
        assert storage.read_range("a", start, start + 6) == content[start : start + 6]
        assert inner.moved < 4 * CHUNK
    inner.moved = 0
    with storage.open("a") as reader:
        for at in range(0, len(content), 100_000):
            assert reader.read(100_000) == content[at : at + 100_000]
    assert inner.moved < 410 * CHUNK


def test_prefix_above_or_beneath_decides_what_is_authenticated(inner: MemoryStorage) -> None:
    beneath = EncryptedStorage(PrefixedStorage(inner, "old"), KEY)
    above = PrefixedStorage(EncryptedStorage(inner, KEY), "full")
    beneath.write("a", b"beneath")
    above.write("a", b"above")
    inner.move("old/a", "new/a")
    inner.move("full/a", "other/a")
    assert EncryptedStorage(PrefixedStorage(inner, "new"), KEY).read("a") == b"beneath"
    with pytest.raises(IntegrityError) as caught:
        PrefixedStorage(EncryptedStorage(inner, KEY), "other").read("a")
    assert caught.value.identifier == "a"


# Writing, copying, moving


def test_one_write_is_one_write(inner: MemoryStorage) -> None:
    faulty = FaultyStorage(inner)
    EncryptedStorage(faulty, KEY).write("a", b"content")
    assert [call.method for call in faulty.calls] == ["write"]


def test_inner_backend_is_told_its_own_size(inner: MemoryStorage) -> None:
    # MemoryStorage checks it against what arrives.
    storage = EncryptedStorage(inner, KEY)
    for size in SIZES:
        content = content_of(size)
        for info in (None, ObjectInfo("x", size), ObjectInfo("x", size, sha256=sha256(content))):
            storage.write_stream("a", io.BytesIO(content), info=info, verify=True)
            assert storage.read("a") == content
        storage.write_many([(ObjectInfo("b", size), content)], verify=True)
        assert storage.read("b") == content


@pytest.mark.parametrize("size", [100, 3 * CHUNK, 3 * CHUNK + 1])
def test_wrong_promise_keeps_the_old_object(storage: EncryptedStorage, size: int) -> None:
    storage.write("a", b"old")
    for info in (
        ObjectInfo("a", size - 1),
        ObjectInfo("a", size + 1),
        ObjectInfo("a", size, sha256="0" * 64),
    ):
        with pytest.raises(IntegrityError):
            storage.write_stream("a", io.BytesIO(content_of(size)), info=info, verify=True)
    with pytest.raises(SourceBrokeError):
        storage.write_stream("a", Source(content_of(size), breaks_at=size - 1).as_binary())
    assert storage.read("a") == b"old"


def test_verify_notices_what_the_store_spoils() -> None:
    storage = EncryptedStorage(Rotting(), KEY)
    with pytest.raises(IntegrityError):
        storage.write_stream("a", io.BytesIO(b"content"), verify=True)
    storage.write("a", b"content")
    with pytest.raises(IntegrityError):
        storage.read("a")


def test_verify_decrypts_each_chunk(storage: EncryptedStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write("a", b"old")
    monkeypatch.setattr(chunks.ChunkCipher, "opened", lambda *_, **__: b"something else")
    with pytest.raises(IntegrityError, match="does not decrypt"):
        storage.write_stream("a", io.BytesIO(b"new"), verify=True)
    storage.write_stream("b", io.BytesIO(b"new"))
    monkeypatch.undo()
    assert (storage.read("a"), storage.read("b")) == (b"old", b"new")


def test_writer_hands_on_encrypted_bytes_only(storage: EncryptedStorage, inner: MemoryStorage) -> None:
    seen = io.BytesIO()

    class Watching(MemoryStorage):
        @override
        def open(self, identifier: str, mode: Any = "rb") -> Any:
            writer = super().open(identifier, mode)
            write = writer.write
            writer.write = lambda data: (seen.write(data), write(data))[1]  # type: ignore[method-assign]  # a spy
            return writer

    watched = EncryptedStorage(Watching(), KEY)
    with watched.open("a", "wb") as writer:
        for _ in range(300):
            writer.write(b"secret " * 100)
    assert len(seen.getvalue()) == chunks.stored_size(210_000)
    assert b"secret" not in seen.getvalue()
    assert watched.read("a") == b"secret " * 30_000


def test_move_checks_the_copy_and_keeps_the_source_until_then(inner: MemoryStorage) -> None:
    faulty = FaultyStorage(inner)
    storage = EncryptedStorage(faulty, KEY)
    content = content_of(3 * CHUNK)
    storage.write("a", content)
    faulty.cut("write_stream", at=CHUNK)
    with pytest.raises(UnavailableError):
        storage.move("a", "b")
    assert storage.read("a") == content
    assert not storage.exists("b")
    faulty.fail("delete")
    with pytest.raises(UnavailableError):
        storage.move("a", "b")
    assert storage.read("a") == storage.read("b") == content


def test_move_onto_another_name_of_the_same_file_loses_nothing() -> None:
    class Folding(Seven):
        """As a file system that ignores case."""

        @override
        def read(self, identifier: str) -> bytes:
            return super().read(identifier.lower())

        @override
        def write(self, identifier: str, content: bytes) -> bool:
            return super().write(identifier.lower(), content)

        @override
        def delete(self, identifier: str) -> bool:
            return super().delete(identifier.lower())

    storage = EncryptedStorage(Folding(), KEY)
    storage.write("name", b"content")
    storage.move("name", "NAME")
    assert storage.read("NAME") == b"content"


# Batches and transfers


def test_damaged_object_of_a_batch_is_reported_after_the_others(
    storage: EncryptedStorage, inner: MemoryStorage
) -> None:
    for name in "abcd":
        storage.write(name, name.encode() * 100)
    inner.copy("a", "b")
    inner.write("c", b"plain")
    found: dict[str, bytes] = {}
    with pytest.raises(BatchError) as caught:
        found.update(storage.read_many(["a", "gone", "b", "c", "d"]))
    assert found == {name: name.encode() * 100 for name in "ad"}
    kinds = {name: type(error) for name, error in caught.value.failures.items()}
    assert kinds == {"gone": NotFoundError, "b": IntegrityError, "c": IntegrityError}


def test_transfers_see_the_content(tmp_path: Path) -> None:
    objects = {f"d/{number}": content_of(number * 9000) for number in range(30)}
    source, target = MemoryStorage(), EncryptedStorage(LocalStorage(tmp_path), KEY)
    source.write_many(objects.items())
    assert sync(source, target).copied == 30
    assert dict(target.read_many(objects)) == objects
    assert sync(source, target).copied == 0
    back = MemoryStorage()
    assert sync(target, back).copied == 30
    assert dict(back.read_many(objects)) == objects


# Ranges and seeks against plain bytes

MODEL = content_of(4 * CHUNK + 777)
EDGES = st.tuples(st.integers(0, 5), st.integers(-20, 20)).map(lambda pair: max(0, pair[0] * CHUNK + pair[1]))
POSITIONS = st.one_of(EDGES, st.integers(0, len(MODEL) + 10))


@pytest.fixture(scope="module")
def modelled() -> EncryptedStorage:
    storage = EncryptedStorage(MemoryStorage(), KEY)
    storage.write("a", MODEL)
    storage.write("even", MODEL[: 4 * CHUNK])
    return storage


@thorough(200, deadline=None)
@given(start=POSITIONS, end=st.none() | POSITIONS)
def test_range_is_a_slice(modelled: EncryptedStorage, start: int, end: int | None) -> None:
    assert modelled.read_range("a", start, end) == MODEL[start:end]
    assert modelled.read_range("even", start, end) == MODEL[: 4 * CHUNK][start:end]


@thorough(200, deadline=None)
@given(st.lists(st.tuples(POSITIONS, st.integers(0, 300_000)), max_size=8))
def test_seeks_are_those_of_a_file(modelled: EncryptedStorage, steps: list[tuple[int, int]]) -> None:
    with modelled.open("a") as reader:
        for position, size in steps:
            assert reader.seek(position) == position
            assert reader.read(size) == MODEL[position : position + size]


@thorough(200, deadline=None)
@given(st.lists(st.integers(0, 3 * CHUNK), max_size=5))
def test_pieces_of_any_size_make_the_same_object(sizes: list[int]) -> None:
    storage = EncryptedStorage(MemoryStorage(), KEY)
    content = content_of(sum(sizes))
    at = 0
    with storage.open("a", "wb") as writer:
        for size in sizes:
            writer.write(content[at : at + size])
            at += size
    assert storage.read("a") == content
    assert storage.size("a") == len(content)


# The rest


@pytest.mark.soak
def test_memory_stays_bounded(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from storage_backend import EncryptedStorage, LocalStorage, ObjectInfo
from tests.wrappers.recoded import Pattern
storage = EncryptedStorage(LocalStorage(sys.argv[1]), bytes(32))
def work(size):
    storage.write_stream("known", Pattern(size), info=ObjectInfo("known", size), verify=True)
    storage.write_stream("unknown", Pattern(size))
    with storage.open("writer", "wb") as writer, storage.open("known") as reader:
        while data := reader.read(1 << 20):
            writer.write(data)
    storage.move("unknown", "moved")
    storage.download("moved", Path(sys.argv[1]) / "down")
    assert storage.size("writer") == size == (Path(sys.argv[1]) / "down").stat().st_size
work(24 << 20)
# work
work(300 << 20)
"""
    assert growth(program, tmp_path) < 24 << 20


def test_missing_library_is_named_when_it_is_first_needed() -> None:
    program = """
import sys
for name in ("cryptography", "cryptography.exceptions"):
    sys.modules[name] = None
from storage_backend import EncryptedStorage, MemoryStorage, MissingClientError
storage = EncryptedStorage(MemoryStorage(), bytes(32))
storage.backend.write("b", bytes.fromhex(sys.argv[1]))
for call in (lambda: storage.write("a", b""), lambda: storage.read("b")):
    try:
        call()
    except MissingClientError as error:
        print(error)
"""
    stored = encrypted_by_hand("b", b"", key=bytes(32)).hex()
    done = subprocess.run([sys.executable, "-c", program, stored], check=True, capture_output=True, text=True)
    assert len(re.findall(r"pip install cryptography$", done.stdout, re.MULTILINE)) == 2


@pytest.mark.parametrize("key", [OLD, OLD.hex(), base64.b64encode(OLD).decode(), OLD.hex().upper()])
def test_swapped_keys_are_refused_without_being_shown(key: bytes | str) -> None:
    with pytest.raises(ConfigurationError, match=r"not \{key: id\}") as caught:
        EncryptedStorage(MemoryStorage(), KEY, keys={key: id_by_hand(OLD).hex()})  # type: ignore[dict-item]  # what is tested
    error: BaseException | None = caught.value
    while error is not None:
        for shown in (str(error), repr(error), repr(vars(error))):
            assert str(key) not in shown
            assert repr(key) not in shown
        error = error.__cause__ or error.__context__
