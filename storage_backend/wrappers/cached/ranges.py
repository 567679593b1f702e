"""Ranges of large objects that are not in the cache: blocks of them are, each an entry of its own.

A block's label holds the object's identifier, its version (the etag, or size and time where they prove something) and the
block's number: so it never goes bad. What expires is the note under the object's own key that says which version is the
present one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from storage_backend.base import info_of
from storage_backend.errors import SourceChangedError
from storage_backend.info import ObjectInfo
from storage_backend.wrappers.cached.engine import Key
from storage_backend.wrappers.cached.entry import Entry, Found
from storage_backend.wrappers.cached.keeper import Keeper, Moment
from storage_backend.wrappers.cached.members import HITS, MISSES

BLOCK = 1 << 20  # bytes; an object that is not larger is fetched whole
_NOTE = struct.Struct("<Q")
_TRIES = 2  # of a range whose object changes meanwhile


class _Version(NamedTuple):
    """The present version of an object."""

    size: int
    etag: str | None
    modified: float | None

    def label(self) -> bytes:
        """What blocks of it are labelled with."""
        return f"{self.size}\0{self.etag if self.etag is not None else self.modified}".encode(
            "utf-8", "surrogateescape"
        )


def read(
    keeper: Keeper, identifier: str, key: Key, start: int, end: int | None, *, seen: Found | None
) -> bytes:
    """The bytes of [start, end) of an object that is not in the cache as a whole, or as *seen*, which is not good."""
    for _ in range(_TRIES):
        version = _noted(keeper, key) or _asked(keeper, identifier, key)
        if version is None:
            break
        if version.size <= BLOCK:
            return keeper.missed(identifier, key, seen, keeper.content, keeper.fetched)[start:end]
        try:
            return _from_blocks(keeper, identifier, version, start, version.size if end is None else end)
        except SourceChangedError:
            keeper.safely(keeper.engine.drop, key)
    keeper.count(MISSES)
    return keeper.backend.read_range(identifier, start, end)


def _noted(keeper: Keeper, key: Key) -> _Version | None:
    """The version that a note tells of, if it is fresh."""
    found = keeper.find(key)
    if found is None:
        return None
    entry = found.entry
    if not entry.note or not keeper.is_fresh(entry):
        found.close()
        return None
    content = keeper.content(found)
    if content is None:
        return None
    keeper.touch(key)
    return _Version(_NOTE.unpack(content)[0], entry.etag, entry.modified)


def _asked(keeper: Keeper, identifier: str, key: Key) -> _Version | None:
    """The version that the backend tells of; None if it does not tell enough."""
    generation = keeper.generation(key)
    began = keeper.begin()
    try:
        info = info_of(keeper.backend.stat(identifier), identifier)
    except FileNotFoundError:
        keeper.safely(keeper.engine.drop, key)
        raise
    version = _version(keeper, info, began)
    if version is not None and version.size > BLOCK and generation is not None:
        content = _NOTE.pack(version.size)
        entry = Entry(
            key.label, len(content), began.at, version.etag, version.modified, keeper.stamp(), note=True
        )
        keeper.store_piece(key, content, entry, generation)
    return version


def _version(keeper: Keeper, info: ObjectInfo | None, looked: Moment) -> _Version | None:
    etag, modified = keeper.proof(info, looked)
    if info is None or info.size is None or (etag is None and modified is None):
        return None
    return _Version(info.size, etag, modified)


def _from_blocks(keeper: Keeper, identifier: str, version: _Version, start: int, end: int) -> bytes:
    """The bytes of [start, end), from blocks.

    Raises:
        SourceChangedError: the object is of another version now.
    """
    end = min(end, version.size)
    if start >= end:
        keeper.count(HITS)
        return b""
    first, last = start // BLOCK, (end - 1) // BLOCK
    labelled = [keeper.part_key(identifier, version.label(), number) for number in range(first, last + 1)]
    pieces = [keeper.cached_piece(key) for key in labelled]
    if all(piece is not None for piece in pieces):
        keeper.count(HITS, end - start)
    else:
        keeper.count(MISSES)
        at = 0
        while at < len(pieces):
            if pieces[at] is not None:
                at += 1
                continue
            stop = at
            while stop < len(pieces) and pieces[stop] is None:
                stop += 1
            pieces[at:stop] = _fetched(keeper, identifier, version, labelled[at:stop], first + at)
            at = stop
    whole = b"".join(piece for piece in pieces if piece is not None)
    begin = start - first * BLOCK
    return whole[begin : begin + end - start]


def _fetched(
    keeper: Keeper, identifier: str, version: _Version, keys: list[Key], number: int
) -> list[bytes | None]:
    """Neighbouring blocks, by one request."""
    with keeper.flights.alone(keys[0].name):
        found = [keeper.cached_piece(key) for key in keys]
        if all(piece is not None for piece in found):
            return found
        generations = [keeper.generation(key) for key in keys]
        start, end = number * BLOCK, min((number + len(keys)) * BLOCK, version.size)
        began = keeper.begin()
        content = keeper.backend.read_range(identifier, start, end)
        # Of that very answer, or else what the object is after it.
        info = keeper.seen(identifier)
        if info is None:
            info = info_of(keeper.backend.stat(identifier), identifier)
        if len(content) != end - start or _version(keeper, info, began) != version:
            raise SourceChangedError(f"{identifier!r} changed while it was read", identifier=identifier)
        pieces: list[bytes | None] = []
        for position, (key, generation) in enumerate(zip(keys, generations, strict=True)):
            piece = content[position * BLOCK : (position + 1) * BLOCK]
            entry = Entry(key.label, len(piece), began.at, None, None, keeper.stamp())
            keeper.store_piece(key, piece, entry, generation)
            pieces.append(piece)
        return pieces
