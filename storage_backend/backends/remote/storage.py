"""RemoteStorage: the public methods."""

from __future__ import annotations

import io
import os
import posixpath
import weakref
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, BinaryIO, Literal, cast

from typing_extensions import override

from storage_backend import identifiers
from storage_backend.backends.remote import batches, listing, server_side, sftp_moves
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.failover import Failover
from storage_backend.backends.remote.hooks import RemoteHooks
from storage_backend.backends.remote.remote_file import RemoteFile
from storage_backend.backends.remote.remote_path import RemotePath, StagedUpload, info_of
from storage_backend.backends.remote.scanning import Scanner
from storage_backend.backends.remote.settings import SSHConfig, location_for, read_settings
from storage_backend.backends.remote.sftp_contents import SMALL, read, stat_object
from storage_backend.backends.remote.sftp_operations import SFTPOperations
from storage_backend.backends.remote.sftp_packets import Attributes
from storage_backend.backends.remote.tar_download import MeanSize
from storage_backend.backends.remote.tar_upload import BatchWrite
from storage_backend.backends.remote.upload import RemoteSink, stage_stream
from storage_backend.base import Identifiers, Item, StorageBackend, unsupported
from storage_backend.counted import Progress, delete_counted, read_counted, write_counted
from storage_backend.errors import (
    ConfigurationError,
    InvalidIdentifierError,
    NotAFileError,
    NotFoundError,
    StorageError,
    error_about,
)
from storage_backend.hooks import Hooks
from storage_backend.info import Capability, ObjectInfo
from storage_backend.last_seen import LastSeen
from storage_backend.scanning import OnSkip
from storage_backend.secrets import refuse_pickle
from storage_backend.streams import (
    CHUNK,
    Content,
    Writer,
    check_mode,
    check_range,
    plain,
    read_all,
    unwatched,
)

_READ_AT_ONCE = 1 << 20  # bytes; larger objects are read by `RemoteFile`
MOST_LAST_WRITTEN = 10_000  # writes whose attributes are kept for `RemoteHooks.last_written`


class RemoteStorage(StorageBackend):
    """Objects as files under one directory of an SSH server.

    The endpoints are addresses of the same files. The first one listed that accepts us and can reach the base directory is used.
    When it fails, operations that are safe to repeat are retried on the next one; when an endpoint listed earlier works again,
    it is used again.

    Writes are atomic: to a temporary name, then a rename (but see `non_atomic_overwrite` in SSHConfig). The server follows
    symlinks, even out of the base directory; write, move and delete act on the link itself, but a relative link is moved by
    copying its object. The first write creates the base directory.

    Args:
        ssh_config: account and endpoints; see SSHConfig.
        remote_base_dir: an absolute path, or one relative to the home directory, which "~" stands for.
        auto_connect: connect now; otherwise on first use.
        create_if_missing: whether the first write creates a missing base directory; otherwise that is an error.

    Attributes:
        user: the account.
        endpoints: as given.
        connection_timeout: seconds.
        remote_base_dir: as given.
        host: of the endpoint in use; None if there is none.
        port: likewise.

    Raises:
        ConfigurationError: a parameter is wrong; a ValueError.
        NoEndpointError: no endpoint works; a ConnectionError. It is also an AuthenticationError if every endpoint refused us.
        BaseDirectoryNotFoundError: the base directory is missing and *create_if_missing* is False.
        MissingClientError: paramiko is not installed.
    """

    def __init__(
        self,
        ssh_config: SSHConfig,
        remote_base_dir: str,
        auto_connect: bool = True,
        *,
        create_if_missing: bool = True,
    ) -> None:
        self._settings = read_settings(ssh_config)
        if not isinstance(remote_base_dir, str) or not remote_base_dir or not _is_sendable(remote_base_dir):
            raise ConfigurationError(
                "remote_base_dir must be a string with a path on the server", parameter="remote_base_dir"
            )
        self.user = self._settings.user
        self.endpoints = ssh_config["endpoints"]
        self.connection_timeout = self._settings.connection_timeout
        self.remote_base_dir = remote_base_dir
        self._create_if_missing = create_if_missing
        self._last_seen = LastSeen()
        self._mean_size = MeanSize()
        self._location = location_for(self._settings, remote_base_dir)
        self._begin()
        if auto_connect:
            self._failover.connection()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._location!r})"

    def __getstate__(self) -> dict[str, Any]:
        refuse_pickle(
            self._location,
            self._settings.password,
            self._settings.passphrase,
            advice='"env:NAME", "file:PATH" or a key',
        )
        state = self.__dict__.copy()
        del state["_failover"]
        del state["_last_written"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def host(self) -> str | None:
        """The host of the endpoint in use, as listed; None if there is none."""
        endpoint = self._failover.endpoint
        return None if endpoint is None else endpoint.host

    @property
    def port(self) -> int | None:
        """The port of the endpoint in use; None if there is none."""
        endpoint = self._failover.endpoint
        return None if endpoint is None else endpoint.port

    def check_connection(self) -> str:
        """Connect to the first endpoint that works now, and check that the base directory can be reached.

        Returns:
            Endpoint, base directory and shell features, as text for users.

        Raises:
            NoEndpointError: no endpoint works.
        """
        self._failover.prefer()
        return self._failover.run(None, lambda connection, _: f"{self.user}@{connection.describe()}")

    def cleanup(self, older_than: timedelta | float = timedelta(days=1)) -> int:
        """Remove the leftovers of interrupted transfers: everything with one of our temporary names.

        On a server without atomic replacement, an object that a killed write had moved aside gets its name back, whatever its
        age.

        Args:
            older_than: minimum age of what is removed; a number is in seconds. The server's clock and ours should agree.

        Returns:
            How many files and folders were removed.
        """
        seconds = older_than.total_seconds() if isinstance(older_than, timedelta) else float(older_than)
        return self._failover.run(None, lambda connection, _: listing.cleanup(connection, seconds))

    @override
    def exists(self, identifier: str) -> bool:
        try:
            self._failover.perform(stat_object, self._path(identifier))
        except (InvalidIdentifierError, NotAFileError, NotFoundError):
            return False
        return True

    @override
    def read(self, identifier: str) -> bytes:
        path = self._path(identifier)
        self._last_seen.note(None)
        content, attributes = self._failover.perform_with_attempt(read, path, _READ_AT_ONCE)
        if content is None:
            with RemoteFile(self._failover, path) as file:
                content = file.readall()
            attributes = file.attributes
        self._last_seen.note(info_of(identifier, attributes))
        return content

    @override
    def write(self, identifier: str, content: Content) -> bool:
        if type(content) is not bytes:
            content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        path = self._path(identifier)
        if len(content) > SMALL:
            self._store(path, io.BytesIO(content))
        else:
            self._publish(
                path, self._failover.perform(SFTPOperations.stage, path, content, None), len(content)
            )
        return True

    @override
    def delete(self, identifier: str) -> bool:
        self._failover.perform_with_attempt(SFTPOperations.delete, self._path(identifier))
        return True

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        glob = identifiers.glob(pattern) if pattern is not None else None
        # A pattern without "**" matches in some directories only; SFTP reads just these.
        shallow = pattern is not None and "**" not in pattern.split("/")
        enter = glob.may_hold if glob is not None and shallow else None
        found = self._scanner().walk(glob.stem if glob else "", enter, None, details=False)
        return [identifier for identifier, _ in found if glob is None or glob.matches(identifier)]

    @override
    def get_path(self, identifier: str) -> str:
        self._path(identifier)
        return posixpath.join(self.remote_base_dir, identifier)

    @override
    def size(self, identifier: str) -> int:
        found = self.stat(identifier).size
        if found is None:
            raise error_about(StorageError, "the server does not report the size", identifier, self._location)
        return found

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        source, dest = self._path(source_id), self._path(dest_id)
        if source_id == dest_id:
            self._failover.perform(stat_object, source)
        elif not self._failover.run(
            source_id, lambda connection, _: server_side.copy(connection, source, dest)
        ):
            with RemoteFile(self._failover, source) as file:
                modified = info_of(source_id, file.attributes).modified
                self._store(dest, cast(BinaryIO, file), modified=modified)
        return True

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        source, dest = self._path(source_id), self._path(dest_id)
        if source_id == dest_id:
            self._failover.perform(stat_object, source)
        elif not self._failover.perform_with_attempt(sftp_moves.move, source, dest):
            return super().move(source_id, dest_id)
        return True

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        plain(reader)
        self._store(self._path(identifier), reader, info=info, verify=verify)
        return True

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        return info_of(identifier, self._failover.perform(stat_object, self._path(identifier)))

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        found = self._scanner().walk(prefix, None, on_skip, details=True)
        return (info for _, info in found if info is not None)

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        return self._scanner().level(prefix, on_skip)

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        path = self._path(identifier)
        if mode == "rb":
            file = RemoteFile(self._failover, path)
            self._last_seen.note(info_of(identifier, file.attributes))
            return io.BufferedReader(file, CHUNK)
        sink = RemoteSink(self._failover, path, self._publish)
        writer = Writer(sink)
        weakref.finalize(writer, sink.discard)  # garbage-collected without close
        return cast(BinaryIO, writer)

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        check_range(start, end)
        path = self._path(identifier)
        self._last_seen.note(None)
        with RemoteFile(self._failover, path) as file:
            content = file.read_exactly(start, file.size if end is None else end)
        self._last_seen.note(info_of(identifier, file.attributes))
        return content

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        return read_counted(
            batches.read_many(self._failover, self._path, identifiers, self._mean_size), progress
        )

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        return batches.write_many(
            self._failover, self._path, items, self._store_item, self._remember, verify=verify
        )

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        return batches.delete_many(self._failover, self._path, identifiers)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        return self.hooks.download(identifier, path, unwatched)

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        return self.hooks.upload(path, identifier, unwatched)

    @override
    def create(self, identifier: str, content: Content) -> bool:
        path = self._path(identifier)
        content = plain(content)
        if Capability.CREATE not in self.capabilities:
            raise unsupported(self, "create", identifier)
        data = content if isinstance(content, bytes) else read_all(content)
        staged, _ = stage_stream(self._failover, path, io.BytesIO(data))
        # Not repeatable: our link, made before the connection was lost, looks like another client's.
        return self._failover.run(
            identifier,
            lambda connection, _: connection.run(connection.operations.create(path, staged)),
            repeatable=False,
        )

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        return self.hooks.checksum(identifier, algorithm, unwatched)

    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        found = batches.stat_many(self._failover, self._path, identifiers)
        return (info_of(path.identifier, attributes) for path, attributes in found)

    @override
    def flush(self) -> bool:
        """Return when every write so far survives power loss; syncs the server's whole file system."""

        def sync(connection: SSHConnection, _: int) -> bool:
            if not connection.features.sync:
                return False
            exists = connection.run(connection.operations.entry(connection.base)) is not None
            with connection.command() as shell:
                shell.sync(connection.base if exists else b"/")
            return True

        if not self._failover.run(None, sync):
            raise unsupported(self, "flush", None)
        return True

    @property
    @override
    def capabilities(self) -> Capability:
        """What this server can do; connects and may probe the shell."""
        return self._failover.run(None, lambda connection, _: connection.capabilities())

    @property
    @override
    def keeps_modified(self) -> bool:
        return True

    @property
    @override
    def hooks(self) -> Hooks:
        return RemoteHooks(self)

    @property
    @override
    def location(self) -> str:
        return self._location

    @override
    def close(self) -> None:
        self._failover.close()

    def _begin(self) -> None:
        """Set the attributes that a pickle omits."""
        self._failover = Failover(
            self._settings, self.remote_base_dir, self._location, must_exist=not self._create_if_missing
        )
        self._last_written: dict[str, Attributes] = {}

    def _path(self, identifier: str) -> RemotePath:
        """The object with its path relative to the base directory; raises InvalidIdentifierError."""
        identifiers.check(identifier, surrogates=True, max_segment_bytes=listing.MAX_NAME)
        return RemotePath(identifier, identifiers.encode(identifier))

    def _store(
        self,
        path: RemotePath,
        reader: BinaryIO,
        *,
        info: ObjectInfo | None = None,
        modified: datetime | None = None,
        verify: bool = False,
    ) -> None:
        staged, size = stage_stream(self._failover, path, reader, info=info, modified=modified, verify=verify)
        self._publish(path, staged, size)

    def _store_item(self, item: BatchWrite) -> None:
        self._store(item.path, io.BytesIO(item.content), modified=item.modified, verify=item.verify)

    def _publish(self, path: RemotePath, staged: StagedUpload, size: int) -> None:
        self._failover.perform_with_attempt(SFTPOperations.publish, path, staged, size)
        self._remember(path, staged)

    def _remember(self, path: RemotePath, staged: StagedUpload) -> None:
        """Keep the attributes of an object that was just published, for `RemoteHooks.last_written`."""
        # Cleared as a whole: other threads may add and remove at the same time.
        if len(self._last_written) >= MOST_LAST_WRITTEN:
            self._last_written.clear()
        if staged.new is None:
            self._last_written.pop(path.identifier, None)
        else:
            self._last_written[path.identifier] = staged.new

    def _scanner(self) -> Scanner:
        return Scanner(self._failover, self._path)


def _is_sendable(path: str) -> bool:
    """Whether *path* can be encoded for the server."""
    try:
        identifiers.encode(path)
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return "\0" not in path
