"""CacheEntry: the metadata of cached content, and the file format of both.

A file is the content, which begins at its first byte, then the label and the etag, then a fixed record that ends the file:

    magic      8 bytes  "sb-blob1"
    size       u64      of the content, in bytes
    fetched    f64      when the content was read from the backend: seconds since the epoch
    modified   f64      the object's modification time, as seconds since the epoch; NaN where it proves nothing
    stamp      u64      unique to this publication
    label      u16      its length in bytes
    etag       u16      its length in bytes; 65535 where there is none
    note       u8       1 for a version note (see `ranges`) instead of an object's content
    content    u32      CRC-32 of the content
    record     u32      CRC-32 of label, etag and all of the record before this

all little-endian. The record is last, so that a file that was truncated, or never finished, is not taken for an entry.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import struct
import time
import zlib
from typing import BinaryIO, NamedTuple, Self

from typing_extensions import Buffer, override

from storage_backend.errors import UnavailableError
from storage_backend.streams import CHUNK, SeekableRaw

MAGIC = b"sb-blob1"
_RECORD = struct.Struct("<8sQddQHHBI")
_SUM = struct.Struct("<I")
_FIXED = _RECORD.size + _SUM.size
_NO_ETAG = 0xFFFF
LONGEST_ETAG = 4 << 10  # bytes; an object with a longer one cannot be revalidated, and is read again instead
_SMALL = 64 << 10  # bytes; smaller files are read in one call, record included
_TAIL = 2 << 10  # bytes, enough for nearly every label, etag and record
_BUFFER = 64 << 10  # bytes of a reader; the file is local, so a larger buffer only costs seeks
GOOD_FOR = 60.0  # seconds for which a verified checksum is trusted
_NEVER = -math.inf
_TICK = 0.1  # seconds; file times advance in kernel ticks of up to 10 ms
_READ_MOST = 1 << 30  # bytes per call; Linux reads at most 2**31 - 4096 (read(2))
# O_NONBLOCK: do not wait for a pipe in the place of a file.
READING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_NAME = re.compile("[0-9a-f]{32}")


class CacheKey(NamedTuple):
    """Identifies an entry.

    Attributes:
        label: namespace and identifier; stored in the entry, and compared when it is found.
        name: hexadecimal digest of the label: the name of its file and its rows.
    """

    label: bytes
    name: str


def key_of(label: bytes) -> CacheKey:
    """The key of a label."""
    return CacheKey(label, hashlib.blake2b(label, digest_size=16).hexdigest())


def is_name(text: str) -> bool:
    """Whether *text* has the form of a key's name."""
    return _NAME.fullmatch(text) is not None


class CacheEntry(NamedTuple):
    """The metadata of cached content.

    Attributes:
        label: of its key.
        size: of the content, in bytes.
        fetched: when the content was read from the backend, in seconds since the epoch.
        etag: the backend's, if it has one.
        modified: the object's modification time, in seconds since the epoch; only where it proves "unchanged".
        stamp: unique to this publication.
        crc: CRC-32 of the content; 0 until it is published.
        note: whether this is a version note (see `ranges`), not an object's content.
    """

    label: bytes
    size: int
    fetched: float
    etag: str | None
    modified: float | None
    stamp: int
    crc: int = 0
    note: bool = False

    def packed(self, crc: int) -> bytes:
        """The bytes that follow the content in a file; *crc* is its CRC-32."""
        etag = b"" if self.etag is None else self.etag.encode("utf-8", "surrogateescape")
        length = _NO_ETAG if self.etag is None or len(etag) > LONGEST_ETAG else len(etag)
        head = self.label + (b"" if length == _NO_ETAG else etag)
        head += _RECORD.pack(
            MAGIC,
            self.size,
            self.fetched,
            math.nan if self.modified is None else self.modified,
            self.stamp,
            len(self.label),
            length,
            self.note,
            crc,
        )
        return head + _SUM.pack(zlib.crc32(head))

    def overwrite(self, fd: int, fetched: float) -> None:
        """Overwrite the fixed record in the entry's file with a new fetch time."""
        tail = self._replace(fetched=fetched).packed(self.crc)
        start = len(tail) - _FIXED
        os.pwrite(fd, tail[start:], self.size + start)


def unpacked(tail: bytes, length: int) -> CacheEntry | None:
    """The entry of a file of *length* bytes that ends in *tail*; None if its record is incomplete or damaged.

    Raises:
        LongerTailNeededError: the tail is shorter than label, etag and record.
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
    """The content of a cached file does not match its checksum."""


class LongerTailNeededError(Exception):
    """A longer tail is needed.

    Attributes:
        size: how many bytes.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Verification:
    """Remembers until when this process trusts the content of one file whose checksum it verified.

    Args:
        written: when the file was last written to, in seconds since the epoch.

    Attributes:
        good_until: as `time.monotonic`.
    """

    __slots__ = ("_written", "good_until")

    def __init__(self, written: float) -> None:
        self._written = written
        self.good_until = _NEVER

    def mark(self) -> None:
        """Note that the checksum has just been verified."""
        # A write within the same clock tick would leave the same file time.
        if time.time() - self._written > _TICK:
            self.good_until = time.monotonic() + GOOD_FOR


class OpenEntry:
    """An entry whose file is open. The receiver closes it, or takes its reader.

    Args:
        fd: of the file, owned by this object.
        entry: at the file's end.
        head: the beginning of the file, if it was read already.
        verified: of the file; None if this process has just written it.
    """

    __slots__ = ("_fd", "_head", "_verified", "entry")

    def __init__(
        self, fd: int, entry: CacheEntry, head: bytes = b"", verified: Verification | None = None
    ) -> None:
        self._fd = fd
        self.entry = entry
        self._head = head
        self._verified = verified

    def content(self) -> bytes:
        """The whole content; the file is closed. Its checksum is verified, unless it was within the last minute.

        Raises:
            OSError: it cannot be read, is truncated (TruncatedEntryError) or corrupt (CorruptEntryError).
        """
        size = self.entry.size
        try:
            if self._head:
                found = self._head[:size]
            else:
                found = os.pread(self._fd, min(size, _READ_MOST), 0)
                if len(found) != size:
                    found = _pread(self._fd, size, 0, found)
            verified = self._verified
            if verified is not None and verified.good_until < time.monotonic():
                self._compare(zlib.crc32(found))
            return found
        finally:
            os.close(self._fd)
            self._fd = -1

    def whole(self) -> Self:
        """Verify the checksum, unless this process has done so before, in bounded memory; return this entry.

        Raises:
            OSError: see `content`; the file is closed then.
        """
        verified = self._verified
        if verified is not None and verified.good_until == _NEVER:
            try:
                self._compare(crc_of(self._fd, self.entry.size))
            except OSError:
                self.close()
                raise
        return self

    def piece(self, start: int, end: int | None) -> bytes:
        """The bytes of [start, end), clamped.

        Raises:
            OSError: see `content`.
        """
        verified = self._verified
        if verified is not None and verified.good_until == _NEVER:
            self._compare(crc_of(self._fd, self.entry.size))
        size = self.entry.size
        end = size if end is None else min(end, size)
        if start >= end:
            return b""
        return self._head[start:end] if self._head else _pread(self._fd, end - start, start)

    def reader(self) -> BinaryIO:
        """A seekable reader of the content, which now owns the file."""
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

    def _compare(self, crc: int) -> None:
        if crc != self.entry.crc:
            raise CorruptEntryError("the content of a cached file does not match its checksum")
        if self._verified is not None:
            self._verified.mark()


class RememberedFile(NamedTuple):
    """A file whose record need not be read again while the file is the same.

    Attributes:
        time: of its last change (ctime), which writers cannot set.
        verified: its checksum.
    """

    path: str
    inode: int
    time: float
    length: int
    entry: CacheEntry
    verified: Verification


def open_entry(fd: int, label: bytes, length: int, verified: Verification) -> OpenEntry | None:
    """The entry of an open file of *length* bytes. Takes over the descriptor.

    Returns:
        None, and the file is closed, if it is incomplete, damaged, or of another label.
    """
    try:
        head = os.pread(fd, _SMALL, 0) if length <= _SMALL else b""
        entry = unpacked(head, len(head)) if head else _entry_at_end(fd, length)
    except OSError:
        os.close(fd)
        raise
    if entry is None or entry.label != label:
        os.close(fd)
        return None
    return OpenEntry(fd, entry, head, verified)


def entry_of(fd: int) -> CacheEntry | None:
    """The entry of an open file, whatever its label; None if it is incomplete or damaged."""
    return _entry_at_end(fd, os.fstat(fd).st_size)


def crc_of(fd: int, size: int) -> int:
    """CRC-32 of the first *size* bytes of a file.

    Raises:
        OSError: they cannot be read, or the file is shorter (TruncatedEntryError).
    """
    crc = position = 0
    while position < size:
        piece = _pread(fd, min(CHUNK, size - position), position)
        crc = zlib.crc32(piece, crc)
        position += len(piece)
    return crc


def _entry_at_end(fd: int, length: int) -> CacheEntry | None:
    tail = min(_TAIL, length)
    while True:
        try:
            return unpacked(os.pread(fd, tail, length - tail), length)
        except LongerTailNeededError as error:
            tail = error.size


def _pread(fd: int, size: int, offset: int, begun: bytes = b"") -> bytes:
    """Exactly *size* bytes, starting with *begun*, which were read before."""
    pieces = [begun]
    have = len(begun)
    while have < size:
        piece = os.pread(fd, min(size - have, _READ_MOST), offset + have)
        if not piece:
            raise TruncatedEntryError(f"a cached file ends {size - have:,} bytes early")
        pieces.append(piece)
        have += len(piece)
    return b"".join(pieces) if begun or len(pieces) > 2 else pieces[1]


class EntryContentReader(SeekableRaw):
    """The content of a cached file, without the metadata; owns the descriptor."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size

    @override
    def tell(self) -> int:  # without a check: every open of a hit calls it
        return self._position

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        self._check_open()
        view = memoryview(buffer).cast("B")[: max(self.size - self._position, 0)]
        if not view:
            return 0
        # Into the caller's buffer, without a copy.
        count = os.preadv(self._fd, [view], self._position)
        if not count:
            raise TruncatedEntryError(f"a cached file ends {self.size - self._position:,} bytes early")
        self._position += count
        return count

    @override
    def readall(self) -> bytes:
        self._check_open()
        size = self.size - self._position
        if size <= 0:
            return b""
        found = _pread(self._fd, size, self._position)
        self._position = self.size
        return found

    @override
    def close(self) -> None:
        if not self.closed:
            fd, self._fd = self._fd, -1
            super().close()
            if fd >= 0:
                os.close(fd)
