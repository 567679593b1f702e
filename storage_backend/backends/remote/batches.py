"""Batches: many small objects at a time, with concurrent operations on one SFTP session."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from storage_backend.backends.remote import sftp_contents, tar_download, tar_upload
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.errors import ConnectionLostError
from storage_backend.backends.remote.failover import Failover
from storage_backend.backends.remote.remote_file import RemoteFile
from storage_backend.backends.remote.remote_path import RemotePath, StagedUpload, in_seconds
from storage_backend.backends.remote.sftp_contents import SMALL
from storage_backend.backends.remote.sftp_packets import Attributes, Steps
from storage_backend.backends.remote.tar_download import MeanSize
from storage_backend.backends.remote.tar_upload import BatchWrite, Remember
from storage_backend.base import Item
from storage_backend.errors import Failures, NotFoundError
from storage_backend.info import ObjectInfo
from storage_backend.streams import check_arrived, sha256

T = TypeVar("T")
J = TypeVar("J")
Store = Callable[[BatchWrite], None]
"""Stores a large object by itself."""
PathOf = Callable[[str], RemotePath]
"""Checks an identifier and returns its path."""

BYTES = 32 << 20  # bytes of content in flight
FIRST_READS = 128  # concurrent reads before the mean size is known


def read_many(
    failover: Failover, path_of: PathOf, identifiers: Iterable[str], sizes: MeanSize
) -> Iterator[tuple[str, bytes]]:
    """Each object with its identifier; see `StorageBackend.read_many`."""
    failures = Failures()

    def one_by_one(source: Iterator[RemotePath]) -> Iterator[tuple[RemotePath, bytes]]:
        return _read(failover, source, failures)

    paths = _paths(path_of, identifiers, failures)
    for path, content in tar_download.read(failover, paths, one_by_one, sizes):
        sizes.note(len(content))
        yield path.identifier, content
    failures.raise_any("read", failover.where)


def write_many(
    failover: Failover,
    path_of: PathOf,
    items: Iterable[Item],
    store: Store,
    remember: Remember,
    *,
    verify: bool,
) -> int:
    """Store many objects; see `StorageBackend.write_many`.

    Args:
        failover: provides the connection.
        path_of: checks identifiers and returns paths.
        items: identifiers and contents.
        store: stores a large object.
        remember: called with each published object.
        verify: whether to compare what was stored.
    """
    failures = Failures()

    def one_by_one(source: Iterator[BatchWrite]) -> int:
        return _write(failover, source, failures, store, remember)

    writes = _writes(path_of, items, failures, verify=verify)
    stored = tar_upload.write(failover, writes, failures, one_by_one, remember)
    failures.raise_any("write", failover.where)
    return stored


def delete_many(failover: Failover, path_of: PathOf, identifiers: Iterable[str]) -> int:
    """Remove many objects, which may be missing; see `StorageBackend.delete_many`."""
    failures = Failures()
    distinct = set(identifiers)

    def steps(connection: SSHConnection, path: RemotePath) -> Steps[None]:
        try:
            yield from connection.operations.delete(path)
        except NotFoundError:
            return

    paths = _paths(path_of, distinct, failures)
    for _ in _run_concurrently(failover, paths, steps, _noted(failures)):
        pass
    failures.raise_any("delete", failover.where)
    return len(distinct)


def stat_many(
    failover: Failover, path_of: PathOf, identifiers: Iterable[str]
) -> Iterator[tuple[RemotePath, Attributes]]:
    """The attributes of the objects that exist.

    Raises:
        BatchError: after the last, if any STAT failed.
    """
    failures = Failures()

    def steps(connection: SSHConnection, path: RemotePath) -> Steps[Attributes | None]:
        try:
            return (yield from sftp_contents.stat_object(connection.operations, path))
        except NotFoundError:
            return None

    paths = _paths(path_of, identifiers, failures)
    for path, found in _run_concurrently(failover, paths, steps, _noted(failures)):
        if found is not None:
            yield path, found
    failures.raise_any("look at", failover.where)


def _read(
    failover: Failover, source: Iterator[RemotePath], failures: Failures
) -> Iterator[tuple[RemotePath, bytes]]:
    """Read objects one by one, in the order of arrival."""
    begun = ended = size = 0
    tried: set[RemotePath] = set()

    def paths() -> Iterator[RemotePath | None]:
        nonlocal begun
        for path in source:
            while begun - ended >= (FIRST_READS if not ended else max(BYTES * ended // max(size, 1), 1)):
                yield None
            begun += 1
            yield path

    def steps(connection: SSHConnection, path: RemotePath) -> Steps[bytes | None]:
        attempt = int(path in tried)
        tried.add(path)
        content, _ = yield from sftp_contents.read(connection.operations, path, attempt, SMALL)
        tried.discard(path)
        return content

    def failed(path: RemotePath, error: Exception) -> None:
        nonlocal ended
        ended += 1
        failures.note(path.identifier, error)

    for path, found in _run_concurrently(failover, paths(), steps, failed):
        ended += 1
        size += SMALL if found is None else len(found)
        content = found
        if found is None:
            with failures.of(path.identifier), RemoteFile(failover, path) as file:
                content = file.readall()
        if content is not None:
            yield path, content


def _write(
    failover: Failover, source: Iterator[BatchWrite], failures: Failures, store: Store, remember: Remember
) -> int:
    """Store objects; returns how many."""
    busy: set[RemotePath] = set()
    directories = _BatchDirectories()
    size = stored = 0

    def writes() -> Iterator[BatchWrite | None]:
        nonlocal size, stored
        for item in source:
            # Of two concurrent writes of one object, either could win.
            while item.path in busy or (busy and size + len(item.content) > BYTES):
                yield None
            # Of a repeated identifier, the last write counts.
            failures.errors.pop(item.path.identifier, None)
            if len(item.content) > SMALL:
                with failures.of(item.path.identifier):
                    store(item)
                    stored += 1
                continue
            busy.add(item.path)
            size += len(item.content)
            yield item

    def steps(connection: SSHConnection, item: BatchWrite) -> Steps[StagedUpload]:
        return sftp_contents.write(
            connection.operations,
            item.path,
            item.content,
            in_seconds(item.modified),
            directories.unknown(connection, item.path),
            # Verified by reading back, pipelined: a digest command would pay only for a group.
            verify=item.verify,
        )

    def done(item: BatchWrite) -> None:
        nonlocal size
        busy.discard(item.path)
        size -= len(item.content)

    def failed(item: BatchWrite, error: Exception) -> None:
        done(item)
        failures.note(item.path.identifier, error)

    for item, staged in _run_concurrently(failover, writes(), steps, failed):
        remember(item.path, staged)
        done(item)
        stored += 1
    return stored


class _BatchDirectories:
    """The directories of a batch: only the first object in each tries to create it."""

    def __init__(self) -> None:
        self._connection: SSHConnection | None = None
        self._asked: set[bytes] = set()

    def unknown(self, connection: SSHConnection, path: RemotePath) -> list[bytes]:
        """The parents of *path* that no earlier object had, outermost first, absolute."""
        if self._connection is not connection:
            self._connection, self._asked = connection, set()
        found = []
        directory = posixpath.dirname(path.path)
        while directory not in self._asked:
            self._asked.add(directory)
            if directory or not connection.base_exists:
                found.append(posixpath.join(connection.base, directory) if directory else connection.base)
            if not directory:
                break
            directory = posixpath.dirname(directory)
        return found[::-1]


def _run_concurrently(
    failover: Failover,
    jobs: Iterator[J | None],
    steps: Callable[[SSHConnection, J], Steps[T]],
    failed: Callable[[J, Exception], None],
) -> Iterator[tuple[J, T]]:
    """Run jobs concurrently and yield results as they complete; after a lost connection, rerun the unfinished ones.

    Args:
        failover: provides the connection.
        jobs: taken lazily; None means none is ready until another completes.
        steps: returns the SFTP steps of a job.
        failed: called with each job that fails.
    """
    numbers = itertools.count()
    unfinished: dict[int, J] = {}
    losses = 0

    def operations(connection: SSHConnection) -> Iterator[tuple[int, Steps[T]] | None]:
        for number, job in list(unfinished.items()):
            yield number, steps(connection, job)
        for following in jobs:
            if following is None:
                yield None
            else:
                number = next(numbers)
                unfinished[number] = following
                yield number, steps(connection, following)

    def fail(number: int, error: Exception) -> None:
        failed(unfinished.pop(number), error)

    while True:
        connection = failover.connection()
        connection.hold()
        try:
            session = connection.session
            for number, result in session.run_many(operations(connection), session.at_a_time, fail):
                losses = 0
                yield unfinished.pop(number), result
        except ConnectionLostError as error:
            losses += 1
            failover.lose_or_raise(connection, error, losses)
        else:
            return
        finally:
            connection.release()


def _noted(failures: Failures) -> Callable[[RemotePath, Exception], None]:
    return lambda path, error: failures.note(path.identifier, error)


def _paths(path_of: PathOf, names: Iterable[str], failures: Failures) -> Iterator[RemotePath]:
    for name in names:
        try:
            path = path_of(name)
        except Exception as error:  # noqa: BLE001 - kept, or raised if it is fatal
            failures.note(name, error)
            continue
        yield path


def _writes(
    path_of: PathOf, items: Iterable[Item], failures: Failures, *, verify: bool
) -> Iterator[BatchWrite]:
    """The valid *items*; notes the failures of the others."""
    for key, content in items:
        info = key if isinstance(key, ObjectInfo) else None
        identifier = info.identifier if info is not None else str(key)
        try:
            if not isinstance(content, bytes):
                raise TypeError(f"content must be bytes, not {type(content).__name__}")
            path = path_of(identifier)
            digest = sha256(content) if verify and info is not None and info.sha256 else None
            check_arrived(info, identifier, len(content), digest)
        except Exception as error:  # noqa: BLE001 - kept, or raised if it is fatal
            failures.note(identifier, error)
            continue
        yield BatchWrite(path, content, info.modified if info else None, verify, digest)
