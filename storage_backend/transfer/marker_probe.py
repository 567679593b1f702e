"""SidePair: proves that source and target are different places, before anything is deleted.

`overlap` finds some pairs that are one place by their locations. It cannot prove that two are different: a server may be this
machine, and a folder may be mounted twice. So a marker, a small object with a new name, is written on one side and looked for on
the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from storage_backend import markers
from storage_backend.base import StorageBackend
from storage_backend.defensive import location_of
from storage_backend.errors import FATAL, is_retryable
from storage_backend.info import ObjectInfo

MANY = 100  # folders of one side that may contain the other; with more, the side is listed again to find the marker


class ListedSide:
    """One side, and facts from its listing.

    Attributes:
        backend: the side.
        first: the first object listed.
        count: objects in scope listed so far.
        strays: markers of this pair left by a killed run.
        left_out: identifiers of the transfer's own files and folders, which are not listed.
    """

    def __init__(self, backend: StorageBackend, own: str) -> None:
        self.backend = backend
        self.left_out: frozenset[str] = frozenset()
        self.first: str | None = None
        self.count = 0
        self.strays: list[str] = []
        self._own = own
        self._folders: list[str] = []

    def watched(self, infos: Iterable[ObjectInfo], other: ListedSide) -> Iterator[ObjectInfo]:
        """The listing without markers and `left_out`. Notes the folders that may contain *other*: they have its first object."""
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

    def folders(self, other: ListedSide) -> list[str] | None:
        """The folders of this side, each with its "/", that may contain *other*, judged by names; None if too many."""
        end = f"/{other.first}"
        first = [self.first[: 1 - len(end)]] if self.first is not None and self.first.endswith(end) else []
        return [*first, *self._folders] if len(self._folders) <= MANY else None


class SidePair:
    """The source and the target of a transfer.

    Args:
        source: read from.
        target: written to.
        stem: the literal prefix with which both are listed.
    """

    def __init__(self, source: StorageBackend, target: StorageBackend, stem: str) -> None:
        pair = f"{location_of(source)}\0{location_of(target)}".encode("utf-8", "surrogateescape")
        self._pair = hashlib.sha256(pair).hexdigest()[:24]
        self.source, self.target = (
            ListedSide(backend, markers.STEM + self._pair) for backend in (source, target)
        )
        self._folder = stem[: stem.rfind("/") + 1]

    def one_place(self, *, source_loses: bool) -> str | None:
        """Why nothing may be deleted: the sides are one place, or it cannot be proven that they are not. None if they are different.

        Args:
            source_loses: the source's objects are to be deleted. Else the target's are, and a marker is written to the source only
                if, judged by names, the source may lie inside the target.

        Raises:
            StorageError: a side is unreachable, or refuses everything.
        """
        reason = self._shows(self.target, self.source)
        if reason is None and (source_loses or self._inside(self.target, self.source)):
            reason = self._shows(self.source, self.target)
        return reason and f"nothing was deleted: {reason}"

    def clear(self) -> None:
        """Delete the markers that a killed run left on either side."""
        for side in (self.source, self.target):
            for name in side.strays:
                markers.remove(side.backend, name)

    @property
    def _exact(self) -> list[str]:
        """The prefixes that a marker may get even if neither side lies inside the other: none, or a folder of the pattern."""
        above = [self._folder[: at + 1] for at, letter in enumerate(self._folder) if letter == "/"]
        return ["", *above]

    def _inside(self, outer: ListedSide, inner: ListedSide) -> bool:
        """Whether, judged by names, *inner* may lie inside *outer*: then *outer* has all its objects under some folder."""
        sure = self._looks_for(inner, outer) == self._exact
        return not sure or (inner.first is not None and not inner.backend.exists(inner.first))

    def _looks_for(self, home: ListedSide, away: ListedSide) -> list[str] | None:
        """The prefixes under which *away* may list a marker of *home*; None for any."""
        if home.first is None:
            return self._exact
        folders = away.folders(home)
        return None if folders is None else self._exact + folders

    def _shows(self, home: ListedSide, away: ListedSide) -> str | None:
        """Why the two may be one place; None if an object written to *home* does not appear in *away*."""
        here, there = location_of(home.backend), location_of(away.backend)
        marker = markers.fresh(self._folder, self._pair)
        try:
            # The folders were found through the first object of *home*. If that is gone, they prove nothing.
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
            return f"source and target are one place: an object written to {here} appears in {there}{where}"
        if not there_still:
            return (
                f"it cannot be proven that {here} and {there} are different places: another program removed "
                f"{marker!r} from {here}; run it again"
            )
        return None


def _above(identifier: str) -> Iterator[str]:
    """An identifier, and all folders above it."""
    while identifier:
        yield identifier
        identifier = identifier.rpartition("/")[0]


def _seen(backend: StorageBackend, marker: str, before: list[str] | None) -> str | None:
    """The name under which *backend* lists the marker; None if it does not."""
    if before is None:
        return next((info.identifier for info in backend.scan() if info.identifier.endswith(marker)), None)
    names = dict.fromkeys(folder + marker for folder in before)
    return next((info.identifier for info in backend.stat_many(names)), None)
