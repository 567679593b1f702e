"""ReadOnlyStorage: refuses every change."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import BinaryIO, Literal

from typing_extensions import override

from storage_backend.base import Item
from storage_backend.counted import Progress
from storage_backend.errors import AccessDeniedError
from storage_backend.info import Capability, ObjectInfo
from storage_backend.streams import Content
from storage_backend.wrappers.base import Wrapper


class ReadOnlyStorage(Wrapper):
    """Forwards reads, and refuses every change with an AccessDeniedError (errno EROFS) before anything is touched.

    Not an UnsupportedOperationError: a program that handles a target without write permission, or a read-only file
    system, handles this one too.
    """

    @override
    def write(self, identifier: str, content: Content) -> bool:
        raise self._denied("write", identifier)

    @override
    def delete(self, identifier: str) -> bool:
        raise self._denied("delete", identifier)

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        raise self._denied("copy to", dest_id)

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        raise self._denied("move", source_id)

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        raise self._denied("write", identifier)

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        if mode == "wb":
            raise self._denied("write", identifier)
        return super().open(identifier, mode)

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        raise self._denied("write", None)

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        raise self._denied("delete", None)

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        raise self._denied("write", identifier)

    @override
    def create(self, identifier: str, content: Content) -> bool:
        raise self._denied("create", identifier)

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        raise self._denied("replace", identifier)

    @property
    @override
    def capabilities(self) -> Capability:
        return super().capabilities & ~(Capability.CREATE | Capability.REPLACE | Capability.SERVER_COPY)

    def _denied(self, verb: str, identifier: str | None) -> AccessDeniedError:
        where = self.location
        what = "objects" if identifier is None else repr(identifier)
        error = AccessDeniedError(
            f"cannot {verb} {what}: {where} is read-only", identifier=identifier, backend=where
        )
        error.errno = errno.EROFS
        return error
