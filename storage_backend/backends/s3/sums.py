"""Sums: the checksums that go with a body, and what its answer proves."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections.abc import Iterator

from typing_extensions import Buffer

from storage_backend.backends.s3.calls import Facts
from storage_backend.backends.s3.http import FilePart
from storage_backend.backends.s3.target import Piece, Target
from storage_backend.streams import CHUNK


class Sums:
    """The checksums of one body: those that are sent, and the MD5 where the answer can be compared with it.

    Args:
        target: where the body goes.
        body: the bytes.
        sha256: in hex, if known.
        crc: of a part, where the whole is checked by its CRC-32.
        md5: compute it in any case.
    """

    def __init__(
        self, target: Target, body: Piece, *, sha256: str | None = None, crc: bool = False, md5: bool = False
    ) -> None:
        self.md5 = b""
        self.crc = 0
        self.parameters: dict[str, str] = {}
        algorithm = _algorithm(target) if not crc else "crc32"
        self._vouched = target.service.vouches and algorithm != "md5"
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

    @property
    def md5_hex(self) -> str:
        """As an etag has it; "" where none was computed."""
        return self.md5.hex()

    def are_proven_by(self, facts: Facts) -> bool:
        """Whether the answer shows that the service has these very bytes."""
        return self._vouched or (bool(self.md5) and facts.etag == self.md5_hex)


def _algorithm(target: Target) -> str:
    """One of "md5", "crc32", "sha256", "auto" (either of the latter two), or "none": the caller's own client decides."""
    chosen = target.settings.checksum
    if chosen != "auto":
        return chosen
    # A mock expects the caller's parameters and no others.
    if target.settings.client is not None or not target.service.explains:
        return "none"
    return "auto" if target.service.vouches else "md5"


def uses_crc(target: Target) -> bool:
    """Whether an object in parts is checked as a whole by its CRC-32."""
    return _algorithm(target) in {"auto", "crc32"}


def _hashed(body: Piece, algorithm: str) -> bytes:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for block in _blocks(body):
        digest.update(block)
    return digest.digest()


def _crc_of(body: Piece) -> int:
    crc = 0
    for block in _blocks(body):
        crc = zlib.crc32(block, crc)
    return crc


def _blocks(body: Piece) -> Iterator[Buffer]:
    if not isinstance(body, FilePart):
        yield body
        return
    buffer = memoryview(bytearray(min(CHUNK, body.size)))
    done = 0
    while done < body.size:
        count = os.preadv(body.fd, [buffer[: body.size - done]], body.offset + done)
        if not count:
            return  # shorter than it was: found out when it is sent
        done += count
        yield buffer[:count]


def base64_of(digest: bytes) -> str:
    """A digest as headers and documents have it."""
    return base64.b64encode(digest).decode()
