"""Wrapper: a backend that forwards everything to another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self, TypeVar

from typing_extensions import Buffer, override

from storage_backend.base import Identifiers, Item, StorageBackend
from storage_backend.counted import Progress, delete_counted, read_counted, write_counted
from storage_backend.defensive import capabilities_of, location_of, matching, store
from storage_backend.errors import BatchError, Failures
from storage_backend.hooks import Hooks, hooks_of
from storage_backend.info import Capability, ObjectInfo
from storage_backend.lineage import Lineage
from storage_backend.scanning import OnSkip
from storage_backend.streams import Content, plain

T = TypeVar("T")


class Wrapper(StorageBackend):
    """Forwards every public method, so that no fast path of the inner backend is lost.

    A subclass overrides what it changes. One that changes names or bytes must override every method that carries them.

    Attributes:
        backend: as given.
    """

    def __init__(self, backend: StorageBackend) -> None:
        if not isinstance(backend, StorageBackend):
            raise TypeError(f"backend must be a StorageBackend, not {type(backend).__name__}")
        self.backend = backend

    @override
    def exists(self, identifier: str) -> bool:
        return self.backend.exists(identifier)

    @override
    def read(self, identifier: str) -> bytes:
        return self.backend.read(identifier)

    @override
    def write(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        if not isinstance(content, bytes):
            return self.backend.write_stream(identifier, content)
        return store(self.backend, identifier, content)

    @override
    def delete(self, identifier: str) -> bool:
        return self.backend.delete(identifier) is not False

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        return matching(self.backend, pattern)

    @override
    def get_path(self, identifier: str) -> str:
        return self.backend.get_path(identifier)

    @override
    def size(self, identifier: str) -> int:
        return self.backend.size(identifier)

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        return self.backend.copy(source_id, dest_id)

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        return self.backend.move(source_id, dest_id)

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        return self.backend.write_stream(identifier, reader, info=info, verify=verify)

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        return self.backend.stat(identifier)

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        return self.backend.scan(prefix, on_skip=on_skip)

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        return self.backend.scan_level(prefix, on_skip=on_skip)

    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        return self.backend.stat_many(identifiers)

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        return self.backend.open(identifier, mode)

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        return self.backend.read_range(identifier, start, end)

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        return read_counted(self.backend.read_many(identifiers), progress)

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        return self.backend.write_many(items, verify=verify)

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        return self.backend.delete_many(identifiers)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        return self.backend.download(identifier, path)

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        return self.backend.upload(path, identifier)

    @override
    def create(self, identifier: str, content: Content) -> bool:
        return self.backend.create(identifier, content)

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        return self.backend.replace(identifier, content, etag)

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        return self.backend.checksum(identifier, algorithm)

    @override
    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        return self.backend.get_url(identifier, expires_in)

    @override
    def flush(self) -> bool:
        return self.backend.flush()

    @property
    @override
    def capabilities(self) -> Capability:
        return capabilities_of(self.backend)

    @property
    @override
    def location(self) -> str:
        return location_of(self.backend)

    @property
    @override
    def keeps_modified(self) -> bool:
        return self.backend.keeps_modified is True

    @property
    @override
    def hooks(self) -> Hooks:
        return WrapperHooks(self)

    @override
    def close(self) -> None:
        self.backend.close()


class WrapperHooks(Hooks):
    """Forwards to the hooks of the backend within, except those that transfer content: they use the wrapper's own methods.

    Attributes:
        inner: the hooks of the backend within.
    """

    def __init__(self, wrapper: Wrapper) -> None:
        super().__init__(wrapper)
        self.inner = hooks_of(wrapper.backend)

    @override
    def last_read(self, identifier: str) -> ObjectInfo | None:
        return self.inner.last_read(identifier)

    @override
    def last_written(self, identifier: str) -> ObjectInfo | None:
        return self.inner.last_written(identifier)

    @override
    def sha256_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, str]]:
        return self.inner.sha256_many(identifiers)

    @override
    def md5_in(self, info: ObjectInfo) -> str | None:
        return self.inner.md5_in(info)

    @override
    def kept_times(self, identifiers: Iterable[str]) -> Iterator[tuple[str, datetime]]:
        return self.inner.kept_times(identifiers)

    @override
    def keeps_time(self, modified: datetime) -> bool:
        return self.inner.keeps_time(modified)

    @property
    @override
    def is_near(self) -> bool:
        return self.inner.is_near

    @override
    def places(self, prefix: str = "") -> Iterator[Lineage]:
        return self.inner.places(prefix)

    @override
    def own_paths(self) -> Iterator[Path]:
        return self.inner.own_paths()

    @override
    def tidy(self) -> int:
        return self.inner.tidy()


class BatchWithin(Failures):
    """A context for a batch call on the backend within: adds its failures to ours.

    An error of the caller's own iterable passes unchanged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.foreign: BaseException | None = None

    def watched(self, iterable: Iterable[T]) -> Iterator[T]:
        """The items of the caller's *iterable*; remembers its error."""
        try:
            yield from iterable
        except BaseException as error:
            self.foreign = error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        foreign, self.foreign = self.foreign, None  # its traceback refers to frames that refer to this object
        if error is None or error is foreign:
            return False
        self.respell(error)
        if not isinstance(error, BatchError):
            return False
        for identifier, failure in error.failures.items():
            self.respell(failure)
            self.errors[self.named(identifier)] = failure
        return True

    def named(self, inner: str) -> str:
        """The caller's identifier of the object that the backend within calls *inner*."""
        return inner

    def respell(self, error: BaseException) -> None:
        """Make *error* name the object as the caller does."""


class WriterSink:
    """A sink over the writer of a backend within. It enters the writer, so that only `publish` publishes.

    Args:
        writer: from `open(identifier, "wb")`.
        writing: a context entered around each write.
        publishing: returns the context entered around the publication.
    """

    def __init__(
        self,
        writer: BinaryIO,
        *,
        publishing: Callable[[], AbstractContextManager[object]] = nullcontext,
        writing: AbstractContextManager[object] | None = None,
    ) -> None:
        self._writer = writer
        self._publishing = publishing
        self._writing = nullcontext() if writing is None else writing
        self._done = False
        writer.__enter__()

    def write(self, data: Buffer, /) -> object:
        """Append all of *data*."""
        with self._writing:
            return self._writer.write(data)

    def publish(self) -> None:
        """Make the object visible."""
        self._done = True
        with self._publishing():
            self._writer.__exit__(None, None, None)

    def discard(self) -> None:
        """Drop what was written."""
        if self._done:
            return
        self._done = True
        reason = InterruptedError("discarded")
        self._writer.__exit__(InterruptedError, reason, None)
