"""Listing by patterns, and scanning in order."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import pytest

from storage_backend.base import StorageBackend
from storage_backend.identifiers import encode
from storage_backend.testing.subject import Subject, Topic, everything, fill, has_directories, names

OBJECTS = (
    ".hidden",
    "a.pdf",
    "b.PDF",
    "b.pdf",
    "b.pdf.txt",
    "docs/.pdf",
    "docs/a.pdf",
    "docs/deep/.x/y.pdf",
    "docs/deep/a.pdf",
    "docs/deep/deeper/c.txt",
    "docs/é.pdf",
    "docs2/a.pdf",
    "new\nline.pdf",
    "x",
    "x[1]",
    "x]",
    "x^",
    "y-z",
    "z!",
)

GLOBS: dict[str, tuple[str, ...]] = {
    "*.pdf": ("a.pdf", "b.pdf", "new\nline.pdf"),
    "**/*.pdf": (
        "a.pdf",
        "b.pdf",
        "docs/.pdf",
        "docs/a.pdf",
        "docs/deep/.x/y.pdf",
        "docs/deep/a.pdf",
        "docs/é.pdf",
        "docs2/a.pdf",
        "new\nline.pdf",
    ),
    "*": (
        ".hidden",
        "a.pdf",
        "b.PDF",
        "b.pdf",
        "b.pdf.txt",
        "new\nline.pdf",
        "x",
        "x[1]",
        "x]",
        "x^",
        "y-z",
        "z!",
    ),
    "**": OBJECTS,
    "**/*": OBJECTS,
    "docs/**": (
        "docs/.pdf",
        "docs/a.pdf",
        "docs/deep/.x/y.pdf",
        "docs/deep/a.pdf",
        "docs/deep/deeper/c.txt",
        "docs/é.pdf",
    ),
    "docs/*": ("docs/.pdf", "docs/a.pdf", "docs/é.pdf"),
    "docs/*/*": ("docs/deep/a.pdf",),
    "docs/**/a.pdf": ("docs/a.pdf", "docs/deep/a.pdf"),
    "docs*/a.pdf": ("docs/a.pdf", "docs2/a.pdf"),
    "d*/**/*.txt": ("docs/deep/deeper/c.txt",),
    "**/deep/*": ("docs/deep/a.pdf",),
    "**/deep/**": ("docs/deep/.x/y.pdf", "docs/deep/a.pdf", "docs/deep/deeper/c.txt"),
    "a.pdf": ("a.pdf",),
    "docs": (),
    "docs/deep": (),
    "?.pdf": ("a.pdf", "b.pdf"),
    "docs/?.pdf": ("docs/a.pdf", "docs/é.pdf"),
    "docs?a.pdf": (),
    "docs[/]a.pdf": (),
    "docs[!x]a.pdf": (),
    "[ab].pdf": ("a.pdf", "b.pdf"),
    "[!a].pdf": ("b.pdf",),
    "[a-c].pdf": ("a.pdf", "b.pdf"),
    "b.[pP]*": ("b.PDF", "b.pdf", "b.pdf.txt"),
    "x[[]1]": ("x[1]",),
    "x[]]": ("x]",),
    "x[^]": ("x^",),
    "x[": (),
    "z[!!]": (),
    "z[x!]": ("z!",),
    "y[a-]z": ("y-z",),
    "*a*": ("a.pdf",),
    ".*": (".hidden",),
    "*.*.*": ("b.pdf.txt",),
    "A.pdf": (),
    "new?line.pdf": ("new\nline.pdf",),
    "docs/[é].pdf": ("docs/é.pdf",),
    "docs/[!a-z].pdf": ("docs/é.pdf",),
    "**/[!a-z]*": (".hidden", "docs/.pdf", "docs/é.pdf"),
    "**/.x/**": ("docs/deep/.x/y.pdf",),
    "docs/deep/**/*/*": ("docs/deep/.x/y.pdf", "docs/deep/deeper/c.txt"),
    "**/deep/**/c.*": ("docs/deep/deeper/c.txt",),
    "docs/d**r/c.txt": (),
    "docs/deep/d**r/c.txt": ("docs/deep/deeper/c.txt",),
    "nothing/**": (),
    "a.pdf/**": (),
}
"""Pattern -> its matches among OBJECTS. All backends, and `identifiers.glob`, are tested against this table."""

BAD_PATTERNS = ("/", "/*.pdf", "/a", "../*", "a/../*", "..", "a/..", "a/", "**/", "*/")
"""Invalid patterns: absolute, with "..", or ending in "/"."""


class Listing(Topic):
    """`list`."""

    def test_empty_store_lists_nothing(self, subject: Subject, backend: StorageBackend) -> None:
        assert backend.list() == []
        assert list(backend.scan()) == []
        if subject.has("globs"):
            assert backend.list("**") == []

    def test_list_is_everything_sorted(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("order")
        fill(backend, *reversed(self.objects(subject)))
        found = backend.list()
        assert type(found) is list
        assert found == sorted(self.objects(subject), key=encode)

    def test_patterns_find_what_the_table_says(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("globs")
        objects = self.objects(subject)
        fill(backend, *objects)
        wrong = {}
        for pattern, expected in GLOBS.items():
            found = backend.list(pattern)
            if found != sorted((name for name in expected if name in objects), key=encode):
                wrong[pattern] = found
        assert wrong == {}

    def test_bad_patterns_are_refused(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("globs")
        fill(backend, "a/b")
        for pattern in BAD_PATTERNS:
            with pytest.raises(ValueError):
                backend.list(pattern)

    def test_list_follows_every_change(self, backend: StorageBackend) -> None:
        fill(backend, "a", "b/c")
        assert sorted(backend.list()) == ["a", "b/c"]
        backend.delete("a")
        backend.move("b/c", "b/d")
        backend.copy("b/d", "e")
        assert sorted(backend.list()) == ["b/d", "e"]

    def test_more_than_a_page_is_listed(self, backend: StorageBackend) -> None:
        # 1,000 is a page of S3's ("ListObjectsV2", Amazon S3 API Reference).
        count = 1203
        backend.write_many((f"many/{number:05}", b"") for number in range(count))
        expected = [f"many/{number:05}" for number in range(count)]
        assert sorted(backend.list()) == expected
        assert names(backend.scan()) == expected
        assert names(backend.scan("many/01")) == expected[1000:]
        assert backend.delete_many(expected) == count
        assert backend.list() == []

    @staticmethod
    def objects(subject: Subject) -> list[str]:
        """The objects of the table that the store can hold and tell apart."""
        return [
            name
            for name in OBJECTS
            if (subject.has("exact names") or name != "b.PDF")
            and (subject.has("newlines") or "\n" not in name)
        ]


class Scanning(Topic):
    """`scan`."""

    IN_ORDER = (
        "a!b",
        "a-b",
        "a-b/c",
        "a.b",
        "a/b",
        "a/b-c",
        "a/b.c",
        "a0",
        "aB",
        "ab",
        "a~",
        "aé",
        "b/c!/d",
        "b/c/d",
        "b/c/e/f",
        "b/c0",
        "mixed é😀/z",
        "mixed é😀0",
        "z",
        "é",
        "é.b",
        "é/b",
        "ü",
        "\u20ac",
        "\uff5e",  # after the next one in UTF-16
        "😀",
        "😀/a",
    )
    FLAT = ("a", "a.b", "a/b", "a/b/c", "a-b", "é", "é/b", "é-b", "😀", "😀/a")

    def test_order_is_that_of_the_encoded_bytes(self, subject: Subject, backend: StorageBackend) -> None:
        expected = [
            name
            for name in self.IN_ORDER
            if (subject.has("exact names") or name != "aB")
            and (nests(subject, backend) or not self.is_directory(name))
        ]
        fill(backend, *sorted(expected, key=hash))
        assert names(backend.scan()) == sorted(expected, key=encode)
        if subject.has("order"):
            assert backend.list() == sorted(expected, key=encode)

    def is_directory(self, name: str) -> bool:
        """Whether other names are beneath *name*."""
        return any(other.startswith(f"{name}/") for other in self.IN_ORDER)

    def test_objects_beneath_objects_are_in_order(self, subject: Subject, backend: StorageBackend) -> None:
        # Where both cannot exist, keep the longer names.
        expected = [
            name
            for name in self.FLAT
            if nests(subject, backend) or not any(other.startswith(f"{name}/") for other in self.FLAT)
        ]
        fill(backend, *expected)
        assert names(backend.scan()) == sorted(expected, key=encode)

    def test_prefix_is_a_literal_string(self, backend: StorageBackend) -> None:
        objects = ["a%b", "a*b", "a_b", "aXb", "a\\b", "dir/x", "dir/sub/y", "dir.x", "di", "dirx", "é1", "e"]
        fill(backend, *objects)
        for prefix in (
            *("", "a", "a_", "a%", "a*", "a\\", "a\\b", "a[", "d", "di", "dir", "dir/", "dir/s", "dir/sub"),
            *("dir/sub/", "dir/sub/y", "dir/sub/y/", "dir/sub/yy", "dir//", "é", "e", "e\u0301", "z", "😀"),
        ):
            expected = sorted((name for name in objects if name.startswith(prefix)), key=encode)
            assert names(backend.scan(prefix)) == expected, f"prefix {prefix!r}"

    def test_a_level_has_its_objects_and_the_folders_of_the_others(self, backend: StorageBackend) -> None:
        fill(backend, "a", "dir-x", "dir/sub/y", "dir/sub/z", "dir/x", "dir.x", "other/z")
        for prefix, expected in {
            "": ["a", "dir-x", "dir.x", "dir/", "other/"],
            "dir/": ["dir/sub/", "dir/x"],
            "dir/sub/": ["dir/sub/y", "dir/sub/z"],
            "none/": [],
            # A prefix need not end at a "/", as that of `scan`.
            "dir": ["dir-x", "dir.x", "dir/"],
            "dir/s": ["dir/sub/"],
            "dir/x": ["dir/x"],
        }.items():
            level = list(backend.scan_level(prefix))
            assert [found if isinstance(found, str) else found.identifier for found in level] == expected
            scanned = {info.identifier: info for info in backend.scan(prefix)}
            assert all(isinstance(found, str) or found == scanned[found.identifier] for found in level)

    def test_prefix_never_leads_outside(self, backend: StorageBackend) -> None:
        fill(backend, "a/b")
        for prefix in ("/", "../", "..", "a/../a/", "./", "."):
            try:
                found = names(backend.scan(prefix))
            except ValueError:
                continue
            assert found == []

    def test_scan_says_what_stat_says(self, backend: StorageBackend) -> None:
        fill(backend, "a", "b/c", "b/d/e")
        for info in backend.scan():
            known = backend.stat(info.identifier)
            assert info.size in {None, known.size}
            assert info.modified in {None, known.modified}
            assert info.etag in {None, known.etag}
            assert info.sha256 in {None, known.sha256}
            assert info.content_type in {None, known.content_type}

    def test_scan_is_an_iterator_that_may_be_left(self, backend: StorageBackend) -> None:
        objects = [f"a/{number:03}" for number in range(50)]
        fill(backend, *objects)
        scan = backend.scan()
        assert isinstance(scan, Iterator)
        first = [next(scan).identifier, next(scan).identifier]
        assert first == objects[:2]
        # An unfinished scan locks neither another scan nor writes.
        assert names(backend.scan()) == objects
        fill(backend, "b/new")
        backend.delete("b/new")
        del scan
        assert names(backend.scan()) == objects

    def test_what_stays_is_found_while_others_come_and_go(self, backend: StorageBackend) -> None:
        staying = [f"stay/{number:02}" for number in range(20)]
        fill(backend, *staying, *(f"go/{number}" for number in range(5)))
        found = []
        changes = itertools.count()
        for info in backend.scan():
            found.append(info.identifier)
            number = next(changes)
            if number < 5:
                backend.delete(f"go/{number}")
            fill(backend, f"zz/{number}")
            if number > 200:
                break
        assert [name for name in found if name.startswith("stay/")] == staying
        assert found == sorted(set(found), key=encode)

    def test_on_skip_hears_of_nothing_when_all_are_objects(
        self, subject: Subject, backend: StorageBackend, caplog: pytest.LogCaptureFixture
    ) -> None:
        fill(backend, "a", "b/c", "weird \n name" if subject.has("newlines") else "weird \t name")
        heard: list[Exception] = []
        assert len(list(backend.scan(on_skip=heard.append))) == 3
        assert heard == []
        with caplog.at_level(logging.WARNING):
            assert len(list(backend.scan())) == 3
        assert not caplog.records

    def test_scanned_objects_can_be_read(self, backend: StorageBackend) -> None:
        fill(backend, "a b", "b/c.d", "é/ü", "-x/--y")
        assert len(everything(backend)) == 4


def nests(subject: Subject, backend: StorageBackend) -> bool:
    """Whether an object may be beneath another."""
    return subject.has("beneath") and not has_directories(backend)
