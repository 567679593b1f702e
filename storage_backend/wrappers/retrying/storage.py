"""RetryingStorage: the verbs, and what may be done twice of each."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Literal, TypeAlias, TypeVar, cast

from typing_extensions import override

from storage_backend import identifiers as names
from storage_backend.base import Identifiers, Item, StorageBackend
from storage_backend.counted import Progress, delete_counted, read_counted, write_counted
from storage_backend.defensive import info_of, overrides
from storage_backend.errors import (
    BaseDirectoryNotFoundError,
    BucketNotFoundError,
    ConfigurationError,
    Failures,
    is_retryable,
)
from storage_backend.hooks import Hooks, download_from
from storage_backend.info import ObjectInfo
from storage_backend.scanning import OnSkip
from storage_backend.streams import Content, SpooledSink, Writer, check_mode, plain
from storage_backend.wrappers.base import Wrapper, WrapperHooks
from storage_backend.wrappers.retrying.attempts import RetryPolicy, RetryState, proves_nothing_done
from storage_backend.wrappers.retrying.reader import Pin, ResumingReader
from storage_backend.wrappers.retrying.resuming import repeated, resumed_batch, resumed_scan
from storage_backend.wrappers.sources import GROUP_ITEMS, RewindableSource, grouped, name_of, sliced

T = TypeVar("T")
Items: TypeAlias = list[Item]  # inside the class, `list` is a method


class RetryingStorage(Wrapper):
    """Tries again, after a pause, what failed with an error that says `retryable`; all others pass at once.

    An error's `attempts` count: what a backend has tried three times by itself has used three. The error that leaves
    has the number of all. Between two tries lies a random pause of up to *first* seconds, doubled each time, up to
    *longest*, on top of what a RateLimitedError asks for with `retry_after`; one that asks for more than a minute (and
    more than *longest*) is raised at once. Each retry is a WARNING in the log.

    What is done twice is done so that it shows no difference: bytes and seekable sources are written again from where
    they began; a source that cannot seek is not, once something was read of it. A reader that breaks goes on at its
    offset, if etag, or size and an old enough time, show the same object as before; else it raises SourceChangedError.
    A scan goes on after its last object, a batch with those that failed. After progress, attempts are counted anew.

    When an answer is lost, what was asked for may be done. So a delete that then finds nothing has succeeded, as has a
    move whose source, seen before, is gone, while an object of its size is at its destination. `create` and `replace`
    are not tried again, since their answer would then be another's: only after a RateLimitedError, which proves that
    nothing was done. Any other retryable error of theirs leaves it open whether it was.

    `open(identifier, "wb")` keeps what is written aside (in memory, beyond 8 MiB in a temporary file) until it is
    published, so that that can be tried again.

    Args:
        backend: the backend within.
        attempts: tries at most.
        first: seconds.
        longest: seconds.
        clock: gives the time as `time.time` does; by it, an object's time of change is old enough or not.
        sleep: is called with seconds.
        random: gives numbers from 0 to 1; by default `random.random`.

    Attributes:
        backend: the backend within.
        attempts, first, longest: as given.

    Raises:
        ConfigurationError: a number is out of range.
    """

    def __init__(
        self,
        backend: StorageBackend,
        attempts: int = 5,
        first: float = 0.2,
        longest: float = 15,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
        random: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(backend)
        if not isinstance(attempts, int) or isinstance(attempts, bool):
            raise TypeError(f"attempts must be an int, not {type(attempts).__name__}")
        if attempts < 1:
            raise ConfigurationError(f"attempts must be at least 1, not {attempts}", parameter="attempts")
        self.attempts = attempts
        self.first = _seconds("first", first)
        self.longest = _seconds("longest", longest)
        self._clock = clock
        self._policy = RetryPolicy(attempts, self.first, self.longest, sleep, random)

    @override
    def exists(self, identifier: str) -> bool:
        return self._run("exists", identifier, lambda: self.backend.exists(identifier))

    @override
    def read(self, identifier: str) -> bytes:
        return self._run("read", identifier, lambda: self.backend.read(identifier))

    @override
    def write(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        # Bound once: `content` is no longer narrowed inside a lambda.
        found: bytes = content
        return self._run("write", identifier, lambda: super(RetryingStorage, self).write(identifier, found))

    @override
    def delete(self, identifier: str) -> bool:
        tries = self._attempts("delete", identifier)
        while True:
            try:
                # False is an older program's word for "it was not there" (FallbackStorage's).
                return self.backend.delete(identifier) is not False or tries.in_doubt
            except FileNotFoundError as error:
                if tries.in_doubt and not isinstance(error, _NO_PLACE):
                    return True
                tries.failed(error)
            except Exception as error:  # noqa: BLE001 - raised by `failed`, or logged there
                tries.failed(error)

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        return self._run("list", pattern, lambda: super(RetryingStorage, self).list(pattern))

    @override
    def get_path(self, identifier: str) -> str:
        return self._run("get_path", identifier, lambda: self.backend.get_path(identifier))

    @override
    def size(self, identifier: str) -> int:
        return self._run("size", identifier, lambda: self.backend.size(identifier))

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        return self._run("copy", source_id, lambda: self.backend.copy(source_id, dest_id))

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        before = None if source_id == dest_id else info_of(self.stat(source_id), source_id)
        tries = self._attempts("move", source_id)
        doubtful: Exception | None = None
        while True:
            try:
                return self.backend.move(source_id, dest_id)
            except FileNotFoundError as error:
                found = None
                if doubtful is not None and not isinstance(error, _NO_PLACE):
                    found = self._looked(dest_id)
                if doubtful is None or before is None or found is None:
                    tries.failed(error)
                elif _may_be_moved(before, found):
                    return True
                else:
                    raise tries.told(doubtful) from None
            except Exception as error:  # noqa: BLE001 - raised by `failed`, or logged there
                tries.failed(error)
                if tries.in_doubt:
                    doubtful = error

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        return self._written(
            "write",
            identifier,
            reader,
            lambda source: self.backend.write_stream(identifier, source, info=info, verify=verify),
        )

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        return self._run("stat", identifier, lambda: self.backend.stat(identifier))

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        attempts = self._attempts("scan", prefix or None)
        return resumed_scan(
            attempts,
            lambda heard: self.backend.scan(prefix, on_skip=heard),
            lambda info: info.identifier,
            on_skip,
        )

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        attempts = self._attempts("scan", prefix or None)
        return resumed_scan(
            attempts,
            lambda heard: self.backend.scan_level(prefix, on_skip=heard),
            lambda found: found if isinstance(found, str) else found.identifier,
            on_skip,
        )

    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        return self._many(
            "look at", "stat", identifiers, self.backend.stat_many, lambda info: info.identifier
        )

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        if mode == "wb":
            names.check(identifier, surrogates=True)
            sink = SpooledSink(lambda spool: self.write_stream(identifier, spool))
            return cast(BinaryIO, Writer(sink))
        return self._run("open", identifier, lambda: self._opened(identifier))

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        return self._run("read_range", identifier, lambda: self.backend.read_range(identifier, start, end))

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        found = self._many("read", "read_many", identifiers, self.backend.read_many, lambda item: item[0])
        return read_counted(found, progress)

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        failures = Failures()
        stored = 0
        for group in grouped(items):
            stored += self._write_group(group, failures, verify)
            group.clear()  # not held while the next one is gathered
        failures.raise_any("write", self.location)
        return stored

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        failures = Failures()
        distinct = dict.fromkeys(identifiers)
        for group in sliced(distinct, GROUP_ITEMS):
            attempts = self._attempts("delete_many", None)
            repeated(attempts, group, self.backend.delete_many, lambda again: again, failures)
        failures.raise_any("delete", self.location)
        return len(distinct)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        if not overrides(self.backend, "download"):
            # It would open a reader and begin from the start; ours goes on.
            with self.open(identifier) as reader:
                return download_from(reader, path)
        return self._run("download", identifier, lambda: self.backend.download(identifier, path))

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        return self._run("upload", identifier, lambda: self.backend.upload(path, identifier))

    @override
    def create(self, identifier: str, content: Content) -> bool:
        return self._once("create", identifier, content, self.backend.create)

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        return self._once(
            "replace", identifier, content, lambda name, given: self.backend.replace(name, given, etag)
        )

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        return self._run("checksum", identifier, lambda: self.backend.checksum(identifier, algorithm))

    @override
    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        return self._run("get_url", identifier, lambda: self.backend.get_url(identifier, expires_in))

    @override
    def flush(self) -> bool:
        return self._run("flush", None, self.backend.flush)

    @property
    @override
    def hooks(self) -> Hooks:
        return _RetryingHooks(self)

    def _attempts(self, method: str, about: str | None) -> RetryState:
        return RetryState(self._policy, method, about, self.location)

    def _many(
        self,
        verb: str,
        method: str,
        identifiers: Iterable[str],
        start: Callable[[Identifiers], Iterator[T]],
        name: Callable[[T], str],
    ) -> Iterator[T]:
        """What *start* gives of the objects, group by group; see `resumed_batch`."""
        failures = Failures()
        for group in sliced(identifiers, GROUP_ITEMS):
            yield from resumed_batch(self._attempts(method, None), group, start, name, failures)
        failures.raise_any(verb, self.location)

    def _write_group(self, group: Items, failures: Failures, verify: bool) -> int:
        """Store the group; the errors of those that cannot be stored are noted. How many items it has."""
        # Of a name that comes twice, the last item is the one that stays.
        by_name = {name_of(key): (key, content) for key, content in group}
        for name in by_name:
            failures.errors.pop(name, None)
        repeated(
            self._attempts("write_many", None),
            group,
            lambda items: self.backend.write_many(items, verify=verify),
            lambda again: [by_name[name] for name in again if name in by_name],
            failures,
        )
        return len(group)

    def _run(self, method: str, about: str | None, call: Callable[[], T]) -> T:
        """What *call* gives, which may be made as often as one likes."""
        tries = self._attempts(method, about)
        while True:
            try:
                return call()
            except Exception as error:  # noqa: BLE001 - raised by `failed`, or logged there
                tries.failed(error)

    def _written(self, method: str, identifier: str, reader: BinaryIO, call: Callable[[BinaryIO], T]) -> T:
        """What *call* gives of *reader*, which is sent back to where it stands for each further try."""
        source = RewindableSource(reader)
        tries = self._attempts(method, identifier)
        while True:
            try:
                return call(source.reader)
            except Exception as error:  # noqa: BLE001 - raised by `failed`, or logged there
                tries.failed(error, again=not is_retryable(error) or source.rewind())

    def _once(self, method: str, identifier: str, content: Content, call: Callable[[str, Content], T]) -> T:
        """What *call* gives, which is made again only if it certainly did nothing."""
        found = plain(content)
        source = None if isinstance(found, bytes) else RewindableSource(found)
        tries = self._attempts(method, identifier)
        while True:
            try:
                return call(identifier, cast(bytes, found) if source is None else source.reader)
            except Exception as error:  # noqa: BLE001 - raised by `failed`, or logged there
                certain = proves_nothing_done(error)
                tries.failed(error, again=certain and (source is None or source.rewind()))

    def _looked(self, identifier: str) -> ObjectInfo | None:
        """What the object shows, None if it is absent."""
        try:
            return info_of(self.stat(identifier), identifier)
        except FileNotFoundError:
            return None

    def _opened(self, identifier: str) -> BinaryIO:
        if not overrides(self.backend, "open"):
            return self.backend.open(identifier)  # all of it, in memory
        pin = Pin.of(self.backend, identifier, self._clock)
        stream = self.backend.open(identifier)
        if type(stream) is io.BytesIO or type(getattr(stream, "raw", None)) is io.FileIO:
            return stream  # nothing of it fails for a moment only
        reader = ResumingReader(
            self.backend,
            identifier,
            stream,
            pin,
            tries=lambda: self._attempts("read", identifier),
            clock=self._clock,
        )
        return cast(BinaryIO, reader)


class _RetryingHooks(WrapperHooks):
    def __init__(self, storage: RetryingStorage) -> None:
        super().__init__(storage)
        self._many = storage._many

    @override
    def sha256_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, str]]:
        return self._many("read", "checksum", identifiers, self.inner.sha256_many, lambda found: found[0])


_NO_PLACE = (BucketNotFoundError, BaseDirectoryNotFoundError)
"""Nothing is proven of the object where its whole place is missing."""


def _may_be_moved(source: ObjectInfo, dest: ObjectInfo) -> bool:
    """Whether what is at a destination can be what was the source."""
    if source.sha256 is not None and dest.sha256 is not None:
        return source.sha256 == dest.sha256
    return source.size is not None and source.size == dest.size


def _seconds(parameter: str, value: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{parameter} must be a number of seconds, not {type(value).__name__}")
    if not math.isfinite(value) or value < 0:
        raise ConfigurationError(f"{parameter} must be 0 seconds or more, not {value}", parameter=parameter)
    return value
