"""The files that a transfer uses may lie inside a side; they are none of its objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage_backend import (
    CachedStorage,
    ConfigurationError,
    FallbackStorage,
    LocalStorage,
    MemoryStorage,
    PrefixedStorage,
    RetryingStorage,
    StorageBackend,
    migrate,
    sync,
)
from storage_backend.transfer.journal import default_path
from tests.transfer.samples import contents, put

OBJECTS = {"a": b"1", "deep/b": b"2", "deep/c": b"3"}


def folder(path: Path) -> LocalStorage:
    storage = LocalStorage(path)
    for name, content in OBJECTS.items():
        put(storage, name, content)
    return storage


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("name", ["moving.db", "deep/moving.db"])
def test_a_journal_and_a_manifest_inside_a_side_stay_there(side: str, name: str, tmp_path: Path) -> None:
    source, target = folder(tmp_path / "source"), LocalStorage(tmp_path / "target")
    place = tmp_path / side
    journal, manifest = place / name, place / "manifest.jsonl"
    given: dict[str, Any] = {"delete_source": True} if side == "source" else {"delete": True}
    for expected in (3, 0):
        report = migrate(source, target, journal=journal, manifest=manifest, **given)
        assert report.ok
        assert report.copied == expected
        assert journal.exists()
        assert len(manifest.read_text().splitlines()) == 3
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    kept = set() if side == "source" else OBJECTS.keys()
    assert files == {name, f"{name}.lock", "manifest.jsonl"} | kept
    assert {
        found for found in contents(target) if "moving" not in found and "manifest" not in found
    } == OBJECTS.keys()
    if side == "source":
        assert contents(target) == OBJECTS


def test_through_links_and_wrappers(tmp_path: Path) -> None:
    folder(tmp_path / "source")
    (tmp_path / "link").symlink_to("source")
    (tmp_path / "source" / "linked.db").symlink_to(tmp_path / "outside.db")
    for number, journal in enumerate(
        [
            tmp_path / "link" / "deep" / "j.db",
            tmp_path / "source" / "linked.db",
        ]
    ):
        inner = LocalStorage(tmp_path / "source")
        for source in (RetryingStorage(inner), PrefixedStorage(LocalStorage(tmp_path), "source")):
            target = LocalStorage(tmp_path / f"target{number}")
            migrate(source, target, journal=journal, manifest=f"{journal}.manifest", include=["**"])
            assert {name for name in target.list() if "j.db" in name or "linked" in name} == set()
            assert contents(target).items() >= OBJECTS.items()
            for path in (journal, Path(f"{journal}.lock"), Path(f"{journal}.manifest")):
                path.unlink()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_cache_inside_the_target_is_no_extra(wrapped: bool, tmp_path: Path) -> None:
    inner = MemoryStorage()
    for name, content in OBJECTS.items():
        put(inner, name, content)
    source: StorageBackend = CachedStorage(inner, tmp_path / "target" / "cache")
    if wrapped:
        source = FallbackStorage(MemoryStorage(), RetryingStorage(source))
    source.read("a")
    target = LocalStorage(tmp_path / "target")
    put(target, "extra", b"")
    report = sync(source, target, delete=True)
    assert (report.copied, report.deleted) == (3, 1)
    assert source.read("a") == b"1"
    assert (tmp_path / "target" / "cache").is_dir()
    assert {name for name in target.list() if not name.startswith("cache/")} == set(OBJECTS)
    assert [name for name in target.list() if name.startswith("cache/")]
    with pytest.raises(ConfigurationError, match="itself uses"):
        sync(source, LocalStorage(tmp_path / "target" / "cache"), delete=True)
    source.close()


def test_a_home_is_moved_without_the_journals_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_STATE_HOME", str(home / ".local" / "state"))
    source, target = folder(home), LocalStorage(tmp_path / "target")
    other = home / ".local" / "state" / "storage-backend" / "journals" / "of another run.db"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"in use")
    put(source, ".local/state/program/file", b"4")
    report = migrate(source, target, delete_source=True)
    assert (report.copied, report.source_deleted, report.ok) == (4, 4, True)
    assert default_path(source.location, target.location).exists()
    assert other.read_bytes() == b"in use"
    assert migrate(source, target, delete_source=True, delete=True).refused  # the source is empty now
    assert contents(target) == OBJECTS | {".local/state/program/file": b"4"}
