"""StorageBackend: seven abstract methods, and default implementations of all others over them.

The defaults work for any subclass; a backend overrides them to be fast. They call only the seven (`write` with plain bytes, `list`
without a pattern) and check the results (see `storage_backend.defensive`).
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import BinaryIO, Literal, Self, TypeAlias, cast

from storage_backend import identifiers
from storage_backend.counted import Progress, delete_counted, read_counted, write_counted
from storage_backend.defensive import capabilities_of, info_of, location_of, store
from storage_backend.errors import (
    Failures,
    IntegrityError,
    InvalidIdentifierError,
    NotFoundError,
    StorageError,
    UnsupportedOperationError,
)
from storage_backend.hooks import Hooks, digest_of, download_from, upload_from
from storage_backend.info import Capability, ObjectInfo
from storage_backend.scanning import OnSkip, one_level, report_skip
from storage_backend.streams import (
    Content,
    SpooledSink,
    Writer,
    check_arrived,
    check_digest,
    check_mode,
    check_range,
    read_all,
    sha256,
)

Identifiers: TypeAlias = list[str]  # inside the class, `list` is a method
Item: TypeAlias = tuple[str | ObjectInfo, bytes]


class StorageBackend(ABC):
    """Named byte objects behind one small interface.

    An identifier is a str of segments joined by "/" (see `storage_backend.identifiers`). Each method may be called from
    many threads at once. Every error is a StorageError or one of the built-in errors that it also is.

    To add a backend, define the seven abstract methods; everything else then works. There is no `__init__` to call.
    """

    @abstractmethod
    def exists(self, identifier: str) -> bool:
        """Whether the object exists. False only if its absence is certain, or the identifier is invalid.

        Raises:
            StorageError: the store is unreachable, denies access, ...
        """

    @abstractmethod
    def read(self, identifier: str) -> bytes:
        """The whole object.

        Raises:
            NotFoundError: there is none; a FileNotFoundError.
        """

    @abstractmethod
    def write(self, identifier: str, content: bytes) -> bool:
        """Store *content*, replacing any old object. Readers see the old bytes or the new, never a part.

        Returns:
            True.
        """

    @abstractmethod
    def delete(self, identifier: str) -> bool:
        """Remove the object.

        Returns:
            True.

        Raises:
            NotFoundError: there is none.
        """

    @abstractmethod
    def list(self, pattern: str | None = None) -> Identifiers:
        """The identifiers that match *pattern* (all of them without one), ascending by their encoded bytes.

        Raises:
            ValueError: the pattern is absolute, has "..", or ends in "/".
        """

    @abstractmethod
    def get_path(self, identifier: str) -> str:
        """The path or URL of the object, whether or not it exists, without passwords. No I/O."""

    @abstractmethod
    def size(self, identifier: str) -> int:
        """The object's length in bytes.

        Raises:
            NotFoundError: there is none.
        """

    def copy(self, source_id: str, dest_id: str) -> bool:
        """Copy *source_id* to *dest_id*; copying onto itself does nothing.

        Returns:
            True.

        Raises:
            NotFoundError: there is no source.
        """
        identifiers.check(dest_id, surrogates=True)
        if source_id == dest_id:
            self.size(source_id)
            return True
        with self.open(source_id) as reader:
            return self.write_stream(dest_id, reader)

    def move(self, source_id: str, dest_id: str) -> bool:
        """Rename the object; moving onto itself does nothing.

        Whatever fails, at least one whole copy remains.

        Returns:
            True.

        Raises:
            NotFoundError: there is no source.
            IntegrityError: the copy differs from the source, which is kept.
        """
        copied = self.copy(source_id, dest_id)
        if source_id == dest_id:
            return True
        # None counts as done: a subclass's copy(), like its write(), may return nothing.
        if copied is False:
            raise StorageError(
                f"{location_of(self)} did not copy {source_id!r} to {dest_id!r}; nothing was deleted",
                identifier=source_id,
                backend=location_of(self),
            )
        if self.size(source_id) != self.size(dest_id):
            raise IntegrityError(
                f"the copy of {source_id!r} at {dest_id!r} has another size; nothing was deleted",
                identifier=source_id,
            )
        if Capability.CHECKSUM in capabilities_of(self):
            check_digest(
                dest_id, self.checksum(source_id), self.checksum(dest_id), "the copy (nothing was deleted)"
            )
        self.delete(source_id)
        return True

    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        """Store the content of *reader* from its current position; it is left open.

        If the reader raises, the old object stays.

        Args:
            identifier: the object.
            reader: of bytes.
            info: of the content. Its size is checked against the bytes read (its sha256 too, with *verify*); its
                time and media type are kept if the store can.
            verify: digest the stored object and compare with the bytes read.

        Returns:
            True.

        Raises:
            IntegrityError: a size or digest differs.
            TypeError: the reader returns text.
        """
        content = read_all(reader)
        digest = sha256(content) if verify else None
        check_arrived(info, identifier, len(content), digest)
        store(self, identifier, content)
        if verify:
            check_digest(identifier, digest, self.checksum(identifier), "what was stored")
        return True

    def stat(self, identifier: str) -> ObjectInfo:
        """The info of the object, without reading it.

        Raises:
            NotFoundError: there is none.
        """
        return ObjectInfo(identifier, size=self.size(identifier))

    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        """Every object whose identifier begins with *prefix*, lazily, ascending by encoded bytes.

        Args:
            prefix: a literal string; it need not end at a "/".
            on_skip: called with an error for each entry that is not an object (an unusable name, a link that leads
                outside; a FolderMarkerError for an entry that only shows a folder); without it they are logged as warnings.

        Raises:
            StorageError: something could not be listed.
        """
        usable = []
        for identifier in set(self.list()):
            try:
                identifiers.check(identifier, surrogates=True)
            except (InvalidIdentifierError, TypeError) as error:
                report_skip(on_skip, error, location_of(self))
            else:
                if identifier.startswith(prefix):
                    usable.append(identifier)
        usable.sort(key=identifiers.encode)
        return map(ObjectInfo, usable)

    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        """One level of `scan`: the objects without a further "/" after *prefix*, and for the others their "name/", once each.

        In the order of `scan`. A store with directories may include empty ones, and need not read them.

        Args:
            prefix: as for `scan`.
            on_skip: as for `scan`.
        """
        return one_level(self.scan(prefix, on_skip=on_skip), prefix)

    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        """The `stat` of each object, in any order; absent objects are left out.

        A remote store is sent many requests at a time, instead of waiting for each response.

        Raises:
            BatchError: after the last, if some failed.
        """
        failures = Failures()
        for identifier in identifiers:
            try:
                found = info_of(self.stat(identifier), identifier)
            except FileNotFoundError:
                continue
            except Exception as error:  # noqa: BLE001 - raised by raise_any
                failures.note(identifier, error)
            else:
                yield found
        failures.raise_any("stat", location_of(self))

    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        """A seekable reader of the object, or a writer that publishes it as a whole (see `streams.Writer`).

        Raises:
            NotFoundError: there is none to read; raised here, not at the first read.
            ValueError: another mode.
        """
        check_mode(mode)
        if mode == "rb":
            return io.BytesIO(self.read(identifier))
        identifiers.check(identifier, surrogates=True)
        return cast(BinaryIO, Writer(SpooledSink(lambda spool: self.write_stream(identifier, spool))))

    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        """The bytes of [start, end), or from *start* to the end of the object.

        A start past the end returns b"", an end past it is clamped.

        Raises:
            ValueError: a bound is negative.
            NotFoundError: there is no such object.
        """
        check_range(start, end)
        with self.open(identifier) as reader:
            reader.seek(start)
            return read_all(reader) if end is None else reader.read(max(0, end - start))

    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Each object with its identifier, in any order, in bounded memory.

        Args:
            identifiers: of the objects, taken lazily.
            progress: called as `progress(objects, size)` with the totals so far: see `storage_backend.counted.Progress`.

        Raises:
            BatchError: after the last item, if some could not be read.
        """
        if progress is not None:
            yield from read_counted(self.read_many(identifiers), progress)
            return
        failures = Failures()
        for identifier in identifiers:
            content = None
            with failures.of(identifier):
                content = self.read(identifier)
            if content is not None:
                yield identifier, content
        failures.raise_any("read", location_of(self))

    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        """Store many objects; the last content of a repeated identifier wins.

        Args:
            items: (identifier or ObjectInfo, bytes), taken lazily.
            verify: as for `write_stream`.
            progress: as for `read_many`, after each group.

        Returns:
            The number of items stored.

        Raises:
            BatchError: after the last item, if some could not be stored.
        """
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        failures = Failures()
        stored = 0
        for key, content in items:
            info = key if isinstance(key, ObjectInfo) else None
            identifier = info.identifier if info else cast(str, key)
            with failures.of(identifier):
                failures.errors.pop(identifier, None)
                self.write_stream(identifier, io.BytesIO(content), info=info, verify=verify)
                stored += 1
        failures.raise_any("write", location_of(self))
        return stored

    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        """Remove many objects, whether or not they exist.

        Args:
            identifiers: of the objects.
            progress: as for `read_many`, after each group, with 0 bytes.

        Returns:
            The number of distinct identifiers that are now absent.

        Raises:
            BatchError: after the last, if some could not be removed.
        """
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        failures = Failures()
        distinct = set(identifiers)
        for identifier in distinct:
            with failures.of(identifier):
                try:
                    self.delete(identifier)
                except FileNotFoundError:
                    continue
        failures.raise_any("delete", location_of(self))
        return len(distinct)

    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        """Store the object in a local file, which appears whole or not at all; its directories are created.

        A symbolic link at *path* stays, and its target is written. A pipe, a device or an open descriptor (/dev/stdout) is
        never replaced: the complete object is copied into it from a temporary file.

        Returns:
            True.

        Raises:
            NotFoundError: there is no such object.
            QuotaExceededError: there is no space left for the file, which the message names.
        """
        with self.open(identifier) as reader:
            return download_from(reader, path)

    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        """Store a local file as the object, or the content of a pipe that is already open, such as /dev/stdin.

        Returns:
            True.

        Raises:
            FileNotFoundError: there is no such file.
            NotAFileError: it is a named pipe, which may never have a writer.
        """
        return upload_from(self, path, identifier)

    def create(self, identifier: str, content: Content) -> bool:
        """Store *content* only if there is no such object yet. Of several callers, one gets True.

        Returns:
            True if this call created the object, False if it existed.

        Raises:
            UnsupportedOperationError: this backend has no atomic create.
        """
        raise unsupported(self, "create", identifier)

    def replace(self, identifier: str, content: Content, etag: str) -> str:
        """Overwrite the object only if its etag still is *etag*.

        Check and write are atomic, so of several callers with the same etag one wins.

        Returns:
            The new etag.

        Raises:
            PreconditionFailedError: it changed, or no longer exists. Nothing was written.
            UnsupportedOperationError: this backend has no atomic conditional write.
        """
        raise unsupported(self, "replace", identifier)

    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        """The digest of the object, lower-case hex.

        Args:
            identifier: the object.
            algorithm: a name that `hashlib` guarantees.

        Raises:
            NotFoundError: there is no such object.
            ConfigurationError: the algorithm is unknown.
        """
        return digest_of(self, identifier, algorithm)

    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        """A URL that a plain HTTP client can fetch, or a `file://` one.

        Args:
            identifier: the object.
            expires_in: how long the URL is valid, in seconds, if the store limits it.

        Raises:
            UnsupportedOperationError: this backend has none.
        """
        raise unsupported(self, "get_url", identifier)

    def flush(self) -> bool:
        """Make all earlier writes survive power loss.

        Returns:
            True.

        Raises:
            UnsupportedOperationError: this backend cannot promise that.
        """
        raise unsupported(self, "flush", None)

    @property
    def capabilities(self) -> Capability:
        """The optional features of this backend."""
        return Capability(0)

    @property
    def location(self) -> str:
        """The location as a URL without secrets, for messages and journals; the class's name if there is no URL."""
        return type(self).__name__

    @property
    def keeps_modified(self) -> bool:
        """Whether `stat` and `scan` return the `modified` passed to `write_stream` and `write_many`.

        If so, a different time means different content; if not, the time is that of the write.
        """
        return False

    @property
    def hooks(self) -> Hooks:
        """The optional interface for transfers, caches and displays."""
        return Hooks(self)

    def close(self) -> None:
        """Release connections and descriptors. Closing twice is harmless; the next call connects again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unsupported(backend: StorageBackend, method: str, identifier: str | None) -> UnsupportedOperationError:
    """The error for a method that *backend* does not support."""
    where = location_of(backend)
    return UnsupportedOperationError(f"{where} has no {method}()", identifier=identifier, backend=where)


def not_found(identifier: str, where: str) -> NotFoundError:
    """The error for an object that is absent."""
    return NotFoundError(f"no object {identifier!r} in {where}", identifier=identifier, backend=where)
