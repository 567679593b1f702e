"""Digests that S3 knows, and what it computes from them ("Checking object integrity", Amazon S3 User Guide)."""

from __future__ import annotations

import base64
import hashlib
import importlib
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, Protocol, cast

from typing_extensions import Buffer

from storage_backend.errors import ConfigurationError

_HASHES: Final = frozenset({"md5", "sha1", "sha256"})
_AWSCRT: Final = {
    "crc32c": 4,
    "crc64nvme": 8,
}  # bytes; only awscrt computes these, and it is nobody's dependency

_POLYNOMIAL = 0xEDB88320  # CRC-32 of ISO 3309, as zlib writes it: the highest bit is the coefficient of x^0
_ORDER = (1 << 32) - 1  # of x modulo the polynomial, which is primitive
_ONE = 1 << 31
_BYTE = 1 << 23  # x^8: what one more byte multiplies a CRC by


def known(algorithm: str) -> bool:
    """Whether `Running` can compute it here; names are S3's in lower case: "crc32", "sha256", ..."""
    return algorithm in _HASHES or algorithm == "crc32" or (algorithm in _AWSCRT and _awscrt() is not None)


class Running:
    """Several digests over one stream.

    Args:
        algorithms: of "md5", "sha1", "sha256", "crc32", and with awscrt installed "crc32c" and "crc64nvme".

    Raises:
        ConfigurationError: one is not known here.
    """

    def __init__(self, *algorithms: str) -> None:
        self._running = {algorithm: _new(algorithm) for algorithm in algorithms}

    def update(self, data: Buffer) -> None:
        """Take in *data*, which is contiguous."""
        for running in self._running.values():
            running.update(data)

    def base64(self, algorithm: str) -> str:
        """The digest of all data so far, as the service's headers and documents write it.

        Raises:
            KeyError: it is not among those asked for.
        """
        return base64.b64encode(self._running[algorithm].digest()).decode()

    def hexdigest(self, algorithm: str) -> str:
        """The digest of all data so far, in lower-case hex.

        Raises:
            KeyError: it is not among those asked for.
        """
        return self._running[algorithm].digest().hex()


def multipart_etag(md5s: Sequence[bytes]) -> str:
    """The etag of an object uploaded in parts, from the MD5 (16 bytes) of each, in order.

    So the service computes it unless the object is encrypted with a key of KMS's or the customer's.
    """
    return f"{hashlib.md5(b''.join(md5s), usedforsecurity=False).hexdigest()}-{len(md5s)}"


def crc32_combined(first: int, second: int, second_size: int) -> int:
    """The CRC-32 of two pieces end to end, from the CRC of each and the size of the second in bytes.

    A CRC is a polynomial over GF(2): bytes behind a piece multiply its own by a power of x, and those of both add up
    (so zlib's `crc32_combine`). The time does not depend on the size.
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
    """Of two polynomials, modulo that of CRC-32."""
    product = 0
    while left:
        if left & _ONE:
            product ^= right
        left = left << 1 & _ORDER
        right = right >> 1 ^ _POLYNOMIAL if right & 1 else right >> 1
    return product


class _Digest(Protocol):
    def update(self, data: Buffer, /) -> None: ...
    def digest(self) -> bytes: ...


class _Checksum:
    """A CRC in the manner of `hashlib`; *size* in bytes."""

    def __init__(self, function: Callable[[Buffer, int], int], size: int) -> None:
        self._function = function
        self._size = size
        self._value = 0

    def update(self, data: Buffer, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def _new(algorithm: str) -> _Digest:
    if algorithm in _HASHES:
        return hashlib.new(algorithm, usedforsecurity=False)
    if algorithm == "crc32":
        return _Checksum(zlib.crc32, 4)
    functions = _awscrt() if algorithm in _AWSCRT else None
    if functions is None:
        hint = " without awscrt (pip install awscrt)" if algorithm in _AWSCRT else ""
        raise ConfigurationError(f"checksum {algorithm!r} is not known{hint}", parameter="checksum")
    return _Checksum(cast("Callable[[Buffer, int], int]", getattr(functions, algorithm)), _AWSCRT[algorithm])


def _awscrt() -> object | None:
    try:
        return importlib.import_module("awscrt.checksums")
    except ImportError:
        return None
