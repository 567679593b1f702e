"""Packing: many small objects as one tar stream, which the server unpacks beside their places; then they are renamed.

A request of SFTP costs both sides more than the bytes of a small object do. So only the renaming is left to SFTP, where each
object succeeds or fails by itself.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import datetime
from typing import NamedTuple

from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.objects import SMALL, Objects
from storage_backend.backends.remote.sftp_operations import Operations, RemotePath, StagedUpload, in_seconds
from storage_backend.backends.remote.sftp_packets import Attributes
from storage_backend.backends.remote.sftp_session import Steps
from storage_backend.backends.remote.tar_unpacker import TarMember, UnpackedFile
from storage_backend.errors import Failures
from storage_backend.streams import check_digest, sha256
from storage_backend.threads import DaemonPool, result_of

FEWEST = 64  # objects that are worth a command
OBJECTS, BYTES = 1000, 8 << 20  # of a group, which is one command
GROUPS = 2  # under way at a time, so that one is sent while another is renamed


class BatchWrite(NamedTuple):
    """An object to be stored.

    Attributes:
        place: where.
        content: all of it.
        modified: the time to be kept.
        verify: whether what was stored is compared with *content* before it is published.
        sha256: of *content*, in hexadecimal, where it is known.
    """

    place: RemotePath
    content: bytes
    modified: datetime | None
    verify: bool
    sha256: str | None = None


Group = list[BatchWrite]
Singly = Callable[[Iterator[BatchWrite]], int]


def write(objects: Objects, source: Iterator[BatchWrite], failures: Failures, singly: Singly) -> int:
    """Store objects as they come; how many.

    Args:
        objects: of the backend.
        source: what to store.
        failures: of the batch.
        singly: stores what cannot be packed; how many.
    """
    if not objects.link.connection().may("unpack"):
        return singly(source)
    with DaemonPool(GROUPS, "storage-backend-packing") as pool:
        packer = _Packer(objects, failures, singly, pool)
        for item in source:
            if packer.add(item) and not objects.link.connection().may("unpack"):
                return packer.finish() + singly(source)
        return packer.finish()


class _Packer:
    """Gathers groups, and stores them beside the gathering."""

    def __init__(self, objects: Objects, failures: Failures, singly: Singly, pool: DaemonPool) -> None:
        self._objects = objects
        self._failures = failures
        self._singly = singly
        self._pool = pool
        # A tar keeps the times of all its files or of none.
        self._gathered: dict[bool, Group] = {True: [], False: []}
        self._sizes = {True: 0, False: 0}
        self._busy: set[RemotePath] = set()  # of objects that are not stored yet
        self._under_way: deque[tuple[Group, Future[tuple[int, Group]]]] = deque()
        self._stored = 0

    def add(self, item: BatchWrite) -> bool:
        """Store an object with the next group of its kind; whether that was begun."""
        if item.place in self._busy:
            # Of a repeated identifier the last wins, so it does not overtake those before.
            self.finish()
        if len(item.content) > SMALL:
            self._stored += self._singly(iter([item]))
            return False
        dated = in_seconds(item.modified) is not None
        group = self._gathered[dated]
        group.append(item)
        self._busy.add(item.place)
        self._sizes[dated] += len(item.content)
        if len(group) < OBJECTS and self._sizes[dated] < BYTES:
            return False
        while len(self._under_way) >= GROUPS:
            self._wait()
        self._taken(dated)
        self._under_way.append((group, self._pool.submit(self._store, group, dated)))
        return True

    def finish(self) -> int:
        """Wait until all is stored; how many were."""
        for dated in (True, False):
            group = self._taken(dated)
            if len(group) >= FEWEST:
                self._end(group, *self._store(group, dated))
            else:
                self._end(group, 0, group)
        while self._under_way:
            self._wait()
        return self._stored

    def _taken(self, dated: bool) -> Group:
        group, self._gathered[dated], self._sizes[dated] = self._gathered[dated], [], 0
        return group

    def _store(self, group: Group, dated: bool) -> tuple[int, Group]:
        """How many of a group were stored, and those that cannot be packed."""

        def store(connection: SSHConnection) -> tuple[int, Group]:
            return _stored(self._objects, connection, group, self._failures, dated=dated)

        return self._objects.link.run(None, store)

    def _wait(self) -> None:
        group, future = self._under_way.popleft()
        self._end(group, *result_of(future))

    def _end(self, group: Group, stored: int, left: Group) -> None:
        self._stored += stored
        if left:
            self._stored += self._singly(iter(left))
        self._busy.difference_update([item.place for item in group])


def _stored(
    objects: Objects, connection: SSHConnection, group: Group, failures: Failures, *, dated: bool
) -> tuple[int, Group]:
    operations = connection.operations
    members = [
        # "./": no name is taken for an option, nor "-" for standard input.
        TarMember(
            b"./" + operations.beside(item.place.path),
            b"./" + item.place.path,
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
            None if told.replaced_mode is None else Attributes(None, told.replaced_mode, None),
            Attributes(told.size, told.mode, told.modified),
        )
        for member, told in zip(members, found, strict=True)
    ]
    left = dict.fromkeys(range(len(group)))
    stored = 0

    def renames() -> Iterator[tuple[int, Steps[None]]]:
        for number, item in enumerate(group):
            at = RemotePath(item.place.identifier, connection.base + members[number].target[1:])
            yield number, _publishing(operations, at, item, staged[number], found[number])

    def failed(number: int, error: Exception) -> None:
        del left[number]
        failures.note(group[number].place.identifier, error)

    session = connection.session
    try:
        for number, _ in session.run_many(renames(), session.at_a_time, failed):
            del left[number]
            failures.errors.pop(group[number].place.identifier, None)
            objects.remember(group[number].place, staged[number])
            stored += 1
    except BaseException:
        for number in left:
            operations.discard(staged[number])
        raise
    return stored, []


def _publishing(
    operations: Operations, at: RemotePath, item: BatchWrite, staged: StagedUpload, told: UnpackedFile
) -> Steps[None]:
    try:
        operations.check_size(at, told.size, len(item.content))
        if told.sha256:
            check_digest(at.identifier, item.sha256 or sha256(item.content), told.sha256, "what was stored")
        if staged.old is not None and stat.S_IMODE(staged.old.mode or 0) != stat.S_IMODE(told.mode):
            yield from operations.keep_mode(staged, at)
    except BaseException:
        operations.discard(staged)
        raise
    yield from operations.publish(staged, at)
