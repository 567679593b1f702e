"""What the tests of the cache share: a clock, what is in a directory, other processes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import IO

from storage_backend import CachedStorage
from storage_backend.wrappers.cached.entry import CacheEntry, entry_of
from storage_backend.wrappers.cached.pending_writes import under_way

ROOT = Path(__file__).parents[3]

KIB = 1 / 1024  # MiB


class Clock:
    """Stands until it is set."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def blobs(directory: Path) -> list[Path]:
    """The files of the entries."""
    return sorted(path for path in (directory / "blobs").rglob("*") if not path.is_dir())


def entry_in(path: Path) -> CacheEntry | None:
    """The entry of a file; None if there is no whole one, or the file is gone."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return entry_of(fd)
    finally:
        os.close(fd)


def content_bytes(directory: Path) -> int:
    """The content of all entries, in bytes, as their files tell."""
    return sum(entry.size for entry in map(entry_in, blobs(directory)) if entry is not None)


def rows(directory: Path) -> dict[str, int]:
    """The names and sizes of the entries that the index has."""
    connection = sqlite3.connect(directory / "index.db")
    try:
        return dict(connection.execute("SELECT name, size FROM entries WHERE used IS NOT NULL"))
    finally:
        connection.close()


def assert_whole(cached: CachedStorage) -> None:
    """Every file has a row and every row its file, of the same size; the totals are theirs; nothing is left over."""
    directory = cached.cache_dir
    findings = cached.check_cache()
    assert findings.clean, findings
    files = {path.parent.name + path.name: entry_in(path) for path in blobs(directory)}
    known = rows(directory)
    assert {name: entry and entry.size for name, entry in files.items()} == known
    stats = cached.get_cache_stats()
    assert stats["file_count"] == len(known)
    assert round(stats["size_mb"] * 2**20) == sum(known.values())
    assert list((directory / "staging").iterdir()) == []
    assert under_way(str(directory / "changing")) == []


def program(source: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process that runs *source*, with pipes to it."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", source, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def line_of(stream: IO[str] | None) -> str:
    """The next line that another process writes."""
    assert stream is not None
    return stream.readline().strip()


def tell(child: subprocess.Popen[str], line: str) -> None:
    """Send a line to another process."""
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def end(child: subprocess.Popen[str]) -> None:
    """Kill another process, and close the pipes to it."""
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue
