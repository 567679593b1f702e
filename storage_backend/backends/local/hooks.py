"""LocalHooks: the methods of LocalStorage that only transfers and progress displays use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from typing_extensions import override

from storage_backend.hooks import Hooks
from storage_backend.lineage import Lineage, lineage
from storage_backend.streams import Moved

if TYPE_CHECKING:
    from storage_backend.backends.local.storage import LocalStorage


class LocalHooks(Hooks):
    """The hooks of a LocalStorage."""

    def __init__(self, storage: LocalStorage) -> None:
        super().__init__(storage)
        self._storage = storage

    @property
    @override
    def is_near(self) -> bool:
        return True

    @override
    def places(self, prefix: str = "") -> Iterator[Lineage]:
        yield lineage(self._storage.base_dir / prefix)

    @override
    def tidy(self) -> int:
        return self._storage._tidy()

    @override
    def download(self, identifier: str, path: str | os.PathLike[str], moved: Moved) -> bool:
        return self._storage._download(identifier, path, moved)

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str, moved: Moved) -> bool:
        return self._storage._upload(path, identifier, moved)
