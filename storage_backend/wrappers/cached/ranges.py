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
from storage_backend.wrappers.cached.cache import ObjectCache, RequestTime
from storage_backend.wrappers.cached.engine import CacheKey
from storage_backend.wrappers.cached.entry import CacheEntry, OpenEntry
from storage_backend.wrappers.cached.users import HITS, MISSES

BLOCK = 1 << 20  # bytes; an object that is not larger is fetched whole
_NOTE = struct.Struct("<Q")
_TRIES = 2  # of a range whose object changes meanwhile


class ObjectVersion(NamedTuple):
    """The present version of an object."""

    size: int
    etag: str | None
    modified: float | None

    def label(self) -> bytes:
        """What blocks of it are labelled with."""
        return f"{self.size}\0{self.etag if self.etag is not None else self.modified}".encode(
            "utf-8", "surrogateescape"
        )


class BlockRange(NamedTuple):
    """The blocks that have the bytes of [start, end): those of *keys*, from number *first* on."""

    start: int
    end: int
    first: int
    keys: list[CacheKey]

    @classmethod
    def of(
        cls, cache: ObjectCache, identifier: str, version: ObjectVersion, start: int, end: int | None
    ) -> BlockRange:
        """The blocks of one version that cover [start, end), clamped to its size."""
        end = max(start, version.size if end is None else min(end, version.size))
        first, last = start // BLOCK, -(-end // BLOCK) if start < end else start // BLOCK
        keys = [cache.part_key(identifier, version.label(), number) for number in range(first, last)]
        return cls(start, end, first, keys)

    def cut(self, pieces: Iterable[bytes | None]) -> bytes:
        """The bytes, out of the contents of all."""
        begin = self.start - self.first * BLOCK
        whole = b"".join(piece for piece in pieces if piece is not None)
        return whole[begin : begin + self.end - self.start]


class VersionNote(NamedTuple):
    """The version that was the present one when its entry, a note, was written."""

    version: ObjectVersion
    entry: CacheEntry


def read(
    cache: ObjectCache, identifier: str, key: CacheKey, start: int, end: int | None, *, seen: OpenEntry | None
) -> bytes:
    """The bytes of [start, end) of an object that is not in the cache as a whole, or as *seen*, which is not good."""
    for _ in range(_TRIES):
        noted = _noted(cache, key)
        if noted is not None and cache.is_fresh(noted.entry):
            cache.touch(key)
            version: ObjectVersion | None = noted.version
        else:
            try:
                version = _asked(cache, identifier, key)
            except Exception as error:
                stale = None if noted is None else _held(cache, identifier, noted.version, start, end)
                if noted is None or stale is None or not cache.serves_stale(identifier, error, noted.entry):
                    raise
                cache.count(HITS, len(stale))
                return stale
        if version is None:
            break
        if version.size <= BLOCK:
            return cache.missed(identifier, key, seen, cache.content, cache.fetched)[start:end]
        try:
            return _from_blocks(cache, identifier, version, start, end)
        except SourceChangedError:
            cache.safely(cache.engine.drop, key)
    cache.count(MISSES)
    return cache.backend.read_range(identifier, start, end)


def _noted(cache: ObjectCache, key: CacheKey) -> VersionNote | None:
    """What a note tells, fresh or expired."""
    found = cache.find(key)
    if found is None:
        return None
    entry = found.entry
    if not entry.note:
        found.close()
        return None
    content = cache.content(found)
    if content is None:
        return None
    return VersionNote(ObjectVersion(_NOTE.unpack(content)[0], entry.etag, entry.modified), entry)


def _asked(cache: ObjectCache, identifier: str, key: CacheKey) -> ObjectVersion | None:
    """The version that the backend tells of; None if it does not tell enough."""
    generation = cache.generation(key)
    began = cache.begin()
    try:
        info = info_of(cache.backend.stat(identifier), identifier)
    except FileNotFoundError:
        cache.safely(cache.engine.drop, key)
        raise
    version = _version(cache, info, began)
    if version is not None and version.size > BLOCK and generation is not None:
        content = _NOTE.pack(version.size)
        entry = CacheEntry(
            key.label, len(content), began.at, version.etag, version.modified, cache.stamp(), note=True
        )
        cache.store_piece(key, content, entry, generation)
    return version


def _version(cache: ObjectCache, info: ObjectInfo | None, looked: RequestTime) -> ObjectVersion | None:
    etag, modified = cache.proof(info, looked)
    if info is None or info.size is None or (etag is None and modified is None):
        return None
    return ObjectVersion(info.size, etag, modified)


def _held(
    cache: ObjectCache, identifier: str, version: ObjectVersion, start: int, end: int | None
) -> bytes | None:
    """The bytes of [start, end), if all blocks of them are in the cache."""
    blocks = BlockRange.of(cache, identifier, version, start, end)
    pieces = [cache.cached_piece(key) for key in blocks.keys]
    return blocks.cut(pieces) if None not in pieces else None


def _from_blocks(
    cache: ObjectCache, identifier: str, version: ObjectVersion, start: int, end: int | None
) -> bytes:
    """The bytes of [start, end), from blocks.

    Raises:
        SourceChangedError: the object is of another version now.
    """
    blocks = BlockRange.of(cache, identifier, version, start, end)
    pieces = [cache.cached_piece(key) for key in blocks.keys]
    if None not in pieces:
        cache.count(HITS, blocks.end - blocks.start)
        return blocks.cut(pieces)
    cache.count(MISSES)
    at = 0
    while at < len(pieces):
        if pieces[at] is not None:
            at += 1
            continue
        stop = at
        while stop < len(pieces) and pieces[stop] is None:
            stop += 1
        pieces[at:stop] = _fetched(cache, identifier, version, blocks.keys[at:stop], blocks.first + at)
        at = stop
    return blocks.cut(pieces)


def _fetched(
    cache: ObjectCache, identifier: str, version: ObjectVersion, keys: list[CacheKey], number: int
) -> list[bytes | None]:
    """Neighbouring blocks, by one request."""
    with cache.flights.alone(keys[0].name):
        found = [cache.cached_piece(key) for key in keys]
        if all(piece is not None for piece in found):
            return found
        generations = [cache.generation(key) for key in keys]
        start, end = number * BLOCK, min((number + len(keys)) * BLOCK, version.size)
        began = cache.begin()
        content = cache.backend.read_range(identifier, start, end)
        # Of that very answer, or else what the object is after it.
        info = cache.seen(identifier)
        if info is None:
            info = info_of(cache.backend.stat(identifier), identifier)
        if len(content) != end - start or _version(cache, info, began) != version:
            raise SourceChangedError(f"{identifier!r} changed while it was read", identifier=identifier)
        pieces: list[bytes | None] = []
        for position, (key, generation) in enumerate(zip(keys, generations, strict=True)):
            piece = content[position * BLOCK : (position + 1) * BLOCK]
            entry = CacheEntry(key.label, len(piece), began.at, None, None, cache.stamp())
            cache.store_piece(key, piece, entry, generation)
            pieces.append(piece)
        return pieces
