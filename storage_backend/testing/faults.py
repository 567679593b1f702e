"""FaultyStorage: a wrapper that fails, delays or truncates the calls that a test names."""

from __future__ import annotations

import io
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar, cast

from typing_extensions import override

from storage_backend.base import Identifiers, Item, StorageBackend
from storage_backend.counted import Progress, delete_counted, read_counted, write_counted
from storage_backend.errors import UnavailableError
from storage_backend.info import ObjectInfo
from storage_backend.scanning import OnSkip, one_level
from storage_backend.streams import Content, Writer, plain
from storage_backend.testing.cuts import Cut, CutSink
from storage_backend.wrappers.base import Wrapper

T = TypeVar("T")

METHODS = frozenset(
    name
    for name in vars(Wrapper)
    if not name.startswith("_") and callable(getattr(Wrapper, name)) and name != "close"
)
"""The methods that can be made to fail: all public ones but close()."""

CUTTABLE = frozenset({"open", "write", "write_stream", "scan", "read_many"})
"""The methods that return or take a stream."""


class Call(NamedTuple):
    """One call of a FaultyStorage: the method, and its arguments without contents and readers."""

    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _FaultRule:
    """A fault of the calls *first* to *last* (None: all that follow) of *method*."""

    method: str
    first: int
    last: int | None
    action: Callable[[], object] | None = None
    at: int | None = None
    after: bool = False
    error: BaseException | type[BaseException] | None = None
    message: str | None = None  # of the error, where none was given

    def covers(self, number: int) -> bool:
        return self.first <= number and (self.last is None or number <= self.last)

    def fault(self, call: Call, where: str) -> BaseException | type[BaseException] | None:
        """The error to raise; a new one for each call, unless the caller gave one."""
        if self.error is not None or self.message is None:
            return self.error
        named = next((argument for argument in call.arguments if isinstance(argument, str)), None)
        return UnavailableError(f"{self.message} (injected fault)", identifier=named, backend=where)


class _CallFaults:
    """The faults of one call."""

    def __init__(self, call: Call, rules: list[_FaultRule], where: str) -> None:
        self._call = call
        self._rules = rules
        self._where = where

    def begin(self) -> None:
        for rule in self._rules:
            if rule.action is not None:
                rule.action()
            self._raise(rule, when=rule.at is None and not rule.after)

    def end(self, result: T) -> T:
        for rule in self._rules:
            self._raise(rule, when=rule.after)
        return result

    def cut(self) -> Cut | None:
        """The earliest cut."""
        cuts = [
            Cut(rule.at, fault)
            for rule in self._rules
            if rule.at is not None and (fault := rule.fault(self._call, self._where)) is not None
        ]
        return min(cuts, key=lambda cut: cut.at, default=None)

    def _raise(self, rule: _FaultRule, *, when: bool) -> None:
        fault = rule.fault(self._call, self._where) if when else None
        if fault is not None:
            raise fault


class FaultyStorage(Wrapper):
    """Passes all calls to another backend, with the faults that a test asks for.

    *nth* counts the calls of the method from now on: 1 is the next one. *times* is the number of consecutive calls that are hit; None
    means all that follow. Several faults may hit one call. Thread-safe.

    Attributes:
        calls: all calls so far in order, also those that failed.
    """

    def __init__(self, backend: StorageBackend, *, sleep: Callable[[float], object] = time.sleep) -> None:
        super().__init__(backend)
        self.calls: list[Call] = []
        self._sleep = sleep
        self._rules: list[_FaultRule] = []
        self._counts: Counter[str] = Counter()
        self._locks: dict[int, threading.Lock] = {}

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {**self.__dict__, "calls": list(self.calls), "_rules": list(self._rules), "_locks": {}}

    @property
    def _lock(self) -> threading.Lock:
        """A lock of this process. A lock that another thread holds at a fork stays locked in the child for ever."""
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def fail(
        self,
        method: str,
        *,
        nth: int = 1,
        error: BaseException | type[BaseException] | None = None,
        times: int | None = 1,
    ) -> None:
        """Raise *error* (by default an UnavailableError) instead of doing the call."""
        self._add(method, nth, times, error=error, message=f"{method}() was made to fail")

    def lose(self, method: str, *, nth: int = 1, times: int | None = 1) -> None:
        """Do the call, then raise UnavailableError, as if the response was lost."""
        self._add(method, nth, times, after=True, message=f"the response to {method}() was lost")

    def delay(self, method: str, seconds: float, *, nth: int = 1, times: int | None = None) -> None:
        """Sleep before the call, with the `sleep` of the constructor; by default before all that follow."""
        self._add(method, nth, times, action=partial(self._sleep, seconds))

    def before(
        self, method: str, action: Callable[[], object], *, nth: int = 1, times: int | None = 1
    ) -> None:
        """Run *action* before the call, in the caller's thread."""
        self._add(method, nth, times, action=action)

    def cut(
        self,
        method: str,
        *,
        at: int,
        nth: int = 1,
        error: BaseException | type[BaseException] | None = None,
        times: int | None = 1,
    ) -> None:
        """Let *at* bytes of a stream pass, then raise *error* (by default an UnavailableError).

        A reader of `open` raises when byte *at* is read, or the end of the object there. A writer of `open`, `write` and
        `write_stream` pass *at* bytes to the backend. `scan` and `read_many` yield *at* items.
        """
        if method not in CUTTABLE:
            raise ValueError(f"cut() is for {', '.join(sorted(CUTTABLE))}, not {method!r}")
        self._add(method, nth, times, at=at, error=error, message=f"{method}() was cut at {at}")

    def heal(self) -> None:
        """Remove all faults; `calls` stays."""
        with self._lock:
            self._rules.clear()

    def count(self, method: str) -> int:
        """The number of calls of *method* so far."""
        with self._lock:
            return self._counts[_known(method)]

    def _add(self, method: str, nth: int, times: int | None, **effect: Any) -> None:
        if nth < 1 or (times is not None and times < 1):
            raise ValueError(f"calls are counted from 1: nth={nth}, times={times}")
        with self._lock:
            first = self._counts[_known(method)] + nth
            last = None if times is None else first + times - 1
            self._rules.append(_FaultRule(method, first, last, **effect))

    def _begin(self, method: str, *arguments: Any) -> _CallFaults:
        """Record a call, and apply the faults that come before it."""
        # Recorded contents and readers would stay alive.
        call = Call(method, tuple(a for a in arguments if isinstance(a, str | int | os.PathLike | None)))
        with self._lock:
            self.calls.append(call)
            self._counts[method] += 1
            number = self._counts[method]
            rules = [rule for rule in self._rules if rule.method == method and rule.covers(number)]
        faults = _CallFaults(call, rules, self.location)
        faults.begin()
        return faults

    def _run(self, method: str, call: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        return self._begin(method, *arguments).end(call(*arguments, **keywords))

    @override
    def exists(self, identifier: str) -> bool:
        return self._run("exists", super().exists, identifier)

    @override
    def read(self, identifier: str) -> bytes:
        return self._run("read", super().read, identifier)

    @override
    def write(self, identifier: str, content: Content) -> bool:
        faults = self._begin("write", identifier, content)
        found = plain(content)
        cut = faults.cut()
        if cut is None:
            return faults.end(super().write(identifier, found))
        reader = io.BytesIO(found) if isinstance(found, bytes) else found
        return faults.end(self.backend.write_stream(identifier, cut.reader(reader)))

    @override
    def delete(self, identifier: str) -> bool:
        return self._run("delete", super().delete, identifier)

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        return self._run("list", super().list, pattern)

    @override
    def get_path(self, identifier: str) -> str:
        return self._run("get_path", super().get_path, identifier)

    @override
    def size(self, identifier: str) -> int:
        return self._run("size", super().size, identifier)

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        return self._run("copy", super().copy, source_id, dest_id)

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        return self._run("move", super().move, source_id, dest_id)

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        faults = self._begin("write_stream", identifier, reader)
        cut = faults.cut()
        source = cut.reader(reader) if cut else reader
        return faults.end(super().write_stream(identifier, source, info=info, verify=verify))

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        return self._run("stat", super().stat, identifier)

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        faults = self._begin("scan", prefix)
        cut = faults.cut()
        found = super().scan(prefix, on_skip=on_skip)
        return faults.end(cut.items(found) if cut else found)

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        faults = self._begin("scan_level", prefix)
        return faults.end(one_level(self.scan(prefix, on_skip=on_skip), prefix))

    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        return self._run("stat_many", super().stat_many, identifiers)

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        faults = self._begin("open", identifier, mode)
        cut = faults.cut()
        stream = super().open(identifier, mode)
        if cut is None:
            return faults.end(stream)
        if mode == "rb":
            return faults.end(cut.reader(stream, closes=True))
        return faults.end(cast(BinaryIO, Writer(CutSink(stream, cut))))

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        return self._run("read_range", super().read_range, identifier, start, end)

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        faults = self._begin("read_many", identifiers)
        cut = faults.cut()
        found = super().read_many(identifiers)
        return read_counted(faults.end(cut.items(found) if cut else found), progress)

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        return self._run("write_many", super().write_many, items, verify=verify)

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        return self._run("delete_many", super().delete_many, identifiers)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        return self._run("download", super().download, identifier, path)

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        return self._run("upload", super().upload, path, identifier)

    @override
    def create(self, identifier: str, content: Content) -> bool:
        return self._run("create", super().create, identifier, content)

    @override
    def replace(self, identifier: str, content: Content, etag: str) -> str:
        return self._run("replace", super().replace, identifier, content, etag)

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        return self._run("checksum", super().checksum, identifier, algorithm)

    @override
    def get_url(self, identifier: str, expires_in: int = 3600) -> str:
        return self._run("get_url", super().get_url, identifier, expires_in)

    @override
    def flush(self) -> bool:
        return self._run("flush", super().flush)


def _known(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"no such method: {method!r}; known: {', '.join(sorted(METHODS))}")
    return method
