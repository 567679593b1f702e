"""Reading: whole objects, ranges, and seekable readers, pinned to the object that was first seen."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from typing_extensions import Buffer, override

from storage_backend.backends.s3 import digests, retries
from storage_backend.backends.s3.calls import Calls, Facts, Got
from storage_backend.backends.s3.errors import is_foreign, refusal_of, translate
from storage_backend.backends.s3.settings import Settings
from storage_backend.errors import IntegrityError, SourceChangedError, StorageError, UnavailableError
from storage_backend.info import ObjectInfo
from storage_backend.last_seen import LastSeen
from storage_backend.streams import CHUNK, position_after

SKIP_MOST = 1 << 20  # bytes; reading on over a gap of this length is faster than asking anew
AHEAD_FIRST = 128 << 10  # bytes asked for after a jump; doubled as long as reading goes on from there
AHEAD_MOST = 16 << 20
GROWTH_FIRST = 64 << 20  # bytes that are allocated before they have come


@dataclass(frozen=True, slots=True)
class Wanted:
    """One object to be read.

    Attributes:
        calls: gives the requests of this moment.
        key: in the bucket.
        identifier: in the caller's spelling.
        settings: of the storage.
        parameters: of each GET (VersionId).
        last_seen: is told what reads as a whole and of ranges saw; not of older versions.
    """

    calls: Callable[[], Calls]
    key: str
    identifier: str
    settings: Settings
    parameters: Mapping[str, Any]
    last_seen: LastSeen

    def saw(self, facts: Facts | None) -> None:
        """Note what a read saw, or, at its beginning, that it has not yet."""
        if facts is None or self.parameters:
            self.last_seen.note(None)
            return
        info = ObjectInfo(self.identifier, facts.size, facts.modified, facts.etag, None, facts.content_type)
        self.last_seen.note(info)

    def error(self, error: Exception) -> StorageError:
        """Our error for *error*.

        Raises:
            Exception: *error* itself, which nothing of S3 or the network is to blame for.
        """
        if not isinstance(error, OSError) and not is_foreign(error):
            raise error
        return translate(error, self.identifier, self.settings.location, "read")

    def broken(self, reason: str) -> UnavailableError:
        """The error for an answer that is not what was asked for."""
        where = self.settings.location
        return UnavailableError(
            f"cannot read {self.identifier!r} in {where}: {reason}", identifier=self.identifier, backend=where
        )

    def get(self, **parameters: Any) -> Got:
        """GetObject.

        Raises:
            StorageError: translated.
        """
        try:
            return self.calls().get(self.key, **self.parameters, **parameters)
        except Exception as error:  # noqa: BLE001 - raised as ours
            _raise(self.error(error), error)


def _raise(found: StorageError, error: Exception) -> NoReturn:
    """Raise *found*, for which *error* is the cause if it is another one.

    No frame keeps either: with its traceback that would be a cycle, and what a dropped storage held would wait for the collector.
    """
    try:
        if found is error:
            raise found
        raise found from error
    finally:
        del found, error


def read_whole(wanted: Wanted) -> bytes:
    """The object, compared with its length and, where the service gives one, its checksum."""
    wanted.saw(None)
    got = wanted.get()
    try:
        content = got.body.read()
    except Exception as error:  # noqa: BLE001 - raised as ours
        found = wanted.error(error)
        try:
            if not found.retryable:
                _raise(found, error)
        finally:
            del found
        content = None
    finally:
        got.body.close()
    expected = got.facts.size if got.length is None else got.length
    if content is not None and expected in {None, len(content)}:
        wrong = _wrong_digest(content, got.facts)
        if wrong is None:
            wanted.saw(got.facts)
            return content
        # Once more: if it was damaged on its way, that was chance.
    reader = Pinned(wanted)
    with reader:
        content = reader.readall()
    wanted.saw(reader.facts)
    return content


def _body_of(wanted: Wanted, got: Got) -> bytes:
    """All of a body whose length is unknown; what breaks off is begun anew."""
    for tries in range(1, wanted.settings.attempts + 1):
        try:
            return got.body.read()
        except Exception as error:  # noqa: BLE001 - raised as ours
            _raise_unless_tried_again(wanted, error, tries)
        finally:
            got.body.close()
        wanted.settings.sleep(retries.pause(tries))
        got = wanted.get()
    raise AssertionError("the last try returns or raises")


def _raise_unless_tried_again(wanted: Wanted, error: Exception, tries: int) -> None:
    """Raise *error* as ours if it is not one that may pass, or the tries are used up."""
    found = wanted.error(error)
    try:
        if not found.retryable or tries == wanted.settings.attempts:
            found.attempts = tries
            _raise(found, error)
    finally:
        del found  # its traceback leads to this frame


def read_span(wanted: Wanted, start: int, end: int | None) -> bytes:
    """The bytes of [start, end)."""
    if end is not None and end <= start:
        end = start + 1  # what is not there must be found out
        empty = True
    else:
        empty = False
    last = "" if end is None else end - 1
    wanted.saw(None)
    for tries in range(1, wanted.settings.attempts + 1):
        try:
            got = wanted.calls().get(wanted.key, **wanted.parameters, Range=f"bytes={start}-{last}")
        except Exception as error:  # noqa: BLE001 - raised as ours
            refusal = refusal_of(error)
            if refusal is not None and refusal.status == 416:
                return b""
            _raise(wanted.error(error), error)
        try:
            content = _sliced(wanted, got, start, end)
        except Exception as error:  # noqa: BLE001 - raised as ours
            _raise_unless_tried_again(wanted, error, tries)
            wanted.settings.sleep(retries.pause(tries))
            continue
        finally:
            got.body.close()
        wanted.saw(got.facts)
        return b"" if empty else content
    raise AssertionError("the last try returns or raises")


def _sliced(wanted: Wanted, got: Got, start: int, end: int | None) -> bytes:
    """Of an answer to a range, which may be the whole object or begin elsewhere, what was asked for."""
    if got.start > start:
        raise wanted.broken(f"asked for bytes from {start}, got bytes from {got.start}")
    skipped = 0
    while skipped < start - got.start:
        piece = got.body.read(min(CHUNK, start - got.start - skipped))
        if not piece:
            break
        skipped += len(piece)
    content = got.body.read() if end is None else _exactly(got, end - start)
    whole = got.facts.size
    expected = None if whole is None else max(0, min(whole, whole if end is None else end) - start)
    if expected is not None and len(content) != expected:
        raise wanted.broken(f"{len(content):,} bytes of {expected:,} came")
    return content


def _exactly(got: Got, size: int) -> bytes:
    if got.length is not None and got.length <= size:
        return got.body.read()
    pieces = []
    while size > 0 and (piece := got.body.read(min(size, AHEAD_MOST))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def checked_algorithm(facts: Facts) -> str | None:
    """The first digest of the whole object that can be computed here."""
    return next((name for name in facts.digests if digests.known(name)), None)


def _wrong_digest(content: bytes, facts: Facts) -> str | None:
    """The name of a digest that *content* does not have."""
    name = checked_algorithm(facts)
    if name is None:
        return None
    running = digests.Running(name)
    running.update(content)
    return None if running.base64(name) == facts.digests[name] else name


class Reader(io.BufferedReader):
    """The seekable reader of a caller.

    After an error it gives nothing until `seek` says where to go on: what it had read by then of the failed call is lost,
    and the next bytes would be taken for those.
    """

    def __init__(self, raw: Pinned) -> None:
        super().__init__(raw, CHUNK)
        self._pinned = raw

    @override
    def seek(self, target: int, whence: int = io.SEEK_SET, /) -> int:
        self._pinned.mend()
        return super().seek(target, whence)


class RangesIgnoredError(Exception):
    """The service answers a range with the whole object."""


class Pinned(io.RawIOBase):
    """The raw half of a seekable reader.

    It begins with one GET of the whole, which is simply read on. A jump ends that; then ranges are asked for, each twice
    as long as the one before while reading goes on, so that neither many small reads nor few far ones cost much. What
    breaks off is taken up where it was. Every answer must be of the object that was first seen.

    Args:
        wanted: the object.
        facts: of the object that was seen already; then nothing is asked for yet.
        ahead: bytes to ask for after a jump.

    Attributes:
        facts: of the object.
        size: in bytes.

    Raises:
        StorageError: there is none, or it cannot be read; at once.
    """

    def __init__(self, wanted: Wanted, *, facts: Facts | None = None, ahead: int = AHEAD_FIRST) -> None:
        self._wanted = wanted
        self._got: Got | None = None
        self._branch = facts is not None
        self._kept: bytes | None = None
        self._pid = os.getpid()
        if facts is None:
            self._got = wanted.get()
            facts = self._got.facts
            if facts.size is None:
                # Not an answer of S3, which always tells: a stand-in's, or that of a proxy that sends all in chunks.
                self._kept = _body_of(wanted, self._got)
                facts = Facts(size=len(self._kept))
                self._got = Got(facts, 0, len(self._kept), io.BytesIO(self._kept))
        assert facts.size is not None
        self.facts = facts
        self.size: int = facts.size
        self._position = 0  # of the reader
        self._at = 0  # of the body
        self._until = self.size  # where the body ends
        self._first_ahead = self._ahead = ahead
        self._failure: StorageError | None = None
        self._algorithm = checked_algorithm(facts) if not self._branch else None
        self._digest = digests.Running(self._algorithm) if self._algorithm else None
        if self._got is not None and not self.size:
            # Nothing will be read, and what is said to be empty need not be.
            if self._got.length is None:
                self._check_end(self._got)
            if self._digest is not None:
                self._drop()
                self._check()

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        self._check_open()
        return self._position

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._check_open()
        self._position = position_after(offset, whence, self._position, self.size)
        return self._position

    def mend(self) -> None:
        """Read on, although a read has failed."""
        self._failure = None

    @override
    def readinto(self, buffer: Buffer, /) -> int:
        self._check_open()
        if self._failure is not None:
            raise copy.copy(self._failure)
        try:
            return self._readinto(buffer)
        except StorageError as error:
            # A copy, without the frames that hold this reader.
            self._failure = copy.copy(error)
            raise
        except BaseException:
            self._failure = self._wanted.broken("a read was interrupted; seek() to where it is to go on")
            raise

    def _readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        if not view:
            return 0
        if self._digest is not None and self._position != self._at:
            self._digest = None  # not read from one end to the other
        count = self._read(view)
        if self._got is not None and self._got.length is None and self._position + count == self.size:
            self._check_end(self._got)
        if self._digest is not None:
            self._digest.update(view[:count])
            if self._position + count == self.size:
                self._check()
        self._position += count
        self._at = self._position
        return count

    @override
    def readall(self) -> bytes:
        self._check_open()
        left = max(0, self.size - self._position)
        content = bytearray(min(left, GROWTH_FIRST))
        done = 0
        while done < left:
            if done == len(content):
                # As it comes: the size is what an answer claims.
                content += bytes(min(left, 2 * done) - done)
            with memoryview(content) as view:
                while done < len(content):
                    done += self.readinto(view[done:])
        return bytes(content)

    @override
    def close(self) -> None:
        self._drop()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed reader")

    def _read(self, view: memoryview) -> int:
        """At least one byte from the reader's position."""
        tries = 0
        while True:
            tries += 1
            try:
                self._arrive()
                assert self._got is not None
                count = self._got.body.readinto(view[: self._until - self._position])
            except Exception as error:
                self._drop()
                if isinstance(error, RangesIgnoredError):
                    raise
                found = self._wanted.error(error)
                most = self._wanted.settings.attempts
                try:
                    # A request that was refused or unanswered has had its tries; here only bodies are tried again.
                    if not found.retryable or tries >= most or found.attempts >= most:
                        found.attempts = max(found.attempts, tries)
                        _raise(found, error)
                finally:
                    del found
                self._wanted.settings.sleep(retries.pause(tries))
                continue
            except BaseException:
                self._drop()  # where its body stands is unknown now
                raise
            if count:
                return count
            # Shorter than announced: what is missing is asked for.
            self._drop()
            if tries >= self._wanted.settings.attempts:
                short = self._wanted.broken(f"it ends at byte {self._position:,} of {self.size:,}")
                short.attempts = tries
                raise short

    def _arrive(self) -> None:
        """Have the body stand where the reader is."""
        if self._pid != os.getpid():
            # A forked child reads on by a connection of its own; the parent's is left alone.
            self._drop()
            self._pid = os.getpid()
        gap = self._position - self._at
        if self._got is not None and 0 < gap <= SKIP_MOST and self._position < self._until:
            self._skip(gap)
        if self._got is not None and self._at == self._position and self._at < self._until:
            return
        goes_on = self._at == self._position and self._at > 0
        self._drop()
        self._ahead = min(AHEAD_MOST, self._ahead * 2) if goes_on else self._first_ahead
        # An answer that has broken off is taken up to its end.
        end = self._until if goes_on and self._until > self._position else self._position + self._ahead
        self._ask(min(self.size, end))

    def _ask(self, end: int) -> None:
        if self._kept is not None:
            self._got = Got(self.facts, 0, self.size, io.BytesIO(self._kept))
            self._at, self._until = 0, self.size
            self._skip(self._position)
            return
        parameters = {"Range": f"bytes={self._position}-{end - 1}"}
        if self.facts.etag is not None:
            parameters["IfMatch"] = f'"{self.facts.etag}"'
        try:
            got = self._wanted.calls().get(self._wanted.key, **self._wanted.parameters, **parameters)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal is not None and refusal.status in {404, 412, 416}:
                raise self._changed() from error
            raise
        facts = got.facts
        self._got = got
        if (facts.size, facts.etag) != (self.size, self.facts.etag) or facts.modified != self.facts.modified:
            self._drop()
            raise self._changed()
        if self._branch and got.start != self._position:
            self._drop()
            raise RangesIgnoredError
        self._at, self._until = got.start, end
        if got.start > self._position:
            self._drop()
            raise self._wanted.broken(f"asked for bytes from {self._position}, got bytes from {got.start}")
        if got.length is not None and got.start + got.length > end:
            self._until = min(self.size, got.start + got.length)
        self._skip(self._position - self._at)

    def _skip(self, gap: int) -> None:
        assert self._got is not None
        scratch = memoryview(bytearray(min(gap, CHUNK)))
        while gap:
            count = self._got.body.readinto(scratch[:gap])
            if not count:
                raise self._wanted.broken("the answer ends early")
            gap -= count
            self._at += count

    def _check_end(self, got: Got) -> None:
        """A body whose length its answer does not tell ends where the object does, of which another answer told the size."""
        try:
            more = got.body.read(1)
        except Exception as error:  # noqa: BLE001 - raised as ours
            self._drop()
            _raise(self._wanted.error(error), error)
        if more:
            self._drop()
            raise self._wanted.broken(f"it goes on after its size, {self.size:,} bytes")

    def _check(self) -> None:
        assert self._digest is not None
        assert self._algorithm is not None
        expected = self.facts.digests[self._algorithm]
        found = self._digest.base64(self._algorithm)
        if found != expected:
            raise self.damaged(self._algorithm, found)

    def leave_unchecked(self) -> None:
        """Do not compare checksums: the caller does."""
        self._digest = None

    def damaged(self, algorithm: str, found: str) -> IntegrityError:
        """The error for an object that came with a checksum of *found* instead of its own."""
        where = self._wanted.settings.location
        return IntegrityError(
            f"{self._wanted.identifier!r} in {where}: the {algorithm} of what came is {found}, that of the object "
            f"{self.facts.digests[algorithm]}",
            identifier=self._wanted.identifier,
            backend=where,
        )

    def _changed(self) -> SourceChangedError:
        return SourceChangedError(
            f"{self._wanted.identifier!r} in {self._wanted.settings.location} changed while it was read",
            identifier=self._wanted.identifier,
            backend=self._wanted.settings.location,
        )

    def _drop(self) -> None:
        got, self._got = self._got, None
        if got is not None:
            got.body.close()
