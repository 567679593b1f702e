"""WriteAheadRecord: what a transaction is about to do to files, should it never be committed."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Collection

from storage_backend.wrappers.cached.engine import is_name

EVERYTHING = "*" * 32
_NAME = 32  # bytes
_HEAD = struct.Struct("<QI")
_MOST = 1 << 20  # names; more are damage


class WriteAheadRecord:
    """What a transaction is about to name or unlink: if it never commits, the next one finds out here.

    Of a file: a number above all that were committed before (u64), how many names follow (u32), these (32 bytes each), and the
    CRC-32 of all that (u32); all little-endian. The name EVERYTHING stands for all.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, committed: int) -> tuple[int, list[str]]:
        """The number and the names; 0 where there is nothing whole, or nothing above the number *committed*."""
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

    def write(self, counter: int, names: Collection[str]) -> None:
        """Say what is about to be done."""
        data = _HEAD.pack(counter, len(names)) + "".join(names).encode()
        os.pwrite(self._fd, data + zlib.crc32(data).to_bytes(4, "little"), 0)

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
