"""Downloads an object into a file; a large one in parallel, from both ends."""

from __future__ import annotations

import base64
import os
import threading
import time
import weakref
import zlib
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from storage_backend.backends.s3 import checksums
from storage_backend.backends.s3.object_reader import RangesIgnoredError, RawObjectReader
from storage_backend.backends.s3.reading import ReadSource, checked_algorithm
from storage_backend.files import StagedFile
from storage_backend.streams import CHUNK, Moved
from storage_backend.threads import GRACE_SECONDS, Deadline, WorkerThreads

PIECE = 8 << 20  # bytes that a helper requests at a time
PARALLEL_FROM = 32 << 20  # bytes; below it one stream finishes before others would start
ALONE_SECONDS = 0.25  # before helpers start: on a fast link the first stream has finished by then


def fill(source: ReadSource, staged: StagedFile, workers: WorkerThreads, moved: Moved) -> None:
    """Write the object into *staged* and verify its length and, if there is one, its checksum.

    *moved* is called with numbers of bytes, from any thread.

    One stream reads from the front. If that takes long, helpers fetch pieces from the back until they meet it. Each has its
    own connection, so they are faster where a connection is the bottleneck. No byte is requested twice.
    """
    with RawObjectReader(source) as reader:
        source.saw(reader.head)
        # Only CRCs can be combined from those of pieces.
        if (
            reader.size < PARALLEL_FROM
            or workers.count == 1
            or checked_algorithm(reader.head) not in {None, "crc32"}
        ):
            view = memoryview(bytearray(CHUNK))
            while count := reader.readinto(view):
                staged.write(view[:count])
                moved(count)
            return
        reader.leave_unchecked()
        _ParallelDownload(source, reader, staged.fd, moved).run(workers)
        staged.size = reader.size


@dataclass
class _ParallelDownload:
    """One object, read from both ends."""

    source: ReadSource
    reader: RawObjectReader
    fd: int
    moved: Moved
    lock: threading.Lock = field(default_factory=threading.Lock)
    front: int = 0  # offset of the next bytes for the first stream
    back: int = 0  # offset of the pieces claimed by helpers
    helpers: int = 0  # running
    done: SimpleQueue[None] = field(default_factory=SimpleQueue)  # an item for each helper that ended
    left: list[tuple[int, int]] = field(
        default_factory=list
    )  # offset, size of pieces that a helper could not get
    failed: list[BaseException] = field(default_factory=list)
    crcs: dict[int, tuple[int, int]] = field(default_factory=dict)  # offset -> CRC-32, size

    def run(self, workers: WorkerThreads) -> None:
        # Its own descriptor: a helper left running must not write into another file that reuses the number.
        self.fd = os.dup(self.fd)
        weakref.finalize(self, os.close, self.fd)
        self.back = self.reader.size
        try:
            self._from_front(workers)
        except BaseException as error:  # noqa: BLE001 - raised below, when no helper writes any more
            self.failed.append(error)
        self._settle()
        for offset, size in sorted(self.left):
            if not self.failed:
                self.crcs[offset] = (self._read(self.reader, offset, size), size)
        if self.failed:
            raise self._interrupt or self.failed[0]
        self._check()

    def _settle(self) -> None:
        """Wait for the helpers; after an interrupt only for the grace period, after a second one no longer."""
        limit = Deadline(GRACE_SECONDS if self._interrupt else None)
        while self.helpers:
            try:
                self.done.get(timeout=limit.left)
            except Empty:
                return
            except BaseException as error:
                if self._interrupt:
                    raise
                self.failed.append(error)
                limit = Deadline(GRACE_SECONDS)
            else:
                self.helpers -= 1

    @property
    def _interrupt(self) -> BaseException | None:
        """The KeyboardInterrupt or similar that ended the download, if any."""
        return next((error for error in self.failed if not isinstance(error, Exception)), None)

    def _from_front(self, workers: WorkerThreads) -> None:
        """Read from the front up to the helpers' pieces."""
        began = time.monotonic()
        view = memoryview(bytearray(CHUNK))
        crc = 0
        asked = False
        while not self.failed and (size := self._claim_front(len(view))):
            crc = self._block(self.reader, view[:size], self.reader.tell(), crc)
            if not asked and time.monotonic() - began >= ALONE_SECONDS:
                asked = True
                for _ in range(min(workers.count - 1, (self.back - self.front) // PIECE)):
                    self.helpers += 1
                    workers.run(self._help)
        self.crcs[0] = (crc, self.front)

    def _claim_front(self, most: int) -> int:
        with self.lock:
            size = min(most, self.back - self.front)
            self.front += size
            return size

    def _claim_back(self) -> tuple[int, int]:
        with self.lock:
            # The bytes just ahead of the first stream are already being sent to it.
            size = PIECE if self.back - self.front >= 2 * PIECE else 0
            self.back -= size
            return self.back, size

    def _help(self) -> None:
        try:
            with RawObjectReader(self.source, head=self.reader.head, ahead=PIECE) as branch:
                while not self.failed:
                    offset, size = self._claim_back()
                    if not size:
                        return
                    try:
                        self.crcs[offset] = (self._read(branch, offset, size), size)
                    except RangesIgnoredError:
                        self.left.append((offset, size))
                        return
        except BaseException as error:  # noqa: BLE001 - raised by run, in the caller's thread
            self.failed.append(error)
        finally:
            self.done.put(None)

    def _read(self, reader: RawObjectReader, offset: int, size: int) -> int:
        """Read a piece with *reader* and write it to the file; return its CRC-32."""
        view = memoryview(bytearray(CHUNK))
        reader.seek(offset)
        crc = 0
        for at in range(offset, offset + size, len(view)):
            crc = self._block(reader, view[: offset + size - at], at, crc)
        return crc

    def _block(self, reader: RawObjectReader, view: memoryview, offset: int, crc: int) -> int:
        done = 0
        while done < len(view):
            done += reader.readinto(view[done:])
        written = 0
        while written < len(view):
            written += os.pwrite(self.fd, view[written:], offset + written)
        self.moved(len(view))
        return zlib.crc32(view, crc) if self._expected is not None else 0

    @property
    def _expected(self) -> str | None:
        return self.reader.head.digests.get("crc32")

    def _check(self) -> None:
        if self._expected is None:
            return
        total = 0
        for offset in sorted(self.crcs):
            crc, size = self.crcs[offset]
            total = checksums.crc32_combined(total, crc, size)
        found = base64.b64encode(total.to_bytes(4)).decode()
        if found != self._expected:
            raise self.reader.damaged("crc32", found)
