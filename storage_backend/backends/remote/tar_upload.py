"""Writes many small objects as tar streams, which the server unpacks under temporary names; SFTP then renames them.

For a small object, SFTP requests cost more than its bytes. So SFTP only renames, where each object succeeds or fails by itself.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import datetime
from typing import NamedTuple

from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.failover import Failover
from storage_backend.backends.remote.remote_path import RemotePath, StagedUpload, in_seconds
from storage_backend.backends.remote.sftp_contents import SMALL
from storage_backend.backends.remote.sftp_operations import SFTPOperations
from storage_backend.backends.remote.sftp_packets import Attributes, Steps
from storage_backend.backends.remote.tar_unpacker import TarMember, UnpackedFile
from storage_backend.errors import Failures
from storage_backend.streams import check_digest, sha256
from storage_backend.threads import DaemonPool, result_of

MIN_OBJECTS = 64  # fewer are not worth a command
MAX_OBJECTS, MAX_BYTES = 1000, 8 << 20  # of a group, which is one command
GROUPS = 2  # in flight, so that one is sent while another is renamed


class BatchWrite(NamedTuple):
    """An object to be stored.

    Attributes:
        modified: the modification time to set.
        verify: whether to compare the stored file with *content* before the rename.
        sha256: of *content*, in hexadecimal, if known.
    """

    path: RemotePath
    content: bytes
    modified: datetime | None
    verify: bool
    sha256: str | None = None


Group = list[BatchWrite]
OneByOne = Callable[[Iterator[BatchWrite]], int]
Remember = Callable[[RemotePath, StagedUpload], None]
"""Called with each published object."""


def write(
    failover: Failover,
    source: Iterator[BatchWrite],
    failures: Failures,
    one_by_one: OneByOne,
    remember: Remember,
) -> int:
    """Store objects; returns how many.

    Args:
        failover: provides the connection.
        source: objects to store.
        failures: of the batch.
        one_by_one: stores objects without tar; returns how many.
        remember: called with each published object.
    """
    if not failover.connection().may_use_tar("unpack"):
        return one_by_one(source)
    with DaemonPool(GROUPS, "storage-backend-tar-upload") as pool:
        groups = _Groups(failover, failures, one_by_one, remember, pool)
        for item in source:
            if groups.add(item) and not failover.connection().may_use_tar("unpack"):
                return groups.finish() + one_by_one(source)
        return groups.finish()


class _Groups:
    """Collects objects into groups and stores these in the background."""

    def __init__(
        self,
        failover: Failover,
        failures: Failures,
        one_by_one: OneByOne,
        remember: Remember,
        pool: DaemonPool,
    ) -> None:
        self._failover = failover
        self._failures = failures
        self._one_by_one = one_by_one
        self._remember = remember
        self._pool = pool
        # tar sets the modification times of all its files or of none.
        self._gathered: dict[bool, Group] = {True: [], False: []}
        self._sizes = {True: 0, False: 0}
        self._busy: set[RemotePath] = set()  # of objects not yet stored
        self._in_flight: deque[tuple[Group, Future[tuple[int, Group]]]] = deque()
        self._stored = 0

    def add(self, item: BatchWrite) -> bool:
        """Add an object to a group; returns whether a full group was submitted."""
        if item.path in self._busy:
            # Of a repeated identifier the last write wins, so it must not overtake an earlier one.
            self.finish()
        if len(item.content) > SMALL:
            self._stored += self._one_by_one(iter([item]))
            return False
        dated = in_seconds(item.modified) is not None
        group = self._gathered[dated]
        group.append(item)
        self._busy.add(item.path)
        self._sizes[dated] += len(item.content)
        if len(group) < MAX_OBJECTS and self._sizes[dated] < MAX_BYTES:
            return False
        while len(self._in_flight) >= GROUPS:
            self._wait()
        self._take(dated)
        self._in_flight.append((group, self._pool.submit(self._store, group, dated)))
        return True

    def finish(self) -> int:
        """Store the last groups, wait for all, and return the number of stored objects."""
        for dated in (True, False):
            group = self._take(dated)
            if len(group) >= MIN_OBJECTS:
                self._end(group, *self._store(group, dated))
            else:
                self._end(group, 0, group)
        while self._in_flight:
            self._wait()
        return self._stored

    def _take(self, dated: bool) -> Group:
        group, self._gathered[dated], self._sizes[dated] = self._gathered[dated], [], 0
        return group

    def _wait(self) -> None:
        group, future = self._in_flight.popleft()
        self._end(group, *result_of(future))

    def _end(self, group: Group, stored: int, remaining: Group) -> None:
        self._stored += stored
        if remaining:
            self._stored += self._one_by_one(iter(remaining))
        self._busy.difference_update([item.path for item in group])

    def _store(self, group: Group, dated: bool) -> tuple[int, Group]:
        """The number of stored objects, and those that must be stored without tar."""
        return self._failover.run(None, lambda connection, _: self._unpack(connection, group, dated=dated))

    def _unpack(self, connection: SSHConnection, group: Group, *, dated: bool) -> tuple[int, Group]:
        operations = connection.operations
        members = [
            # "./", so that no name is taken for an option or standard input.
            TarMember(
                b"./" + operations.beside(item.path.path),
                b"./" + item.path.path,
                item.content,
                in_seconds(item.modified) or 0,
            )
            for item in group
        ]
        found = connection.unpack(members, dated=dated, digests=any(item.verify for item in group))
        if found is None:
            return 0, group
        staged = [
            StagedUpload(
                connection.base + member.path[1:],
                None if file.replaced_mode is None else Attributes(None, file.replaced_mode, None),
                Attributes(file.size, file.mode, file.modified),
            )
            for member, file in zip(members, found, strict=True)
        ]
        remaining = dict.fromkeys(range(len(group)))
        stored = 0

        def renames() -> Iterator[tuple[int, Steps[None]]]:
            for number, item in enumerate(group):
                path = RemotePath(item.path.identifier, connection.base + members[number].target[1:])
                yield number, _publish(operations, path, item, staged[number], found[number])

        def failed(number: int, error: Exception) -> None:
            del remaining[number]
            self._failures.note(group[number].path.identifier, error)

        session = connection.session
        try:
            for number, _ in session.run_many(renames(), session.at_a_time, failed):
                del remaining[number]
                self._failures.errors.pop(group[number].path.identifier, None)
                self._remember(group[number].path, staged[number])
                stored += 1
        except BaseException:
            for number in remaining:
                operations.discard(staged[number])
            raise
        return stored, []


def _publish(
    operations: SFTPOperations, path: RemotePath, item: BatchWrite, staged: StagedUpload, file: UnpackedFile
) -> Steps[None]:
    try:
        operations.check_size(path, file.size, len(item.content))
        if file.sha256:
            expected = item.sha256 or sha256(item.content)
            check_digest(path.identifier, expected, file.sha256, "what was stored")
        if staged.old is not None and stat.S_IMODE(staged.old.mode or 0) != stat.S_IMODE(file.mode):
            yield from operations.keep_mode(staged, path)
    except BaseException:
        operations.discard(staged)
        raise
    yield from operations.rename_staged(staged, path)
