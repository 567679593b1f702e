"""BlobCacheFiles: the open files of a cache."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress

from storage_backend.wrappers.cached.index import BlobIndex
from storage_backend.wrappers.cached.intent import WriteAheadRecord
from storage_backend.wrappers.cached.latest import HighestGeneration
from storage_backend.wrappers.cached.users import CacheUser


class BlobCacheFiles:
    """The open files of a cache."""

    def __init__(self, directory: str) -> None:
        self.index_path = f"{directory}/index.db"
        self.index: BlobIndex | None = None
        self._process = os.getpid()
        self._member: CacheUser | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        with ExitStack() as undone:
            self.queue = os.open(f"{directory}/queue", flags, 0o666)
            undone.callback(os.close, self.queue)
            self.intent = WriteAheadRecord(os.open(f"{directory}/intent", flags, 0o666))
            undone.callback(self.intent.close)
            self.latest = HighestGeneration(os.open(f"{directory}/latest", flags, 0o666))
            undone.pop_all()

    @property
    def member(self) -> CacheUser:
        """This user of the cache."""
        assert self._member is not None
        return self._member

    def join(self, folder: str) -> None:
        """Become a member; the queue's lock is held."""
        self._member = CacheUser(folder)

    def remove_index(self) -> None:
        """Remove the index, if it is still the one that is open; the queue's lock is held."""
        ours = self.index is None or self.index.in_place()
        self.close_index()
        if not ours:
            return
        for ending in ("", "-journal"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.index_path}{ending}")

    def close_index(self) -> None:
        """Close the index; it is opened again when it is needed."""
        index, self.index = self.index, None
        if index is not None:
            index.close()

    def leave(self) -> None:
        """Close all files, and remove the member's."""
        self.close_index()
        if self._member is not None:
            self._member.leave()
        self.abandon()

    def shut(self) -> None:
        """Close all files; the member's is left for others to find. In a forked child only its descriptors."""
        if self._process == os.getpid():
            self.close_index()
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptors, and nothing else."""
        if self._member is not None:
            self._member.abandon()
        queue, self.queue = self.queue, -1
        if queue >= 0:
            os.close(queue)
        self.intent.close()
        self.latest.close()
