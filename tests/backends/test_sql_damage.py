"""DatabaseStorage: what has changed in the database behind its back is found, and named."""

from __future__ import annotations

import os

import pytest

from storage_backend import BatchError, Capability, DatabaseStorage, IntegrityError, SourceChangedError
from storage_backend.backends.sql.object_row import CHUNK_SIZE
from tests.backends.sql_samples import query

pytestmark = pytest.mark.soak  # each bit of each table, on both databases

LARGE = os.urandom(3 * CHUNK_SIZE + 100)
OF = "version = (SELECT version FROM sb_objects WHERE name = ?)"


def flip(url: str, name: str, seq: int, position: int) -> None:
    """Change one bit of one byte of a chunk."""
    ((data,),) = query(url, f"SELECT data FROM sb_chunks WHERE {OF} AND seq = {seq}", name.encode())
    changed = bytearray(data)
    changed[position] ^= 1
    query(url, f"UPDATE sb_chunks SET data = ? WHERE {OF} AND seq = {seq}", bytes(changed), name.encode())


def refused(storage: DatabaseStorage, name: str) -> None:
    """Each way to read the whole object finds the damage; the object beside it is unharmed."""
    for look in (
        lambda: storage.read(name),
        lambda: storage.open(name).read(),
        lambda: storage.checksum(name),
        lambda: storage.checksum(name, "md5"),
    ):
        with pytest.raises(IntegrityError, match="not those that were stored") as caught:
            look()
        assert caught.value.identifier == name
        assert caught.value.backend == storage.location
        assert not caught.value.retryable
    found: dict[str, bytes] = {}
    with pytest.raises(BatchError) as batch:
        found.update(storage.read_many(["beside", name]))
    assert found == {"beside": b"fine"}
    assert list(batch.value.failures) == [name]
    assert isinstance(batch.value.failures[name], IntegrityError)


@pytest.fixture
def storage(database_url: str) -> DatabaseStorage:
    storage = DatabaseStorage(database_url)
    storage.write("small", b"some bytes")
    storage.write("large", LARGE)
    storage.write("beside", b"fine")
    return storage


@pytest.mark.parametrize("position", [0, 4, 9])
def test_one_bit_of_a_small_object(storage: DatabaseStorage, database_url: str, position: int) -> None:
    flip(database_url, "small", 0, position)
    refused(storage, "small")
    assert storage.read("large") == LARGE


@pytest.mark.parametrize(("seq", "position"), [(0, 0), (1, 12_345), (2, CHUNK_SIZE - 1), (3, 99)])
def test_one_bit_of_a_large_object(
    storage: DatabaseStorage, database_url: str, seq: int, position: int
) -> None:
    flip(database_url, "large", seq, position)
    refused(storage, "large")
    # It is found when the last byte is read, and a part that was not changed can still be saved.
    with storage.open("large") as reader:
        reader.seek(5)
        assert reader.read(10) == LARGE[5:15] or seq == 0


@pytest.mark.parametrize("seq", [0, 1, 3])
def test_lost_chunk(storage: DatabaseStorage, database_url: str, seq: int) -> None:
    with storage.open("large") as reader:
        query(database_url, f"DELETE FROM sb_chunks WHERE {OF} AND seq = {seq}", b"large")
        with pytest.raises(IntegrityError):
            reader.read()
    refused(storage, "large")
    with pytest.raises(IntegrityError):
        storage.read_range("large", seq * CHUNK_SIZE, seq * CHUNK_SIZE + 10)
    with pytest.raises(IntegrityError):
        storage.read_range("large", 0)
    with pytest.raises(IntegrityError):
        storage.read_range("large", 0, len(LARGE))
    query(database_url, f"DELETE FROM sb_chunks WHERE {OF}", b"small")
    refused(storage, "small")


def test_cut_and_grown_chunks(storage: DatabaseStorage, database_url: str) -> None:
    query(database_url, f"UPDATE sb_chunks SET data = ? WHERE {OF}", b"some byte", b"small")
    refused(storage, "small")
    query(database_url, f"UPDATE sb_chunks SET data = ? WHERE {OF}", b"some bytes!", b"small")
    refused(storage, "small")
    query(
        database_url, f"UPDATE sb_chunks SET data = ? WHERE {OF} AND seq = 1", LARGE[CHUNK_SIZE:-1], b"large"
    )
    refused(storage, "large")


def test_exchanged_chunks(storage: DatabaseStorage, database_url: str) -> None:
    for old, new in ((1, 77), (2, 1), (77, 2)):
        query(database_url, f"UPDATE sb_chunks SET seq = {new} WHERE {OF} AND seq = {old}", b"large")
    refused(storage, "large")


@pytest.mark.parametrize("column", ["size = size + 1", "size = size - 1", "sha256 = previous"])
def test_changed_row(storage: DatabaseStorage, database_url: str, column: str) -> None:
    query(database_url, "UPDATE sb_objects SET previous = ?", bytes(32))
    for name in ("small", "large"):
        query(database_url, f"UPDATE sb_objects SET {column} WHERE name = ?", name.encode())
        refused(storage, name)


def test_digest_is_vouched_for_by_nobody(storage: DatabaseStorage) -> None:
    assert Capability.CHECKSUM not in storage.capabilities
    assert storage.stat("large").sha256 is None
    assert [info.sha256 for info in storage.scan()] == [None] * 3


def test_damage_does_not_hinder_its_removal(storage: DatabaseStorage, database_url: str) -> None:
    flip(database_url, "small", 0, 0)
    flip(database_url, "large", 1, 0)
    storage.copy("small", "copy")
    refused(storage, "copy")  # a copy is as damaged as its source, and known to be
    storage.move("large", "moved")
    refused(storage, "moved")
    storage.write("small", b"repaired")
    assert storage.read("small") == b"repaired"
    assert storage.delete_many(["copy", "moved"]) == 2


def test_open_reader_says_whether_the_object_was_replaced_or_deleted(storage: DatabaseStorage) -> None:
    for change in ("replaced", "deleted"):
        with storage.open("large") as reader:
            assert reader.read(10) == LARGE[:10]
            if change == "replaced":
                storage.write("large", LARGE[::-1])
            else:
                storage.delete("large")
            with pytest.raises(SourceChangedError, match=change) as caught:
                reader.read()
            assert caught.value.identifier == "large"
        storage.write("large", LARGE)


def test_open_reader_reads_on_after_a_move(storage: DatabaseStorage) -> None:
    with storage.open("large") as reader:
        assert reader.read(10) == LARGE[:10]
        storage.move("large", "elsewhere")
        assert reader.read() == LARGE[10:]
