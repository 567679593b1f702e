r"""The format of an encrypted object: a header, and the content in chunks, each authenticated.

Integers are big-endian. An object is:

1. The header, 56 bytes:

       8 B   the magic, b"\x93sb-aead"
       u8    the version, 1
       3 B   0
       8 B   the id of the master key: HMAC-SHA256(key, "storage-backend encrypted key id"), the first 8 bytes
       32 B  the salt, random for each object
       u32   the CRC-32 (as zlib has it) of the 52 bytes before. It tells damage from an unknown key; it protects nothing

2. The content in chunks of 64 KiB (the last may be shorter; empty content is one empty chunk). Each chunk is stored as
   the ciphertext and the 16-byte tag of AES-256-GCM (NIST SP 800-38D), with

       key         HKDF-SHA256 (RFC 5869) of the master key: salt the header's, info "storage-backend encrypted object",
                   32 bytes
       nonce       the chunk's number from 0, 11 bytes, and a byte that is 1 for the last chunk and 0 for others
       associated  the header and the identifier, encoded as UTF-8 (surrogateescape)

The chunks follow the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizar: "Online Authenticated-Encryption and its
Nonce-Reuse Misuse-Resistance", CRYPTO 2015): a changed, dropped, repeated or moved chunk and a truncated object do not
authenticate. A key is used for one version of one object only, because the random 32-byte salt does not repeat, so
counting nonces is safe. The content's size follows from the stored size.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from typing_extensions import Buffer

from storage_backend import identifiers as names
from storage_backend.errors import IntegrityError, MissingClientError
from storage_backend.wrappers.blocks import DecodedBlocks, Fault, read_up_to
from storage_backend.wrappers.encrypted.keys import id_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK = 64 << 10  # bytes of content
TAG = 16  # bytes
HEADER_SIZE = 56
SALT_SIZE = 32

_HEADER = struct.Struct(">8sB3x8s32s")
_CRC = struct.Struct(">I")
_MAGIC = b"\x93sb-aead"
_OBJECT_LABEL = b"storage-backend encrypted object"
_STEP = 64  # chunks that are read at a time


@dataclass(frozen=True)
class Header:
    """The header of an object.

    Attributes:
        key_id: of the master key.
        salt: of this version of the object.
    """

    key_id: bytes
    salt: bytes

    def encoded(self) -> bytes:
        """Its bytes."""
        fields = _HEADER.pack(_MAGIC, 1, self.key_id, self.salt)
        return fields + _CRC.pack(zlib.crc32(fields))


def parse(head: bytes, fault: Fault) -> Header:
    """The header of an object with these first bytes.

    Raises:
        IntegrityError: it is not encrypted, or its header is damaged, or of a later version.
    """
    if not head.startswith(_MAGIC):
        raise fault("it is not encrypted, or its beginning is damaged")
    if len(head) < HEADER_SIZE:
        raise fault("it is truncated within its header")
    if _CRC.unpack_from(head, _HEADER.size)[0] != zlib.crc32(head[: _HEADER.size]):
        raise fault("its header is damaged")
    _, version, key_id, salt = _HEADER.unpack_from(head)
    if version != 1:
        raise fault(f"it is encrypted in version {version} of the format; this release knows version 1")
    return Header(key_id, salt)


def stored_size(size: int) -> int:
    """The stored size of content of *size* bytes."""
    return HEADER_SIZE + size + TAG * max(1, -(-size // CHUNK))


def content_size(stored: int) -> int | None:
    """The inverse of `stored_size`; None for a size that no content has."""
    body = stored - HEADER_SIZE
    size = body - TAG * -(-body // (CHUNK + TAG))
    return size if size >= 0 and stored_size(size) == stored else None


class ChunkCipher:
    """Encrypts and decrypts the chunks of one version of an object."""

    def __init__(self, key: bytes, head: bytes, salt: bytes, identifier: str) -> None:
        self._aead = _cipher(key, salt)
        self._associated = head + names.encode(identifier)

    def seal(self, number: int, data: memoryview, *, last: bool) -> bytes:
        """The ciphertext and tag of a chunk."""
        return self._aead.encrypt(_nonce(number, last=last), data, self._associated)

    def opened(self, number: int, sealed: bytes | memoryview, *, last: bool) -> bytes:
        """The content of a chunk.

        Raises:
            InvalidTag: it was not sealed as this chunk.
        """
        return self._aead.decrypt(_nonce(number, last=last), sealed, self._associated)


class ChunkEncoder:
    """Encrypts content into an object, header included.

    Args:
        key: the master key.
        identifier: of the object.
        verify: decrypt each chunk again, and compare.
    """

    def __init__(self, key: bytes, identifier: str, *, verify: bool = False) -> None:
        header = Header(id_of(key), os.urandom(SALT_SIZE))
        self._head = header.encoded()
        self._cipher = ChunkCipher(key, self._head, header.salt, identifier)
        self._identifier = identifier
        self._verify = verify
        self._pending = bytearray()
        self._number = 0

    def update(self, data: Buffer, /) -> bytes:
        """Add *data*; return the bytes that are ready to be stored."""
        self._pending += memoryview(data)
        # The last chunk is sealed as the last, so one is held back until more data follows.
        full = (len(self._pending) - 1) // CHUNK
        if full < 1:
            return b""
        with memoryview(self._pending) as pending:
            sealed = [self._seal(pending[i * CHUNK : (i + 1) * CHUNK], last=False) for i in range(full)]
        del self._pending[: full * CHUNK]
        return self._with_header(sealed)

    def finish(self) -> bytes:
        """Return the rest of the object."""
        return self._with_header([self._seal(memoryview(self._pending), last=True)])

    def _with_header(self, sealed: list[bytes]) -> bytes:
        head, self._head = self._head, b""
        return b"".join([head, *sealed])

    def _seal(self, data: memoryview, *, last: bool) -> bytes:
        sealed = self._cipher.seal(self._number, data, last=last)
        if self._verify and self._cipher.opened(self._number, sealed, last=last) != data:
            raise IntegrityError(
                f"{self._identifier!r}: an encrypted chunk does not decrypt again; nothing was stored",
                identifier=self._identifier,
            )
        self._number += 1
        return sealed


def blocks_of(
    stored: BinaryIO, identifier: str, find: Callable[[bytes], bytes], fault: Fault
) -> DecodedBlocks:
    """The content of the object that *stored* reads. Nothing unauthenticated is returned.

    Args:
        stored: seekable, at position 0.
        identifier: of the object.
        find: returns the master key with an id.
        fault: makes the error.

    Raises:
        IntegrityError: it is damaged; raised here or when a chunk is loaded.
    """
    # Seek to the end first: the sequential reads that follow then need one request.
    length = stored.seek(0, os.SEEK_END)
    stored.seek(0)
    head = read_up_to(stored, HEADER_SIZE)
    header = parse(head, fault)
    size = content_size(length)
    if size is None:
        raise fault("it is truncated, or something was appended to it")
    count = max(1, -(-size // CHUNK))
    cipher = ChunkCipher(find(header.key_id), head, header.salt, identifier)
    from cryptography.exceptions import InvalidTag  # after the cipher, whose error explains a missing library

    def load(first: int, stop: int) -> Iterator[bytes]:
        for begin in range(first, stop, _STEP):
            some = min(_STEP, stop - begin)
            stored.seek(HEADER_SIZE + begin * (CHUNK + TAG))
            sealed = memoryview(read_up_to(stored, some * (CHUNK + TAG)))
            for number in range(begin, begin + some):
                at = (number - begin) * (CHUNK + TAG)
                try:
                    yield cipher.opened(number, sealed[at : at + CHUNK + TAG], last=number == count - 1)
                except InvalidTag:
                    raise fault(
                        f"its chunk {number} does not authenticate as part of {identifier!r}: it was changed, moved or "
                        "truncated, or belongs to another object"
                    ) from None

    return DecodedBlocks(size, CHUNK, load, count=count, proved=False)


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    """The cipher with an object's key.

    Raises:
        MissingClientError: cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as error:
        raise MissingClientError(
            f"EncryptedStorage needs cryptography ({error}): pip install cryptography"
        ) from error
    return AESGCM(HKDF(SHA256(), 32, salt, _OBJECT_LABEL).derive(key))
