"""CacheEntry: what a cache knows of the bytes that it keeps, and how both stand in one file.

A file is the content, which begins at its first byte, then the label and the etag, then a fixed record that ends the
file:

    magic      8 bytes  "sb-blob1"
    size       u64      of the content, in bytes
    fetched    f64      when the bytes were the backend's: seconds since the epoch
    modified   f64      the object's own time then, as seconds since the epoch; NaN where it proves nothing
    stamp      u64      of this publication
    label      u16      its length in bytes
    etag       u16      its length in bytes; 65535 where there is none
    note       u8       1 if the content is not the object's, but what is known of it
    content    u32      CRC-32 of the content
    record     u32      CRC-32 of label, etag and all of the record before this

all little-endian. A file that was cut, or never finished, does not end with a record that fits its length.
"""

from __future__ import annotations

import io
import math
import os
import struct
import time
import zlib
from typing import BinaryIO, NamedTuple

from typing_extensions import Buffer, override

from storage_backend.errors import UnavailableError
from storage_backend.streams import CHUNK, position_after

MAGIC = b"sb-blob1"
_RECORD = struct.Struct("<8sQddQHHBI")
_SUM = struct.Struct("<I")
_FIXED = _RECORD.size + _SUM.size
_NO_ETAG = 0xFFFF
LONGEST_ETAG = 4 << 10  # bytes; a longer one is not kept, and the object read again instead
_SMALL = 64 << 10  # bytes; read by one call, with the record
_TAIL = 2 << 10  # bytes, which nearly every label, etag and record fit into
_BUFFER = 64 << 10  # bytes of a reader: the file is at hand, and who seeks needs no more
GOOD_FOR = 60.0  # seconds that a comparison counts for `content`
_NEVER = -math.inf
_TICK = 0.1  # seconds; the times of files advance in steps of up to 10 ms
_READ_MOST = 1 << 30  # bytes a call; Linux gives no more than 2**31 - 4096 (read(2))


class CacheEntry(NamedTuple):
    """What is known of a cached content.

    Attributes:
        label: what it is the content of, in bytes.
        size: of the content, in bytes.
        fetched: when the bytes were the backend's, in seconds since the epoch.
        etag: the backend's, where it told.
        modified: the object's own time, in seconds since the epoch; only where it proves that nothing changed.
        stamp: tells one publication from another.
        crc: CRC-32 of the content; 0 until it is published.
        note: whether the content is not the object's, but what is known of it (see `ranges`).
    """

    label: bytes
    size: int
    fetched: float
    etag: str | None
    modified: float | None
    stamp: int
    crc: int = 0
    note: bool = False


def packed(entry: CacheEntry) -> bytes:
    """What follows the content in a file."""
    etag = b"" if entry.etag is None else entry.etag.encode("utf-8", "surrogateescape")
    length = _NO_ETAG if entry.etag is None or len(etag) > LONGEST_ETAG else len(etag)
    head = entry.label + (b"" if length == _NO_ETAG else etag)
    head += _RECORD.pack(
        MAGIC,
        entry.size,
        entry.fetched,
        math.nan if entry.modified is None else entry.modified,
        entry.stamp,
        len(entry.label),
        length,
        entry.note,
        entry.crc,
    )
    return head + _SUM.pack(zlib.crc32(head))


def unpacked(tail: bytes, length: int) -> CacheEntry | None:
    """The entry at the end of a file of *length* bytes, of which *tail* is the end; None if there is no whole one there.

    Raises:
        LongerTailNeededError: the tail is too short to tell.
    """
    if len(tail) < _FIXED:
        return None
    start = len(tail) - _FIXED
    magic, size, fetched, modified, stamp, label, etag, note, crc = _RECORD.unpack_from(tail, start)
    if magic != MAGIC:
        return None
    etag_size = 0 if etag == _NO_ETAG else etag
    begin = start - label - etag_size
    if size + label + etag_size + _FIXED != length:
        return None
    if begin < 0:
        raise LongerTailNeededError(label + etag_size + _FIXED)
    if zlib.crc32(memoryview(tail)[begin:-4]) != _SUM.unpack_from(tail, len(tail) - 4)[0]:
        return None
    return CacheEntry(
        tail[begin : begin + label],
        size,
        fetched,
        None if etag == _NO_ETAG else tail[begin + label : start].decode("utf-8", "surrogateescape"),
        None if modified != modified else modified,  # noqa: PLR0124 - only NaN differs from itself
        stamp,
        crc,
        note != 0,
    )


class TruncatedEntryError(UnavailableError):
    """A cached file became shorter while it was open."""


class CorruptEntryError(UnavailableError):
    """A cached file has other bytes than were stored."""


class LongerTailNeededError(Exception):
    """A longer tail is needed.

    Attributes:
        size: how much of it, in bytes.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Verification:
    """When this process has last compared the content of one file with its checksum.

    Args:
        written: when the file was last written to, in seconds since the epoch.

    Attributes:
        good_until: what `time.monotonic` must not have passed for the content to be taken for right once more.
    """

    __slots__ = ("_written", "good_until")

    def __init__(self, written: float) -> None:
        self._written = written
        self.good_until = _NEVER

    def mark(self) -> None:
        """It was compared, and is right."""
        # What is written to in the same tick of the clock looks like the same file.
        if time.time() - self._written > _TICK:
            self.good_until = time.monotonic() + GOOD_FOR


class OpenEntry:
    """A cached content, held open: whoever has one closes it, or takes a reader that does.

    Args:
        fd: of the file; this owns it.
        entry: at its end.
        head: the beginning of the file, if it was read already.
        checked: of the file; None if this process has just written it.
    """

    __slots__ = ("_checked", "_fd", "_head", "entry")

    def __init__(
        self, fd: int, entry: CacheEntry, head: bytes = b"", checked: Verification | None = None
    ) -> None:
        self._fd = fd
        self.entry = entry
        self._head = head
        self._checked = checked

    def content(self) -> bytes:
        """All of it, compared with its checksum if that was not done in the last minute.

        Raises:
            OSError: it cannot be read, is shorter than it was (TruncatedEntryError), or not what was stored (CorruptEntryError).
        """
        size = self.entry.size
        if self._head:
            found = self._head[:size]
        else:
            found = os.pread(self._fd, min(size, _READ_MOST), 0)
            if len(found) != size:
                found = _pread(self._fd, size, 0, found)
        checked = self._checked
        if checked is not None and checked.good_until < time.monotonic():
            self._compare(zlib.crc32(found))
        return found

    def check(self) -> None:
        """Compare the content with its checksum, if this process has not yet; in bounded memory.

        Raises:
            OSError: see `content`.
        """
        checked = self._checked
        if checked is None or checked.good_until != _NEVER:
            return
        crc = position = 0
        while position < self.entry.size:
            piece = _pread(self._fd, min(CHUNK, self.entry.size - position), position)
            crc = zlib.crc32(piece, crc)
            position += len(piece)
        self._compare(crc)

    def _compare(self, crc: int) -> None:
        if crc != self.entry.crc:
            raise CorruptEntryError("a cached file has other bytes than were stored")
        if self._checked is not None:
            self._checked.mark()

    def piece(self, start: int, end: int | None) -> bytes:
        """The bytes of [start, end), clamped.

        Raises:
            OSError: see `content`.
        """
        self.check()
        size = self.entry.size
        end = size if end is None else min(end, size)
        if start >= end:
            return b""
        return self._head[start:end] if self._head else _pread(self._fd, end - start, start)

    def reader(self) -> BinaryIO:
        """A seekable reader of the file itself; this is closed with it."""
        raw = EntryContentReader(self._fd, self.entry.size)
        self._fd = -1
        return io.BufferedReader(raw, _BUFFER)

    def fileno(self) -> int:
        """The descriptor of the file, whose first `entry.size` bytes are the content."""
        return self._fd

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def found_in(fd: int, label: bytes, length: int, checked: Verification) -> OpenEntry | None:
    """The content in an open file of *length* bytes, which this takes over; None (and the file closed) if it is not whole, or another's."""
    try:
        if length <= _SMALL:
            head = os.pread(fd, _SMALL, 0)
            entry = unpacked(head, len(head))
        else:
            head = b""
            entry = _large(fd, length)
    except OSError:
        os.close(fd)
        raise
    if entry is None or entry.label != label:
        os.close(fd)
        return None
    return OpenEntry(fd, entry, head, checked)


def entry_of(fd: int) -> CacheEntry | None:
    """The entry of an open file, whichever it is; None if there is no whole one."""
    return _large(fd, os.fstat(fd).st_size)


def _large(fd: int, length: int) -> CacheEntry | None:
    tail = min(_TAIL, length)
    while True:
        try:
            return unpacked(os.pread(fd, tail, length - tail), length)
        except LongerTailNeededError as error:
            tail = error.size


def _pread(fd: int, size: int, offset: int, begun: bytes = b"") -> bytes:
    pieces = [begun]
    have = len(begun)
    while have < size:
        piece = os.pread(fd, min(size - have, _READ_MOST), offset + have)
        if not piece:
            raise TruncatedEntryError(f"a cached file ends {size - have:,} bytes early")
        pieces.append(piece)
        have += len(piece)
    return b"".join(pieces) if begun or len(pieces) > 2 else pieces[1]


class EntryContentReader(io.RawIOBase):
    """The content of a cached file, without what follows it; owns the descriptor."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._position = 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return self._position

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = position_after(offset, whence, self._position, self._size)
        return self._position

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")[: max(self._size - self._position, 0)]
        if not view:
            return 0
        count = os.preadv(self._fd, [view], self._position)
        if not count:
            raise TruncatedEntryError(f"a cached file ends {self._size - self._position:,} bytes early")
        self._position += count
        return count

    @override
    def readall(self) -> bytes:
        size = self._size - self._position
        if size <= 0:
            return b""
        found = _pread(self._fd, size, self._position)
        self._position = self._size
        return found

    @override
    def close(self) -> None:
        if not self.closed:
            fd, self._fd = self._fd, -1
            super().close()
            if fd >= 0:
                os.close(fd)


def renewed_tail(entry: CacheEntry, fetched: float) -> bytes:
    """What follows the content of an entry that was fetched at another time."""
    return packed(entry._replace(fetched=fetched))


def renewed(entry: CacheEntry, fetched: float) -> tuple[int, bytes]:
    """Where in its file, and with what, an entry is overwritten to have been fetched at another time."""
    tail = renewed_tail(entry, fetched)
    start = len(tail) - _FIXED
    return entry.size + start, tail[start:]
