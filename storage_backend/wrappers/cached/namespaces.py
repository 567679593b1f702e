"""Namespaces: what tells the entries of one backend from those of another in the same directory."""

from __future__ import annotations

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

    A location that is a URL tells a store from all others. Without one, a store is told by its class and by what `get_path` gives, and of
    those that agree in both, one object at a time may use the directory.

    Args:
        backend: what is cached.
        directory: of the cache.
        given: the namespace that was asked for, if any.
        token: of the CachedStorage and its pickled copies.

    Raises:
        ConfigurationError: another object, of which nothing tells whether it is the same store, uses the directory.
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
    """The backends that everything is forwarded to in the end: one, or those of a pair."""
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
    """What is known of a store that has no URL."""
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
        leaf: the object, while it is there.
    """

    token: str
    leaf: weakref.ref[StorageBackend]


# Of this process: which objects live, and so could be in each other's way, only the process knows.
_claims: dict[tuple[str, str], DirectoryClaim] = {}


def _claim(leaf: StorageBackend, directory: str, namespace: str, token: str) -> None:
    key = (os.path.realpath(directory), namespace)
    ours = DirectoryClaim(token, weakref.ref(leaf))
    claim = _claims.setdefault(key, ours)
    claimant = claim.leaf()
    if claimant is None:
        _claims[key] = ours
    elif claimant is not leaf and claim.token != token:
        raise ConfigurationError(
            f"namespace: another {type(leaf).__name__} is cached in {directory}, and nothing tells the two apart, since its "
            "location is no URL; give each a namespace= of its own, or another cache_dir",
            parameter="namespace",
        )


def _recodings(backend: StorageBackend) -> str:
    """What makes other bytes of those at a location, on the way to the cache."""
    found = ""
    while isinstance(backend, Wrapper):
        if isinstance(backend, RecodingWrapper):
            found += f" {type(backend).__name__}"
        backend = backend.backend
    return found
