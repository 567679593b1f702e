"""Tar stream: many small files in one, for the server's tar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

BLOCK = 512
GATHERED = 256 << 10  # bytes; what one send is worth
_END = bytes(2 * BLOCK)
_NAME = 100  # bytes; a header has no room for more

# ustar, of POSIX.1-1988 ("pax Interchange Format" in POSIX.1-2017): name 100, mode 8, uid 8, gid 8, size 12, mtime 12,
# checksum 8, type 1, link 100, magic 8, the rest NUL.
_AFTER_NAME = b"0000666\x000000000\x000000000\x00"
_REGULAR, _LONG_NAME = b"0", b"L"
_AFTER_KIND = bytes(100) + b"ustar\x0000" + bytes(247)
# The sum itself counts as blanks. Two of its eight bytes are fixed: a NUL and a blank end it.
_FIXED_SUM = sum(_AFTER_NAME) + sum(_AFTER_KIND) + 8 * ord(" ")


def archive(files: Iterable[tuple[bytes, bytes, int]]) -> Iterator[bytes]:
    """A tar archive of regular files, in pieces that are worth a send each.

    Args:
        files: (path, content of less than 8 GiB, time of last change in seconds since 1970, from 0 to 8**11).
    """
    pieces: list[bytes] = []
    gathered = 0
    for path, content, modified in files:
        size = len(content)
        if len(path) > _NAME:
            # GNU's way, which others read too: the name is the content of a member before ("Extensions" in GNU tar's manual).
            pieces += (
                _header(b"././@LongLink", len(path) + 1, 0, _LONG_NAME),
                path,
                bytes(BLOCK - len(path) % BLOCK),
            )
            gathered += 2 * BLOCK + len(path)
        pieces += (_header(path[:_NAME], size, modified, _REGULAR), content, bytes(-size % BLOCK))
        gathered += size + BLOCK
        if gathered >= GATHERED:
            yield b"".join(pieces)
            pieces.clear()
            gathered = 0
    pieces.append(_END)
    yield b"".join(pieces)


def _header(name: bytes, size: int, modified: int, kind: bytes) -> bytes:
    numbers = b"%011o\x00%011o\x00" % (size, modified)
    total = _FIXED_SUM + sum(name) + sum(numbers) + kind[0]
    return b"%b%b%b%06o\x00 %b%b" % (name.ljust(_NAME, b"\0"), _AFTER_NAME, numbers, total, kind, _AFTER_KIND)
