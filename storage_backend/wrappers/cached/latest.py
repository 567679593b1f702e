"""HighestGeneration: a number that no generation is above, to be had without a transaction."""

from __future__ import annotations

import os
import struct
import zlib

_FORM = struct.Struct("<QI")


class HighestGeneration:
    """The latest generation that any key has begun, or a later one: so a fetch need not ask the index.

    Of a file: the number (u64) and its CRC-32 (u32), little-endian. Each transaction writes it before it is committed.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> int | None:
        """The number; None where there is none."""
        data = os.pread(self._fd, _FORM.size, 0)
        if len(data) == _FORM.size:
            number, crc = _FORM.unpack(data)
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
