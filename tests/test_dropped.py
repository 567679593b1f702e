"""What an object held (descriptors, threads, children) goes with its last reference, closed or not, without the collector."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeAlias

import pytest

from storage_backend import (
    CachedStorage,
    CompressedStorage,
    DatabaseStorage,
    EncryptedStorage,
    FallbackStorage,
    LocalStorage,
    PrefixedStorage,
    RetryingStorage,
    StorageBackend,
)
from tests.leaks import Held, left_since
from tests.tiers import few

Make: TypeAlias = Callable[[], StorageBackend]

SMALL = b"small"
LARGE = os.urandom(9 << 20)  # beyond what is spooled in memory, or sent as one part; nothing compresses it
KEY = "env:SB_TEST_KEY"


def local(request: pytest.FixtureRequest) -> Make:
    base = request.getfixturevalue("tmp_path") / "base"
    return lambda: LocalStorage(base)


def sqlite(request: pytest.FixtureRequest) -> Make:
    url = request.getfixturevalue("sqlite_url")
    return lambda: DatabaseStorage(url)


def postgresql(request: pytest.FixtureRequest) -> Make:
    url = request.getfixturevalue("postgresql_url")
    return lambda: DatabaseStorage(url)


def s3(request: pytest.FixtureRequest) -> Make:
    from tests.backends.test_s3 import storage_at

    place = request.getfixturevalue("strict_bucket")
    return lambda: storage_at(place)


def ssh(request: pytest.FixtureRequest) -> Make:
    from tests.backends.test_remote import storage_at

    place = request.getfixturevalue("openssh_place")
    return lambda: storage_at(place)


def sftp(request: pytest.FixtureRequest) -> Make:
    from tests.backends.test_remote import storage_at

    place = request.getfixturevalue("internal_sftp_place")
    return lambda: storage_at(place)


def cached(request: pytest.FixtureRequest) -> Make:
    path = request.getfixturevalue("tmp_path")
    return lambda: CachedStorage(LocalStorage(path / "base"), path / "cache")


def diskcached(request: pytest.FixtureRequest) -> Make:
    path = request.getfixturevalue("tmp_path")
    return lambda: CachedStorage(LocalStorage(path / "base"), path / "cache", engine="diskcache")


def deep(request: pytest.FixtureRequest) -> Make:
    path = request.getfixturevalue("tmp_path")

    def make() -> StorageBackend:
        one, other = PrefixedStorage(LocalStorage(path), "one"), LocalStorage(path / "other")
        pair = FallbackStorage(RetryingStorage(one), other, write_to="both", on_error="fallback")
        return CompressedStorage(EncryptedStorage(CachedStorage(pair, path / "cache"), KEY))

    return make


def unused(make: Make) -> object:
    return make()


def used(make: Make) -> object:
    storage = make()
    storage.write("a", SMALL)
    storage.write("b", LARGE)
    storage.write_many([(f"many/{number}", SMALL) for number in range(20)])
    storage.copy("a", "c")
    storage.move("c", "d")
    assert storage.read("a") == SMALL
    assert storage.read_range("b", 5 << 20, 6 << 20) == LARGE[5 << 20 : 6 << 20]
    assert len(storage.list("many/*")) == len(list(storage.scan("many/"))) == 20
    assert len(dict(storage.read_many(["a", "b", "d"]))) == 3
    storage.delete("d")
    return storage


def closed(make: Make) -> object:
    storage = used(make)
    assert isinstance(storage, StorageBackend)
    storage.close()
    return storage


def closed_and_used_again(make: Make) -> object:
    storage = closed(make)
    assert isinstance(storage, StorageBackend)
    assert storage.read("a") == SMALL
    return storage


def missing(make: Make) -> object:
    storage = make()
    for look in (storage.read, storage.stat, storage.open, storage.delete, storage.checksum):
        with suppress(FileNotFoundError):
            look("nowhere")
    with suppress(OSError):
        list(storage.read_many(["a", "nowhere"]))
    return storage


def reader(make: Make) -> object:
    storage = make()
    found = storage.open("b")
    assert found.read(10) == LARGE[:10]
    return storage, found


def reader_alone(make: Make) -> object:
    found = make().open("b")
    assert found.read() == LARGE
    return found


def small_reader_alone(make: Make) -> object:
    found = make().open("a")
    assert found.read() == SMALL
    return found


def writer(make: Make) -> object:
    storage = make()
    begun = storage.open("w", "wb")
    begun.write(LARGE)
    return storage, begun


def writer_alone(make: Make) -> object:
    begun = make().open("w", "wb")
    begun.write(LARGE)
    return begun


def scan(make: Make) -> object:
    entries = make().scan()
    next(entries)
    return entries


def read_many(make: Make) -> object:
    found = make().read_many(["b", *(f"many/{number}" for number in range(20)), "a"])
    next(found)
    return found


def failed_source(make: Make) -> object:
    storage = make()

    def broken() -> Iterator[tuple[str, bytes]]:
        yield "broken", SMALL
        raise ValueError("a source of the caller's that fails")

    with pytest.raises(ValueError, match="caller's"):
        storage.write_many(broken())
    return storage


KINDS = few([local, sqlite, s3, ssh, cached, diskcached, deep, postgresql, sftp], 7)
HABITS = [
    used,
    unused,
    closed_and_used_again,
    missing,
    reader,
    reader_alone,
    small_reader_alone,
    writer,
    writer_alone,
    scan,
    read_many,
    failed_source,
]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # which is the point
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_dropped_holds_nothing(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    kind: Callable[[pytest.FixtureRequest], Make],
) -> None:
    monkeypatch.setenv("SB_TEST_KEY", "5a" * 32)
    make = kind(request)
    closed(make)  # what the process keeps from its first use on
    held: dict[str, Held] = {}
    gc.collect()
    gc.disable()
    try:
        for habit in HABITS:
            before = Held.now()
            habit(make)
            if left := left_since(before):
                held[habit.__name__] = left
                gc.collect()
    finally:
        gc.enable()
    assert not held, "".join(f"\n{habit} leaves{left}" for habit, left in held.items())
