"""DatabaseStorage: identifiers are bytes, prefixes are ranges of them."""

from __future__ import annotations

import string
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_backend import DatabaseStorage, InvalidIdentifierError, MemoryStorage, StorageError
from storage_backend.backends.sql import listing as module
from tests.backends.sql_samples import query, statements

# What LIKE, collations, case folding, normalisation and C strings stumble over, and the edges of UTF-8's ranges.
NAMES = sorted(
    {
        *(f"c/{chr(number)}x" for number in range(1, 0x180) if chr(number) not in "./"),
        *(
            "a",
            "A",
            "aa",
            "aA",
            "a%",
            "a_",
            "a%b",
            "a_b",
            "aXb",
            "a\\b",
            "a'b",
            'a"b',
            "a;--",
            "a b",
            "a\nb",
            " a",
        ),
        *("é", "e\u0301", "ß", "SS", "ss", "\u0131", "i", "I", "İ", "K", "\u212a", "ﬁ", "fi"),
        *("x/\x7f", "x/\x80", "x/\u07ff", "x/\u0800", "x/\ud7ff", "x/\ue000", "x/\uffff", "x/\U00010000"),
        *("\U0010ffff", "\U0010ffff\U0010ffff", "\U0010fffe", "\uffff", "\U0010ffff/a"),
        *("d/a", "d/b/c", "d.x", "d-x", "d0", "d"),
        "n" * 1024,
        "é" * 512,
    },
    key=str.encode,
)
PREFIXES = sorted(
    {name[:cut] for name in NAMES for cut in (0, 1, 2, 3, 4, len(name))} | {"d/", "zz", "%", "_", "*"}
)


@pytest.fixture
def storage(database_url: str) -> Iterator[DatabaseStorage]:
    with DatabaseStorage(database_url) as storage:
        storage.write_many((name, name.encode()) for name in NAMES)
        yield storage


def test_every_name_round_trips(storage: DatabaseStorage) -> None:
    assert storage.list() == NAMES
    assert dict(storage.read_many(NAMES)) == {name: name.encode() for name in NAMES}
    for name in NAMES:
        assert storage.exists(name)
        assert storage.stat(name).identifier == name
    assert storage.delete_many(NAMES) == len(NAMES)
    assert storage.list() == []


def test_names_are_stored_as_their_bytes(storage: DatabaseStorage, database_url: str) -> None:
    assert sorted(bytes(name) for (name,) in query(database_url, "SELECT name FROM sb_objects")) == [
        name.encode() for name in NAMES
    ]


def test_prefix_is_literal(storage: DatabaseStorage) -> None:
    assert len(PREFIXES) > 300
    for prefix in PREFIXES:
        expected = [name for name in NAMES if name.startswith(prefix)]
        assert [info.identifier for info in storage.scan(prefix)] == expected, prefix


@pytest.mark.parametrize("size", [1, 2, 7])
def test_pages_of_any_size_give_the_same(
    storage: DatabaseStorage, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", size)
    assert [info.identifier for info in storage.scan()] == NAMES
    for prefix in ("c/", "d", "d/", "\U0010ffff", "x/"):
        assert [info.identifier for info in storage.scan(prefix)] == [
            n for n in NAMES if n.startswith(prefix)
        ]


def test_upper_edge_of_a_prefix() -> None:
    for prefix, edge in (
        (b"a", b"b"),
        (b"a/", b"a0"),
        (b"\xf4\x8f\xbf\xbf", b"\xf4\x8f\xbf\xc0"),
        (b"", None),
    ):
        assert module._upper_bound(prefix) == edge


def test_lone_surrogate_is_refused_and_begins_nothing(storage: DatabaseStorage) -> None:
    for name in ("\ud800", "a/\udcff", "\udcc3\udca9"):
        with pytest.raises(InvalidIdentifierError):
            storage.write(name, b"")
        assert storage.exists(name) is False
        assert list(storage.scan(name)) == []
    assert storage.list("\udcc3*") == []


def test_names_of_other_programs_are_reported(storage: DatabaseStorage, database_url: str) -> None:
    for name in (b"\xff\xfe", b"../up", b"a//b", b".~sb-x", b""):
        query(
            database_url,
            "INSERT INTO sb_objects (name, version, size, chunk_size, sha256, modified) "
            "VALUES (?, ?, 0, 1024, ?, 0)",
            name,
            b"v" + name,
            b"",
        )
    skipped: list[StorageError] = []
    assert [info.identifier for info in storage.scan(on_skip=skipped.append)] == NAMES
    assert len(skipped) == 5
    assert all(isinstance(error, InvalidIdentifierError) for error in skipped)


ALPHABET = "ab/0.-" + string.ascii_uppercase[:2]
names = st.text(ALPHABET, min_size=1, max_size=9).filter(
    lambda name: all(part not in {"", ".", ".."} for part in name.split("/"))
)
patterns = st.lists(
    st.sampled_from(["*", "**", "a", "a*", "*b", "?", "[ab]", "ab", "b?*", "0"]), min_size=1, max_size=4
).map("/".join)


@pytest.fixture(scope="module")
def page_of_two() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "PAGE", 2)
        yield


@given(held=st.sets(names, max_size=25), wanted=st.lists(patterns, min_size=1, max_size=8))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_globs_skip_nothing(page_of_two: None, sqlite_url: str, held: set[str], wanted: list[str]) -> None:
    reference = MemoryStorage()
    with DatabaseStorage(sqlite_url) as storage:
        storage.delete_many(storage.list())
        for backend in (storage, reference):
            backend.write_many((name, b"") for name in held)
        for pattern in wanted:
            assert storage.list(pattern) == reference.list(pattern)
        for prefix in ("", "a", "a/", "ab/", "b"):
            assert [*storage.scan(prefix)] != [] or not any(name.startswith(prefix) for name in held)
        found = storage.list()
        assert all(one.encode() < other.encode() for one, other in pairwise(found))
        assert set(found) == held


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_comes_after_a_skipped_directory_is_listed(
    storage: DatabaseStorage, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", size)
    storage.write_many((f"k/{part}/x/y", b"") for part in range(9))
    storage.write_many((name, b"") for name in ("k.", "k-", "k0", "k1", "k/0.", "k/00", "k/9"))
    assert storage.list("k*") == ["k-", "k.", "k0", "k1"]
    assert storage.list("k/*") == ["k/0.", "k/00", "k/9"]
    assert storage.list("k/*/*/y") == [f"k/{part}/x/y" for part in range(9)]


def test_one_level_does_not_walk_what_is_beneath(
    storage: DatabaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_many((f"m/{number:05}/x", b"") for number in range(3000))
    storage.write_many([("l.pdf", b""), ("n.pdf", b"")])
    monkeypatch.setattr(module, "PAGE", 50)
    with statements() as asked:
        assert storage.list("*.pdf") == ["l.pdf", "n.pdf"]
    assert 0 < len(asked) < 20  # not 3,000 / 50
