"""RemoteHooks: methods of RemoteStorage for transfers, caches and progress displays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from storage_backend.backends.remote import listing, resumable, server_side
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.remote_file import RemoteFile
from storage_backend.backends.remote.remote_path import RemotePath, in_seconds, info_of
from storage_backend.hooks import Hooks, digest_of
from storage_backend.info import ObjectInfo
from storage_backend.owners import is_abandoned
from storage_backend.paths import expanded
from storage_backend.streams import Moved, new_digest

if TYPE_CHECKING:
    from storage_backend.backends.remote.storage import RemoteStorage


class RemoteHooks(Hooks):
    """The hooks of a RemoteStorage."""

    def __init__(self, storage: RemoteStorage) -> None:
        super().__init__(storage)
        self._storage = storage
        self._failover = storage._failover

    @override
    def last_read(self, identifier: str) -> ObjectInfo | None:
        return self._storage._last_seen.take(identifier)

    @override
    def last_written(self, identifier: str) -> ObjectInfo | None:
        found = self._storage._last_written.pop(identifier, None)
        return None if found is None or found.size is None else info_of(identifier, found)

    @override
    def sha256_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, str]]:
        wanted = list(map(self._storage._path, identifiers))

        def digests(connection: SSHConnection, _: int) -> dict[str, str]:
            names = {connection.operations.at(path).path: path.identifier for path in wanted}
            return {names[path]: digest for path, digest in server_side.digests(connection, names).items()}

        return iter(self._failover.run(None, digests).items())

    @override
    def keeps_time(self, modified: datetime) -> bool:
        return in_seconds(modified) is not None

    @override
    def tidy(self) -> int:
        failover = self._failover
        lost = tuple(failover.lost_prefixes)
        if lost:  # those connections may have left files since the last listing
            for _ in self._storage.scan():
                pass
        leftovers = [
            path
            for path in sorted(failover.leftover_paths)
            if (name := path.rpartition(b"/")[2]).startswith(lost) or is_abandoned(os.fsdecode(name))
        ]
        failover.leftover_paths.clear()
        failover.lost_prefixes.difference_update(lost)
        return (
            failover.run(None, lambda connection, _: listing.remove_all(connection, leftovers))
            if leftovers
            else 0
        )

    @override
    def download(self, identifier: str, path: str | os.PathLike[str], moved: Moved) -> bool:
        source = self._storage._path(identifier)
        with RemoteFile(self._failover, source) as file:
            key = f"{self._storage.location}#{identifier}"
            resumable.download(
                file, key, Path(expanded(path)), lambda: self._server_digest(source, "sha256"), moved
            )
        self._storage._last_seen.note(info_of(identifier, file.attributes))
        return True

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str, moved: Moved) -> bool:
        storage = self._storage
        target = storage._path(identifier)
        return resumable.upload(
            storage, self._failover, Path(expanded(path)), target, publish=storage._publish, moved=moved
        )

    @override
    def checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        new_digest(algorithm)
        found = self._server_digest(self._storage._path(identifier), algorithm)
        return found if found is not None else digest_of(self._storage, identifier, algorithm, moved)

    def _server_digest(self, path: RemotePath, algorithm: str) -> str | None:
        return self._failover.run(
            path.identifier, lambda connection, _: server_side.digest(connection, path, algorithm)
        )
