"""The objects at a location, for commands that list them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Generic, NamedTuple, TypeVar

from storage_backend.base import StorageBackend
from storage_backend.cli.operands import (
    backend_at,
    has_directories,
    is_object_or_prefix,
    names_backend,
    object_at,
)
from storage_backend.defensive import info_of
from storage_backend.info import ObjectInfo

T = TypeVar("T")


class Contents(NamedTuple, Generic[T]):
    """The objects at a location.

    Attributes:
        storage: the backend.
        entries: listed lazily.
        single: whether the location names one object.
    """

    storage: StorageBackend
    entries: Iterator[T | ObjectInfo]
    single: bool = False


@contextmanager
def contents_of(location: str, entries: Callable[[StorageBackend], Iterable[T]]) -> Iterator[Contents[T]]:
    """The objects at *location*, which is a backend, a prefix, or one object.

    Args:
        location: an argument of the command.
        entries: lists a backend.

    Raises:
        click.UsageError: the location is malformed.
        NotFoundError: it does not exist.
    """
    with ExitStack() as stack:
        yield _opened(stack, location, entries)


def beneath(storage: StorageBackend, entries: Callable[[StorageBackend], Iterable[T]]) -> Contents[T] | None:
    """The entries of *storage*; None if there are none."""
    found = iter(entries(storage))
    first = next(found, None)
    return None if first is None else Contents(storage, itertools.chain([first], found))


def all_objects(storage: StorageBackend) -> Iterator[ObjectInfo]:
    """All objects of a backend, for `contents_of`."""
    return storage.scan()


def size_of(storage: StorageBackend, info: ObjectInfo) -> int | None:
    """The object's size, by a request if the listing lacks it; None if the object was deleted meanwhile."""
    if info.size is not None:
        return info.size
    try:
        return storage.size(info.identifier)
    except FileNotFoundError:
        return None


def _opened(stack: ExitStack, location: str, entries: Callable[[StorageBackend], Iterable[T]]) -> Contents[T]:
    either = is_object_or_prefix(location)
    if either and has_directories(location):
        found = _in_parent(stack, location, entries)
        if found is not None:
            return found
        either = False
    if either or names_backend(location) or has_directories(location):
        storage = stack.enter_context(backend_at(location))
        found = beneath(storage, entries)
        if found is not None:
            return found
        # *entries* may have filtered out all objects.
        if not either or next(iter(storage.scan()), None) is not None:
            return Contents(storage, iter(()))
    storage, identifier = object_at(location)
    stack.enter_context(storage)
    return Contents(storage, iter([info_of(storage.stat(identifier), identifier)]), single=True)


def _in_parent(
    stack: ExitStack, location: str, entries: Callable[[StorageBackend], Iterable[T]]
) -> Contents[T] | None:
    """The object or objects at *location*, over one connection to its parent directory.

    Returns:
        None for an empty directory or a symlink to one, whose entries this does not show.
    """
    storage, identifier = object_at(location)
    stack.enter_context(storage)
    try:
        return Contents(storage, iter([info_of(storage.stat(identifier), identifier)]), single=True)
    except IsADirectoryError:
        from storage_backend.wrappers.prefixed import PrefixedStorage

        return beneath(PrefixedStorage(storage, identifier), entries)
