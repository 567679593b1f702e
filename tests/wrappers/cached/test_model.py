"""A model of CachedStorage: whatever is done in whatever order, nothing is given that a backend did not hold lately."""

from __future__ import annotations

import io
import itertools
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from storage_backend import (
    AccessDeniedError,
    BatchError,
    CachedStorage,
    DatabaseStorage,
    MemoryStorage,
    PreconditionFailedError,
    StorageBackend,
    UnavailableError,
)
from storage_backend.testing import FaultyStorage
from storage_backend.wrappers.base import Wrapper
from storage_backend.wrappers.cached.ranges import BLOCK

T = TypeVar("T")

NAMES = ["a", "é"]
EPOCH = 1e9
TINY, MIDDLE = 100, 3 << 20  # bytes; of the tiny one a step of what is coming in is nothing
SMALL = 30  # bytes; all of one length, so that an entry is not told from another by its own
FAULTS = ("read", "stat", "open", "read_range", "read_many", "write", "write_stream", "write_many")
FAULTS_TOO = ("delete", "delete_many", "copy", "move", "create", "replace", "upload")
# What the cache calls of the backend within one call of ours: there somebody else can come between.
BETWEEN = ("read", "stat", "open", "read_range", "read_many", "write", "write_stream", "delete", "copy")

names = st.sampled_from(NAMES)
sizes = st.sampled_from([SMALL] * 6 + [0, TINY + 1, BLOCK, 2 * BLOCK + 9])
hows = st.sampled_from(["read", "read", "read_range", "far", "read_many", "open", "download"])
doings = st.sampled_from(["change", "delete", "write", "remove", "advance", "clear", "slow read"])
whom = st.integers(0, 1)


@dataclass
class Version:
    """What the backend held for a while.

    Attributes:
        content: None where there was no object.
        clocks: what the clock said while it was so.
    """

    content: bytes | None
    clocks: set[float] = field(default_factory=set)


class Fault(NamedTuple):
    """What is armed: call number *number* of *method* fails."""

    method: str
    number: int
    retryable: bool


class Start(NamedTuple):
    """How things were when a read began: the present versions, the oldest that may still be given, and the clock."""

    versions: dict[str, int]
    floors: dict[str, int]
    now: float


class Slow(threading.Thread):
    """A read that has its content from the backend, and goes on with it when it is told to."""

    def __init__(self, storage: CachedStorage, name: str, start: Start) -> None:
        super().__init__(daemon=True)
        self.storage, self.object, self.since = storage, name, start
        self.arrived, self.told = threading.Event(), threading.Event()
        self.fired: list[Fault] = []
        self.found: bytes | None = None
        self.failed: Exception | None = None

    def run(self) -> None:
        try:
            self.found = self.storage.read(self.object)
        except Exception as error:  # noqa: BLE001 - told of in the main thread
            self.failed = error
        self.arrived.set()


class Gate(Wrapper):
    """Holds the slow reads up after the backend has given the content."""

    def read(self, identifier: str) -> bytes:
        content = super().read(identifier)
        thread = threading.current_thread()
        if isinstance(thread, Slow):
            thread.arrived.set()
            assert thread.told.wait(60)
        return content


def settled(examples: int, steps: int) -> settings:
    """Settings that find the same each time."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Model(RuleBasedStateMachine):
    """What two CachedStorages over one directory give is compared with all that the backend ever held, and when."""

    engine: ClassVar[Literal["blobs", "diskcache"]] = "blobs"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="model-")
        self.place = Path(self.folder.name)
        self.inner: StorageBackend = self.backend()
        self.faulty = FaultyStorage(Gate(self.inner))
        self.now = EPOCH
        self.nows = {EPOCH}  # of the call under way
        self.versions = {name: [Version(None, {EPOCH})] for name in NAMES}
        self.floors = dict.fromkeys(NAMES, 0)
        self.faults: list[Fault] = []
        self.serial = itertools.count()
        self.between = 0  # how often somebody came between
        self.stores: list[CachedStorage] = []
        self.limit: int | None = None
        self.slow: Slow | None = None
        self.waits = False  # whether a read is under way, which another of the same object waits for

    def backend(self) -> StorageBackend:
        """What is cached."""
        return MemoryStorage()

    @initialize(data=st.data(), limit=st.sampled_from([None, TINY, MIDDLE]))
    def begin(self, data: st.DataObject, limit: int | None) -> None:
        self.limit = limit
        self.stores = [self.opened(data), self.opened(data)]

    def opened(self, data: st.DataObject) -> CachedStorage:
        """A CachedStorage over the directory that all share, each with a policy of its own."""
        return CachedStorage(
            self.faulty,
            self.place / "cache",
            None if self.limit is None else self.limit / 2**20,
            data.draw(st.sampled_from([None, 0, 1.5, 60]), "ttl_seconds"),
            engine=self.engine,
            revalidate=data.draw(st.sampled_from([None, True, False]), "revalidate"),
            stale_if_error=data.draw(st.sampled_from([None, 5]), "stale_if_error"),
            clock=lambda: self.now,
        )

    def teardown(self) -> None:
        try:
            if self.stores:
                self.end_slow_read()
                self.faulty.heal()
                self.compare_stats(0)
                for storage in self.stores:
                    storage.close()
        finally:
            self.inner.close()
            self.folder.cleanup()

    # The truth.

    def held(self, name: str) -> bytes | None:
        """What the backend holds now."""
        try:
            return self.inner.read(name)
        except FileNotFoundError:
            return None

    def observe(self) -> None:
        """Note what the backend holds now: after all that may have changed it, or the clock."""
        self.nows.add(self.now)
        for name, versions in self.versions.items():
            content = self.held(name)
            if content != versions[-1].content:
                versions.append(Version(content))
            versions[-1].clocks.add(self.now)

    def content(self, size: int) -> bytes:
        """Content that never was before, as far as its size allows that."""
        mark = b"%09d." % next(self.serial)
        return (mark * (size // len(mark) + 1))[:size]

    def path(self) -> Path:
        return self.place / f"file-{next(self.serial)}"

    # What a call may give.

    def start(self) -> Start:
        self.nows = {self.now}
        return Start(
            {name: len(found) - 1 for name, found in self.versions.items()}, dict(self.floors), self.now
        )

    def fired(self) -> list[Fault]:
        """The faults that have hit a call, which are forgotten."""
        hit = [fault for fault in self.faults if self.faulty.count(fault.method) >= fault.number]
        self.faults = [fault for fault in self.faults if fault not in hit]
        return hit

    def may_be(self, storage: CachedStorage, name: str, start: Start, fired: list[Fault]) -> list[bytes]:
        """The contents that a read may give which began at *start* and is over now."""
        ttl = storage.ttl_seconds
        if ttl is not None and storage.stale_if_error is not None and any(fault.retryable for fault in fired):
            ttl += storage.stale_if_error
        return [
            version.content
            for number, version in enumerate(self.versions[name])
            if version.content is not None
            and number >= start.floors[name]
            and (
                number >= start.versions[name]
                or ttl is None
                or any(0 <= now - at < ttl for now in self.nows for at in version.clocks)
            )
        ]

    def explain(self, name: str, start: Start, error: Exception, fired: list[Fault]) -> None:
        """An error is the backend's: the object was gone just then, or a fault was asked for."""
        if isinstance(error, FileNotFoundError):
            during = self.versions[name][start.versions[name] :]
            assert any(version.content is None for version in during), f"{name!r} was never gone: {error}"
            return
        assert isinstance(error, UnavailableError | AccessDeniedError), repr(error)
        assert fired, f"nothing was made to fail: {error}"

    def reading(
        self, storage: CachedStorage, name: str, call: Callable[[], bytes], cut: slice = slice(None)
    ) -> bytes | None:
        """Do a read, and compare: what it gave, or None if it failed."""
        if self.slow is not None and self.slow.object == name:
            self.end_slow_read()
        start = self.start()
        self.waits = True
        try:
            found = call()
        except (FileNotFoundError, UnavailableError, AccessDeniedError) as error:
            self.observe()
            self.explain(name, start, error, self.fired())
            return None
        finally:
            self.waits = False
        self.observe()
        may_be = self.may_be(storage, name, start, self.fired())
        if not any(found == content[cut] for content in may_be):
            pytest.fail(
                f"{name!r} was {found[:SMALL]!r}, not one of {[content[cut][:SMALL] for content in may_be]}"
            )
        return found

    def changing(
        self, changed: list[str], call: Callable[[], T], reads: tuple[str, ...] = ()
    ) -> tuple[T | None, Exception | None, bool]:
        """Do a change, after which nothing older is given, whatever came of it.

        Returns:
            What it gave, or its error; and whether nobody came between.
        """
        between = self.between
        start = self.start()
        given: T | None = None
        failed: Exception | None = None
        try:
            given = call()
        except (BatchError, FileNotFoundError, UnavailableError, AccessDeniedError) as error:
            failed = error
        self.observe()
        fired = self.fired()
        for name in changed:
            self.floors[name] = len(self.versions[name]) - 1
        if isinstance(failed, FileNotFoundError):
            of = [*changed, *reads]
            during = [
                version.content for name in of for version in self.versions[name][start.versions[name] :]
            ]
            assert None in during
        elif failed is not None:
            assert fired, repr(failed)
        return given, failed, between == self.between

    def check_written(
        self, written: dict[str, bytes], old: dict[str, bytes | None], failed: Exception | None
    ) -> None:
        """What was written is there; what was not reported as written is there, or else what was before."""
        for name, content in written.items():
            if failed is None:
                assert self.held(name) == content
            else:
                assert self.held(name) in (content, old[name])

    # Reads.

    @rule(who=whom, name=names)
    def read(self, who: int, name: str) -> None:
        self.reading(self.stores[who], name, lambda: self.stores[who].read(name))

    @rule(who=whom, name=names, chunk=st.sampled_from([-1, 7, BLOCK]))
    def open(self, who: int, name: str, chunk: int) -> None:
        def call() -> bytes:
            with self.stores[who].open(name) as reader:
                first = reader.read(chunk)
                return first + reader.read()

        self.reading(self.stores[who], name, call)

    @rule(
        who=whom,
        name=names,
        start=st.sampled_from([0, 0, 3, 3, SMALL - 1, BLOCK - 1, BLOCK, 2 * BLOCK + 1]),
        length=st.sampled_from([None, 0, 5, BLOCK, BLOCK + 2]),
    )
    def read_range(self, who: int, name: str, start: int, length: int | None) -> None:
        end = None if length is None else start + length
        storage = self.stores[who]
        self.reading(storage, name, lambda: storage.read_range(name, start, end), slice(start, end))

    @rule(who=whom, name=names)
    def download(self, who: int, name: str) -> None:
        target = self.path()

        def call() -> bytes:
            assert self.stores[who].download(name, target) is True
            return target.read_bytes()

        if self.reading(self.stores[who], name, call) is None:
            assert not target.exists()
        target.unlink(missing_ok=True)

    @rule(who=whom, wanted=st.lists(names, unique=True, min_size=1))
    def read_many(self, who: int, wanted: list[str]) -> None:
        storage, start = self.stores[who], self.start()
        found: dict[str, bytes] = {}
        failures: dict[str, Exception] = {}
        broken: Exception | None = None
        try:
            for name, content in storage.read_many(wanted):
                assert name not in found
                found[name] = content
        except BatchError as error:
            failures = error.failures
        except (UnavailableError, AccessDeniedError) as error:
            broken = error
        self.observe()
        fired = self.fired()
        for name, content in found.items():
            assert content in self.may_be(storage, name, start, fired), (name, content[:SMALL])
        for name, failure in failures.items():
            self.explain(name, start, failure, fired)
        if broken is not None:
            self.explain(wanted[0], start, broken, fired)
        else:
            assert {*found, *failures} == set(wanted)

    @rule(who=whom, wanted=st.lists(names, unique=True))
    def prefetch(self, who: int, wanted: list[str]) -> None:
        start = self.start()
        failures: dict[str, Exception] = {}
        try:
            assert self.stores[who].prefetch(wanted) <= len(wanted)
        except BatchError as error:
            failures = error.failures
        except (UnavailableError, AccessDeniedError) as error:
            failures = {wanted[0]: error}
        self.observe()
        fired = self.fired()
        for name, failure in failures.items():
            self.explain(name, start, failure, fired)

    @precondition(lambda self: self.limit is None)
    @rule(who=whom, name=names)
    def read_twice(self, who: int, name: str) -> None:
        """What was just read is there."""
        storage, between = self.stores[who], self.between
        first = self.reading(storage, name, lambda: storage.read(name))
        if first is None or between != self.between or storage.ttl_seconds == 0:
            return
        calls = len(self.faulty.calls)
        if self.reading(storage, name, lambda: storage.read(name)) == first:
            assert len(self.faulty.calls) == calls

    @rule(who=whom, name=names)
    def begin_slow_read(self, who: int, name: str) -> None:
        """While it is under way, the other rules go on."""
        if self.slow is None:
            self.slow = Slow(self.stores[who], name, self.start())
            self.slow.start()
            assert self.slow.arrived.wait(60)
            self.slow.fired = self.fired()

    @rule()
    def end_slow_read(self) -> None:
        slow, self.slow = self.slow, None
        if slow is None:
            return
        slow.told.set()
        slow.join(60)
        self.nows = {slow.since.now}
        fired = slow.fired + self.fired()
        self.observe()
        if slow.failed is not None:
            self.explain(slow.object, slow.since, slow.failed, fired)
        else:
            assert slow.found in self.may_be(slow.storage, slow.object, slow.since, fired)

    def read_somehow(self, who: int, name: str, how: str) -> None:
        if how == "read_range":
            self.read_range(who, name, 3, 5)
        elif how == "far":
            self.read_range(who, name, BLOCK - 1, 5)
        elif how == "read_many":
            self.read_many(who, [name])
        elif how == "open":
            self.open(who, name, -1)
        elif how == "download":
            self.download(who, name)
        else:
            self.read(who, name)

    @rule(
        who=st.tuples(whom, whom),
        name=names,
        size=sizes,
        hows=st.tuples(hows, hows),
        call=st.tuples(st.sampled_from([None, *BETWEEN[:5]]), st.sampled_from([1, 2])),
        amid=doings,
        then=doings,
        seconds=st.sampled_from([0.0, 0.25, 1.5, 3.0, 6.0, 59.75, -7.0]),
        failing=st.sampled_from([None, None, "read", "stat", "open"]),
    )
    def tell(  # noqa: PLR0917 - of a story much has to be drawn
        self,
        who: tuple[int, int],
        name: str,
        size: int,
        hows: tuple[str, str],
        call: tuple[str | None, int],
        amid: str,
        then: str,
        seconds: float,
        failing: str | None,
    ) -> None:
        """The story that most bugs of caches are in: a read, amid which something happens, a change, time, a read."""
        if call[0] is not None:
            self.come_between((call[0], call[1]), amid, who[1], name, size)
        self.read_somehow(who[0], name, hows[0])
        self.do(then, who[1], name, self.content(size))
        self.advance(seconds)
        if failing is not None:
            self.arm(failing, 1, "fail")
        self.read_somehow(who[0], name, hows[1])

    # Changes.

    @rule(who=whom, name=names, size=sizes, streamed=st.sampled_from(["bytes", "reader", "write_stream"]))
    def write(self, who: int, name: str, size: int, streamed: str) -> None:
        storage, content, old = self.stores[who], self.content(size), {name: self.held(name)}
        calls: dict[str, Callable[[], bool]] = {
            "bytes": lambda: storage.write(name, content),
            "reader": lambda: storage.write(name, io.BytesIO(content)),
            "write_stream": lambda: storage.write_stream(name, io.BytesIO(content)),
        }
        _, failed, alone = self.changing([name], calls[streamed])
        if alone:
            self.check_written({name: content}, old, failed)

    @rule(who=whom, name=names, size=sizes, reads=st.booleans(), clean=st.booleans())
    def open_to_write(self, who: int, name: str, size: int, reads: bool, clean: bool) -> None:
        """Whoever reads while a writer is open gives the old object to the cache, and not for long."""
        storage, content, old = self.stores[who], self.content(size), {name: self.held(name)}
        writer, _, _ = self.changing([], lambda: storage.open(name, "wb"))
        if writer is None:
            return
        writer.__enter__()
        try:
            writer.write(content)
        except UnavailableError:  # cut
            writer.__exit__(ValueError, ValueError(), None)
            return
        if reads:
            self.read(1 - who, name)
            old[name] = self.held(name)
        if not clean:
            writer.__exit__(ValueError, ValueError(), None)
            return
        _, failed, alone = self.changing([name], lambda: writer.__exit__(None, None, None))
        if alone:
            self.check_written({name: content}, old, failed)

    @rule(who=whom, items=st.lists(st.tuples(names, sizes), min_size=1, max_size=3))
    def write_many(self, who: int, items: list[tuple[str, int]]) -> None:
        given = [(name, self.content(size)) for name, size in items]
        old = {name: self.held(name) for name, _ in given}
        stored, failed, alone = self.changing(list(old), lambda: self.stores[who].write_many(given))
        if failed is None:
            assert stored == len(given)
            if alone:
                self.check_written(dict(given), old, None)

    @rule(who=whom, name=names)
    def delete(self, who: int, name: str) -> None:
        _, failed, alone = self.changing([name], lambda: self.stores[who].delete(name))
        if failed is None and alone:
            assert self.held(name) is None

    @rule(who=whom, gone=st.lists(names, unique=True, min_size=1))
    def delete_many(self, who: int, gone: list[str]) -> None:
        _, failed, alone = self.changing(gone, lambda: self.stores[who].delete_many(gone))
        if failed is None and alone:
            assert [self.held(name) for name in gone] == [None] * len(gone)

    @rule(who=whom, source=names, dest=names, moving=st.booleans())
    def copy_or_move(self, who: int, source: str, dest: str, moving: bool) -> None:
        storage, old = self.stores[who], self.held(source)
        call = storage.move if moving else storage.copy
        # An object that was only copied from may still be given as it was.
        changed = [source, dest] if moving else [dest]
        _, failed, alone = self.changing(changed, lambda: call(source, dest), (source,))
        if failed is None and alone:
            assert old is not None
            assert self.held(dest) == old
            if moving and source != dest:
                assert self.held(source) is None

    @rule(who=whom, name=names, size=sizes)
    def create(self, who: int, name: str, size: int) -> None:
        content, old = self.content(size), {name: self.held(name)}
        created, failed, alone = self.changing([name], lambda: self.stores[who].create(name, content))
        if not alone:
            return
        if failed is None:
            assert created is (old[name] is None)
        if failed is not None or created:
            self.check_written({name: content}, old, failed)
        else:
            assert self.held(name) == old[name]

    @rule(who=whom, name=names, size=sizes, right=st.booleans())
    def replace(self, who: int, name: str, size: int, right: bool) -> None:
        content, old = self.content(size), {name: self.held(name)}
        etag = "none such" if old[name] is None or not right else str(self.inner.stat(name).etag)

        def call() -> bool:
            try:
                self.stores[who].replace(name, content, etag)
            except PreconditionFailedError:
                return False
            return True

        replaced, failed, alone = self.changing([name], call)
        if not alone:
            return
        if failed is None:
            assert replaced is (etag != "none such")
        self.check_written({name: content} if failed is not None or replaced else {}, old, failed)

    @rule(who=whom, name=names, size=sizes)
    def upload(self, who: int, name: str, size: int) -> None:
        source, content, old = self.path(), self.content(size), {name: self.held(name)}
        source.write_bytes(content)
        _, failed, alone = self.changing([name], lambda: self.stores[who].upload(source, name))
        source.unlink()
        if alone:
            self.check_written({name: content}, old, failed)

    # The cache itself.

    @rule(who=whom, name=names)
    def invalidate(self, who: int, name: str) -> None:
        self.stores[who].invalidate(name)
        self.floors[name] = len(self.versions[name]) - 1

    @rule(who=whom)
    def clear(self, who: int) -> None:
        self.stores[who].clear_cache()
        self.floors = {name: len(found) - 1 for name, found in self.versions.items()}
        assert self.stores[who].get_cache_stats()["file_count"] == 0

    @rule(who=whom)
    def compare_stats(self, who: int) -> None:
        storage = self.stores[who]
        stats, findings = storage.get_cache_stats(), storage.check_cache()
        assert findings.clean, findings
        assert stats["file_count"] == findings.entries
        assert stats["size_mb"] == findings.size / 2**20
        if self.engine == "blobs" and self.limit is not None:
            assert findings.size <= self.limit

    @rule(who=whom, data=st.data())
    def reopen(self, who: int, data: st.DataObject) -> None:
        self.end_slow_read()
        self.stores[who].close()
        self.stores[who] = self.opened(data)

    # The world.

    @rule(seconds=st.sampled_from([0.25, 1.0, 1.5, 3.0, 6.0, 59.75, 70.0, -1.0, -7.0]))
    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.observe()

    @rule(name=names, size=sizes)
    def change_outside(self, name: str, size: int) -> None:
        self.inner.write(name, self.content(size))
        self.observe()

    @rule(name=names)
    def delete_outside(self, name: str) -> None:
        if self.held(name) is not None:
            self.inner.delete(name)
        self.observe()

    @rule(
        method=st.sampled_from(FAULTS * 2 + FAULTS_TOO),
        nth=st.sampled_from([1, 1, 1, 2]),
        kind=st.sampled_from(["fail", "lose", "denied", "cut"]),
    )
    def arm(self, method: str, nth: int, kind: str) -> None:
        """A call is to fail: before anything is done, after all was done, or amid it."""
        self.faults.append(Fault(method, self.faulty.count(method) + nth, kind != "denied"))
        if kind == "cut" and method in ("open", "write", "write_stream", "read_many"):
            self.faulty.cut(method, nth=nth, at=1)
        elif kind == "lose" and method != "open":  # what nobody holds is no loss that can be told of
            self.faulty.lose(method, nth=nth)
        elif kind == "denied":
            self.faulty.fail(method, nth=nth, error=AccessDeniedError)
        else:
            self.faulty.fail(method, nth=nth)

    @rule()
    def heal(self) -> None:
        self.faulty.heal()
        self.faults.clear()

    @rule(
        call=st.tuples(st.sampled_from(BETWEEN), st.sampled_from([1, 1, 2])),
        what=doings,
        who=whom,
        name=names,
        size=sizes,
    )
    def come_between(self, call: tuple[str, int], what: str, who: int, name: str, size: int) -> None:
        """Just before the cache's next call of the backend, somebody else does something."""
        content = self.content(size)

        def act() -> None:
            self.between += 1
            self.do(what, who, name, content)

        self.faulty.before(call[0], act, nth=call[1])

    def do(self, what: str, who: int, name: str, content: bytes) -> None:
        """What somebody else does, perhaps amid a call."""
        storage = self.stores[who]
        self.observe()
        if what == "advance":
            self.now += 2
        elif what == "change":
            self.inner.write(name, content)
        elif what == "delete":
            if self.held(name) is not None:
                self.inner.delete(name)
        elif what == "clear":
            storage.clear_cache()
            self.floors = {name: len(found) - 1 for name, found in self.versions.items()}
        elif what == "slow read":
            if not self.waits and self.slow is None and threading.current_thread() is threading.main_thread():
                nows = self.nows
                self.begin_slow_read(who, name)
                self.nows = nows
        else:
            with suppress(FileNotFoundError, UnavailableError, AccessDeniedError):
                _ = storage.write(name, content) if what == "write" else storage.delete(name)
            self.observe()
            self.floors[name] = len(self.versions[name]) - 1
        self.observe()


class OverDatabase(Model):
    """A backend whose reads tell what they were of, so that entries are renewed without being asked for."""

    def backend(self) -> StorageBackend:
        return DatabaseStorage(f"sqlite:///{self.place}/objects.db")


class WithDiskCache(Model):
    """python-diskcache as the engine."""

    engine = "diskcache"


def examples(soak: bool, few: int) -> int:
    return few * 10 if soak else few


def test_nothing_is_given_that_was_not_there_lately(soak: bool) -> None:
    run_state_machine_as_test(Model, settings=settled(examples(soak, 30), 50))


def test_nothing_is_given_that_was_not_there_lately_where_reads_tell(soak: bool) -> None:
    run_state_machine_as_test(OverDatabase, settings=settled(examples(soak, 8), 40))


def test_nothing_is_given_that_was_not_there_lately_with_diskcache(soak: bool) -> None:
    pytest.importorskip("diskcache")
    run_state_machine_as_test(WithDiskCache, settings=settled(examples(soak, 8), 40))


@pytest.mark.parametrize(("ttl", "passed"), [(0, 0.0), (60, -3600.0)])
def test_range_of_an_expired_entry_is_not_given_again(tmp_path: Path, ttl: float, passed: float) -> None:
    """Not in the same tick of the clock, and not after it went back."""
    now, inner = [EPOCH], MemoryStorage()
    storage = CachedStorage(inner, tmp_path, None, ttl, clock=lambda: now[0])
    inner.write("a", b"old")
    assert storage.read("a") == b"old"
    inner.write("a", b"new")
    now[0] += passed
    assert storage.read_range("a", 0, 3) == b"new"
