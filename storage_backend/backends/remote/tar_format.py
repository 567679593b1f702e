"""Tar archives of small files: encodes them for the server's tar, and parses untrusted ones from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from storage_backend.errors import IntegrityError

BLOCK = 512
LONGEST_NAME = 8192  # bytes; twice Linux's PATH_MAX: no server can open a longer one
GATHERED = 256 << 10  # bytes buffered for one send
_FETCHED = 256 << 10
_PADDING = 20 * BLOCK  # GNU tar fills its last record: "blocking factor" in its manual
_END = bytes(2 * BLOCK)
_NAME = 100  # bytes; longest name in a header

# ustar, of POSIX.1-1988 ("pax Interchange Format" in POSIX.1-2017): name 100, mode 8, uid 8, gid 8, size 12, mtime 12,
# checksum 8, type 1, link 100, magic 8, the rest NUL.
_AFTER_NAME = b"0000666\x000000000\x000000000\x00"
_REGULAR, _LONG_NAME = b"0", b"L"
_AFTER_KIND = bytes(100) + b"ustar\x0000" + bytes(247)
# The checksum field itself counts as eight blanks.
_FIXED_SUM = sum(_AFTER_NAME) + sum(_AFTER_KIND) + 8 * ord(" ")


class ArchiveTooLargeError(IntegrityError):
    """The files are larger than the caller's limit, which the server does not know."""


def archive(files: Iterable[tuple[bytes, bytes, int]]) -> Iterator[bytes]:
    """A tar archive of regular files, in pieces of about one send.

    Args:
        files: (path, content of less than 8 GiB, time of last change in seconds since 1970, from 0 to 8**11).
    """
    pieces: list[bytes] = []
    gathered = 0
    for path, content, modified in files:
        size = len(content)
        if len(path) > _NAME:
            # GNU's extension, which others read too: a preceding member holds the name ("Extensions" in GNU tar's manual).
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


def length(files: Iterable[tuple[bytes, int]]) -> int:
    """The length of the `archive` of files with these paths and sizes."""
    total = len(_END)
    for path, size in files:
        total += BLOCK + size + -size % BLOCK
        if len(path) > _NAME:
            total += 2 * BLOCK + len(path) - len(path) % BLOCK
    return total


def _header(name: bytes, size: int, modified: int, kind: bytes) -> bytes:
    numbers = b"%011o\x00%011o\x00" % (size, modified)
    total = _FIXED_SUM + sum(name) + sum(numbers) + kind[0]
    return b"%b%b%b%06o\x00 %b%b" % (name.ljust(_NAME, b"\0"), _AFTER_NAME, numbers, total, kind, _AFTER_KIND)


def members(read: Callable[[int], bytes], asked: Sequence[bytes], limit: int) -> Iterator[tuple[int, bytes]]:
    """The regular files of an archive that the server made of requested names.

    Members may be missing, and other than regular files are left out. Anything not requested is refused: the server may be
    hostile.

    Args:
        read: returns up to that many bytes, b"" at the end.
        asked: the requested names in order, each prefixed with "./".
        limit: maximum bytes of content.

    Yields:
        (index of the name, content)

    Raises:
        IntegrityError: a member not requested, repeated or out of order; a link or unknown type; a wrong checksum or number.
        ArchiveTooLargeError: the content exceeds *limit* bytes.
        EOFError: the archive is truncated.
    """
    source = _ExactReader(read)
    take = source.take
    long_name: bytes | None = None
    at = -1
    while True:
        block = take(BLOCK)
        # Two thirds of a header are NUL; summing the rest is faster.
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
                raise IntegrityError("the server's tar has two long names in a row, or one that is too long")
            long_name = take(size + -size % BLOCK)[:size].rstrip(b"\0")
            continue
        name = _name(block) if long_name is None else long_name
        long_name = None
        if kind in {b"0", b"\0"}:
            at = _claimed(name, asked, at)
            limit -= size
            if limit < 0:
                raise ArchiveTooLargeError(f"{name[2:]!r} of {size:,} bytes exceeds the limit of one archive")
            content = take(size)
            take(-size % BLOCK)
            yield at, content
        elif kind in {b"3", b"4", b"5", b"6"}:
            # A device, directory or pipe counts as missing.
            if size:
                raise IntegrityError(f"the server's tar has a member of type {kind!r} with content")
            at = _claimed(name.rstrip(b"/"), asked, at)
        else:
            raise IntegrityError(
                f"the server's tar has a member of type {kind!r}; only regular files were requested"
            )
    if long_name is not None:
        raise IntegrityError("the server's tar ends after a long name")
    source.expect_padding()


def _claimed(name: bytes, asked: Sequence[bytes], last: int) -> int:
    """The index of *name*, which must be after *last*; the names between are missing on the server."""
    for at in range(last + 1, len(asked)):
        if asked[at] == name:
            return at
    raise IntegrityError(
        f"the server's tar has a member that was not requested, is repeated, or is out of order: {name[:300]!r}"
    )


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    # GNU's own format has no prefix there.
    if block[257:263] == b"ustar\0" and block[345]:
        return block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _size(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _octal(field, "size")


def _octal(field: bytes, name: str) -> int:
    digits = field.strip(b" \0")
    # int() would accept signs, underscores and blanks.
    if not digits or digits.strip(b"01234567"):
        raise IntegrityError(f"the server's tar has a header whose {name} is {field!r}")
    return int(digits, 8)


class _ExactReader:
    """Reads exact numbers of bytes from a stream."""

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
                raise EOFError("the server's tar is truncated")
            pieces.append(piece[:missing])
            self._piece = piece
            self._position = min(missing, len(piece))
            missing -= len(piece)
        return b"".join(pieces)

    def expect_padding(self) -> None:
        """Read to the end of the stream; only the padding of a record may follow."""
        rest = self._piece[self._position :]
        while len(rest) <= _PADDING:
            piece = self._read(_FETCHED)
            if not piece:
                break
            rest += piece
        if len(rest) > _PADDING or rest.strip(b"\0"):
            raise IntegrityError("the server's tar has data after its end")
