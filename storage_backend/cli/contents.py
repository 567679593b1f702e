"""What there is at a location, for the commands that list it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from storage_backend.base import StorageBackend, info_of
from storage_backend.cli.places import has_directories, names_a_place, names_either, object_at, place_at
from storage_backend.info import ObjectInfo

T = TypeVar("T")


class Contents(NamedTuple, Generic[T]):
    """What there is at a location.

    Attributes:
        storage: the place, or the one that the object is in.
        entries: what is there, lazily.
        single: whether the location is that of one object.
    """

    storage: StorageBackend
    entries: Iterator[T | ObjectInfo]
    single: bool = False


@contextmanager
def contents_of(location: str, entries: Callable[[StorageBackend], Iterable[T]]) -> Iterator[Contents[T]]:
    """What there is at *location*: the objects of a place, or beneath a prefix; else the one object.

    Args:
        location: as a person wrote it.
        entries: lists a place.

    Raises:
        click.UsageError: the location is wrong.
        NotFoundError: there is nothing.
    """
    either = names_either(location)
    if either and has_directories(location):
        storage, identifier = object_at(location)
        with storage:
            info = _object(storage, identifier)
            if info is not None:
                yield Contents(storage, iter([info]), single=True)
                return
        either = False
    if either or names_a_place(location) or has_directories(location):
        with place_at(location) as storage:
            found = iter(entries(storage))
            first = next(found, None)
            if first is not None:
                yield Contents(storage, itertools.chain([first], found))
                return
            # `entries` may have left out all that there is.
            if not either or next(iter(storage.scan()), None) is not None:
                yield Contents(storage, iter(()))
                return
    storage, identifier = object_at(location)
    with storage:
        yield Contents(storage, iter([info_of(storage.stat(identifier), identifier)]), single=True)


def all_objects(storage: StorageBackend) -> Iterator[ObjectInfo]:
    """Those of a place, for `contents_of`."""
    return storage.scan()


def _object(storage: StorageBackend, identifier: str) -> ObjectInfo | None:
    """The object; None if there is none, or a directory."""
    try:
        return info_of(storage.stat(identifier), identifier)
    except (FileNotFoundError, IsADirectoryError):
        return None


def size_of(storage: StorageBackend, info: ObjectInfo) -> int | None:
    """The object's size, asked for where the listing does not have it; None if the object has gone meanwhile."""
    if info.size is not None:
        return info.size
    try:
        return storage.size(info.identifier)
    except FileNotFoundError:
        return None
