"""Ranges of large objects, which are cached in blocks, each an entry of its own.

A block's label contains the object's identifier, its version (the etag, or size and time if they are a proof) and the block's
number, so a block never becomes stale. Only the version note does: under the object's own key, it records the present version.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from storage_backend.defensive import info_of
from storage_backend.errors import SourceChangedError
from storage_backend.info import ObjectInfo
from storage_backend.wrappers.cached.cache import ObjectCache
from storage_backend.wrappers.cached.entry import CacheEntry, CacheKey, OpenEntry
from storage_backend.wrappers.cached.freshness import BackendRequest
from storage_backend.wrappers.cached.users import HITS, MISSES

BLOCK = 1 << 20  # bytes; smaller objects are fetched whole
_NOTE = struct.Struct("<Q")
_TRIES = 2  # to read a range whose object changes meanwhile


class ObjectVersion(NamedTuple):
    """The present version of an object."""

    size: int
    etag: str | None
    modified: float | None

    def label(self) -> bytes:
        """The version in the labels of its blocks."""
        return f"{self.size}\0{self.etag if self.etag is not None else self.modified}".encode(
            "utf-8", "surrogateescape"
        )


def read(
    cache: ObjectCache, identifier: str, key: CacheKey, start: int, end: int | None, *, stamp: int | None
) -> bytes:
    """The bytes of [start, end) of an object without a fresh entry; *stamp* is of its stale one, if any."""
    for _ in range(_TRIES):
        noted, note = _noted(cache, key)
        if note is not None and cache.freshness.is_fresh(note):
            version = noted
            cache.touch(key)
        else:
            try:
                version = _asked(cache, identifier, key)
            except Exception as error:
                if noted is None or note is None:
                    raise
                stale = RangeBlocks(cache, identifier, noted, start, end).cached()
                if stale is None or not cache.freshness.serves_stale(identifier, error, note):
                    raise
                cache.count(HITS, len(stale))
                return stale
        if version is None:
            break
        if version.size <= BLOCK:
            return cache.missed(identifier, key, stamp, OpenEntry.content, cache.read)[start:end]
        try:
            return RangeBlocks(cache, identifier, version, start, end).read()
        except SourceChangedError:
            cache.safely(cache.engine.drop, key)
    cache.count(MISSES)
    return cache.backend.read_range(identifier, start, end)


def _noted(cache: ObjectCache, key: CacheKey) -> tuple[ObjectVersion | None, CacheEntry | None]:
    """The version in the note, and the note, fresh or stale."""
    found = cache.find(key, note=True)
    content = None if found is None else cache.content(found)
    if found is None or content is None:
        return None, None
    entry = found.entry
    return ObjectVersion(_NOTE.unpack(content)[0], entry.etag, entry.modified), entry


def _asked(cache: ObjectCache, identifier: str, key: CacheKey) -> ObjectVersion | None:
    """The backend's version, which is noted; None if its info is not sufficient."""
    generation = cache.generation(key)
    request = cache.freshness.ask()
    try:
        info = info_of(cache.backend.stat(identifier), identifier)
    except FileNotFoundError:
        cache.safely(cache.engine.drop, key)
        raise
    version = _version(cache, request, info)
    if version is not None and version.size > BLOCK:
        content = _NOTE.pack(version.size)
        entry = cache.freshness.entry(key, len(content), request, info)._replace(note=True)
        cache.store(key, content, entry, generation)
    return version


def _version(cache: ObjectCache, request: BackendRequest, info: ObjectInfo) -> ObjectVersion | None:
    etag, modified = cache.freshness.validator(request, info)
    if info.size is None or (etag is None and modified is None):
        return None
    return ObjectVersion(info.size, etag, modified)


class RangeBlocks:
    """The blocks of one version that cover [start, end), clamped to its size."""

    def __init__(
        self, cache: ObjectCache, identifier: str, version: ObjectVersion, start: int, end: int | None
    ) -> None:
        self._cache = cache
        self._identifier = identifier
        self._version = version
        self._start = start
        self._end = max(start, version.size if end is None else min(end, version.size))
        self._first = start // BLOCK
        last = -(-self._end // BLOCK) if start < self._end else self._first
        label = version.label()
        self._keys = [cache.block_key(identifier, label, number) for number in range(self._first, last)]

    def cached(self) -> bytes | None:
        """The bytes, if all their blocks are cached."""
        pieces = [self._cached(key) for key in self._keys]
        return None if None in pieces else self._cut(pieces)

    def read(self) -> bytes:
        """The bytes; missing blocks are fetched.

        Raises:
            SourceChangedError: the object has another version now.
        """
        pieces = [self._cached(key) for key in self._keys]
        if None not in pieces:
            self._cache.count(HITS, self._end - self._start)
            return self._cut(pieces)
        self._cache.count(MISSES)
        at = 0
        while at < len(pieces):
            stop = at
            while stop < len(pieces) and pieces[stop] is None:
                stop += 1
            if stop > at:
                pieces[at:stop] = self._fetched(at, stop)
            at = stop + 1
        return self._cut(pieces)

    def _cached(self, key: CacheKey) -> bytes | None:
        found = self._cache.find(key)
        if found is None:
            return None
        self._cache.touch(key)
        return self._cache.content(found)

    def _cut(self, pieces: list[bytes | None]) -> bytes:
        """Cut the bytes out of the contents of all blocks."""
        begin = self._start - self._first * BLOCK
        whole = b"".join(piece for piece in pieces if piece is not None)
        return whole[begin : begin + self._end - self._start]

    def _fetched(self, at: int, stop: int) -> list[bytes | None]:
        """Adjacent blocks, fetched with one request."""
        cache, keys, identifier = self._cache, self._keys[at:stop], self._identifier
        with cache.flights.alone(keys[0].name):
            found = [self._cached(key) for key in keys]
            if None not in found:
                return found
            generations = [cache.generation(key) for key in keys]
            start = (self._first + at) * BLOCK
            end = min((self._first + stop) * BLOCK, self._version.size)
            request = cache.freshness.ask()
            content = cache.backend.read_range(identifier, start, end)
            # The info of this response, or else a later stat.
            info = cache.freshness.seen(identifier) or info_of(cache.backend.stat(identifier), identifier)
            if len(content) != end - start or _version(cache, request, info) != self._version:
                raise SourceChangedError(f"{identifier!r} changed while it was read", identifier=identifier)
            pieces: list[bytes | None] = []
            for number, (key, generation) in enumerate(zip(keys, generations, strict=True)):
                piece = content[number * BLOCK : (number + 1) * BLOCK]
                entry = cache.freshness.entry(key, len(piece), request, None)
                cache.store(key, piece, entry, generation)
                pieces.append(piece)
            return pieces
