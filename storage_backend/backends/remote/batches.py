"""Batches: many small objects at once, their requests side by side on one SFTP session."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from storage_backend.backends.remote import tar_download, tar_upload
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.errors import ConnectionLostError
from storage_backend.backends.remote.failover import LOSSES
from storage_backend.backends.remote.objects import SMALL, Objects
from storage_backend.backends.remote.sftp_operations import RemotePath, StagedUpload, in_seconds
from storage_backend.backends.remote.sftp_packets import Attributes
from storage_backend.backends.remote.sftp_session import Steps
from storage_backend.backends.remote.tar_upload import BatchWrite
from storage_backend.base import Item
from storage_backend.errors import Failures, NotFoundError
from storage_backend.info import ObjectInfo
from storage_backend.streams import check_arrived, sha256

T = TypeVar("T")
J = TypeVar("J")
PlaceOf = Callable[[str], RemotePath]

BYTES = 32 << 20  # bytes of content under way at a time
FIRST_READS = 128  # objects that are read side by side before it is known how large they are


def read_many(
    objects: Objects, place_of: PlaceOf, identifiers: Iterable[str], where: str
) -> Iterator[tuple[str, bytes]]:
    """Each object with its identifier; see `StorageBackend.read_many`."""
    failures = Failures()

    def singly(source: Iterator[RemotePath]) -> Iterator[tuple[RemotePath, bytes]]:
        return _read(objects, source, failures)

    for place, content in tar_download.read(objects, _places(place_of, identifiers, failures), singly):
        objects.note_size(len(content))
        yield place.identifier, content
    failures.raise_any("read", where)


def write_many(
    objects: Objects, place_of: PlaceOf, items: Iterable[Item], where: str, *, verify: bool
) -> int:
    """Store many objects; see `StorageBackend.write_many`."""
    failures = Failures()

    def singly(source: Iterator[BatchWrite]) -> int:
        return _written(objects, source, failures)

    stored = tar_upload.write(objects, _writes(place_of, items, failures, verify=verify), failures, singly)
    failures.raise_any("write", where)
    return stored


def delete_many(objects: Objects, place_of: PlaceOf, identifiers: Iterable[str], where: str) -> int:
    """Remove many objects, there or not; see `StorageBackend.delete_many`."""
    failures = Failures()
    distinct = set(identifiers)

    def steps(connection: SSHConnection, place: RemotePath) -> Steps[None]:
        try:
            yield from connection.operations.delete(connection.at(place))
        except NotFoundError:
            return

    places = _places(place_of, distinct, failures)
    for _ in _side_by_side(objects, places, steps, _noted(failures)):
        pass
    failures.raise_any("delete", where)
    return len(distinct)


def facts_of_many(
    objects: Objects, place_of: PlaceOf, identifiers: Iterable[str], where: str
) -> Iterator[tuple[RemotePath, Attributes]]:
    """The attributes of those objects that are there.

    Raises:
        BatchError: after the last, if some could not be looked at.
    """
    failures = Failures()

    def steps(connection: SSHConnection, place: RemotePath) -> Steps[Attributes | None]:
        try:
            return (yield from connection.operations.facts(connection.at(place)))
        except NotFoundError:
            return None

    places = _places(place_of, identifiers, failures)
    for place, found in _side_by_side(objects, places, steps, _noted(failures)):
        if found is not None:
            yield place, found
    failures.raise_any("look at", where)


def _read(
    objects: Objects, source: Iterator[RemotePath], failures: Failures
) -> Iterator[tuple[RemotePath, bytes]]:
    """Objects as they come."""
    begun = ended = size = 0
    tried: set[RemotePath] = set()

    def places() -> Iterator[RemotePath | None]:
        nonlocal begun
        for place in source:
            while begun - ended >= (FIRST_READS if not ended else max(BYTES * ended // max(size, 1), 1)):
                yield None
            begun += 1
            yield place

    def steps(connection: SSHConnection, place: RemotePath) -> Steps[bytes | None]:
        look = place in tried
        tried.add(place)
        content, _ = yield from connection.operations.read(connection.at(place), SMALL, look=look)
        tried.discard(place)
        return content

    def failed(place: RemotePath, error: Exception) -> None:
        nonlocal ended
        ended += 1
        failures.note(place.identifier, error)

    for place, found in _side_by_side(objects, places(), steps, failed):
        ended += 1
        size += SMALL if found is None else len(found)
        content = found
        if found is None:
            with failures.of(place.identifier):
                content = objects.read_whole(place)
        if content is not None:
            yield place, content


def _written(objects: Objects, source: Iterator[BatchWrite], failures: Failures) -> int:
    """Store objects as they come; how many."""
    busy: set[RemotePath] = set()
    directories = _BatchDirectories()
    size = stored = 0

    def writes() -> Iterator[BatchWrite | None]:
        nonlocal size, stored
        for item in source:
            # Side by side, the same object would end with either content.
            while item.place in busy or (busy and size + len(item.content) > BYTES):
                yield None
            if len(item.content) > SMALL:
                stored += _large(objects, item, failures)
                continue
            failures.errors.pop(item.place.identifier, None)
            busy.add(item.place)
            size += len(item.content)
            yield item

    def steps(connection: SSHConnection, item: BatchWrite) -> Steps[StagedUpload]:
        return connection.operations.write(
            connection.at(item.place),
            item.content,
            in_seconds(item.modified),
            directories.unknown(connection, item.place),
            # Read back in the same flow: a command of the server for a group would have all others wait for it.
            verify=item.verify,
        )

    def done(item: BatchWrite) -> None:
        nonlocal size
        busy.discard(item.place)
        size -= len(item.content)

    def failed(item: BatchWrite, error: Exception) -> None:
        done(item)
        failures.note(item.place.identifier, error)

    for item, staged in _side_by_side(objects, writes(), steps, failed):
        objects.remember(item.place, staged)
        done(item)
        stored += 1
    return stored


class _BatchDirectories:
    """The directories of a batch: each is asked for once, by the first object in it, or all of its objects would miss it."""

    def __init__(self) -> None:
        self._connection: SSHConnection | None = None
        self._asked: set[bytes] = set()

    def unknown(self, connection: SSHConnection, place: RemotePath) -> list[bytes]:
        """Those above *place* that no object before it was in, outer ones first."""
        if self._connection is not connection:
            self._connection, self._asked = connection, set()
        found = []
        directory = posixpath.dirname(place.path)
        while directory not in self._asked:
            self._asked.add(directory)
            if directory or not connection.base_exists:
                found.append(posixpath.join(connection.base, directory) if directory else connection.base)
            if not directory:
                break
            directory = posixpath.dirname(directory)
        return found[::-1]


def _large(objects: Objects, item: BatchWrite, failures: Failures) -> bool:
    """Store one object by itself; whether that was done."""
    failures.errors.pop(item.place.identifier, None)
    with failures.of(item.place.identifier):
        objects.write(item.place, item.content, item.modified, verify=item.verify)
        return True
    return False


def _side_by_side(
    objects: Objects,
    jobs: Iterator[J | None],
    steps: Callable[[SSHConnection, J], Steps[T]],
    failed: Callable[[J, Exception], None],
) -> Iterator[tuple[J, T]]:
    """Carry out jobs, and give their results as they come; what a lost connection left undone is done on the next.

    Args:
        objects: of the backend.
        jobs: taken lazily; None says that there are none until another is done.
        steps: of one job.
        failed: is given each job that fails.
    """
    numbers = itertools.count()
    left: dict[int, J] = {}
    losses = 0

    def operations(connection: SSHConnection) -> Iterator[tuple[int, Steps[T]] | None]:
        for number, job in list(left.items()):
            yield number, steps(connection, job)
        for following in jobs:
            if following is None:
                yield None
            else:
                number = next(numbers)
                left[number] = following
                yield number, steps(connection, following)

    def fail(number: int, error: Exception) -> None:
        failed(left.pop(number), error)

    while True:
        connection = objects.link.connection()
        connection.hold()
        try:
            session = connection.session
            for number, result in session.run_many(operations(connection), session.at_a_time, fail):
                losses = 0
                yield left.pop(number), result
        except ConnectionLostError as error:
            losses += 1
            objects.link.give_up(connection, error, losses, LOSSES)
        else:
            return
        finally:
            connection.release()


def _noted(failures: Failures) -> Callable[[RemotePath, Exception], None]:
    def failed(place: RemotePath, error: Exception) -> None:
        failures.note(place.identifier, error)

    return failed


def _places(place_of: PlaceOf, names: Iterable[str], failures: Failures) -> Iterator[RemotePath]:
    for name in names:
        try:
            place = place_of(name)
        except Exception as error:  # noqa: BLE001 - kept, or raised if it is fatal
            failures.note(name, error)
            continue
        yield place


def _writes(
    place_of: PlaceOf, items: Iterable[Item], failures: Failures, *, verify: bool
) -> Iterator[BatchWrite]:
    """Those of *items* that can be stored."""
    for key, content in items:
        info = key if isinstance(key, ObjectInfo) else None
        identifier = info.identifier if info is not None else str(key)
        try:
            if not isinstance(content, bytes):
                raise TypeError(f"content must be bytes, not {type(content).__name__}")
            place = place_of(identifier)
            # The digest is wanted where one is promised.
            digest = sha256(content) if verify and info is not None and info.sha256 else None
            check_arrived(info, identifier, len(content), digest)
        except Exception as error:  # noqa: BLE001 - kept, or raised if it is fatal
            failures.note(identifier, error)
            continue
        yield BatchWrite(place, content, info.modified if info else None, verify, digest)
