"""Computes the checksums of S3, and verifies responses by them.

The algorithms: "Checking object integrity", Amazon S3 User Guide.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Final, Protocol, cast

from typing_extensions import Buffer

from storage_backend.backends.s3.destination import Piece, StoredObject
from storage_backend.backends.s3.file_parts import FilePart
from storage_backend.backends.s3.object_head import ObjectHead
from storage_backend.backends.s3.requests import ObjectRequests
from storage_backend.errors import ConfigurationError
from storage_backend.streams import CHUNK

_HASHES: Final = frozenset({"md5", "sha1", "sha256"})
_AWSCRT: Final = {"crc32c": 4, "crc64nvme": 8}  # sizes in bytes; computed by the optional awscrt

_POLYNOMIAL = (
    0xEDB88320  # CRC-32 of ISO 3309 in the bit order of zlib: the highest bit is the coefficient of x^0
)
_ORDER = (1 << 32) - 1  # of x modulo the polynomial, which is primitive
_ONE = 1 << 31
_BYTE = 1 << 23  # x^8: one more byte multiplies a CRC by this


class BodyChecksums:
    """The checksums of one body to send, and its MD5 if the ETag of the response can be compared with it.

    Args:
        requests: the client that sends the body.
        body: the whole body.
        sha256: its SHA-256 in hex, if known.
        crc: send the CRC-32, as for a part of an object whose CRC-32 is verified as a whole.
        md5: compute the MD5 in any case.

    Attributes:
        parameters: the checksums to send, with boto3's names.
        size: bytes of the body.
        md5: the MD5 of the body; b"" if not computed.
        crc: the CRC-32 of the body; 0 if not computed.
    """

    def __init__(
        self,
        requests: ObjectRequests,
        body: Piece,
        *,
        sha256: str | None = None,
        crc: bool = False,
        md5: bool = False,
    ) -> None:
        self.size = body.size if isinstance(body, FilePart) else len(body)
        self.md5 = b""
        self.crc = 0
        self.parameters: dict[str, str] = {}
        algorithm = "crc32" if crc else requests.checksum
        self._verified = algorithm != "md5" and requests.verifies_checksums
        if algorithm == "sha256" or (algorithm == "auto" and sha256 is not None):
            digest = bytes.fromhex(sha256) if sha256 is not None else _hashed(body, "sha256")
            self.parameters["ChecksumSHA256"] = base64_of(digest)
        elif algorithm in {"crc32", "auto"}:
            self.crc = _crc_of(body)
            self.parameters["ChecksumCRC32"] = base64_of(self.crc.to_bytes(4))
        if algorithm in {"md5", "none"} or md5:
            self.md5 = _hashed(body, "md5")
        if algorithm == "md5":
            self.parameters["ContentMD5"] = base64_of(self.md5)

    def stored(self, head: ObjectHead) -> StoredObject:
        """The result of the write; proven if the service verified the checksum or *head* has the MD5."""
        proven = self._verified or (bool(self.md5) and head.etag == self.md5.hex())
        return StoredObject(self.size, head.etag, proven)


def _hashed(body: Piece, algorithm: str) -> bytes:
    if not isinstance(body, FilePart):
        return hashlib.new(algorithm, body, usedforsecurity=False).digest()
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for block in _blocks(body):
        digest.update(block)
    return digest.digest()


def _crc_of(body: Piece) -> int:
    if not isinstance(body, FilePart):
        return zlib.crc32(body)
    crc = 0
    for block in _blocks(body):
        crc = zlib.crc32(block, crc)
    return crc


def _blocks(body: FilePart) -> Iterator[Buffer]:
    buffer = memoryview(bytearray(min(CHUNK, body.size)))
    done = 0
    while done < body.size:
        count = os.preadv(body.fd, [buffer[: body.size - done]], body.offset + done)
        if not count:
            return  # the file became shorter; sending it raises FileChangedError
        done += count
        yield buffer[:count]


def base64_of(digest: bytes) -> str:
    """A digest as in headers and documents."""
    return base64.b64encode(digest).decode()


def known(algorithm: str) -> bool:
    """Whether `running_digest` supports an algorithm ("crc32", "sha256", ...) in this installation."""
    return algorithm in _HASHES or algorithm == "crc32" or (algorithm in _AWSCRT and _awscrt() is not None)


def multipart_etag(md5s: Sequence[bytes]) -> str:
    """The ETag of an object uploaded in parts, from the MD5 (16 bytes) of each, in order.

    Services compute it like this, except with SSE-KMS or SSE-C.
    """
    return f"{hashlib.md5(b''.join(md5s), usedforsecurity=False).hexdigest()}-{len(md5s)}"


def crc32_combined(first: int, second: int, second_size: int) -> int:
    """The CRC-32 of two concatenated pieces, from the CRC of each and the size of the second in bytes.

    A CRC is a polynomial over GF(2): bytes appended to a piece multiply its CRC by a power of x, and the CRCs of both are
    added (as zlib's `crc32_combine` does). The time does not depend on the size.
    """
    power = _ONE
    # Powers repeat, which also bounds the table.
    size = second_size % _ORDER
    for row in _powers():
        power = _product(row[size & 15], power)
        size >>= 4
    return _product(first, power) ^ second


@cache
def _powers() -> tuple[tuple[int, ...], ...]:
    """`[place][digit]`: x^(8 * digit * 16**place), for the eight hexadecimal digits of a size."""
    rows = []
    base = _BYTE
    for _ in range(8):
        row = [_ONE]
        for _ in range(15):
            row.append(_product(row[-1], base))
        rows.append(tuple(row))
        base = _product(row[-1], base)
    return tuple(rows)


def _product(left: int, right: int) -> int:
    """The product of two polynomials, modulo that of CRC-32."""
    product = 0
    while left:
        if left & _ONE:
            product ^= right
        left = left << 1 & _ORDER
        right = right >> 1 ^ _POLYNOMIAL if right & 1 else right >> 1
    return product


class RunningDigest(Protocol):
    """A digest with the interface of `hashlib`."""

    def update(self, data: Buffer, /) -> None:
        """Add *data*, a contiguous buffer."""

    def digest(self) -> bytes:
        """The digest so far."""


class _Checksum:
    """A CRC with the interface of `hashlib`; *size* in bytes."""

    def __init__(self, function: Callable[[Buffer, int], int], size: int) -> None:
        self._function = function
        self._size = size
        self._value = 0

    def update(self, data: Buffer, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def running_digest(algorithm: str) -> RunningDigest:
    """A new digest: "md5", "sha1", "sha256", "crc32"; with awscrt installed also "crc32c" and "crc64nvme".

    Raises:
        ConfigurationError: the algorithm is not supported.
    """
    if algorithm in _HASHES:
        return hashlib.new(algorithm, usedforsecurity=False)
    if algorithm == "crc32":
        return _Checksum(zlib.crc32, 4)
    functions = _awscrt() if algorithm in _AWSCRT else None
    if functions is None:
        hint = " without awscrt (pip install awscrt)" if algorithm in _AWSCRT else ""
        raise ConfigurationError(f"checksum {algorithm!r} is not supported{hint}", parameter="checksum")
    return _Checksum(cast("Callable[[Buffer, int], int]", getattr(functions, algorithm)), _AWSCRT[algorithm])


def _awscrt() -> object | None:
    try:
        return importlib.import_module("awscrt.checksums")
    except ImportError:
        return None
