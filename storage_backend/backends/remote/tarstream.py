"""Tar streams: many small files in one, written for the server's tar and read, without trust, from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from storage_backend.errors import IntegrityError

BLOCK = 512
END = bytes(2 * BLOCK)
LONGEST_NAME = 8192  # bytes; twice Linux's PATH_MAX, so that no name that a server can open is refused
GATHERED = 256 << 10  # bytes; what one send is worth
_FETCHED = 256 << 10
_PADDING = 20 * BLOCK  # GNU tar fills its last record: "blocking factor" in its manual

# ustar, of POSIX.1-1988 ("pax Interchange Format" in POSIX.1-2017): name 100, mode 8, uid 8, gid 8, size 12, mtime 12,
# checksum 8, type 1, link 100, magic 8, the rest NUL.
_AFTER_NAME = b"0000666\x000000000\x000000000\x00"
_AFTER_SUM = b"\x00 0" + bytes(100) + b"ustar\x0000" + bytes(247)
_FIXED_SUM = (
    sum(_AFTER_NAME) + sum(_AFTER_SUM) - ord(" ") + 8 * ord(" ")
)  # of the sum's own blanks, one is ours
_OCTAL_END = 8**11


class TooLargeError(IntegrityError):
    """A member is larger than what the caller holds in memory. It is not the server's fault: files grow."""


def archive(items: Iterable[tuple[bytes, bytes, float | None]]) -> Iterator[bytes]:
    """A tar archive of regular files, in pieces that are worth a send each.

    Args:
        items: (name of at most 100 bytes, content, time of last change in seconds since 1970 or None for that).
    """
    pieces: list[bytes] = []
    gathered = 0
    for name, content, mtime in items:
        size = len(content)
        pieces += (header(name, size, mtime), content, bytes(-size % BLOCK))
        gathered += size + BLOCK
        if gathered >= GATHERED:
            yield b"".join(pieces)
            pieces.clear()
            gathered = 0
    pieces.append(END)
    yield b"".join(pieces)


def header(name: bytes, size: int, mtime: float | None) -> bytes:
    """The block before the content of a regular file; fractions of a second are dropped, as the format has none."""
    if not 0 < len(name) <= 100:
        raise ValueError(f"a name of 1 to 100 bytes is needed, not {name!r}")
    seconds = 0 if mtime is None else math.floor(mtime)
    # Most headers are told by these two numbers, in a microsecond.
    numbers = (
        b"%011o\x00%011o\x00" % (size, seconds)
        if size < _OCTAL_END and 0 <= seconds < _OCTAL_END
        else _number(size) + _number(seconds)
    )
    total = _FIXED_SUM + sum(name) + sum(numbers)
    return b"%b%b%b%06o%b" % (name.ljust(100, b"\0"), _AFTER_NAME, numbers, total, _AFTER_SUM)


def _number(value: int) -> bytes:
    if 0 <= value < _OCTAL_END:
        return b"%011o\x00" % value
    # GNU's base-256: the sign is in the first byte, 0x80 or 0xff ("Extensions" in GNU tar's manual).
    return bytes([0x80 if value >= 0 else 0xFF]) + value.to_bytes(11, "big", signed=True)


def members(
    read: Callable[[int], bytes], asked: Iterator[bytes], limit: int
) -> Iterator[tuple[bytes, bytes]]:
    """The regular files of an archive that a server made of the names that it was asked for.

    A member may be missing, and what is no regular file is left out. Everything else that was not asked for is refused:
    the server may be hostile. At most one member is held in memory.

    Args:
        read: gives up to so many bytes, b"" at the end.
        asked: the names in the order in which the server was given them, with "./" before each. Taken as they come.
        limit: the longest content to take, in bytes.

    Yields:
        (name without the "./", content)

    Raises:
        IntegrityError: another member, one twice or out of order, a link, a device, a record that changes the meaning of others,
            a wrong checksum, a bad number.
        TooLargeError: a content is longer than *limit*.
        EOFError: the archive ends early.
    """
    source = _Source(read)
    take = source.take
    long_name: bytes | None = None
    while True:
        block = take(BLOCK)
        # Two thirds of a header are NUL: the sum is taken of what is left without them.
        dense = block.translate(None, b"\0")
        if not dense:
            break
        stated = _octal(block[148:156], "checksum")
        if sum(dense) - sum(block[148:156]) + 8 * 32 != stated:
            raise IntegrityError("the server's tar has a header whose checksum is wrong")
        kind = block[156:157]
        size = _size(block[124:136])
        if kind == b"L":
            if long_name is not None or size > LONGEST_NAME:
                raise IntegrityError("the server's tar has a long name too many, or one that is too long")
            long_name = take(size + -size % BLOCK)[:size].rstrip(b"\0")
            continue
        name = _name(block) if long_name is None else long_name
        long_name = None
        if kind in {b"0", b"\0"}:
            _claim(name, asked)
            if size > limit:
                raise TooLargeError(
                    f"{name[2:]!r} has grown to {size:,} bytes; at most {limit:,} were to be read"
                )
            content = take(size)
            take(-size % BLOCK)
            yield name[2:], content
        elif kind in {b"3", b"4", b"5", b"6"}:
            # A device, a directory or a pipe of this name: what was asked for is no regular file.
            if size:
                raise IntegrityError(f"the server's tar has a member of type {kind!r} with content")
            _claim(name.rstrip(b"/"), asked)
        else:
            raise IntegrityError(
                f"the server's tar has a member of type {kind!r}; only regular files were asked for"
            )
    if long_name is not None:
        raise IntegrityError("the server's tar ends after a long name")
    source.expect_padding()


def _claim(name: bytes, asked: Iterator[bytes]) -> None:
    """Take *asked* up to *name*; what is passed over is missing on the server."""
    for expected in asked:
        if expected == name:
            return
    raise IntegrityError(
        f"the server's tar has a member that was not asked for, twice, or out of order: {name[:300]!r}"
    )


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    # GNU's own format keeps other things where ustar has a prefix.
    if block[257:263] == b"ustar\0" and block[345]:
        return block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _size(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _octal(field, "size")


def _octal(field: bytes, what: str) -> int:
    digits = field.strip(b" \0")
    # int() alone would take signs, underscores and blanks.
    if not digits.isdigit():
        raise IntegrityError(f"the server's tar has a header whose {what} is {field!r}")
    try:
        return int(digits, 8)
    except ValueError:
        raise IntegrityError(f"the server's tar has a header whose {what} is {field!r}") from None


class _Source:
    """Exact amounts out of a stream that comes in pieces."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._piece = b""
        self._position = 0

    def take(self, size: int) -> bytes:
        """The next *size* bytes."""
        position = self._position
        end = position + size
        if end <= len(self._piece):
            self._position = end
            return self._piece[position:end]
        pieces = [self._piece[position:]]
        missing = size - len(pieces[0])
        while missing > 0:
            piece = self._read(max(_FETCHED, missing))
            if not piece:
                raise EOFError("the server's tar ends early")
            pieces.append(piece[:missing])
            self._piece = piece
            self._position = min(missing, len(piece))
            missing -= len(piece)
        return b"".join(pieces)

    def expect_padding(self) -> None:
        """Read to the end of the stream, where nothing but the padding of a record may be."""
        rest = self._piece[self._position :]
        while len(rest) <= _PADDING:
            piece = self._read(_FETCHED)
            if not piece:
                break
            rest += piece
        if len(rest) > _PADDING or rest.strip(b"\0"):
            raise IntegrityError("something follows the end of the server's tar")
