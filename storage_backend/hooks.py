"""Hooks: what transfers, caches and displays ask of a backend beyond its public methods."""

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
    """What transfers, caches and displays may ask of a backend beyond its public methods.

    Each has a default that is right for any backend. A backend that can do better returns a subclass from its property
    `hooks`; a wrapper's is a `storage_backend.wrappers.base.WrapperHooks`, which asks the backend within.

    Attributes:
        backend: the backend.
    """

    def __init__(self, backend: StorageBackend) -> None:
        self.backend = backend

    def last_read(self, identifier: str) -> ObjectInfo | None:
        """What the last `read`, `read_range`, `open` or `download` of the object by this thread, through this instance, saw; returned once.

        For caches: what a `stat` shows before or after may be of another version. None where it is not known.
        """
        return None

    def last_written(self, identifier: str) -> ObjectInfo | None:
        """What the last write of the object through this instance left there, as a scan shows it; returned once.

        For transfers: it saves a `stat` of each object where the response to a write has all of it. None where it has not.
        """
        return None

    def sha256_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, str]]:
        """The SHA-256 of those objects that the store digests by itself, in any order; others are left out.

        For transfers: a store with `Capability.CHECKSUM` may answer for many objects at once.
        """
        return iter(())

    def md5_in(self, info: ObjectInfo) -> str | None:
        """The MD5 of the object's content, lower-case hex, if *info*, as a listing gave it, shows one.

        For transfers: if it is that of another object, the content is the same.
        """
        return None

    def kept_times(self, identifiers: Iterable[str]) -> Iterator[tuple[str, datetime]]:
        """The times that writes were given, of those objects whose times the store keeps but a listing does not show.

        For transfers, which otherwise know when such an object was stored, not when its content last changed.
        """
        return iter(())

    def keeps_time(self, modified: datetime) -> bool:
        """Whether this very time is kept, as precisely as the store has times; False for one beyond its range."""
        return self.backend.keeps_modified is True

    @property
    def is_near(self) -> bool:
        """Whether a small object is read sooner than a remote server would answer."""
        return False

    @property
    def instance(self) -> str:
        """Tells the store from others of its class, where it has no URL and its objects are gone with it; else empty."""
        return ""

    def places(self, prefix: str = "") -> Iterator[Lineage]:
        """Where the objects beneath *prefix* really are; several for a backend that keeps them in several places.

        For transfers: two backends are one place, or one lies inside the other, if the last value of one is among the other's.
        """
        yield within(((id(self.backend),),), prefix)

    def own_paths(self) -> Iterator[Path]:
        """Files and folders of this machine that the backend works with beside its objects, as a cache's.

        For transfers: where they lie among the objects of a side, they are none.
        """
        return iter(())

    def tidy(self) -> int:
        """Remove what interrupted writes have left: this instance's, and those of processes that have ended. Returns how much.

        For transfers, at their ends. What the listings by this instance have not shown need not be found.
        """
        return 0

    def download(self, identifier: str, path: str | os.PathLike[str], moved: Moved) -> bool:
        """As `StorageBackend.download`; calls *moved* with the number of bytes as they arrive.

        For displays. Override it along with a `download` that is faster than one reader.
        """
        with self.backend.open(identifier) as reader:
            return download_from(counting(reader, moved), path)

    def upload(self, path: str | os.PathLike[str], identifier: str, moved: Moved) -> bool:
        """As `StorageBackend.upload`; calls *moved* with the number of bytes as they leave. Override it as `download`."""
        return upload_from(self.backend, path, identifier, moved)

    def checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        """As `StorageBackend.checksum`; calls *moved* with the number of bytes as this process reads them, if it does."""
        if overrides(self.backend, "checksum"):
            return self.backend.checksum(identifier, algorithm)
        return digest_of(self.backend, identifier, algorithm, moved)


def hooks_of(backend: StorageBackend) -> Hooks:
    """The backend's hooks; the defaults if it has none, as a mock."""
    found: object = backend.hooks
    return found if isinstance(found, Hooks) else Hooks(backend)


def download_from(reader: BinaryIO, path: str | os.PathLike[str]) -> bool:
    """Store all that *reader* gives in the file at *path*, whole or not at all."""

    def fill(staged: StagedFile) -> None:
        for chunk in chunks(reader):
            staged.write(chunk)

    write_file(path, fill)
    return True


def upload_from(
    backend: StorageBackend, path: str | os.PathLike[str], identifier: str, moved: Moved = unwatched
) -> bool:
    """Store the local file at *path* by one reader; *moved* is called as its bytes are read."""
    with open_source(path) as reader:
        facts = os.fstat(reader.fileno())
        info = ObjectInfo(identifier, told_size(facts), modified_of(facts))
        return backend.write_stream(identifier, counting(reader, moved), info=info)


def digest_of(backend: StorageBackend, identifier: str, algorithm: str, moved: Moved = unwatched) -> str:
    """The digest of what a reader of the object gives; *moved* is called as its bytes are read."""
    digest = new_digest(algorithm)
    with backend.open(identifier) as reader:
        for chunk in chunks(counting(reader, moved)):
            digest.update(chunk)
    return digest.hexdigest()
