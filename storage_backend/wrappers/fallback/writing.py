"""Writes: to one side or to both, one object or many."""

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
from storage_backend.wrappers.fallback.repair import told_of
from storage_backend.wrappers.fallback.sides import Sides
from storage_backend.wrappers.sources import RewindableSource, name_of

logger = logging.getLogger(__name__)

Items: TypeAlias = list[Item]


def put(
    sides: Sides,
    identifier: str,
    store: Callable[[StorageBackend], object],
    source: RewindableSource | None = None,
) -> bool:
    """Write one object where `write_to` says: *store* stores it on one side, out of *source* if there is one."""
    if sides.write_to == "both":
        sides.check(identifier)
        sides.torn.add(identifier)
        first, second = sides.both
    else:
        first, second = sides.target, None
    strayed = False
    try:
        store(first)
    except Exception as error:
        if not sides.is_down(first, error):
            raise
        # `first` is the primary: what the secondary takes alone is what counts.
        strayed = True
        _again(sides, source, identifier)
        try:
            store(sides.secondary)
        except Exception as second_error:
            raise error from second_error
    if second is not None and not strayed:
        _again(sides, source, identifier)
        try:
            store(second)
        except Exception as error:
            if not sides.is_down(second, error):
                _say_torn(sides, identifier, second)
                raise
            strayed = True
    sides.forget(identifier)
    if strayed:
        sides.strayed.add(identifier)
    return True


def put_group(sides: Sides, group: Items, failures: Failures, verify: bool) -> None:
    """Write many objects where `write_to` says; the errors of those that failed are noted."""
    wanted: Items = []
    for key, content in group:
        name = name_of(key)
        failures.errors.pop(name, None)
        with failures.of(name):
            sides.check(name)
            wanted.append((key, content))
    first, second = sides.both if sides.write_to == "both" else (sides.target, None)
    if second is not None:
        sides.torn.update(name_of(key) for key, _ in wanted)
    lost = _written(sides, first, wanted, verify)
    down = {name for name, error in lost.items() if sides.is_out(first, error)}
    sides.say_down([lost[name] for name in down])
    for name, error in lost.items():
        if name not in down:
            failures.note(name, error)
    rest = [item for item in wanted if name_of(item[0]) not in failures.errors]
    if second is None:
        second = sides.secondary
        again = [item for item in rest if name_of(item[0]) in down]
    else:
        again = rest
    strayed = set(down)
    lost_too = _written(sides, second, again, verify)
    sides.say_down([error for error in lost_too.values() if sides.is_out(second, error)])
    for name, error in lost_too.items():
        if name in down:
            failures.note(name, lost[name])
        elif sides.is_out(second, error):
            strayed.add(name)
        else:
            _say_torn(sides, name, second)
            failures.note(name, error)
    for key, _ in rest:
        name = name_of(key)
        if name not in failures.errors:
            sides.forget(name)
            if name in strayed:
                sides.strayed.add(name)


def _written(sides: Sides, side: StorageBackend, items: Items, verify: bool) -> dict[str, Exception]:
    """Store many objects on one side; the errors of those that failed."""
    if not items:
        return {}
    try:
        return failures_of(lambda: side.write_many(items, verify=verify))
    except Exception as error:
        if not sides.is_out(side, error):
            raise
        return dict.fromkeys((name_of(key) for key, _ in items), error)


def _again(sides: Sides, source: RewindableSource | None, identifier: str) -> None:
    if source is not None and not source.rewind():
        raise StorageError(
            f"the source of {identifier!r} cannot be read a second time, for the second side of {sides.location}",
            identifier=identifier,
            backend=sides.location,
        )


def _say_torn(sides: Sides, identifier: str, missing: StorageBackend) -> None:
    logger.warning(
        "%r was stored in one side of %s and not in %s; write it again, or call repair()",
        *(identifier, sides.location, location_of(missing)),
    )


def done(result: object, side: StorageBackend, identifier: str) -> bool:
    """True; False of a class that may be a user's is a failure."""
    if result is False:
        where = location_of(side)
        raise StorageError(f"{where} did not store {identifier!r}", identifier=identifier, backend=where)
    return True


def carried(source: StorageBackend, target: StorageBackend, source_id: str, dest_id: str) -> bool:
    """Copy an object from one side to the other, and check what was stored."""
    info = info_of(source.stat(source_id), source_id)
    with source.open(source_id) as reader:
        stored = target.write_stream(dest_id, reader, info=told_of(info, dest_id), verify=True)
    return done(stored, target, dest_id)


def failures_of(call: Callable[[], object]) -> dict[str, Exception]:
    """The failures of a batch."""
    try:
        call()
    except BatchError as error:
        return error.failures
    return {}


class SameAgain(HashingReader):
    """Reads again what another one read; what has come since is left.

    Raises when it ends, so that nothing is stored, if that is no longer the same.
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
                "the source gave other bytes when it was read again; nothing was stored there"
            )
        return chunk


@contextmanager
def replayable(reader: BinaryIO) -> Iterator[RewindableSource]:
    """*reader* as a source that can be read twice: itself where it seeks, else a copy of what it gives."""
    source = RewindableSource(reader)
    if source.seekable:
        yield source
        return
    with tempfile.SpooledTemporaryFile(max_size=SPOOL) as spool:
        for chunk in chunks(reader):
            spool.write(chunk)
        spool.seek(0)
        yield RewindableSource(cast(BinaryIO, spool))
