"""RetryingStorage: which operations are retried, and how."""

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
from storage_backend.errors import STORE_MISSING, ConfigurationError, Failures, is_retryable
from storage_backend.hooks import Hooks, download_from
from storage_backend.info import ObjectInfo
from storage_backend.scanning import OnSkip
from storage_backend.streams import Content, SpooledSink, Writer, check_mode, plain
from storage_backend.wrappers.base import Wrapper, WrapperHooks
from storage_backend.wrappers.retrying.attempts import RetryPolicy, RetryState, proves_nothing_done
from storage_backend.wrappers.retrying.reader import Pin, ResumingReader, ResumingStream
from storage_backend.wrappers.retrying.resuming import repeated, resumed_batch, resumed_scan
from storage_backend.wrappers.sources import GROUP_ITEMS, RewindableSource, grouped, name_of, sliced

T = TypeVar("T")
Items: TypeAlias = list[Item]  # inside the class, `list` is a method


class RetryingStorage(Wrapper):
    """Retries operations that failed with a `retryable` error, after a pause. Any other error is raised at once.

    If a backend already tried three times, that counts as three attempts. The final error's `attempts` is the total.
    The pause is random, up to *first* seconds, doubled with each retry up to *longest*, added to the `retry_after` of a
    RateLimitedError; one that asks for more than a minute (and more than *longest*) is raised at once. Each retry logs
    a WARNING.

    Retries are invisible to the caller. Bytes and seekable sources are written again from their starting position; a
    source that cannot seek is not, once something was read of it. A broken reader resumes at its offset if the etag, or
    the size and an old enough modification time, prove the object unchanged; else it raises SourceChangedError. A scan
    resumes after its last object, a batch with those that failed. After progress, attempts are counted from zero.

    If a response is lost, the operation may have taken effect. So a retried delete that finds nothing has succeeded, and
    so has a retried move if its source, which existed before, is gone and an object of its size is at the destination.
    `create` and `replace` are retried only after a RateLimitedError, which proves that nothing was done, because the
    retry would see its own first attempt as another writer's. After any other retryable error the outcome is unknown.

    `open(identifier, "wb")` buffers what is written (beyond 8 MiB in a temporary file) so that publishing can be retried.

    Args:
        backend: the backend within.
        attempts: the maximum number of attempts.
        first: upper bound of the first pause, in seconds.
        longest: upper bound of every pause, in seconds.
        clock: as `time.time`; used to judge whether a modification time is old enough to trust.
        sleep: called with seconds.
        random: returns numbers from 0 to 1; by default `random.random`.

    Attributes:
        backend, attempts, first, longest: as given.

    Raises:
        ConfigurationError: a number is out of range.
        TypeError: an argument has the wrong type.
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
        attempts = self._attempts("delete", identifier)
        while True:
            try:
                # Some backends (FallbackStorage) return False for an absent object.
                return self.backend.delete(identifier) is not False or attempts.in_doubt
            except FileNotFoundError as error:
                if attempts.in_doubt and not isinstance(error, STORE_MISSING):
                    return True
                attempts.wait_or_raise(error)
            except Exception as error:  # noqa: BLE001 - raised or logged by `wait_or_raise`
                attempts.wait_or_raise(error)

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
        attempts = self._attempts("move", source_id)
        in_doubt: Exception | None = None
        while True:
            try:
                return self.backend.move(source_id, dest_id)
            except FileNotFoundError as error:
                found = None
                if in_doubt is not None and not isinstance(error, STORE_MISSING):
                    found = self._stat_or_none(dest_id)
                if in_doubt is None or before is None or found is None:
                    attempts.wait_or_raise(error)
                elif _may_be_moved(before, found):
                    return True
                else:
                    raise attempts.with_total(in_doubt) from None
            except Exception as error:  # noqa: BLE001 - raised or logged by `wait_or_raise`
                attempts.wait_or_raise(error)
                if attempts.in_doubt:
                    in_doubt = error

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
            "stat", "stat_many", identifiers, self.backend.stat_many, lambda info: info.identifier
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
            # The inherited one would start over after an error; our reader resumes.
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
        """Run *start* on the objects, group by group; see `resumed_batch`."""
        failures = Failures()
        for group in sliced(identifiers, GROUP_ITEMS):
            yield from resumed_batch(self._attempts(method, None), group, start, name, failures)
        failures.raise_any(verb, self.location)

    def _write_group(self, group: Items, failures: Failures, verify: bool) -> int:
        """Store the group and note its errors; return the number of its items."""
        # The last item of a repeated name wins.
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
        """The result of *call*, retried freely: it is idempotent."""
        attempts = self._attempts(method, about)
        while True:
            try:
                return call()
            except Exception as error:  # noqa: BLE001 - raised or logged by `wait_or_raise`
                attempts.wait_or_raise(error)

    def _written(self, method: str, identifier: str, reader: BinaryIO, call: Callable[[BinaryIO], T]) -> T:
        """The result of *call* on *reader*, which is rewound to its starting position before each retry."""
        source = RewindableSource(reader)
        attempts = self._attempts(method, identifier)
        while True:
            try:
                return call(source.reader)
            except Exception as error:  # noqa: BLE001 - raised or logged by `wait_or_raise`
                attempts.wait_or_raise(error, again=not is_retryable(error) or source.rewind())

    def _once(self, method: str, identifier: str, content: Content, call: Callable[[str, Content], T]) -> T:
        """The result of *call*, retried only if the failed attempt certainly had no effect."""
        found = plain(content)
        source = None if isinstance(found, bytes) else RewindableSource(found)
        attempts = self._attempts(method, identifier)
        while True:
            try:
                return call(identifier, cast(bytes, found) if source is None else source.reader)
            except Exception as error:  # noqa: BLE001 - raised or logged by `wait_or_raise`
                certain = proves_nothing_done(error)
                attempts.wait_or_raise(error, again=certain and (source is None or source.rewind()))

    def _stat_or_none(self, identifier: str) -> ObjectInfo | None:
        """The object's info; None if absent."""
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
            return stream  # a memory or local-file stream has no transient failures
        resuming = ResumingStream(
            self.backend,
            identifier,
            stream,
            pin,
            attempts=lambda: self._attempts("read", identifier),
            clock=self._clock,
        )
        return ResumingReader(resuming)


class _RetryingHooks(WrapperHooks):
    def __init__(self, storage: RetryingStorage) -> None:
        super().__init__(storage)
        self._many = storage._many

    @override
    def sha256_many(self, identifiers: Iterable[str]) -> Iterator[tuple[str, str]]:
        return self._many("read", "checksum", identifiers, self.inner.sha256_many, lambda found: found[0])


def _may_be_moved(source: ObjectInfo, dest: ObjectInfo) -> bool:
    """Whether the object at the destination may be the moved source."""
    if source.sha256 is not None and dest.sha256 is not None:
        return source.sha256 == dest.sha256
    return source.size is not None and source.size == dest.size


def _seconds(parameter: str, value: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{parameter} must be a number of seconds, not {type(value).__name__}")
    if not math.isfinite(value) or value < 0:
        raise ConfigurationError(f"{parameter} must be 0 seconds or more, not {value}", parameter=parameter)
    return value
