"""PrefixedStorage: the objects under one prefix of a backend, as a backend of their own."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import BinaryIO, Literal, cast

from typing_extensions import override

from storage_backend import identifiers as names
from storage_backend import url_escaping
from storage_backend.base import Identifiers, Item, StorageBackend
from storage_backend.counted import Progress, delete_counted, read_counted, write_counted
from storage_backend.defensive import info_of, location_of, matching, store
from storage_backend.errors import (
    ConfigurationError,
    InvalidIdentifierError,
    StorageError,
)
from storage_backend.hooks import Hooks
from storage_backend.info import ObjectInfo
from storage_backend.lineage import Lineage
from storage_backend.scanning import OnSkip
from storage_backend.streams import Content, Moved, Writer, check_mode, plain
from storage_backend.wrappers.base import BatchWithin, Wrapper, WrapperHooks, WriterSink


class PrefixedStorage(Wrapper):
    """The objects under *prefix* of another backend: the object `x` here is `prefix/x` there.

    Identifiers are checked before they are joined, so none escapes the prefix. Results and errors use the caller's
    identifiers (the message text of an inner error may contain the full name).

    Args:
        backend: the backend within.
        prefix: segments joined by "/", as an identifier; one "/" at its end is ignored.

    Attributes:
        backend: as given.
        prefix: without a "/" at its end.

    Raises:
        ConfigurationError: the prefix is invalid.
    """

    def __init__(self, backend: StorageBackend, prefix: str) -> None:
        super().__init__(backend)
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, not {type(prefix).__name__}")
        self.prefix = prefix.removesuffix("/")
        try:
            names.check(self.prefix, surrogates=True)
        except InvalidIdentifierError as error:
            raise ConfigurationError(f"prefix {prefix!r}: {error}", parameter="prefix") from None
        self._beneath = f"{self.prefix}/"

    @override
    def exists(self, identifier: str) -> bool:
        try:
            errors = self._errors(identifier)
        except InvalidIdentifierError:
            return False
        with errors as joined:
            return self.backend.exists(joined)

    @override
    def read(self, identifier: str) -> bytes:
        with self._errors(identifier) as joined:
            return self.backend.read(joined)

    @override
    def write(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        with self._errors(identifier) as joined:
            if not isinstance(content, bytes):
                return self.backend.write_stream(joined, content)
            return store(self.backend, joined, content)

    @override
    def delete(self, identifier: str) -> bool:
        with self._errors(identifier) as joined:
            return self.backend.delete(joined) is not False

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        if pattern is not None:
            names.glob(pattern)  # an error shows the caller's spelling
        stem = re.sub(r"[\[*?]", r"[\g<0>]", self._beneath)
        found = matching(self.backend, stem + (pattern or "**"))
        return [name[len(self._beneath) :] for name in found if name.startswith(self._beneath)]

    @override
    def get_path(self, identifier: str) -> str:
        with self._errors(identifier) as joined:
            return self.backend.get_path(joined)

    @override
    def size(self, identifier: str) -> int:
        with self._errors(identifier) as joined:
            return self.backend.size(joined)

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        source, dest = self._joined(source_id), self._joined(dest_id)
        with _Errors({dest: dest_id, source: source_id}):
            return self.backend.copy(source, dest)

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        source, dest = self._joined(source_id), self._joined(dest_id)
        with _Errors({dest: dest_id, source: source_id}):
            return self.backend.move(source, dest)

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        with self._errors(identifier) as joined:
            inner = info and _named(info, joined)
            return self.backend.write_stream(joined, reader, info=inner, verify=verify)

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        with self._errors(identifier) as joined:
            return _named(self.backend.stat(joined), identifier)

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        batch = _PrefixedBatch(self._beneath)
        inner = None if on_skip is None else batch.reporting(on_skip)
        with batch:
            for info in self.backend.scan(self._beneath + prefix, on_skip=inner):
                if info.identifier.startswith(self._beneath):
                    yield _named(info, info.identifier[len(self._beneath) :])

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        batch = _PrefixedBatch(self._beneath)
        inner = None if on_skip is None else batch.reporting(on_skip)
        with batch:
            for found in self.backend.scan_level(self._beneath + prefix, on_skip=inner):
                if isinstance(found, str):
                    yield batch.named(found)
                else:
                    yield _named(found, batch.named(found.identifier))

    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        batch = _PrefixedBatch(self._beneath)
        with batch:
            for found in self.backend.stat_many(batch.joined(identifiers)):
                yield _named(found, batch.named(found.identifier))
        batch.raise_any("stat", self.location)

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        with self._errors(identifier) as joined:
            stream = self.backend.open(joined, mode)
            if mode == "wb":
                errors = self._errors(identifier)
                return cast(BinaryIO, Writer(WriterSink(stream, writing=errors, publishing=lambda: errors)))
        if type(stream) is io.BytesIO or type(getattr(stream, "raw", None)) is io.FileIO:
            return stream  # its errors, if any, name no object
        return cast(BinaryIO, _PrefixedReader(stream, self._errors(identifier)))

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        with self._errors(identifier) as joined:
            return self.backend.read_range(joined, start, end)

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        if progress is not None:
            yield from read_counted(self.read_many(identifiers), progress)
            return
        batch = _PrefixedBatch(self._beneath)
        with batch:
            for joined, content in self.backend.read_many(batch.joined(identifiers)):
                yield batch.named(joined), content
        batch.raise_any("read", self.location)

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        batch = _PrefixedBatch(self._beneath)
        stored = 0
        with batch:
            stored = self.backend.write_many(batch.joined_items(items), verify=verify)
        batch.raise_any("write", self.location)
        return stored

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        batch = _PrefixedBatch(self._beneath)
        absent = 0
        with batch:
            absent = self.backend.delete_many(batch.joined(identifiers))
        batch.raise_any("delete", self.location)
        return absent

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        with self._errors(identifier) as joined:
            return self.backend.download(joined, path)

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        with self._errors(identifier) as joined:
            return self.backend.upload(path, joined)

    @override
    def create(self, identifier: str, content: Content) -> bool:
        with self._errors(identifier) as joined:
            return self.backend.create(joined, content)

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        with self._errors(identifier) as joined:
            return self.backend.replace(joined, content, etag)

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        with self._errors(identifier) as joined:
            return self.backend.checksum(joined, algorithm)

    @override
    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        with self._errors(identifier) as joined:
            return self.backend.get_url(joined, expires_in)

    @property
    @override
    def location(self) -> str:
        return url_escaping.beneath(location_of(self.backend), self.prefix)

    @property
    @override
    def hooks(self) -> Hooks:
        return _PrefixedHooks(self)

    def _joined(self, identifier: str) -> str:
        return _join(self._beneath, identifier)

    def _errors(self, identifier: str) -> _Errors:
        """A context that yields the name in the backend within, and translates errors back to *identifier*."""
        return _Errors({self._joined(identifier): identifier})


class _PrefixedHooks(WrapperHooks):
    def __init__(self, storage: PrefixedStorage) -> None:
        super().__init__(storage)
        self._beneath = storage._beneath
        self._prefix = storage.prefix
        self._errors = storage._errors

    @override
    def last_read(self, identifier: str) -> ObjectInfo | None:
        found = self.inner.last_read(self._beneath + identifier)
        return found and _named(found, identifier)

    @override
    def last_written(self, identifier: str) -> ObjectInfo | None:
        found = self.inner.last_written(self._beneath + identifier)
        return found and _named(found, identifier)

    @override
    def sha256_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, str]]:
        batch = _PrefixedBatch(self._beneath)
        with batch:
            for joined, digest in self.inner.sha256_many([self._beneath + name for name in identifiers]):
                yield batch.named(joined), digest

    @override
    def kept_times(self, identifiers: Iterable[str]) -> Iterator[tuple[str, datetime]]:
        batch = _PrefixedBatch(self._beneath)
        with batch:
            for joined, modified in self.inner.kept_times([self._beneath + name for name in identifiers]):
                yield batch.named(joined), modified

    @override
    def places(self, prefix: str = "") -> Iterator[Lineage]:
        return self.inner.places(self._beneath + prefix if prefix else self._prefix)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str], moved: Moved) -> bool:
        with self._errors(identifier) as joined:
            return self.inner.download(joined, path, moved)

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str, moved: Moved) -> bool:
        with self._errors(identifier) as joined:
            return self.inner.upload(path, joined, moved)

    @override
    def checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        with self._errors(identifier) as joined:
            return self.inner.checksum(joined, algorithm, moved)


def _join(beneath: str, identifier: str) -> str:
    """The name of *identifier* in the backend within.

    Raises:
        InvalidIdentifierError: it is invalid, or too long together with the prefix.
    """
    names.check(identifier, surrogates=True)
    joined = beneath + identifier
    # The joined name must be short enough too, and not every backend checks it. A character has at most four bytes.
    if len(joined) > names.MAX_BYTES // 4:
        with _Errors({joined: identifier}):
            names.check(joined, surrogates=True)
    return joined


def _named(info: ObjectInfo, identifier: str) -> ObjectInfo:
    """*info* with another identifier."""
    if type(info) is not ObjectInfo:
        return info_of(info, identifier)
    # A third of the time of dataclasses.replace: it matters in a scan of a million objects.
    return ObjectInfo(identifier, info.size, info.modified, info.etag, info.sha256, info.content_type)


class _Errors:
    """A reusable context that translates the identifier of an error to the caller's spelling.

    Only of errors about exactly these objects: errors of a reader that was passed in name objects of another backend.
    """

    __slots__ = ("_spelling",)

    def __init__(self, spelling: Mapping[str, str]) -> None:
        self._spelling = spelling  # name there -> name here

    def __enter__(self) -> str:
        return next(iter(self._spelling))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, StorageError) and error.identifier is not None:
            error.identifier = self._spelling.get(error.identifier, error.identifier)


class _PrefixedBatch(BatchWithin):
    """Translates the identifiers of errors to the caller's. Errors of the caller's callback pass unchanged, too."""

    def __init__(self, beneath: str) -> None:
        super().__init__()
        self._beneath = beneath

    @override
    def named(self, inner: str) -> str:
        return inner.removeprefix(self._beneath)

    @override
    def respell(self, error: BaseException) -> None:
        if isinstance(error, StorageError) and error.identifier is not None:
            error.identifier = self.named(error.identifier)

    def joined(self, identifiers: Iterable[str]) -> Iterator[str]:
        """The names in the backend within; an invalid one becomes a failure."""
        for identifier in self.watched(identifiers):
            yield from self._accepted(identifier)

    def joined_items(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items with their names in the backend within; an invalid one becomes a failure."""
        for key, content in self.watched(items):
            info = key if isinstance(key, ObjectInfo) else None
            for joined in self._accepted(info.identifier if info else cast(str, key)):
                yield (_named(info, joined) if info else joined), content

    def reporting(self, on_skip: OnSkip) -> OnSkip:
        """Wraps *on_skip*: translates errors to the caller's spelling."""

        def report(error: StorageError) -> None:
            self.respell(error)
            try:
                on_skip(error)
            except BaseException as raised:
                self.foreign = raised
                raise

        return report

    def _accepted(self, identifier: str) -> list[str]:
        """The name in the backend within, if it is valid."""
        with self.of(identifier):
            return [_join(self._beneath, identifier)]
        return []


class _PrefixedReader(io.BufferedIOBase):
    """A reader whose errors name the object as the caller does."""

    def __init__(self, reader: BinaryIO, errors: _Errors) -> None:
        self._reader = reader
        self._errors = errors

    @override
    def read(self, size: int | None = -1, /) -> bytes:
        with self._errors:
            return self._reader.read(-1 if size is None else size)

    @override
    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)

    @override
    def readline(self, size: int | None = -1, /) -> bytes:
        with self._errors:
            return self._reader.readline(-1 if size is None else size)

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return self._reader.seekable()

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        with self._errors:
            return self._reader.seek(offset, whence)

    @override
    def tell(self) -> int:
        return self._reader.tell()

    @override
    def fileno(self) -> int:
        return self._reader.fileno()

    @override
    def close(self) -> None:
        try:
            if not self.closed:
                self._reader.close()
        finally:
            super().close()
