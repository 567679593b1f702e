"""Batches: many small objects at once, their requests side by side on one SFTP session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from storage_backend.backends.remote.connection import Connection
from storage_backend.backends.remote.errors import LostError
from storage_backend.backends.remote.link import LOSSES
from storage_backend.backends.remote.objects import SMALL, Objects, in_seconds
from storage_backend.backends.remote.operations import Place, Staged
from storage_backend.backends.remote.session import Steps
from storage_backend.base import Item
from storage_backend.errors import Failures, NotFoundError, StorageError
from storage_backend.info import ObjectInfo
from storage_backend.streams import check_arrived, check_digest, sha256

T = TypeVar("T")
PlaceOf = Callable[[str], Place]

UNDER_WAY = (
    256  # operations side by side; each holds a handle at the server, of which OpenSSH gives about a thousand
)
GROUP = 1024  # objects taken from the caller at a time
GROUP_BYTES = 8 << 20  # bytes of them in memory at a time


def read_many(
    objects: Objects, place_of: PlaceOf, identifiers: Iterable[str], where: str
) -> Iterator[tuple[str, bytes]]:
    """Each object with its identifier; see `StorageBackend.read_many`."""
    failures = Failures()
    source = iter(identifiers)
    while group := list(islice(source, GROUP)):
        places = _places(place_of, group, failures)
        large: list[Place] = []

        def steps(connection: Connection, place: Place) -> Steps[bytes | None]:
            return _content(connection, connection.at(place))

        for place, content in _side_by_side(objects, places, steps, failures):
            if content is None:
                large.append(place)
            else:
                yield place.identifier, content
        for place in large:
            found = None
            with failures.of(place.identifier):
                found = objects.read_whole(place)
            if found is not None:
                yield place.identifier, found
    failures.raise_any("read", where)


def write_many(
    objects: Objects, place_of: PlaceOf, items: Iterable[Item], where: str, *, verify: bool
) -> int:
    """Store many objects; see `StorageBackend.write_many`."""
    failures = Failures()
    stored = 0
    for group in _groups(items):
        latest: dict[Place, tuple[ObjectInfo | None, bytes, str | None]] = {}
        copies: dict[Place, int] = {}
        for key, content in group:
            info = key if isinstance(key, ObjectInfo) else None
            identifier = info.identifier if info is not None else str(key)
            with failures.of(identifier):
                failures.errors.pop(identifier, None)
                if not isinstance(content, bytes):
                    raise TypeError(f"content must be bytes, not {type(content).__name__}")
                place = place_of(identifier)
                digest = sha256(content) if verify else None
                check_arrived(info, identifier, len(content), digest)
                latest[place] = info, content, digest
                copies[place] = copies.get(place, 0) + 1
        small = {place: item for place, item in latest.items() if len(item[1]) <= SMALL}
        for place, (info, content, _) in latest.items():
            if place not in small:
                with failures.of(place.identifier):
                    objects.write(place, content, info.modified if info else None, verify=verify)
                    stored += copies[place]
        done = _store(objects, small, failures, verify=verify)
        stored += sum(copies[place] for place in done)
    failures.raise_any("write", where)
    return stored


def delete_many(objects: Objects, place_of: PlaceOf, identifiers: Iterable[str], where: str) -> int:
    """Remove many objects, there or not; see `StorageBackend.delete_many`."""
    failures = Failures()
    distinct = set(identifiers)
    source = iter(distinct)
    while group := list(islice(source, GROUP)):

        def steps(connection: Connection, place: Place) -> Steps[None]:
            return _gone(connection, connection.at(place))

        for _ in _side_by_side(objects, _places(place_of, group, failures), steps, failures):
            pass
    failures.raise_any("delete", where)
    return len(distinct)


def _store(
    objects: Objects,
    items: dict[Place, tuple[ObjectInfo | None, bytes, str | None]],
    failures: Failures,
    *,
    verify: bool,
) -> list[Place]:
    """Store small objects; those that are stored."""

    def write(connection: Connection, place: Place) -> Steps[None]:
        info, content, _ = items[place]
        return connection.operations.write(
            connection.at(place), content, in_seconds(info.modified if info else None)
        )

    if not verify:
        return [place for place, _ in _side_by_side(objects, items, write, failures)]

    def attempt(connection: Connection, left: dict[Place, None]) -> list[Place]:
        """Stage, have the staged files digested, and publish those that are right."""
        staged: dict[Place, Staged] = {}

        def stage(place: Place) -> Steps[Staged]:
            info, content, _ = items[place]
            return connection.operations.stage(
                connection.at(place), content, in_seconds(info.modified if info else None)
            )

        operations = ((place, stage(place)) for place in left)
        for key, found in connection.session.run_many(operations, UNDER_WAY, _noted(failures)):
            assert isinstance(key, Place)
            staged[key] = found
        digests = objects.stored_digests(connection, {found.temporary for found in staged.values()})
        right = []
        for place, found in staged.items():
            with failures.of(place.identifier):
                try:
                    digest = digests.get(found.temporary)
                    if digest is None:
                        digest = objects.stored_digest(connection, found.temporary, place.identifier)
                    check_digest(place.identifier, items[place][2], digest, "what was stored")
                except StorageError:
                    connection.operations.discard(found)
                    raise
                right.append(place)
        publishing = (
            (place, connection.operations.publish(staged[place], connection.at(place))) for place in right
        )
        return [
            key
            for key, _ in connection.session.run_many(publishing, UNDER_WAY, _noted(failures))
            if isinstance(key, Place)
        ]

    left = dict.fromkeys(items)
    return objects.link.run(None, lambda connection: attempt(connection, left))


def _side_by_side(
    objects: Objects,
    places: Iterable[Place],
    steps: Callable[[Connection, Place], Steps[T]],
    failures: Failures,
) -> Iterator[tuple[Place, T]]:
    """Carry out an operation on each place; those that a lost connection left undone are done on the next."""
    left = dict.fromkeys(places)
    losses = 0
    while left:
        connection = objects.link.connection()
        connection.hold()
        try:
            operations = ((place, steps(connection, place)) for place in list(left))
            for key, result in connection.session.run_many(operations, UNDER_WAY, _noted(failures, left)):
                assert isinstance(key, Place)
                del left[key]
                yield key, result
        except LostError as error:
            losses += 1
            objects.link.give_up(connection, error, losses, LOSSES)
        finally:
            connection.release()


def _noted(failures: Failures, left: dict[Place, None] | None = None) -> Callable[[object, Exception], None]:
    def failed(key: object, error: Exception) -> None:
        assert isinstance(key, Place)
        if left is not None:
            left.pop(key, None)
        with failures.of(key.identifier):
            raise error

    return failed


def _content(connection: Connection, at: Place) -> Steps[bytes | None]:
    content, _ = yield from connection.operations.read(at, SMALL)
    return content


def _gone(connection: Connection, at: Place) -> Steps[None]:
    try:
        yield from connection.operations.delete(at)
    except NotFoundError:
        return


def _places(place_of: PlaceOf, names: Iterable[str], failures: Failures) -> list[Place]:
    found: dict[Place, None] = {}
    for name in names:
        with failures.of(name):
            found[place_of(name)] = None
    return list(found)


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items, a bounded number of bytes of them at a time."""
    group: list[Item] = []
    size = 0
    for item in items:
        group.append(item)
        size += len(item[1])
        if len(group) == GROUP or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
