"""S3Storage: listings of many pages, of one level, and of keys that are no identifiers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_backend import (
    InvalidIdentifierError,
    LocalStorage,
    MemoryStorage,
    ObjectInfo,
    PrefixedStorage,
    S3Storage,
    StorageError,
    migrate,
    sync,
)
from storage_backend.backends.s3 import listing
from storage_backend.backends.s3.xml_documents import ListedObject, ListingPage
from storage_backend.scanning import FolderMarkerError
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket("bucket")
        yield server


def storage_at(server: S3Server, prefix: str = "") -> S3Storage:
    return S3Storage(
        "bucket",
        prefix,
        endpoint_url=server.url,
        region=server.region,
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
    )


def test_more_than_a_thousand_pages(server: S3Server) -> None:
    expected = [f"{number:05}" for number in range(2200)]
    for name in expected:
        server.put("bucket", f"p/{name}", b"")
    server.put("bucket", "p0", b"")
    server.settings.page_size = 2
    with storage_at(server, "p") as storage:
        assert [info.identifier for info in storage.scan()] == expected
        pages = [record for record in server.actions if record.operation == "ListObjectsV2"]
        assert len(pages) == 1100
        assert {record.query["prefix"] for record in pages} == {"p/"}
        assert storage.list("0219?") == expected[2190:]


def test_scan_asks_for_pages_as_they_are_needed(server: S3Server) -> None:
    for number in range(30):
        server.put("bucket", f"{number:02}", b"")
    server.settings.page_size = 10
    with storage_at(server) as storage:
        found = storage.scan()
        assert server.actions == []
        assert next(found).identifier == "00"
        assert len(server.actions) == 1
        assert len(list(found)) == 29
        assert len(server.actions) == 3


def test_pattern_is_pushed_down(server: S3Server) -> None:
    for name in ("a/1.pdf", "a/2.txt", "a/b/3.pdf", "ab/4.pdf", "c/5.pdf"):
        server.put("bucket", f"root/{name}", b"")
    with storage_at(server, "root") as storage:
        for pattern, prefix, delimiter, expected in (
            ("a/*.pdf", "root/a/", "/", ["a/1.pdf"]),
            ("a/1*", "root/a/1", "/", ["a/1.pdf"]),
            ("*", "root/", "/", []),
            ("a/**/*.pdf", "root/a/", None, ["a/1.pdf", "a/b/3.pdf"]),
            ("a*/*.pdf", "root/a", None, ["a/1.pdf", "ab/4.pdf"]),
            (None, "root/", None, ["a/1.pdf", "a/2.txt", "a/b/3.pdf", "ab/4.pdf", "c/5.pdf"]),
        ):
            server.actions.clear()
            assert storage.list(pattern) == expected, pattern
            (record,) = server.actions
            assert (record.query["prefix"], record.query.get("delimiter")) == (prefix, delimiter), pattern


def test_levels_of_many_pages_are_in_order(server: S3Server) -> None:
    names = ["a", "a-b/x", "a.b", "a/b", "a/c", "a0", "b/c/d", "é/x", "é", "😀"]
    for name in names:
        server.put("bucket", name, b"")
    server.settings.page_size = 1
    with storage_at(server) as storage:
        found = [entry if isinstance(entry, str) else entry.identifier for entry in storage.scan_level()]
    assert found == ["a", "a-b/", "a.b", "a/", "a0", "b/", "é", "é/", "😀"]


def test_keys_that_are_no_identifiers_are_told(server: S3Server) -> None:
    for key in ("p/a", "p/a//b", "p/a/", "p/", "p//x", "p/../x", "p/.", "p/.~sb-1", "p/z"):
        server.put("bucket", key, b"")
    skipped: list[StorageError] = []
    with storage_at(server, "p") as storage:
        assert [info.identifier for info in storage.scan(on_skip=skipped.append)] == ["a", "z"]
        assert sorted(str(error.identifier) for error in skipped) == sorted(
            ("a//b", "a/", "", "/x", "../x", ".", ".~sb-1")
        )
        assert all(isinstance(error, InvalidIdentifierError) for error in skipped)
        markers = {error.identifier for error in skipped if isinstance(error, FolderMarkerError)}
        assert markers == {"", "a/"}
        skipped.clear()
        level = list(storage.scan_level(on_skip=skipped.append))
    assert [entry if isinstance(entry, str) else entry.identifier for entry in level] == ["a", "a/", "z"]
    assert skipped


def test_markers_of_folders_are_told_once(server: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    for key in ("p/", "p/a/", "p/a/b", "p/c/", "p/d//", "p/full/"):
        server.put("bucket", key, b"content" if key in {"p/a/b", "p/full/"} else b"")
    with storage_at(server, "p") as storage, caplog.at_level(logging.INFO, "storage_backend"):
        assert storage.list() == ["a/b"]
        told = [(record.levelname, record.getMessage()) for record in caplog.records]
        assert [level for level, _ in told] == ["INFO", "WARNING"]
        assert "'p/'" in told[0][1]
        assert "'p/full/'" in told[1][1]
        caplog.clear()
        assert storage.list("a/*") == ["a/b"]
        assert [record.levelname for record in caplog.records] == ["INFO"]


def test_sync_passes_over_markers_of_folders(server: S3Server, tmp_path: Path) -> None:
    for key in ("p/", "p/photos/", "p/empty/"):
        server.put("bucket", key, b"")
    server.put("bucket", "p/photos/a.jpg", b"a")
    target = LocalStorage(tmp_path)
    target.write("extra", b"")
    with storage_at(server, "p") as storage:
        report = sync(storage, target, delete=True)
        assert report.ok
        assert report.skipped["folder-marker"] == 3
        assert (report.copied, report.deleted, target.list()) == (1, 1, ["photos/a.jpg"])
        assert sync(storage, target, exclude=["photos/**"]).skipped == {"folder-marker": 2}
        assert migrate(PrefixedStorage(storage, "photos"), MemoryStorage(), journal=tmp_path / "journal").ok


@pytest.mark.parametrize(
    ("key", "exclude"),
    [
        ("photos/", "photos/**"),
        ("photos/", "photos/*"),
        ("a//b.jpg", "**/*.jpg"),
        ("a//b.jpg", "a/**"),
        ("a//b.jpg", "a/b.*"),
        ("../x", "*/x"),
        ("a/.~sb-x", "**/.~sb-*"),
    ],
)
def test_filters_reach_what_is_no_object(server: S3Server, tmp_path: Path, key: str, exclude: str) -> None:
    server.put("bucket", f"p/{key}", b"content")
    server.put("bucket", "p/other", b"")
    target = LocalStorage(tmp_path)
    with storage_at(server, "p") as storage:
        report = sync(storage, target, delete=True)
        assert (list(report.failed), report.ok, report.copied) == ([key], False, 1)
        assert sync(storage, target, delete=True, exclude=[exclude]).ok
        assert sync(storage, target, include=["other"]).ok
        assert not sync(storage, target, exclude=["c/**"]).ok


def test_what_a_page_should_not_have_is_passed_over() -> None:
    class Calls:
        def page(self, prefix: str, *, delimiter: str = "", token: str | None = None) -> ListingPage:
            return ListingPage(
                [ListedObject(key, 1, None, None) for key in ("a/1", "a/1", "b/2", "a/3")], [], None
            )

    found = listing.objects(Calls(), "a/", "", "s3://bucket/a", None)  # type: ignore[arg-type] # nothing else is called
    assert list(found) == [ObjectInfo("1", 1), ObjectInfo("3", 1)]
