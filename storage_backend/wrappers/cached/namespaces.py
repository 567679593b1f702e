"""Namespaces: keep the entries of several backends apart in the same directory."""

from __future__ import annotations

import functools
import logging
import os
import weakref
from collections.abc import Iterator
from typing import NamedTuple

from storage_backend.base import StorageBackend
from storage_backend.defensive import location_of
from storage_backend.errors import ConfigurationError
from storage_backend.hooks import hooks_of
from storage_backend.wrappers.base import Wrapper
from storage_backend.wrappers.recoding import RecodingWrapper

logger = logging.getLogger(__name__)


def namespace_of(backend: StorageBackend, directory: str, given: str | None, token: str) -> str:
    """The namespace of a backend in the cache of *directory*.

    A location that is a URL identifies a store. Without one, its class and `get_path` do; of several objects with the same
    values, only one at a time may use the directory.

    Args:
        backend: what is cached.
        directory: of the cache.
        given: the namespace argument.
        token: of the CachedStorage and its pickled copies.

    Raises:
        ConfigurationError: another object uses the directory, and nothing proves that it is the same store.
    """
    where = location_of(backend) + _recodings(backend)
    if given is not None:
        return f"{where}\0{given}"
    for leaf in _leaves(backend):
        if "://" not in location_of(leaf):
            where += f"\0{_described(leaf)}"
            _claim(leaf, directory, where, token)
    return where


def _leaves(backend: StorageBackend) -> Iterator[StorageBackend]:
    """The innermost backends: one, or two beneath a FallbackStorage."""
    if isinstance(backend, Wrapper):
        yield from _leaves(backend.backend)
        return
    sides = [getattr(backend, name, None) for name in ("primary", "secondary")]
    if all(isinstance(side, StorageBackend) for side in sides):
        for side in sides:
            assert isinstance(side, StorageBackend)
            yield from _leaves(side)
        return
    yield backend


def _described(leaf: StorageBackend) -> str:
    """A description of a store that has no URL."""
    kind = type(leaf)
    try:
        path: object = leaf.get_path("x")
    except Exception as error:  # noqa: BLE001 - a user's class may raise anything
        logger.debug("get_path of %s: %s", kind.__name__, error)
        path = ""
    return f"{kind.__module__}.{kind.__qualname__}\0{path if isinstance(path, str) else ''}\0{hooks_of(leaf).instance}"


class DirectoryClaim(NamedTuple):
    """The use of a directory by one object.

    Attributes:
        token: of the CachedStorage that made it; its pickled copies have it too.
        leaf: the object, while it exists.
    """

    token: str
    leaf: weakref.ref[StorageBackend]


@functools.cache
def _claims() -> dict[tuple[str, str], DirectoryClaim]:
    """This process's claims: only this process knows which objects exist and could be mistaken for each other."""
    return {}


def _claim(leaf: StorageBackend, directory: str, namespace: str, token: str) -> None:
    key = (os.path.realpath(directory), namespace)
    ours = DirectoryClaim(token, weakref.ref(leaf))
    claim = _claims().setdefault(key, ours)
    claimant = claim.leaf()
    if claimant is None:
        _claims()[key] = ours
    elif claimant is not leaf and claim.token != token:
        raise ConfigurationError(
            f"namespace: another {type(leaf).__name__} is cached in {directory}, and nothing distinguishes the two, because its "
            "location is not a URL; give each its own namespace=, or another cache_dir",
            parameter="namespace",
        )


def _recodings(backend: StorageBackend) -> str:
    """The wrappers between the location and the cache that transform the bytes."""
    found = ""
    while isinstance(backend, Wrapper):
        if isinstance(backend, RecodingWrapper):
            found += f" {type(backend).__name__}"
        backend = backend.backend
    return found
