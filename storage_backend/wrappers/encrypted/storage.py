"""EncryptedStorage: the public methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO, cast

from typing_extensions import Buffer, override

from storage_backend import identifiers as names
from storage_backend.base import StorageBackend
from storage_backend.defensive import info_of
from storage_backend.info import Capability, ObjectInfo
from storage_backend.streams import Content, Writer, gathered, plain
from storage_backend.wrappers.base import WriterSink
from storage_backend.wrappers.blocks import DecodedBlocks, PieceReader, arriving, encoded, slices
from storage_backend.wrappers.encrypted import chunks
from storage_backend.wrappers.encrypted.keys import Keyring, id_of
from storage_backend.wrappers.recoding import RecodingWrapper, outer_info
from storage_backend.wrappers.sources import info_for_copy


class EncryptedStorage(RecodingWrapper):
    """Stores objects encrypted and authenticated with AES-256-GCM (see `chunks` for the format).

    Without a key, an attacker with access to the store learns identifiers, sizes and times, and can delete an object or
    restore an older version of it. Any other tampering (a changed bit, a missing or added piece, an object under another
    identifier) raises IntegrityError before any content is returned, and so does an object that is not encrypted. An
    object whose key was not given raises AuthenticationError, with the key's id.

    The authenticated identifier is the one that this wrapper is called with. So `copy` and `move` re-encrypt, and
    objects that other tools move under another prefix stay readable only if the wrapper sees the same identifiers:
    `EncryptedStorage(PrefixedStorage(backend, "new"), key)`, not the other way round.

    Sizes are exact and cost no request, because they follow from the stored sizes; only reading proves them. `stat` and
    `scan` return None for a size that no encrypted object has. A range transfers and decrypts the 64 KiB chunks that it
    touches. Streams use bounded memory, and no plaintext is written to a temporary file. With *verify* each chunk is
    decrypted again before it is stored, and the inner backend verifies what it stored.

    Args:
        backend: the backend within.
        key: for writing and reading: 32 bytes or their hex or base64 (then this object cannot be pickled), or
            "env:NAME" or "file:PATH" of their hex or base64.
        keys: key id -> an older key for reading, given in the same ways.

    Attributes:
        backend: as given.

    Raises:
        ConfigurationError: a key is invalid, or its id is not the one given.
    """

    def __init__(
        self, backend: StorageBackend, key: Buffer | str, *, keys: Mapping[str, Buffer | str] | None = None
    ) -> None:
        super().__init__(backend)
        self._keyring = Keyring(key, keys)

    def __getstate__(self) -> dict[str, Any]:
        self._keyring.refuse_pickle(self.location)
        return self.__dict__

    @property
    def current_key_id(self) -> str:
        """The id of the current key, 16 hex digits: its name in `keys` once another key replaces it."""
        return id_of(self._keyring.current()).hex()

    def key_id(self, identifier: str) -> str:
        """The id of the key that the object is encrypted with. Needs no key; the result is not authenticated.

        Raises:
            NotFoundError: there is no such object.
            IntegrityError: it is not encrypted.
        """
        names.check(identifier, surrogates=True)
        return chunks.parse(self._head(identifier), self._fault(identifier)).key_id.hex()

    def rotate(self, identifier: str) -> bool:
        """Re-encrypt the object with the current key, unless it already is.

        It is one write, so readers see the old object or the new; a concurrent write may be lost.

        Returns:
            True if it was re-encrypted, False if it had the current key.

        Raises:
            NotFoundError: there is no such object.
            AuthenticationError: its key was not given.
        """
        if self.key_id(identifier) == self.current_key_id:
            return False
        return self._encrypt_anew(identifier, identifier)

    @override
    def size(self, identifier: str) -> int:
        names.check(identifier, surrogates=True)
        size = chunks.content_size(self.backend.size(identifier))
        if size is None:
            raise self._fault(identifier)("it is not encrypted, or truncated")
        return size

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        names.check(dest_id, surrogates=True)
        if source_id == dest_id:
            self.stat(source_id)
            return True
        return self._encrypt_anew(source_id, dest_id)

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        self.copy(source_id, dest_id)
        if source_id == dest_id:
            return True
        if self.size(source_id) != self.size(dest_id):
            raise self._fault(source_id)(f"its copy at {dest_id!r} has another size; nothing was deleted")
        # The salts are random: if they are equal, both names are of one file, and nothing is left to do.
        if self._head(source_id) != self._head(dest_id):
            self.backend.delete(source_id)
        return True

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        names.check(identifier, surrogates=True)
        return self._shown(info_of(self.backend.stat(identifier), identifier))

    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        return map(self._shown, self.backend.stat_many(identifiers))

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        size = info.size if info is not None else None
        told = info_for_copy(info, identifier, None if size is None else chunks.stored_size(size))
        stream = self._encrypting(identifier, reader, info, verify=verify)
        return self.backend.write_stream(identifier, stream, info=told, verify=verify) is not False

    @override
    def create(self, identifier: str, content: Content) -> bool:
        return self.backend.create(identifier, self._encrypted(identifier, content))

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        return self.backend.replace(identifier, self._encrypted(identifier, content), etag)

    @property
    @override
    def capabilities(self) -> Capability:
        return super().capabilities & ~Capability.SERVER_COPY

    @override
    def _encode(self, identifier: str, content: bytes, *, verify: bool = False) -> bytes:
        return gathered(encoded(self._encoder(identifier, verify=verify), slices(content)))

    @override
    def _blocks(self, identifier: str, stored: BinaryIO) -> DecodedBlocks:
        find = partial(self._keyring.find, identifier=identifier, where=self.location)
        return chunks.blocks_of(stored, identifier, find, self._fault(identifier))

    @override
    def _shown(self, info: ObjectInfo) -> ObjectInfo:
        size: object = info.size
        known = isinstance(size, int) and not isinstance(size, bool)
        return outer_info(info, chunks.content_size(cast(int, size)) if known else None)

    @override
    def _writer(self, identifier: str) -> BinaryIO:
        encoder = self._encoder(identifier)
        return cast(BinaryIO, Writer(_EncryptingSink(self.backend.open(identifier, "wb"), encoder)))

    def _encoder(self, identifier: str, *, verify: bool = False) -> chunks.ChunkEncoder:
        names.check(identifier, surrogates=True)
        return chunks.ChunkEncoder(self._keyring.current(), identifier, verify=verify)

    def _encrypting(
        self, identifier: str, reader: BinaryIO, info: ObjectInfo | None, *, verify: bool = False
    ) -> BinaryIO:
        """A reader that encrypts *reader* as it is read."""
        encoder = self._encoder(identifier, verify=verify)
        return PieceReader(encoded(encoder, arriving(reader, identifier, info, verify=verify))).as_binary()

    def _encrypted(self, identifier: str, content: Content) -> Content:
        content = plain(content)
        if isinstance(content, bytes):
            return self._encode(identifier, content)
        return self._encrypting(identifier, content, None)

    def _encrypt_anew(self, source_id: str, dest_id: str) -> bool:
        found = self.stat(source_id)
        known = ObjectInfo(dest_id, modified=found.modified, content_type=found.content_type)
        with self.open(source_id) as reader:
            return self.write_stream(dest_id, reader, info=known)

    def _head(self, identifier: str) -> bytes:
        return self.backend.read_range(identifier, 0, chunks.HEADER_SIZE)


class _EncryptingSink(WriterSink):
    def __init__(self, writer: BinaryIO, encoder: chunks.ChunkEncoder) -> None:
        super().__init__(writer)
        self._encoder = encoder

    @override
    def write(self, data: Buffer, /) -> object:
        return super().write(self._encoder.update(data))

    @override
    def publish(self) -> None:
        super().write(self._encoder.finish())
        super().publish()
