"""`download` and `upload`."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage_backend.base import StorageBackend
from storage_backend.testing.subject import (
    ALL_BYTES,
    Subject,
    Topic,
    content_of,
    everything,
    fill,
    named,
    same,
)


class Files(Topic):
    """`download` and `upload`: whole or not at all."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        """A new folder, apart from the store."""
        folder = tmp_path / "files of the test"
        folder.mkdir()
        return folder

    def test_file_round_trips(self, backend: StorageBackend, files: Path) -> None:
        for number, content in enumerate((b"", ALL_BYTES, content_of(9 << 20))):
            source = files / f"source {number}"
            source.write_bytes(content)
            assert backend.upload(source, "folder/a") is True
            assert same(backend.read("folder/a"), content)
            assert backend.download("folder/a", str(files / "new" / "folders" / f"{number}")) is True
            assert (files / "new" / "folders" / f"{number}").read_bytes() == content
            assert same(source.read_bytes(), content)
        assert listing(files / "new" / "folders") == ["0", "1", "2"]

    def test_download_overwrites(self, backend: StorageBackend, files: Path) -> None:
        place = files / "file"
        place.write_bytes(b"long old content")
        backend.write("a", b"new")
        backend.download("a", place)
        assert place.read_bytes() == b"new"
        assert listing(files) == ["file"]

    def test_missing_object_leaves_the_file_alone(self, backend: StorageBackend, files: Path) -> None:
        place = files / "file"
        place.write_bytes(b"old")
        for path in (place, files / "new"):
            with pytest.raises(FileNotFoundError):
                backend.download("absent", path)
        assert place.read_bytes() == b"old"
        assert listing(files) == ["file"]

    def test_missing_file_leaves_the_object_alone(self, backend: StorageBackend, files: Path) -> None:
        fill(backend, "old")
        for identifier in ("old", "new"):
            with pytest.raises(FileNotFoundError):
                backend.upload(files / "absent", identifier)
        assert everything(backend) == {"old": named("old")}

    def test_downloaded_file_is_an_ordinary_one(self, backend: StorageBackend, files: Path) -> None:
        fill(backend, "a")
        backend.download("a", files / "down")
        (files / "plain").touch()
        assert (files / "down").stat().st_mode == (files / "plain").stat().st_mode

    def test_upload_keeps_the_time(self, subject: Subject, backend: StorageBackend, files: Path) -> None:
        subject.require("modified")
        source = files / "source"
        source.write_bytes(b"content")
        modified = datetime(2011, 12, 13, 14, 15, 16, tzinfo=UTC)
        os.utime(source, (modified.timestamp(), modified.timestamp()))
        backend.upload(source, "a")
        found = backend.stat("a").modified
        assert found is not None
        assert abs(found - modified) <= timedelta(seconds=2)


def listing(folder: Path) -> list[str]:
    """The names in *folder*."""
    return sorted(path.name for path in folder.iterdir())
