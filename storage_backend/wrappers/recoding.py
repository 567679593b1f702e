"""RecodingWrapper: the base of wrappers that transform the stored bytes (compression, encryption)."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO, Literal, TypeVar, cast

from typing_extensions import override

from storage_backend import identifiers as names
from storage_backend.base import Item, StorageBackend, unsupported
from storage_backend.counted import Progress, read_counted, write_counted
from storage_backend.defensive import capabilities_of, info_of, location_of, store
from storage_backend.errors import IntegrityError, SourceChangedError, StorageError
from storage_backend.hooks import Hooks, digest_of
from storage_backend.info import Capability, ObjectInfo
from storage_backend.scanning import OnSkip
from storage_backend.streams import (
    Content,
    Moved,
    StoppingReader,
    check_arrived,
    check_mode,
    check_range,
    plain,
    read_all,
    sha256,
)
from storage_backend.wrappers.base import BatchWithin, Wrapper, WrapperHooks
from storage_backend.wrappers.blocks import BlockStream, DecodedBlocks, Fault, read_up_to
from storage_backend.wrappers.sources import info_for_copy

T = TypeVar("T")

MAX_READS = 10  # attempts at an object that changes between the requests for it


class RecodingWrapper(Wrapper):
    """Implements the public methods over a few abstract methods that encode and decode.

    Sizes, digests and URLs of the inner backend describe the stored bytes and are never passed on as the content's. Its
    etags and times are: if the stored bytes are unchanged, so is the content.
    """

    @abstractmethod
    def _encode(self, identifier: str, content: bytes, *, verify: bool = False) -> bytes:
        """Encode *content*; with *verify*, prove that decoding returns it."""

    @abstractmethod
    def _blocks(self, identifier: str, stored: BinaryIO) -> DecodedBlocks | None:
        """The decoded content of *stored*, of which nothing was read yet; None if it is stored as it is."""

    @abstractmethod
    def _shown(self, info: ObjectInfo) -> ObjectInfo:
        """The info of the content, made from the info of the stored object."""

    @override
    def read(self, identifier: str) -> bytes:
        names.check(identifier, surrogates=True)
        return self._decode(identifier, self.backend.read(identifier))

    @override
    def write(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        names.check(identifier, surrogates=True)
        return store(self.backend, identifier, self._encode(identifier, content))

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        return map(self._shown, self.backend.scan(prefix, on_skip=on_skip))

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        for found in self.backend.scan_level(prefix, on_skip=on_skip):
            yield found if isinstance(found, str) else self._shown(found)

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        names.check(identifier, surrogates=True)
        if mode == "wb":
            return self._writer(identifier)
        return self._settled(lambda: self._opened(identifier))

    @abstractmethod
    def _writer(self, identifier: str) -> BinaryIO:
        """The writer that `open(identifier, "wb")` returns."""

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        check_range(start, end)
        names.check(identifier, surrogates=True)
        return self._settled(lambda: self._span(identifier, start, end))

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        if progress is not None:
            yield from read_counted(self.read_many(identifiers), progress)
            return
        batch = BatchWithin()
        with batch:
            for identifier, stored in self.backend.read_many(batch.watched(identifiers)):
                content = None
                with batch.of(identifier):
                    content = self._decode(identifier, stored)
                if content is not None:
                    yield identifier, content
        batch.raise_any("read", self.location)

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        batch = BatchWithin()
        stored = 0

        def coded(item: Item) -> list[Item]:
            key, content = item
            info = key if isinstance(key, ObjectInfo) else None
            identifier = info.identifier if info else cast(str, key)
            with batch.of(identifier):
                batch.errors.pop(identifier, None)
                names.check(identifier, surrogates=True)
                content = bytes(content)
                check_arrived(info, identifier, len(content), sha256(content) if verify else None)
                code = self._encode(identifier, content, verify=verify)
                return [(info_for_copy(info, identifier, len(code)), code)]
            return []

        with batch:
            stored = self.backend.write_many(
                (there for item in batch.watched(items) for there in coded(item)), verify=verify
            )
        batch.raise_any("write", self.location)
        return stored

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        return StorageBackend.download(self, identifier, path)

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        return StorageBackend.upload(self, path, identifier)

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        return StorageBackend.checksum(self, identifier, algorithm)

    @override
    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        raise unsupported(self, "get_url", identifier)

    @property
    @override
    def capabilities(self) -> Capability:
        return capabilities_of(self.backend) & ~(Capability.URL | Capability.CHECKSUM)

    @property
    @override
    def hooks(self) -> Hooks:
        return _RecodingHooks(self)

    def _opened(self, identifier: str) -> BinaryIO:
        stored = self.backend.open(identifier)
        try:
            blocks = self._blocks(identifier, stored)
            if blocks is not None:
                return StoppingReader(BlockStream(blocks, stored))
            stored.seek(0)
        except BaseException:
            stored.close()
            raise
        return stored

    def _span(self, identifier: str, start: int, end: int | None) -> bytes:
        # With one reader: it is pinned to one version of the object.
        with self.backend.open(identifier) as stored:
            blocks = self._blocks(identifier, stored)
            if blocks is not None:
                return self._span_of(identifier, blocks, start, end)
            stored.seek(start)
            return read_all(stored) if end is None else read_up_to(stored, end - start)

    def _settled(self, look: Callable[[], T]) -> T:
        """The result of *look*, retried while the object changes between its requests."""
        for _ in range(MAX_READS - 1):
            with suppress(SourceChangedError):
                return look()
        return look()

    def _decode(self, identifier: str, stored: bytes) -> bytes:
        blocks = self._blocks(identifier, io.BytesIO(stored))
        return stored if blocks is None else self._span_of(identifier, blocks, 0, None)

    def _span_of(self, identifier: str, blocks: DecodedBlocks, start: int, end: int | None) -> bytes:
        try:
            return blocks.span(start, end)
        except MemoryError:
            size = (blocks.size if end is None else min(end, blocks.size)) - start
            where = location_of(self.backend)
            raise StorageError(
                f"{identifier!r} in {where}: {size:,} bytes do not fit into memory; use open() or download()",
                identifier=identifier,
                backend=where,
            ) from None

    def _fault(self, identifier: str) -> Fault:
        where = location_of(self.backend)

        def fault(reason: str) -> IntegrityError:
            return IntegrityError(
                f"{identifier!r} in {where}: {reason}", identifier=identifier, backend=where
            )

        return fault


class _RecodingHooks(WrapperHooks):
    """Forwards what is true of the content; the store's MD5 and SHA-256 are those of the stored bytes."""

    def __init__(self, storage: RecodingWrapper) -> None:
        super().__init__(storage)
        self._shown = storage._shown

    @override
    def last_read(self, identifier: str) -> ObjectInfo | None:
        found = self.inner.last_read(identifier)
        return found and self._shown(found)

    @override
    def last_written(self, identifier: str) -> ObjectInfo | None:
        found = self.inner.last_written(identifier)
        return found and self._shown(found)

    @override
    def md5_in(self, info: ObjectInfo) -> str | None:
        return None

    @override
    def sha256_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, str]]:
        return iter(())

    @override
    def checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        return digest_of(self.backend, identifier, algorithm, moved)


def outer_info(info: ObjectInfo, size: int | None) -> ObjectInfo:
    """The info of content of *size* bytes, made from the info of the stored object."""
    if type(info) is not ObjectInfo:
        info = info_of(info, cast(Any, info).identifier)
    return ObjectInfo(info.identifier, size, info.modified, info.etag, None, info.content_type)
