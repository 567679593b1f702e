"""Refuses a source and target that overlap: the same place, or one inside the other, judged by their locations."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from storage_backend.base import StorageBackend
from storage_backend.defensive import location_of
from storage_backend.errors import ConfigurationError
from storage_backend.hooks import hooks_of


def check_pair(source: StorageBackend, target: StorageBackend, *, deletes: bool = False) -> None:
    """Refuse a source and target that overlap, judged by their locations, inodes, and the backends within wrappers.

    Args:
        source: read from.
        target: written to.
        deletes: objects are to be deleted. Then a wrapper over several backends is refused if one of them overlaps.

    Raises:
        ConfigurationError: they are the same place, or one lies inside the other.
    """
    one, other = location_of(source), location_of(target)
    if source is target:
        raise _same(one)
    check_locations(one, other)
    ours, theirs = tuple(hooks_of(source).places()), tuple(hooks_of(target).places())
    if max(len(ours), len(theirs)) > 1 and not deletes:
        return
    for here in ours:
        for there in theirs:
            if here[-1] == there[-1]:
                raise _same(one if one == other else f"{one} and {other}")
            if here[-1] in there:
                raise ConfigurationError(
                    f"the target {other} lies inside the source {one}", parameter="target"
                )
            if there[-1] in here:
                raise ConfigurationError(
                    f"the source {one} lies inside the target {other}", parameter="source"
                )


def check_locations(one: str, other: str) -> None:
    """As `check_pair`, for the locations of a source and a target.

    Raises:
        ConfigurationError: they are the same place, or one lies inside the other.
    """
    if "://" in one and one == other:
        raise _same(one)
    here, there = _place(one), _place(other)
    if here is None or there is None or here[0] != there[0]:
        return
    if _holds(here[1], there[1]):
        raise ConfigurationError(f"the target {other} lies inside the source {one}", parameter="target")
    if _holds(there[1], here[1]):
        raise ConfigurationError(f"the source {one} lies inside the target {other}", parameter="source")


def _same(location: str) -> ConfigurationError:
    return ConfigurationError(f"source and target are the same place: {location}", parameter="target")


def _place(location: str) -> tuple[str, tuple[str, ...]] | None:
    """The host of a location, and the segments of its path and prefix; None if the location is not a URL."""
    if "://" not in location:
        return None
    url = urlsplit(location)
    # Without a host the scheme makes no difference: a database file may lie inside a folder.
    host = f"{url.scheme}://{url.netloc}" if url.netloc else ""
    query = [f"?{url.query}"] if url.query else []
    return host, (*_segments(url.path), *query, *_segments(url.fragment))


def _segments(path: str) -> list[str]:
    return [segment for segment in unquote(path).split("/") if segment]


def _holds(outer: tuple[str, ...], inner: tuple[str, ...]) -> bool:
    return inner[: len(outer)] == outer
