"""Writes to one side or both, of one object or many."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeAlias, cast

from typing_extensions import override

from storage_backend.base import Item, StorageBackend
from storage_backend.defensive import info_of, location_of
from storage_backend.errors import BatchError, Failures, SourceChangedError, StorageError
from storage_backend.streams import SPOOL, HashingReader, chunks
from storage_backend.wrappers.fallback.pair import FallbackPair
from storage_backend.wrappers.sources import RewindableSource, info_for_copy, name_of

logger = logging.getLogger(__name__)

Items: TypeAlias = list[Item]


def put(
    pair: FallbackPair,
    identifier: str,
    store: Callable[[StorageBackend], object],
    source: RewindableSource | None = None,
) -> bool:
    """Write one object to the sides that `write_to` names: *store* stores it on one side, from *source* if given."""
    if pair.write_to == "both":
        pair.check(identifier)
        pair.torn.add(identifier)
        first, second = pair.both
    else:
        first, second = pair.target, None
    strayed = False
    try:
        store(first)
    except Exception as error:
        if not pair.warn_if_skipped(first, error):
            raise
        # `first` is the primary: only the secondary gets the object, which is then the valid one.
        strayed = True
        _again(pair, source, identifier)
        try:
            store(pair.secondary)
        except Exception as second_error:
            raise error from second_error
    if second is not None and not strayed:
        _again(pair, source, identifier)
        try:
            store(second)
        except Exception as error:
            if not pair.warn_if_skipped(second, error):
                _warn_torn(pair, identifier, second)
                raise
            strayed = True
    pair.forget(identifier)
    if strayed:
        pair.strayed.add(identifier)
    return True


def put_group(pair: FallbackPair, group: Items, failures: Failures, verify: bool) -> None:
    """Write many objects to the sides that `write_to` names; note the errors."""
    wanted: Items = []
    for key, content in group:
        name = name_of(key)
        failures.errors.pop(name, None)
        with failures.of(name):
            pair.check(name)
            wanted.append((key, content))
    first, second = pair.both if pair.write_to == "both" else (pair.target, None)
    if second is not None:
        pair.torn.update(name_of(key) for key, _ in wanted)
    lost = _written(pair, first, wanted, verify)
    down = {name for name, error in lost.items() if pair.should_skip(first, error)}
    pair.warn_skipped([lost[name] for name in down])
    for name, error in lost.items():
        if name not in down:
            failures.note(name, error)
    rest = [item for item in wanted if name_of(item[0]) not in failures.errors]
    if second is None:
        second = pair.secondary
        again = [item for item in rest if name_of(item[0]) in down]
    else:
        again = rest
    strayed = set(down)
    lost_too = _written(pair, second, again, verify)
    pair.warn_skipped([error for error in lost_too.values() if pair.should_skip(second, error)])
    for name, error in lost_too.items():
        if name in down:
            failures.note(name, lost[name])
        elif pair.should_skip(second, error):
            strayed.add(name)
        else:
            _warn_torn(pair, name, second)
            failures.note(name, error)
    for key, _ in rest:
        name = name_of(key)
        if name not in failures.errors:
            pair.forget(name)
            if name in strayed:
                pair.strayed.add(name)


def _written(pair: FallbackPair, side: StorageBackend, items: Items, verify: bool) -> dict[str, Exception]:
    """Store many objects on one side; return the errors."""
    if not items:
        return {}
    try:
        return failures_of(lambda: side.write_many(items, verify=verify))
    except Exception as error:
        if not pair.should_skip(side, error):
            raise
        return dict.fromkeys((name_of(key) for key, _ in items), error)


def _again(pair: FallbackPair, source: RewindableSource | None, identifier: str) -> None:
    if source is not None and not source.rewind():
        raise StorageError(
            f"the source of {identifier!r} cannot be read a second time, for the second side of {pair.location}",
            identifier=identifier,
            backend=pair.location,
        )


def _warn_torn(pair: FallbackPair, identifier: str, missing: StorageBackend) -> None:
    logger.warning(
        "%r was stored in one side of %s and not in %s; write it again, or call repair()",
        *(identifier, pair.location, location_of(missing)),
    )


def done(result: object, side: StorageBackend, identifier: str) -> bool:
    """True; raises if a backend returned False: a third-party class may do so instead of raising."""
    if result is False:
        where = location_of(side)
        raise StorageError(f"{where} did not store {identifier!r}", identifier=identifier, backend=where)
    return True


def carried(source: StorageBackend, target: StorageBackend, source_id: str, dest_id: str) -> bool:
    """Copy an object from one side to the other, and verify it."""
    info = info_of(source.stat(source_id), source_id)
    with source.open(source_id) as reader:
        stored = target.write_stream(
            dest_id, reader, info=info_for_copy(info, dest_id, info.size), verify=True
        )
    return done(stored, target, dest_id)


def failures_of(call: Callable[[], object]) -> dict[str, Exception]:
    """Call, and return the failures of its BatchError, if it raises one."""
    try:
        call()
    except BatchError as error:
        return error.failures
    return {}


class SameContentReader(HashingReader):
    """Reads the same bytes a second time, no more than the first reader got.

    Raises at the end, before anything is published, if their digest differs from the first time.
    """

    def __init__(self, reader: BinaryIO, before: HashingReader) -> None:
        super().__init__(reader)
        self._before = before

    @override
    def read(self, size: int = -1, /) -> bytes:
        left = self._before.size - self.size
        chunk = super().read(left if size < 0 else min(size, left)) if left else b""
        ended = self.size == self._before.size or (not chunk and size != 0)
        if ended and self.hexdigest() != self._before.hexdigest():
            raise SourceChangedError(
                "the source returned other bytes when it was read again; nothing was stored there"
            )
        return chunk


@contextmanager
def replayable(reader: BinaryIO) -> Iterator[RewindableSource]:
    """*reader* as a source that can be read twice: itself if it can seek, else a buffered copy."""
    source = RewindableSource(reader)
    if source.seekable:
        yield source
        return
    with tempfile.SpooledTemporaryFile(max_size=SPOOL) as spool:
        for chunk in chunks(reader):
            spool.write(chunk)
        spool.seek(0)
        yield RewindableSource(cast(BinaryIO, spool))
