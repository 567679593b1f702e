"""Data sets with the same bytes, names and times on every run."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import MEBIBYTE

SMALL = 4096
# 2024-01-01 UTC: an old time is not racy, and every store keeps whole seconds.
MODIFIED = 1_704_067_200


def names(count: int) -> Iterator[str]:
    """*count* identifiers in order: 100 objects to a directory, 10 directories to a directory."""
    return (f"{index // 1000:03}/{index // 100 % 10}/{index:06}.bin" for index in range(count))


def content(size: int = SMALL, seed: int = 0) -> bytes:
    """*size* incompressible bytes."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - the same bytes on every run is the point


def tree(folder: Path, count: int, size: int = SMALL) -> Path:
    """A folder of *count* files of *size* bytes, all different; made unless it exists."""
    if folder.exists():
        return folder
    block = content(size)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for index, name in enumerate(names(count)):
        path = unfinished / name
        if index % 100 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(index.to_bytes(8, "big") + block[8:])
        os.utime(path, (MODIFIED, MODIFIED))
    unfinished.rename(folder)
    return folder


def large(path: Path, size: int) -> Path:
    """A file of *size* bytes, a multiple of 1 MiB; made unless it exists."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    block = content(MEBIBYTE)
    unfinished = path.with_name(f"{path.name}.unfinished")
    with unfinished.open("wb") as file:
        for index in range(size // MEBIBYTE):
            file.write(index.to_bytes(8, "big") + block[8:])
    os.utime(unfinished, (MODIFIED, MODIFIED))
    unfinished.rename(path)
    return path


def contents(folder: Path) -> tuple[int, int]:
    """The number of files beneath *folder*, and their total size."""
    count = size = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            count += 1
            size += os.stat(os.path.join(parent, file)).st_size
    return count, size
