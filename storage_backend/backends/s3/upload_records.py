"""Records multipart uploads in files, so that the next process can resume those of a killed one."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

FORMAT = 1
_SUFFIX = ".json"
_TAIL = 64 << 10  # bytes; several times the JSON of the longest key (1,024 bytes)
_ATTEMPTS = 1000
# Follows no symlink and does not wait for the other end of a pipe.
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class UploadRecords:
    """A directory with one record per object being uploaded, shared by all threads and processes.

    Args:
        directory: created on first use, accessible to its owner only.
        clock: Unix time in seconds.
    """

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock

    def claim(self, location: str, key: str) -> UploadRecord:
        """Lock the record of an object; the caller releases it. Never fails: see `UploadRecord.held`.

        Args:
            location: the storage's location, without secrets.
            key: the object's full key.
        """
        path = self._directory / _file_name(location, key)
        return UploadRecord(path, location, key, clock=self._clock)


class UploadRecord:
    """The record of one object's upload, locked by one holder until `release` or the end of its process.

    A forked child does not hold it. Used by one thread at a time.

    Attributes:
        upload_id: the id of an unfinished upload of an earlier holder; None if there is none.
        part_size: the part size of that upload in bytes.
        started: when it was saved, in whole seconds of Unix time; 0 if there is none.
    """

    def __init__(self, path: Path, location: str, key: str, *, clock: Callable[[], float]) -> None:
        self.upload_id: str | None = None
        self.part_size: int | None = None
        self.started = 0
        self._path = path
        self._location = location
        self._key = key
        self._clock = clock
        self._open_records = _open_records()
        self._fd = -1
        self._end = 0  # end of the complete lines in the file
        try:
            self._acquire()
            self._load()
        except BlockingIOError:
            _log.debug(
                "%r in %s: another upload of it is in progress; this one is not recorded", key, location
            )
        except OSError as error:
            _log.debug("%r in %s: its upload is not recorded: %s", key, location, error)
            self.release()

    @property
    def held(self) -> bool:
        """False if another upload of the object is in progress or the directory is not writable.

        `save` and `clear` then do nothing.
        """
        return self._fd >= 0

    def save(self, upload_id: str, part_size: int) -> None:
        """Record this upload in place of any other.

        The record survives the process, but not a power failure. If the process is killed within this call, the next one
        finds the previous record.
        """
        if not self.held:
            return
        entry = _RecordLine(FORMAT, self._location, self._key, upload_id, part_size, int(self._clock()))
        line = json.dumps(asdict(entry)).encode() + b"\n"
        try:
            # Appended: overwriting in place could leave a mixture, and a new file would lose the lock.
            if os.fstat(self._fd).st_size != self._end:
                os.ftruncate(self._fd, self._end)
            if os.pwrite(self._fd, line, self._end) == len(line):
                self._end += len(line)
                return
            reason = "no space left"
        except OSError as error:
            reason = str(error)
        with suppress(OSError):
            os.ftruncate(self._fd, self._end)
        _log.debug("%r in %s: its upload is not recorded: %s", self._key, self._location, reason)

    def clear(self) -> None:
        """Empty the record: the upload was completed or aborted. `release` deletes the file."""
        if not self.held:
            return
        # Not deleted yet: the lock belongs to the file, and another upload may be saved.
        self._end = 0
        try:
            os.ftruncate(self._fd, 0)
        except OSError as error:
            _log.warning(
                "%r in %s: cannot clear the record of its upload: %s", self._key, self._location, error
            )

    def release(self) -> None:
        """Unlock; a saved record stays. Idempotent."""
        with self._open_records.lock:
            fd, self._fd = self._fd, -1
            if fd < 0:
                return
            self._open_records.members.discard(self)
            try:
                if os.fstat(fd).st_size == 0 and _is_at(fd, self._path):
                    self._path.unlink()
            except OSError as error:
                _log.debug("the empty file %s could not be deleted: %s", self._path, error)
            with suppress(OSError):
                # Closing is not enough: a newly forked or spawned child may have a copy of the descriptor.
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def leave_to_parent(self) -> None:
        """Close the inherited descriptor in a forked child; the lock belongs to the parent."""
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _acquire(self) -> None:
        """Open and lock the file.

        Raises:
            BlockingIOError: another holder has it.
            OSError: it is not writable.
        """
        for _ in range(_ATTEMPTS):
            with self._open_records.lock:
                fd = _create(self._path)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # A file that its holder deleted between the two calls is not the one that others open.
                    if _is_at(fd, self._path):
                        self._open_records.members.add(self)
                        self._fd, fd = fd, -1
                        return
                finally:
                    if fd >= 0:
                        os.close(fd)
        raise BlockingIOError

    def _load(self) -> None:
        size = os.fstat(self._fd).st_size
        if size == 0:
            return
        entry, self._end = _last_entry(self._fd, size)
        if entry is not None and (entry.place, entry.key) == (self._location, self._key):
            self.upload_id, self.part_size, self.started = entry.upload_id, entry.part_size, entry.started
        else:
            _log.warning(
                "%s is not a record of %r in %s and will be overwritten",
                self._path,
                self._key,
                self._location,
            )
            self._end = 0


class _OpenRecords:
    """The records that this process holds. A forked child closes its copies, which would keep the locks.

    Attributes:
        lock: held while a descriptor is open that belongs to no member. Reentrant, since the garbage collector may
            release a record within a claim.
        members: the records.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.members: set[UploadRecord] = set()
        os.register_at_fork(
            before=self.lock.acquire, after_in_parent=self.lock.release, after_in_child=self._after_in_child
        )

    def _after_in_child(self) -> None:
        for record in self.members:
            record.leave_to_parent()
        self.members.clear()
        self.lock.release()


@functools.cache
def _open_records() -> _OpenRecords:
    """The records of this process; created on first use, since `os` cannot unregister a fork hook."""
    return _OpenRecords()


@dataclass(frozen=True, slots=True)
class _RecordLine:
    """A line of a record's file."""

    format: int
    place: str  # the location; existing files use this name
    key: str
    upload_id: str
    part_size: int
    started: int  # Unix time in seconds


def _file_name(location: str, key: str) -> str:
    digest = hashlib.sha256(f"{location}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"{digest[:40]}{_SUFFIX}"


def _create(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | _FLAGS
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


def _is_at(fd: int, path: Path) -> bool:
    """Whether *path* is the name of this open file."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _last_entry(fd: int, size: int) -> tuple[_RecordLine | None, int]:
    """The last complete line of a file (None if damaged) and its end. Anything after it was cut off by a kill."""
    start = max(0, size - _TAIL)
    whole, newline, torn = os.pread(fd, _TAIL, start).rpartition(b"\n")
    if not newline:
        return None, 0
    return _parse(whole.rpartition(b"\n")[2]), size - len(torn)


def _parse(line: bytes) -> _RecordLine | None:
    try:
        fields: Any = json.loads(line)
        entry = _RecordLine(**fields)
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (entry.place, entry.key, entry.upload_id)
    numbers = (entry.format, entry.part_size, entry.started)
    if not all(type(each) is str for each in texts) or not all(type(each) is int for each in numbers):
        return None
    return entry if entry.format == FORMAT and entry.upload_id and entry.part_size > 0 else None
