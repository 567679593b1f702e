"""Server-side copies and digests."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterable

from storage_backend.backends.remote import sftp_moves
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.errors import ShellError
from storage_backend.backends.remote.remote_path import RemotePath, StagedUpload
from storage_backend.backends.remote.sftp_contents import stat_object
from storage_backend.streams import new_digest

logger = logging.getLogger(__name__)

MIN_DIGEST = 1 << 20  # bytes; reading fewer takes less time than starting a command
LARGE_COPY = 64 << 20  # bytes; cp leaves the SFTP session free, copy-data does not


def copy(connection: SSHConnection, source: RemotePath, dest: RemotePath) -> bool:
    """Copy an object; False if the server cannot."""
    operations = connection.operations
    source, dest = operations.at(source), operations.at(dest)
    found = connection.run(stat_object(operations, source))
    large = (found.size or 0) > LARGE_COPY
    if operations.can_copy() and not (large and connection.features.copy):
        connection.run(sftp_moves.copy(operations, source, dest))
        return True
    if not connection.features.copy:
        return False
    connection.run(operations.directories.make(posixpath.dirname(dest.path), dest))
    staged = StagedUpload(operations.beside(dest.path), connection.run(operations.entry(dest.path)))
    try:
        with connection.command(source.identifier) as shell:
            shell.copy(source.path, staged.temporary)
        copied = connection.run(operations.entry(staged.temporary))
        if copied is None or copied.size != found.size:
            raise ShellError(f"cp did not copy all of {source.identifier!r}", backend=operations.where)
        connection.run(operations.keep_mode(staged, dest))
    except ShellError as error:
        logger.warning("%s: copying by reading and writing: %s", operations.where, error)
        operations.discard(staged)
        return False
    except BaseException:
        operations.discard(staged)
        raise
    connection.run(operations.rename_staged(staged, dest))
    return True


def digest(connection: SSHConnection, path: RemotePath, algorithm: str) -> str | None:
    """The digest of an object; None if the server cannot compute it, or reading the object is cheaper."""
    path = connection.operations.at(path)
    found = connection.run(stat_object(connection.operations, path))
    if (found.size or 0) <= MIN_DIGEST:
        return None
    return digests(connection, [path.path], algorithm).get(path.path)


def digests(connection: SSHConnection, paths: Iterable[bytes], algorithm: str = "sha256") -> dict[bytes, str]:
    """The digests that the server computes, by absolute path; other files must be read."""
    found: dict[bytes, str] = {}
    if algorithm not in connection.features.digests:
        return found
    try:
        with connection.command() as shell:
            found.update(shell.digests(paths, algorithm))
    except ShellError as error:
        logger.warning("%s: reading instead of %ssum: %s", connection.operations.where, algorithm, error)
    form = re.compile(f"[0-9a-f]{{{len(new_digest(algorithm).hexdigest())}}}")
    return {path: digest for path, digest in found.items() if form.fullmatch(digest)}
