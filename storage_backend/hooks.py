"""Hooks: the optional interface of backends for transfers, caches and displays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from storage_backend.defensive import overrides
from storage_backend.destinations import write_file
from storage_backend.files import StagedFile, modified_of, open_source, told_size
from storage_backend.info import ObjectInfo
from storage_backend.lineage import Lineage, within
from storage_backend.streams import Moved, chunks, counting, new_digest, unwatched

if TYPE_CHECKING:
    from storage_backend.base import StorageBackend


class Hooks:
    """The optional interface of backends for transfers, caches and displays.

    Each method has a default that is correct for any backend. A backend that can do better returns a subclass from its property
    `hooks`; a wrapper returns a `storage_backend.wrappers.base.WrapperHooks`, which forwards to the backend within.

    Attributes:
        backend: the backend.
    """

    def __init__(self, backend: StorageBackend) -> None:
        self.backend = backend

    def last_read(self, identifier: str) -> ObjectInfo | None:
        """The info from the last `read`, `read_range`, `open` or `download` of the object by this thread and instance; returned once.

        For caches: a `stat` before or after may see another version. None if unknown.
        """
        return None

    def last_written(self, identifier: str) -> ObjectInfo | None:
        """The info, as from `scan`, after the last write of the object through this instance; returned once.

        For transfers: saves a `stat` per object if the response to a write contains the info. None if it does not.
        """
        return None

    def sha256_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, str]]:
        """The SHA-256 of the objects that the store can digest itself, in any order; others are left out.

        For transfers: a store with `Capability.CHECKSUM` may digest many objects with one request.
        """
        return iter(())

    def md5_in(self, info: ObjectInfo) -> str | None:
        """The MD5 of the object's content, lower-case hex, if *info* from a listing contains it.

        For transfers: equal MD5s mean equal content.
        """
        return None

    def kept_times(self, identifiers: Iterable[str]) -> Iterator[tuple[str, datetime]]:
        """The `modified` passed to the writes of objects, if the store keeps it but listings do not show it.

        For transfers, which otherwise know only when such an object was stored, not when its content last changed.
        """
        return iter(())

    def keeps_time(self, modified: datetime) -> bool:
        """Whether the store can keep this time, with its own precision; False if it is out of range."""
        return self.backend.keeps_modified is True

    @property
    def is_near(self) -> bool:
        """Whether reading a small object takes less time than a request to a remote server."""
        return False

    @property
    def instance(self) -> str:
        """Identifies a store without a URL whose objects exist only as long as it does; else empty.

        Asked of the innermost backend only.
        """
        return ""

    def places(self, prefix: str = "") -> Iterator[Lineage]:
        """The physical location of the objects under *prefix*; several for a backend that keeps them in several places.

        For transfers: two backends overlap if the last value of one is among the other's.
        """
        yield within(((id(self.backend),),), prefix)

    def own_paths(self) -> Iterator[Path]:
        """Local files and folders that the backend uses besides its objects, such as a cache.

        For transfers: they do not count as objects of a side.
        """
        return iter(())

    def tidy(self) -> int:
        """Remove leftovers of interrupted writes by this instance and by dead processes; return their number.

        For transfers, at their end. Only leftovers seen by listings of this instance need be found.
        """
        return 0

    def download(self, identifier: str, path: str | os.PathLike[str], moved: Moved) -> bool:
        """As `StorageBackend.download`; calls *moved* with the number of bytes as they arrive.

        For displays. Override it along with a `download` that is faster than one reader.
        """
        with self.backend.open(identifier) as reader:
            return download_from(counting(reader, moved), path)

    def upload(self, path: str | os.PathLike[str], identifier: str, moved: Moved) -> bool:
        """As `StorageBackend.upload`; calls *moved* with the number of bytes as they are sent. Override it as `download`."""
        return upload_from(self.backend, path, identifier, moved)

    def checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        """As `StorageBackend.checksum`; calls *moved* with the number of bytes that this process reads, if any."""
        if overrides(self.backend, "checksum"):
            return self.backend.checksum(identifier, algorithm)
        return digest_of(self.backend, identifier, algorithm, moved)


def hooks_of(backend: StorageBackend) -> Hooks:
    """The backend's hooks; the defaults if it has none, such as a mock."""
    found: object = backend.hooks
    return found if isinstance(found, Hooks) else Hooks(backend)


def download_from(reader: BinaryIO, path: str | os.PathLike[str]) -> bool:
    """Store the content of *reader* in the file at *path*, whole or not at all."""

    def fill(staged: StagedFile) -> None:
        for chunk in chunks(reader):
            staged.write(chunk)

    write_file(path, fill)
    return True


def upload_from(
    backend: StorageBackend, path: str | os.PathLike[str], identifier: str, moved: Moved = unwatched
) -> bool:
    """Store the local file at *path* with one reader; *moved* is called as its bytes are read."""
    with open_source(path) as reader:
        facts = os.fstat(reader.fileno())
        info = ObjectInfo(identifier, told_size(facts), modified_of(facts))
        return backend.write_stream(identifier, counting(reader, moved), info=info)


def digest_of(backend: StorageBackend, identifier: str, algorithm: str, moved: Moved = unwatched) -> str:
    """The digest of the object, computed with one reader; *moved* is called as its bytes are read."""
    digest = new_digest(algorithm)
    with backend.open(identifier) as reader:
        for chunk in chunks(counting(reader, moved)):
            digest.update(chunk)
    return digest.hexdigest()
