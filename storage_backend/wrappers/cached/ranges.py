"""Ranges of large objects that are not in the cache: blocks of them are, each an entry of its own.

A block's label holds the object's identifier, its version (the etag, or size and time where they prove something) and the
block's number: so it never goes bad. What expires is the note under the object's own key that says which version is the
present one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from storage_backend.defensive import info_of
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


class _Blocks(NamedTuple):
    """The blocks that have the bytes of [start, end): those of *keys*, from number *first* on."""

    start: int
    end: int
    first: int
    keys: list[Key]

    @classmethod
    def of(cls, keeper: Keeper, identifier: str, version: _Version, start: int, end: int | None) -> _Blocks:
        end = max(start, version.size if end is None else min(end, version.size))
        first, last = start // BLOCK, -(-end // BLOCK) if start < end else start // BLOCK
        keys = [keeper.part_key(identifier, version.label(), number) for number in range(first, last)]
        return cls(start, end, first, keys)

    def cut(self, pieces: Iterable[bytes | None]) -> bytes:
        """The bytes, out of the contents of all."""
        begin = self.start - self.first * BLOCK
        whole = b"".join(piece for piece in pieces if piece is not None)
        return whole[begin : begin + self.end - self.start]


class _Noted(NamedTuple):
    """The version that was the present one when its entry, a note, was written."""

    version: _Version
    entry: Entry


def read(
    keeper: Keeper, identifier: str, key: Key, start: int, end: int | None, *, seen: Found | None
) -> bytes:
    """The bytes of [start, end) of an object that is not in the cache as a whole, or as *seen*, which is not good."""
    for _ in range(_TRIES):
        noted = _noted(keeper, key)
        if noted is not None and keeper.is_fresh(noted.entry):
            keeper.touch(key)
            version: _Version | None = noted.version
        else:
            try:
                version = _asked(keeper, identifier, key)
            except Exception as error:
                stale = None if noted is None else _held(keeper, identifier, noted.version, start, end)
                if noted is None or stale is None or not keeper.serves_stale(identifier, error, noted.entry):
                    raise
                keeper.count(HITS, len(stale))
                return stale
        if version is None:
            break
        if version.size <= BLOCK:
            return keeper.missed(identifier, key, seen, keeper.content, keeper.fetched)[start:end]
        try:
            return _from_blocks(keeper, identifier, version, start, end)
        except SourceChangedError:
            keeper.safely(keeper.engine.drop, key)
    keeper.count(MISSES)
    return keeper.backend.read_range(identifier, start, end)


def _noted(keeper: Keeper, key: Key) -> _Noted | None:
    """What a note tells, fresh or expired."""
    found = keeper.find(key)
    if found is None:
        return None
    entry = found.entry
    if not entry.note:
        found.close()
        return None
    content = keeper.content(found)
    if content is None:
        return None
    return _Noted(_Version(_NOTE.unpack(content)[0], entry.etag, entry.modified), entry)


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


def _held(keeper: Keeper, identifier: str, version: _Version, start: int, end: int | None) -> bytes | None:
    """The bytes of [start, end), if all blocks of them are in the cache."""
    blocks = _Blocks.of(keeper, identifier, version, start, end)
    pieces = [keeper.cached_piece(key) for key in blocks.keys]
    return blocks.cut(pieces) if None not in pieces else None


def _from_blocks(keeper: Keeper, identifier: str, version: _Version, start: int, end: int | None) -> bytes:
    """The bytes of [start, end), from blocks.

    Raises:
        SourceChangedError: the object is of another version now.
    """
    blocks = _Blocks.of(keeper, identifier, version, start, end)
    pieces = [keeper.cached_piece(key) for key in blocks.keys]
    if None not in pieces:
        keeper.count(HITS, blocks.end - blocks.start)
        return blocks.cut(pieces)
    keeper.count(MISSES)
    at = 0
    while at < len(pieces):
        if pieces[at] is not None:
            at += 1
            continue
        stop = at
        while stop < len(pieces) and pieces[stop] is None:
            stop += 1
        pieces[at:stop] = _fetched(keeper, identifier, version, blocks.keys[at:stop], blocks.first + at)
        at = stop
    return blocks.cut(pieces)


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
