r"""The format of a compressed object: frames that `zstd -d` reads, between our header and a seek table.

Integers are little-endian. An object is (RFC 8878, "Zstandard Compression", for frames and skippable frames):

1. The header, a skippable frame of 32 bytes, which a zstd decoder ignores:

       u32  0x184D2A5B, the magic number of skippable frames with the nibble B
       u32  24, the bytes that follow
       8 B  the marker, b"sb-zstd\xa5"
       u16  the version, 1
       u16  0
       u64  the content's size in bytes
       u32  the CRC-32 (as zlib has it) of the 28 bytes before

2. The content in blocks of 1 MiB (the last may be shorter; empty content has no block), each a zstd frame of its own
   with its content's size and checksum.

3. If there are two blocks or more, the seek table of the "Zstandard Seekable Format" 0.1.0 (in the zstd project's
   contrib/seekable_format), again a skippable frame. Its first entry is for the header, which has no content. Its
   checksums equal those at the frames' ends: both formats use the low 32 bits of XXH64 of the content.

An object without a header is raw: its bytes are the content. So that a damaged compressed object is not read as a raw
one, an object that has nearly the header's first 16 bytes, or ends within them, counts as damaged. A foreign object that
looks like that cannot be read.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from itertools import accumulate
from types import ModuleType
from typing import BinaryIO

from typing_extensions import Buffer

from storage_backend.errors import IntegrityError, MissingClientError
from storage_backend.wrappers.blocks import DecodedBlocks, Fault, read_up_to

BLOCK = 1 << 20  # bytes of content in a frame: what a small range costs, against what compression loses
HEADER_SIZE = 32

_HEADER = struct.Struct("<II8sHHQ")
_CRC = struct.Struct("<I")
_SIGNATURE = struct.Struct("<II8s")  # the constant first part of the header
_MAGIC = 0x184D2A5B
_MARKER = b"sb-zstd\xa5"
_FIXED = _SIGNATURE.pack(_MAGIC, HEADER_SIZE - 8, _MARKER)
_NEARLY = 12  # bytes of these 16: more than two skippable frames of the same length have in common

_TABLE_MAGIC = 0x184D2A5E
_FOOTER = struct.Struct("<IBI")  # frames, descriptor, magic
_FOOTER_MAGIC = 0x8F92EAB1
_CHECKSUMS = 0x80  # the descriptor's only flag
_ENTRY = struct.Struct("<III")  # compressed size, content's size, checksum
_NOTHING = 0x51D8E999  # the low 32 bits of XXH64 of no bytes, with seed 0

_FRAME_MAX = BLOCK + (BLOCK >> 8) + 64  # bytes; ZSTD_COMPRESSBOUND(BLOCK) is less


def header(size: int) -> bytes:
    """The header of content of *size* bytes."""
    fields = _HEADER.pack(_MAGIC, HEADER_SIZE - 8, _MARKER, 1, 0, size)
    return fields + _CRC.pack(zlib.crc32(fields))


def content_size(head: bytes, fault: Fault) -> int | None:
    """The content's size according to an object's first `HEADER_SIZE` bytes; None if the object is raw.

    Raises:
        IntegrityError: the header is damaged, or of a later version.
    """
    signature = head[: len(_FIXED)]
    if signature != _FIXED:
        # At least a part of the marker must exist, or any short object with a skippable frame's magic would be refused.
        if len(signature) > _SIGNATURE.size - len(_MARKER) and (
            _FIXED.startswith(signature) or sum(map(int.__eq__, signature, _FIXED)) >= _NEARLY
        ):
            raise fault("it is compressed, and its header is damaged")
        return None
    if len(head) < HEADER_SIZE:
        raise fault("it is compressed, and truncated within its header")
    (crc,) = _CRC.unpack_from(head, _HEADER.size)
    if crc != zlib.crc32(head[: _HEADER.size]):
        raise fault("it is compressed, and its header is damaged")
    _, _, _, version, _, size = _HEADER.unpack_from(head)
    if version != 1:
        raise fault(f"it is compressed in version {version} of the format; this release knows version 1")
    return int(size)


class FrameEncoder:
    """Compresses content into frames and a seek table; the header is not included.

    Args:
        level: zstd's.
        verify: decompress each frame again, and compare.

    Attributes:
        size: bytes of content so far.
    """

    def __init__(self, level: int, *, verify: bool = False) -> None:
        # Created here, so that a missing library is noticed before anything is stored.
        self._compressor = zstd_library().ZstdCompressor(
            level=level, write_checksum=True, write_content_size=True
        )
        self._verify = verify
        self._pending = bytearray()
        self._sizes = array("I")
        self._checksums = array("I")
        self.size = 0

    def update(self, data: Buffer, /) -> bytes:
        """Add *data*; return the frames that it completes."""
        self._pending += memoryview(data)
        full = len(self._pending) // BLOCK
        if not full:
            return b""
        with memoryview(self._pending) as pending:
            frames = [self._frame(pending[i * BLOCK : (i + 1) * BLOCK]) for i in range(full)]
        del self._pending[: full * BLOCK]
        return b"".join(frames)

    def finish(self) -> bytes:
        """Return the last frame and the seek table."""
        tail = self._frame(memoryview(self._pending)) if self._pending else b""
        return tail + (self._table() if len(self._sizes) > 1 else b"")

    def _frame(self, block: memoryview) -> bytes:
        # A copy: the library's result keeps the memory of the longest possible frame (zstandard 0.25), and a reader of a
        # highly compressible stream holds thousands.
        frame = bytes(memoryview(self._compressor.compress(block)))
        if self._verify and decoded(frame, len(block), _unproved) != block:
            raise _unproved("the result differs")
        self.size += len(block)
        self._sizes.append(len(frame))
        self._checksums.append(_CRC.unpack(frame[-4:])[0])
        return frame

    def _table(self) -> bytes:
        count = len(self._sizes)
        last = self.size - (count - 1) * BLOCK
        entries = [_ENTRY.pack(HEADER_SIZE, 0, _NOTHING)]
        entries += [
            _ENTRY.pack(size, BLOCK if number < count else last, checksum)
            for number, (size, checksum) in enumerate(zip(self._sizes, self._checksums, strict=True), 1)
        ]
        footer = _FOOTER.pack(count + 1, _CHECKSUMS, _FOOTER_MAGIC)
        length = len(entries) * _ENTRY.size + len(footer)
        return b"".join([struct.pack("<II", _TABLE_MAGIC, length), *entries, footer])


def blocks_of(stored: BinaryIO, fault: Fault) -> DecodedBlocks | None:
    """The content of the object that *stored* reads, at position 0; None if it is raw.

    Raises:
        IntegrityError: it is damaged; raised here or when a block is loaded.
    """
    size = content_size(read_up_to(stored, HEADER_SIZE), fault)
    if size is None:
        return None
    count = -(-size // BLOCK)
    if count > 1:
        offsets, checksums = _read_table(stored, size, count, fault)
    elif count == 0 and stored.read(1):
        raise fault("there are bytes after its end")
    else:
        offsets, checksums = [HEADER_SIZE], None

    def load(first: int, stop: int) -> Iterator[bytes]:
        if first < stop:
            stored.seek(offsets[first])
        for number in range(first, stop):
            if checksums is None:
                frame = read_up_to(stored, _FRAME_MAX + 1)
            else:
                frame = read_up_to(stored, offsets[number + 1] - offsets[number])
                if _CRC.pack(checksums[number]) != frame[-4:]:
                    raise fault(f"its frame {number} is damaged or another one")
            yield decoded(frame, min(BLOCK, size - number * BLOCK), fault)

    return DecodedBlocks(size, BLOCK, load, count=count)


def _read_table(
    stored: BinaryIO, size: int, count: int, fault: Fault
) -> tuple[array[int] | list[int], array[int] | None]:
    """The offset of each frame and of the end of the last one; and the checksum of each."""
    length = 8 + (count + 1) * _ENTRY.size + _FOOTER.size
    start = stored.seek(0, io.SEEK_END) - length
    # Checked before memory is allocated for the number of frames that an untrusted header declares.
    if start < HEADER_SIZE + count:
        raise fault("it is truncated")
    stored.seek(start)
    table = read_up_to(stored, length)
    last = size - (count - 1) * BLOCK
    entries = array("I")
    entries.frombytes(table[8 : -_FOOTER.size])
    if sys.byteorder == "big":
        entries.byteswap()
    sizes, contents, checksums = entries[0::3], entries[1::3], entries[2::3]
    if (
        table[:8] != struct.pack("<II", _TABLE_MAGIC, length - 8)
        or table[-_FOOTER.size :] != _FOOTER.pack(count + 1, _CHECKSUMS, _FOOTER_MAGIC)
        or (sizes[0], contents[0], checksums[0]) != (HEADER_SIZE, 0, _NOTHING)
        or contents[1:] != array("I", [BLOCK]) * (count - 1) + array("I", [last])
        or not 0 < min(sizes) <= max(sizes) <= _FRAME_MAX
        or sum(sizes) != start
    ):
        raise fault("its seek table is damaged, or it is truncated")
    return array("Q", accumulate(sizes)), checksums[1:]


def decoded(frame: bytes, size: int, fault: Fault) -> bytes:
    """Decompress *frame* into *size* bytes.

    No more than that is allocated, whatever the frame declares.

    Raises:
        IntegrityError: the frame is damaged, or has another size.
    """
    zstandard = zstd_library()
    try:
        says = zstandard.get_frame_parameters(frame)
        if (says.content_size, says.has_checksum, says.dict_id) != (
            size,
            True,
            0,
        ) or says.window_size > BLOCK:
            raise fault("a frame is damaged or of another size")
        content = zstandard.ZstdDecompressor(max_window_size=BLOCK).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise fault(f"a frame is damaged: {error}") from None
    if len(content) != size:
        raise fault("a frame is of another size")
    return bytes(content)


def _unproved(reason: str) -> IntegrityError:
    return IntegrityError(f"a compressed block does not decompress again: {reason}; nothing was stored")


def zstd_library() -> ModuleType:
    """The module zstandard.

    Raises:
        MissingClientError: it is not installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise MissingClientError(
            f"CompressedStorage needs zstandard ({error}): pip install 'storage-backend[compression]'"
        ) from error
    return zstandard
