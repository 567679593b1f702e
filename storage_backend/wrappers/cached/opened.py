"""Opened: the open files of a cache, and what a transaction of it is about to do."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress

from storage_backend.wrappers.cached.engine import is_name
from storage_backend.wrappers.cached.index import Index
from storage_backend.wrappers.cached.members import Member

EVERYTHING = "*" * 32
_NAME = 32  # bytes
_HEAD = _LATEST = struct.Struct("<QI")
_MOST = 1 << 20  # names; more are damage


class Opened:
    """The open files of a cache."""

    def __init__(self, directory: str) -> None:
        self.index_path = f"{directory}/index.db"
        self.index: Index | None = None
        self._process = os.getpid()
        self._member: Member | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.queue = os.open(f"{directory}/queue", flags, 0o666)
        try:
            self.intent = Intent(os.open(f"{directory}/intent", flags, 0o666))
            try:
                self.latest = Latest(os.open(f"{directory}/latest", flags, 0o666))
            except BaseException:
                self.intent.close()
                raise
        except BaseException:
            os.close(self.queue)
            raise

    @property
    def member(self) -> Member:
        """This user of the cache."""
        assert self._member is not None
        return self._member

    def join(self, folder: str) -> None:
        """Become a member; the queue's lock is held."""
        self._member = Member(folder)

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
        """Close all files; the member's is left for others to find. In a forked child, nothing."""
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


class Intent:
    """What a transaction is about to name or unlink: if it never commits, the next one finds out here.

    Of a file: a number above all that were committed before (u64), how many names follow (u32), these (32 bytes each), and the
    CRC-32 of all that (u32); all little-endian. The name EVERYTHING stands for all.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, counter: int) -> tuple[int, list[str]]:
        """The number and the names; 0 where there is nothing whole, or nothing above *counter*."""
        committed = counter
        data = os.pread(self._fd, _HEAD.size, 0)
        if len(data) < _HEAD.size:
            return 0, []
        counter, count = _HEAD.unpack(data)
        if counter <= committed:
            return 0, []
        size = count * _NAME
        data += os.pread(self._fd, size + 4, _HEAD.size) if count <= _MOST else b""
        names, crc = data[_HEAD.size : _HEAD.size + size], data[_HEAD.size + size :]
        if len(crc) != 4 or zlib.crc32(data[:-4]) != int.from_bytes(crc, "little"):
            return 0, []
        found = [names[at : at + _NAME].decode("ascii", "replace") for at in range(0, size, _NAME)]
        return counter, [name for name in found if name == EVERYTHING or is_name(name)]  # they become paths

    def write(self, counter: int, names: Sequence[str]) -> None:
        """Say what is about to be done."""
        data = _HEAD.pack(counter, len(names)) + "".join(names).encode()
        os.pwrite(self._fd, data + zlib.crc32(data).to_bytes(4, "little"), 0)

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Latest:
    """The latest generation that any key has begun, or a later one: so a fetch need not ask the index.

    Of a file: the number (u64) and its CRC-32 (u32), little-endian. It is written in the transactions that begin generations.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> int | None:
        """The number; None where there is none."""
        data = os.pread(self._fd, _LATEST.size, 0)
        if len(data) == _LATEST.size:
            number, crc = _LATEST.unpack(data)
            if zlib.crc32(data[:8]) == crc:
                return int(number)
        return None

    def write(self, number: int) -> None:
        """Store it."""
        data = number.to_bytes(8, "little")
        os.pwrite(self._fd, data + zlib.crc32(data).to_bytes(4, "little"), 0)

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
