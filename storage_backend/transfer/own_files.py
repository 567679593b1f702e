"""Excludes the files that transfers themselves use (journals, manifests, caches) from the objects of a side."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from storage_backend.base import StorageBackend
from storage_backend.defensive import location_of
from storage_backend.errors import ConfigurationError
from storage_backend.hooks import hooks_of
from storage_backend.lineage import lineage
from storage_backend.paths import expanded, state_directory

_OF_A_JOURNAL = ("", "-wal", "-shm", "-journal", ".lock")


def own_paths(
    source: StorageBackend,
    target: StorageBackend,
    journal: str | os.PathLike[str] | None,
    manifest: str | os.PathLike[str] | None,
) -> list[Path]:
    """The files and folders that this transfer, its backends and wrappers use."""
    found = [*hooks_of(source).own_paths(), *hooks_of(target).own_paths()]
    if journal is not None:
        found += [Path(f"{expanded(journal)}{end}") for end in _OF_A_JOURNAL]
    if manifest is not None:
        found.append(Path(expanded(manifest)))
    return found


def check_apart(
    source: StorageBackend,
    target: StorageBackend,
    journal: str | os.PathLike[str],
    manifest: str | os.PathLike[str] | None,
) -> None:
    """Refuse a journal or manifest that is itself the root of a side, or a manifest that is the journal or a cache.

    Raises:
        ConfigurationError: they are.
    """
    files = own_paths(source, target, journal, None)
    for side in (source, target):
        for name, paths in (
            ("journal", [Path(expanded(journal))]),
            ("manifest", [manifest] if manifest else []),
        ):
            if "" in _names(side, [Path(expanded(path)) for path in paths]):
                raise ConfigurationError(
                    f"{name}: {paths[0]} is the storage {location_of(side)} itself", parameter=name
                )
    if manifest is not None and lineage(expanded(manifest)) in map(lineage, files):
        raise ConfigurationError(f"manifest: {manifest} is the journal, or a cache", parameter="manifest")


def own_names(backend: StorageBackend, paths: Iterable[Path]) -> frozenset[str]:
    """The identifiers under which *backend* would list *paths*; for a folder, that of the folder.

    Raises:
        ConfigurationError: the backend's root is one of them.
    """
    found = _names(backend, paths)
    if "" in found:
        raise ConfigurationError(f"{location_of(backend)} is a file or folder that this transfer itself uses")
    try:
        return found | (_names(backend, [state_directory()]) - {""})
    except ConfigurationError:  # no home directory, so no state directory
        return found


def _names(backend: StorageBackend, paths: Iterable[Path]) -> frozenset[str]:
    places = {place[-1] for place in hooks_of(backend).places()}
    found = set()
    for path in paths:
        # A symbolic link has two names: its own, and that of the file it leads to.
        for name in {os.path.realpath(path), os.path.join(os.path.realpath(path.parent), path.name)}:  # noqa: PTH118
            segments = [segment for segment in name.split("/") if segment]
            above = lineage(os.path.dirname(name))  # noqa: PTH120 - a str
            found |= {"/".join(segments[at:]) for at, place in enumerate(above) if place in places}
            if lineage(name)[-1] in places:
                found.add("")
    return frozenset(found)
