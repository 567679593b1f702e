"""What is done to the files of a cache one by one: they are looked through, and removed."""

from __future__ import annotations

import os
import shutil
import stat
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from storage_backend.streams import CHUNK
from storage_backend.wrappers.cached.engine import key_of
from storage_backend.wrappers.cached.entry import CacheEntry, entry_of


def whole(path: str, name: str) -> CacheEntry | Literal[False] | None:
    """The entry in a file, all of it read and compared; False if it is damaged, None if there is no file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        entry = entry_of(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else None
        if entry is None or key_of(entry.label).name != name:
            return False
        crc = at = 0
        while at < entry.size:
            piece = os.pread(fd, min(CHUNK, entry.size - at), at)
            if not piece:
                return False
            crc = zlib.crc32(piece, crc)
            at += len(piece)
        return entry if crc == entry.crc else False
    finally:
        os.close(fd)


def fetched(path: str, download: Callable[[str], object]) -> tuple[int, int, int]:
    """Have *download* make a file, which replaces the one at *path*.

    It is made in a directory of its own, where it may have other files beside it.

    Returns:
        A descriptor of the file at its end, its size in bytes, its CRC-32.
    """
    folder = f"{path}.d"
    os.mkdir(folder, 0o700)
    try:
        download(f"{folder}/content")
        os.rename(f"{folder}/content", path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = crc = 0
        while piece := os.read(fd, CHUNK):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
    except BaseException:
        os.close(fd)
        raise
    return fd, size, crc


def remove(path: str) -> None:
    """Remove what is at an entry's place, whatever somebody has put there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        shutil.rmtree(path)


def remove_some(folder: str, most: int) -> int:
    """Remove at most *most* files of a folder of folders, and what is empty then.

    Returns:
        How many files that were.
    """
    removed = 0
    for name in os.listdir(folder):
        path = f"{folder}/{name}"
        for blob in os.listdir(path):
            if removed >= most:
                return removed
            with suppress(FileNotFoundError):
                os.unlink(f"{path}/{blob}")
            removed += 1
        with suppress(OSError):
            os.rmdir(path)
    with suppress(OSError):
        os.rmdir(folder)
    return removed
