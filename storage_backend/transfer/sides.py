"""Sides: whether source and target are different places, which is proven before anything is deleted.

Locations, inodes and instances tell some pairs that are one place (see `guards`), and none that are two: a server may be this
machine, a folder may be mounted twice. So a marker with a fresh name is written on one side and looked for on the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from storage_backend import markers
from storage_backend.base import StorageBackend
from storage_backend.defensive import location_of
from storage_backend.errors import FATAL, is_retryable
from storage_backend.info import ObjectInfo

MANY = 100  # places inside a side where the other one may be; with more it is listed again, while a marker is there


class Side:
    """One of the two, as its listing shows it.

    Attributes:
        backend: the side.
        first: the first object that it lists.
        strays: markers of this pair that a killed run left behind.
        left_out: identifiers of files, and of folders with all in them, that are none of the side's objects.
    """

    def __init__(self, backend: StorageBackend, own: str) -> None:
        self.backend = backend
        self.left_out: frozenset[str] = frozenset()
        self.first: str | None = None
        self.strays: list[str] = []
        self._own = own
        self._folders: list[str] = []

    def watched(self, infos: Iterable[ObjectInfo], other: Side) -> Iterator[ObjectInfo]:
        """The same without markers and what is left out; where *other* may lie inside this side is noted on the way."""
        end: str | None = None
        for info in infos:
            name = info.identifier
            if self.left_out and not self.left_out.isdisjoint(_above(name)):
                continue
            if markers.is_marker(name):
                if self._own in name and len(self.strays) < MANY:
                    self.strays.append(name)
                continue
            if self.first is None:
                self.first = name
            if end is None and other.first is not None:
                end = f"/{other.first}"
            if end is not None and name.endswith(end) and len(self._folders) <= MANY:
                self._folders.append(name[: 1 - len(end)])
            yield info

    def folders(self, other: Side) -> list[str] | None:
        """Where in this side, each with its "/", *other* may be, as far as names tell; None for too many."""
        end = f"/{other.first}"
        first = [self.first[: 1 - len(end)]] if self.first is not None and self.first.endswith(end) else []
        return [*first, *self._folders] if len(self._folders) <= MANY else None


class Sides:
    """A source and a target.

    Args:
        source: the one.
        target: the other.
        stem: the literal prefix of what is listed of either.
    """

    def __init__(self, source: StorageBackend, target: StorageBackend, stem: str) -> None:
        pair = f"{location_of(source)}\0{location_of(target)}".encode("utf-8", "surrogateescape")
        self._pair = hashlib.sha256(pair).hexdigest()[:24]
        self.source, self.target = (Side(backend, markers.STEM + self._pair) for backend in (source, target))
        self._folder = stem[: stem.rfind("/") + 1]

    def one_place(self, *, source_loses: bool) -> str | None:
        """Why nothing may be deleted: what is written on one side shows on the other, or that cannot be told; None if they differ.

        Args:
            source_loses: it is the source's objects that would be deleted. Else it is the target's, and nothing is written to the
                source unless names make it look as if it lay inside the target.

        Raises:
            StorageError: a side is out of reach, or refuses everything.
        """
        reason = self._shows(self.target, self.source)
        if reason is None and (source_loses or self._inside(self.target, self.source)):
            reason = self._shows(self.source, self.target)
        return reason and f"nothing was deleted: {reason}"

    def clear(self) -> None:
        """Remove the markers that a killed run left behind."""
        for side in (self.source, self.target):
            for name in side.strays:
                markers.remove(side.backend, name)

    @property
    def _exact(self) -> list[str]:
        """Where a marker shows if both are the same place, or the pattern's folders make it look so."""
        above = [self._folder[: at + 1] for at, letter in enumerate(self._folder) if letter == "/"]
        return ["", *above]

    def _inside(self, outer: Side, inner: Side) -> bool:
        """Whether *inner* may lie inside *outer*, by names: then all of its objects show there beneath some folder."""
        sure = self._looks_for(inner, outer) == self._exact
        return not sure or (inner.first is not None and not inner.backend.exists(inner.first))

    def _looks_for(self, home: Side, away: Side) -> list[str] | None:
        """Before which names a marker of *home* may show in *away*; None for anywhere."""
        if home.first is None:
            return self._exact
        folders = away.folders(home)
        return None if folders is None else self._exact + folders

    def _shows(self, home: Side, away: Side) -> str | None:
        """Why the two may be one place; None if what is written to *home* does not show in *away*."""
        here, there = location_of(home.backend), location_of(away.backend)
        marker = markers.fresh(self._folder, self._pair)
        try:
            # By the first object of *home* it was found where *away* may hold it: it must have been there all the time.
            before = self._looks_for(home, away)
            if home.first is not None and not home.backend.exists(home.first):
                before = None
            try:
                markers.write(home.backend, marker)
                seen = _seen(away.backend, marker, before)
                there_still = home.backend.exists(marker)
            finally:
                markers.remove(home.backend, marker)
        except FATAL:
            raise
        except Exception as error:
            if is_retryable(error):
                raise
            return f"it cannot be proven that {here} and {there} are different places: {error}"
        if seen is not None:
            where = f" as {seen!r}" if seen != marker else ""
            return f"source and target are one place: what was written to {here} shows in {there}{where}"
        if not there_still:
            return (
                f"it cannot be proven that {here} and {there} are different places: somebody else removed "
                f"{marker!r} from {here}; run it again"
            )
        return None


def _above(identifier: str) -> Iterator[str]:
    """An identifier, and each of those that it would be beneath."""
    while identifier:
        yield identifier
        identifier = identifier.rpartition("/")[0]


def _seen(backend: StorageBackend, marker: str, before: list[str] | None) -> str | None:
    """The name under which *backend* shows the marker."""
    if before is None:
        return next((info.identifier for info in backend.scan() if info.identifier.endswith(marker)), None)
    names = dict.fromkeys(folder + marker for folder in before)
    return next((info.identifier for info in backend.stat_many(names)), None)
