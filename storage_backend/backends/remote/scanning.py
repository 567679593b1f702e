"""Scanner: lists objects by SFTP or the server's `find`, and resumes after a lost connection."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from storage_backend import identifiers
from storage_backend.backends.remote import listing
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.errors import ConnectionLostError, ShellError
from storage_backend.backends.remote.failover import Failover
from storage_backend.backends.remote.listing import MAX_NAME, ListedPath
from storage_backend.backends.remote.remote_path import RemotePath, info_of
from storage_backend.errors import InvalidIdentifierError, NotAFileError, error_about
from storage_backend.info import ObjectInfo
from storage_backend.scanning import OnSkip, report_skip

logger = logging.getLogger(__name__)


class Scanner:
    """Lists the objects of a backend.

    Args:
        failover: provides the connection.
        path_of: checks an identifier and returns its path.
    """

    def __init__(self, failover: Failover, path_of: Callable[[str], RemotePath]) -> None:
        self._failover = failover
        self._path_of = path_of

    def walk(
        self, prefix: str, enter: Callable[[str], bool] | None, on_skip: OnSkip | None, *, details: bool
    ) -> Iterator[tuple[str, ObjectInfo | None]]:
        """The objects whose identifiers begin with *prefix*, in order; resumes after a lost connection.

        Args:
            prefix: of identifiers.
            enter: tells whether to read a directory, given its identifier; None reads all.
            on_skip: called for each entry that is not an object.
            details: whether to yield ObjectInfo; otherwise None in its place.
        """
        directory = _directory(prefix)
        if directory is None:
            return
        start = identifiers.encode(prefix)
        last: bytes | None = None
        losses = 0
        use_shell = enter is None

        def may_enter(path: bytes) -> bool:
            name = self._identifier(path + b"/x", on_skip)
            return name is not None and (enter is None or enter(identifiers.decode(path)))

        while True:
            connection = self._failover.connection()
            connection.hold()
            try:
                if not listing.is_beneath(connection, directory):
                    return
                features = connection.features if use_shell else None
                entries = (
                    listing.find(connection, start, self._failover.note_leftover, details=details)
                    if features is not None and (features.find if details else features.find_names)
                    else listing.walk(connection, start, may_enter, self._failover.note_leftover)
                )
                for entry in entries:
                    if last is not None and entry.path <= last:
                        continue
                    last = entry.path
                    attributes = entry.attributes
                    if details or attributes is None or not attributes.is_regular:
                        info = self._info(entry, on_skip)
                        if info is not None:
                            yield info.identifier, info
                    elif (name := self._identifier(entry.path, on_skip)) is not None:
                        yield name, None
            except ConnectionLostError as error:
                losses += 1
                self._failover.lose_or_raise(connection, error, losses)
            except ShellError as error:
                connection.forget_features()
                use_shell = False
                logger.warning("%s: listing by SFTP: %s", self._failover.where, error)
            else:
                return
            finally:
                connection.release()

    def level(self, prefix: str, on_skip: OnSkip | None) -> Iterator[ObjectInfo | str]:
        """The entries of one directory with this prefix: objects, and directories as "name/"."""
        directory = _directory(prefix)
        if directory is None:
            return
        start = identifiers.encode(prefix)

        def read(connection: SSHConnection, _: int) -> list[ListedPath]:
            beneath = listing.is_beneath(connection, directory)
            return listing.level(connection, directory, start) if beneath else []

        for entry in self._failover.run(None, read):
            if not entry.path.endswith(b"/"):
                info = self._info(entry, on_skip)
                if info is not None:
                    yield info
            elif self._identifier(entry.path[:-1], on_skip) is not None:
                yield identifiers.decode(entry.path)

    def _identifier(self, path: bytes, on_skip: OnSkip | None) -> str | None:
        """The identifier for a path; reports an invalid one and returns None."""
        identifier = identifiers.decode(path)
        try:
            self._path_of(identifier)
        except InvalidIdentifierError as error:
            report_skip(on_skip, error, self._failover.where)
            return None
        return identifier

    def _info(self, entry: ListedPath, on_skip: OnSkip | None) -> ObjectInfo | None:
        """The ObjectInfo of an entry; reports an entry that is not an object and returns None."""
        identifier = self._identifier(entry.path, on_skip)
        if identifier is None:
            return None
        if entry.attributes is not None and entry.attributes.is_regular:
            return info_of(identifier, entry.attributes)
        where = self._failover.where
        reason = "Not a regular file" if entry.attributes is not None else "a dangling symlink"
        report_skip(on_skip, error_about(NotAFileError, reason, identifier, where), where)
        return None


def _directory(prefix: str) -> bytes | None:
    """The directory, relative to the base directory, that holds all objects with this prefix; None if none can exist."""
    start, slash, _ = prefix.rpartition("/")
    if slash and not identifiers.is_valid(start, surrogates=True, max_segment_bytes=MAX_NAME):
        return None
    try:
        identifiers.encode(prefix)
    except UnicodeEncodeError:
        return None
    return identifiers.encode(start)
