"""BlobLayout: the folders and files of a blob cache, without those of the index.

In the directory are:

    format.1            this layout, whose version is in the name: an unknown one is refused
    blobs/ab/cd...      the entries (see `entry`), each named by its key
    changing/           the writes in progress (see `pending_writes`)
    members/            the users (see `users`)
    staging/            staged content, named by the token of its user
    trash/              cleared entries, until they are removed
    changed             the machine's boot id at the last write through this cache
    index.db queue intent latest    see `index`
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from storage_backend.wrappers.cached.entry import READING

_BOOT = "/proc/sys/kernel/random/boot_id"


class BlobLayout:
    """The paths of one cache directory.

    Attributes:
        blobs, changing, members, staging, trash: the folders.
        trash_left: whether `empty_trash` has left files.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.blobs = f"{directory}/blobs"
        self.changing = f"{directory}/changing"
        self.members = f"{directory}/members"
        self.staging = f"{directory}/staging"
        self.trash = f"{directory}/trash"
        self.trash_left = False

    def make_folders(self) -> None:
        """Create the folders that are missing."""
        for folder in (self.blobs, self.members, self.changing, self.staging, self.trash):
            Path(folder).mkdir(exist_ok=True)

    def path(self, name: str) -> str:
        """The path of an entry."""
        return f"{self.blobs}/{name[:2]}/{name[2:]}"

    def unlink(self, name: str) -> None:
        """Remove an entry's file."""
        remove(f"{self.blobs}/{name[:2]}/{name[2:]}")

    def files(self) -> Iterator[tuple[str, str]]:
        """The paths of all entries, and their names."""
        try:
            folders = sorted(os.listdir(self.blobs))
        except FileNotFoundError:
            return
        for folder in folders:
            with suppress(FileNotFoundError):
                for name in os.listdir(f"{self.blobs}/{folder}"):
                    yield f"{self.blobs}/{folder}/{name}", folder + name

    def discard_all(self) -> None:
        """Move all entries to the trash, in one step."""
        with suppress(FileNotFoundError):
            # Random: a number from the index may have been used before a kill.
            os.rename(self.blobs, f"{self.trash}/{os.urandom(8).hex()}")

    def empty_trash(self, most: int | None) -> None:
        """Remove at most *most* files of the trash; None for all."""
        with suppress(FileNotFoundError):
            for cleared in os.listdir(self.trash):
                if most is None:
                    shutil.rmtree(f"{self.trash}/{cleared}", ignore_errors=True)
                    continue
                most -= _remove_some(f"{self.trash}/{cleared}", most)
                if most <= 0:
                    self.trash_left = True
                    return
        self.trash_left = False

    def boot_of_last_write(self) -> str:
        """The boot id at the last write through this cache; "" if there was none."""
        try:
            fd = os.open(f"{self.directory}/changed", READING)
        except FileNotFoundError:
            return ""
        with open(fd, encoding="ascii", errors="replace") as file:
            return file.read()

    def record_boot_of_write(self) -> None:
        """Record, durably, a write in this boot: a loss of power may restore unlinked entries."""
        if self.boot_of_last_write() == boot_id():
            return
        path = f"{self.directory}/changed"
        if not os.path.isfile(path):
            remove(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            os.write(fd, boot_id().encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)  # the file's name, too (fsync(2))
        finally:
            os.close(directory)


@functools.cache
def boot_id() -> str:
    """Identifies the machine's current boot (random(4)); "" where that is unknown."""
    try:
        return Path(_BOOT).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def remove(path: str) -> None:
    """Remove a file, or a directory in its place; nothing if it is missing."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        shutil.rmtree(path)


def _remove_some(folder: str, most: int) -> int:
    """Remove at most *most* files from the subfolders of a folder, and empty subfolders; return the number of files."""
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
