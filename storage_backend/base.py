"""StorageBackend: seven abstract methods, and what follows from them.

The other methods work for any subclass; a backend overrides them to be fast. They call only the seven: `write` with plain
bytes, `list` without a pattern, and they check what these return (see `storage_backend.defensive`).
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
        """Whether there is such an object. False only when its absence is certain; also for an invalid identifier.

        Raises:
            StorageError: the store cannot tell (it is out of reach, denies us, ...).
        """

    @abstractmethod
    def read(self, identifier: str) -> bytes:
        """The whole object.

        Raises:
            NotFoundError: there is none; a FileNotFoundError.
        """

    @abstractmethod
    def write(self, identifier: str, content: bytes) -> bool:
        """Store *content*, replacing what was there. Readers see the old bytes or the new, never a part.

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
        """Where the object is or would be, for people and other programs; without passwords. No I/O."""

    @abstractmethod
    def size(self, identifier: str) -> int:
        """The object's length in bytes.

        Raises:
            NotFoundError: there is none.
        """

    def copy(self, source_id: str, dest_id: str) -> bool:
        """Store the bytes of *source_id* under *dest_id* too; onto itself nothing happens.

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
        """Give the object another identifier; onto itself nothing happens.

        Whatever fails, at least one whole copy is left.

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
        """Store all that *reader* gives from its current position; it is left open.

        If the reader raises, the old object stays.

        Args:
            identifier: the object.
            reader: of bytes.
            info: what is known of the content. Its size is checked against what arrives (its sha256 too, with
                *verify*); its time and media type are kept where the store can.
            verify: digest what was stored and compare it with what was read.

        Returns:
            True.

        Raises:
            IntegrityError: a size or digest differs.
            TypeError: the reader gives text.
        """
        content = read_all(reader)
        digest = sha256(content) if verify else None
        check_arrived(info, identifier, len(content), digest)
        store(self, identifier, content)
        if verify:
            check_digest(identifier, digest, self.checksum(identifier), "what was stored")
        return True

    def stat(self, identifier: str) -> ObjectInfo:
        """What is known of the object without reading it.

        Raises:
            NotFoundError: there is none.
        """
        return ObjectInfo(identifier, size=self.size(identifier))

    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        """Every object whose identifier begins with *prefix*, lazily, ascending by encoded bytes.

        Args:
            prefix: a literal string; it need not end at a "/".
            on_skip: is given an error for each entry that is no object (an unusable name, a link that leads
                outside; a FolderMarkerError for what only makes a folder visible); without it they are logged as warnings.

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

        In the order of `scan`. A store that has directories may give empty ones too, and need not look into any.

        Args:
            prefix: a literal string: "", or ending in "/".
            on_skip: as for `scan`.
        """
        return one_level(self.scan(prefix, on_skip=on_skip), prefix)

    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        """What `stat` shows of each object, in any order; objects that are not there are left out.

        A remote store is asked for many at a time, where one `stat` after the other would wait for each response.

        Raises:
            BatchError: after the last, if some could not be looked at.
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

        A start past the end gives b"", an end past it is clamped.

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
            progress: is called as `progress(objects, size)` with what was read so far: see `storage_backend.counted.Progress`.

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
        """Store many objects; of an identifier that comes twice, the last content stays.

        Args:
            items: (identifier or ObjectInfo, bytes), taken lazily.
            verify: as for `write_stream`.
            progress: as for `read_many`, with what was stored so far, group by group.

        Returns:
            How many items were stored.

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
        """Remove many objects, there or not.

        Args:
            identifiers: of the objects.
            progress: as for `read_many`, with how many are absent so far, group by group, and 0 bytes.

        Returns:
            How many distinct identifiers are now absent.

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

        A symbolic link at *path* stays, and the file that it leads to is written. A pipe, a device or an open descriptor
        (/dev/stdout) is never replaced: it is given the object once all of that has arrived, from a temporary file.

        Returns:
            True.

        Raises:
            NotFoundError: there is no such object.
            QuotaExceededError: there is no space left for the file, which the message names.
        """
        with self.open(identifier) as reader:
            return download_from(reader, path)

    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        """Store a local file as the object, or what a pipe gives that is open already, as /dev/stdin.

        Returns:
            True.

        Raises:
            FileNotFoundError: there is no such file.
            NotAFileError: it is a named pipe, to which nobody may ever write.
        """
        return upload_from(self, path, identifier)

    def create(self, identifier: str, content: Content) -> bool:
        """Store *content* only if there is no such object yet. Of several callers, one gets True.

        Returns:
            True if this call created the object, False if it was there.

        Raises:
            UnsupportedOperationError: this backend has no atomic create.
        """
        raise unsupported(self, "create", identifier)

    def replace(self, identifier: str, content: Content, etag: str) -> str:
        """Overwrite the object only if it is still the one that *etag* names.

        The check and the write are one, so of several callers with the same etag one wins.

        Returns:
            The new etag.

        Raises:
            PreconditionFailedError: it changed, or is gone. Nothing was written.
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
            expires_in: how long the URL is good, in seconds, where the store limits it.

        Raises:
            UnsupportedOperationError: this backend has none.
        """
        raise unsupported(self, "get_url", identifier)

    def flush(self) -> bool:
        """Return once every write so far survives power loss.

        Returns:
            True.

        Raises:
            UnsupportedOperationError: this backend cannot promise that.
        """
        raise unsupported(self, "flush", None)

    @property
    def capabilities(self) -> Capability:
        """What this backend does beyond what every backend does."""
        return Capability(0)

    @property
    def location(self) -> str:
        """The location as a URL without secrets, for messages and journals; the class's name where there is no URL."""
        return type(self).__name__

    @property
    def keeps_modified(self) -> bool:
        """Whether `stat` and `scan` show the `modified` that `write_stream` and `write_many` were given.

        Where it does, another time means another content; where it does not, the time is that of the write.
        """
        return False

    @property
    def hooks(self) -> Hooks:
        """What transfers, caches and displays may ask of this backend beyond its public methods."""
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
    """The error for a method that *backend* has no correct way to do."""
    where = location_of(backend)
    return UnsupportedOperationError(f"{where} has no {method}()", identifier=identifier, backend=where)


def not_found(identifier: str, where: str) -> NotFoundError:
    """The error for an object that is absent."""
    return NotFoundError(f"no object {identifier!r} in {where}", identifier=identifier, backend=where)
