"""CachedStorage against a model, with mishaps: damaged entries, a lost index, a full cache, objects of many small blocks."""

# ruff: noqa: PLR0917 - Hypothesis gives the arguments of rules by name

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from storage_backend import BatchError, CachedStorage, MemoryStorage, NotFoundError, UnavailableError
from storage_backend.testing import FaultyStorage
from storage_backend.wrappers.cached import ranges
from tests.tiers import Tier
from tests.wrappers.cached.tools import Clock, assert_whole, blobs, content_bytes

NAMES = ("a", "c/d")
READS = ("read", "open", "read_many", "read_range", "stat")
BLOCK = 16  # bytes, so that small objects have several

names = st.sampled_from(NAMES)
which = st.integers(0, 1)
failing = st.sampled_from([False, False, True])
fault = st.sampled_from(["none", "none", "none", "fail", "lose"])
sizes = st.integers(0, 80)

Fault = Literal["none", "fail", "lose"]


class Version(NamedTuple):
    """A state of one object: from when on, and its content (None: it is not there)."""

    since: float
    content: bytes | None


def whole(cached: CachedStorage, name: str) -> bytes:
    """All that a stream gives."""
    with cached.open(name) as reader:
        return reader.read()


class CacheMachine(RuleBasedStateMachine):
    """Two caches over one directory, before a backend that fails and that others change."""

    @initialize(
        ttl=st.sampled_from([None, 0, 5, 10.5]),
        stale=st.sampled_from([None, 7]),
        revalidate=st.sampled_from([None, True, False]),
        limit=st.sampled_from([None, None, 0, 60, 150]),
        objects=st.dictionaries(names, sizes),
    )
    def begin(
        self,
        ttl: float | None,
        stale: float | None,
        revalidate: bool | None,
        limit: int | None,
        objects: dict[str, int],
    ) -> None:
        self.patch = mock.patch.object(ranges, "BLOCK", BLOCK)
        self.patch.start()
        self.directory = Path(tempfile.mkdtemp(prefix="cache-model-"))
        self.clock = Clock()
        self.ttl, self.stale, self.revalidate, self.limit = ttl, stale, revalidate, limit
        self.memory = MemoryStorage()
        self.backend = FaultyStorage(self.memory)
        self.number = 0
        self.history: dict[str, list[Version]] = {name: [Version(-1.0, None)] for name in NAMES}
        self.began: dict[str, int] = {}  # the version at the beginning of the read that is under way
        self.oldest = dict.fromkeys(NAMES, 0)  # versions before this one may not be given any more
        for name, size in objects.items():
            self.memory.write(name, self.new(size))
            self.look(name)
        self.caches = [self.open(), self.open()]

    def open(self) -> CachedStorage:
        return CachedStorage(
            self.backend,
            self.directory / "cache",
            None if self.limit is None else self.limit / 2**20,
            self.ttl,
            stale_if_error=self.stale,
            revalidate=self.revalidate,
            clock=self.clock,
        )

    def teardown(self) -> None:
        if not hasattr(self, "directory"):
            return
        try:
            assert_whole(self.caches[0])
        finally:
            self.patch.stop()
            for cached in self.caches:
                cached.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    # The model.

    def new(self, size: int) -> bytes:
        """A content that no other object has; of one size, every part tells it apart."""
        self.number += 1
        return (b"%04d" % self.number * 20)[:size]

    def present(self, name: str) -> bytes | None:
        try:
            return self.memory.read(name)
        except NotFoundError:
            return None

    def look(self, name: str) -> None:
        """Note what the object is now."""
        content = self.present(name)
        if content != self.history[name][-1].content or content is not None:
            self.history[name].append(Version(self.clock.now, content))

    def seen_to(self, name: str) -> None:
        """Nothing before the present version may be given from now on."""
        self.oldest[name] = len(self.history[name]) - 1

    def allowed(self, name: str, *, failing: bool) -> list[int]:
        """Which versions a read may give now."""
        versions = self.history[name]
        last = len(versions) - 1
        age = self.ttl
        if failing and age is not None and self.stale is not None:
            age += self.stale
        found = [last]
        for number in range(self.oldest[name], last):
            until = versions[number + 1].since
            if age is None or until > self.clock.now - age or number >= self.began.get(name, last):
                found.append(number)
        return [number for number in found if versions[number].content is not None]

    def check_read(self, name: str, content: bytes, *, failing: bool) -> None:
        versions = self.history[name]
        allowed = self.allowed(name, failing=failing)
        contents = [versions[number].content for number in allowed]
        assert content in contents, f"{name}: {content!r} is not among {contents}"

    def check_absent(self, name: str) -> None:
        assert self.present(name) is None, f"{name} is said to be absent"
        self.seen_to(name)

    # Reading.

    def fail_reads(self, failing: bool) -> None:
        for method in READS if failing else ():
            self.backend.fail(method, times=None)

    def reading(self, name: str, failing: bool, read: Callable[[], bytes]) -> None:
        self.fail_reads(failing)
        try:
            content = read()
        except NotFoundError:
            assert not failing
            self.check_absent(name)
        except UnavailableError:
            assert failing
        else:
            self.check_read(name, content, failing=failing)
        finally:
            self.backend.heal()

    @rule(
        how=st.sampled_from(["read", "read", "open", "download", "range"]),
        name=names,
        cache=which,
        failing=failing,
    )
    def read(self, how: str, name: str, cache: int, failing: bool) -> None:
        cached = self.caches[cache]
        if how == "read":
            self.reading(name, failing, lambda: cached.read(name))
        elif how == "open":
            self.reading(name, failing, lambda: whole(cached, name))
        elif how == "download":
            out = self.directory / "out"
            self.reading(name, failing, lambda: (cached.download(name, out), out.read_bytes())[1])
        else:
            self.read_range(name, cache, 4, 70, failing)

    @rule(
        name=names,
        cache=which,
        how=st.sampled_from(["read", "open", "range"]),
        method=st.sampled_from(READS),
        nth=st.integers(1, 2),
        size=sizes,
        seconds=st.sampled_from([0, 5, 10, 10.5]),
    )
    def read_what_is_changed_meanwhile(
        self, name: str, cache: int, how: str, method: str, nth: int, size: int, seconds: float
    ) -> None:
        if self.present(name) is None:
            return
        self.backend.before(method, lambda: self.change_outside(name, size), nth=nth)
        self.began[name] = len(self.history[name]) - 1
        self.read(how, name, cache, False)
        del self.began[name]
        self.wait(seconds)
        self.read(how, name, cache, False)

    @rule(name=names, cache=which)
    def open_a_stream_that_breaks(self, name: str, cache: int) -> None:
        self.backend.cut("open", at=1)
        try:
            content = whole(self.caches[cache], name)
        except NotFoundError:
            self.check_absent(name)
        except UnavailableError:
            pass
        else:
            self.check_read(name, content, failing=True)
        finally:
            self.backend.heal()

    @rule(name=names, cache=which, start=st.integers(0, 60), length=st.integers(0, 60), failing=failing)
    def read_range(self, name: str, cache: int, start: int, length: int, failing: bool) -> None:
        self.fail_reads(failing)
        try:
            piece = self.caches[cache].read_range(name, start, start + length)
        except NotFoundError:
            self.check_absent(name)
        except UnavailableError:
            assert failing
        else:
            versions = self.history[name]
            known = [versions[number].content for number in self.allowed(name, failing=failing)]
            assert piece in [cast(bytes, content)[start : start + length] for content in known]
        finally:
            self.backend.heal()

    @rule(wanted=st.lists(names, max_size=4), cache=which, failing=failing)
    def read_many(self, wanted: list[str], cache: int, failing: bool) -> None:
        self.fail_reads(failing)
        given = []
        try:
            for name, content in self.caches[cache].read_many(wanted):
                given.append(name)
                self.check_read(name, content, failing=failing)
        except BatchError as error:
            for name, failure in error.failures.items():
                assert isinstance(failure, NotFoundError)
                self.check_absent(name)
            absent = [name for name in wanted if name in error.failures]
            assert sorted([*given, *absent]) == sorted(wanted)
        except UnavailableError:
            assert failing
        else:
            assert sorted(given) == sorted(wanted)
        finally:
            self.backend.heal()

    @rule(wanted=st.lists(names, max_size=4), cache=which)
    def prefetch(self, wanted: list[str], cache: int) -> None:
        with suppress(BatchError):
            self.caches[cache].prefetch(wanted)

    # Changing.

    def changing(self, changed: list[str], method: str, fault: Fault, change: Callable[[], object]) -> bool:
        """Do it, with a fault; after it nothing older is given. Says whether it was acknowledged."""
        if fault == "fail":
            self.backend.fail(method, times=None)
        elif fault == "lose":
            self.backend.lose(method, times=None)
        if self.number % 3:
            for name in set(changed):
                with suppress(NotFoundError):
                    self.caches[0].read(name)
        before = {name: self.present(name) for name in NAMES}
        try:
            change()
        except UnavailableError:
            assert fault != "none"
            acknowledged = False
        except NotFoundError:
            acknowledged = False
        else:
            acknowledged = True
        finally:
            self.backend.heal()
        for name in NAMES:
            if name in changed:
                self.look(name)
                self.seen_to(name)
            else:
                assert self.present(name) == before[name]
        if self.number % 2:
            for name in set(changed):
                self.read("read", name, self.number // 2 % 2, False)
        return acknowledged

    @rule(
        how=st.sampled_from(["write", "write", "reader", "create", "replace", "writer"]),
        name=names,
        cache=which,
        size=sizes,
        fault=fault,
    )
    def change(self, how: str, name: str, cache: int, size: int, fault: Fault) -> None:
        cached = self.caches[cache]
        content = self.new(size)
        if how == "write":
            done = self.changing([name], "write", fault, lambda: cached.write(name, content))
        elif how == "reader":
            done = self.changing(
                [name], "write_stream", fault, lambda: cast(Any, cached).write(name, io.BytesIO(content))
            )
        elif how == "writer":
            done = self.changing([name], "open", "none", lambda: self.write_by_writer(name, cache, content))
        elif how == "replace" and self.present(name) is not None:
            etag = str(self.memory.stat(name).etag)
            done = self.changing([name], "replace", fault, lambda: cached.replace(name, content, etag))
        else:
            self.changing([name], "create", fault, lambda: cached.create(name, content))
            return
        if done:
            assert self.memory.read(name) == content

    @rule(how=st.sampled_from(["delete", "copy", "move"]), name=names, other=names, cache=which, fault=fault)
    def rearrange(self, how: str, name: str, other: str, cache: int, fault: Fault) -> None:
        cached = self.caches[cache]
        self.number += 1
        if how == "copy":
            self.changing([name], "copy", fault, lambda: cached.copy(other, name))
        elif how == "move":
            self.changing([other, name], "move", fault, lambda: cached.move(other, name))
        elif self.changing([name], "delete", fault, lambda: cached.delete(name)):
            assert self.present(name) is None

    def write_by_writer(self, name: str, cache: int, content: bytes) -> None:
        with self.caches[cache].open(name, "wb") as writer:
            writer.write(content)
            # Not published yet: the old one, and what may be cached of it, is what is read.
            self.read("read", name, cache, False)

    @rule(items=st.lists(st.tuples(names, sizes), max_size=4), cache=which, fault=fault, delete=st.booleans())
    def change_many(self, items: list[tuple[str, int]], cache: int, fault: Fault, delete: bool) -> None:
        cached = self.caches[cache]
        contents = [(name, self.new(size)) for name, size in items]
        changed = [name for name, _ in items]
        if delete:
            self.changing(changed, "delete_many", fault, lambda: cached.delete_many(changed))
        elif self.changing(changed, "write_many", fault, lambda: cached.write_many(contents)):
            for name, content in dict(contents).items():
                assert self.memory.read(name) == content

    # What others do, and what happens to the cache.

    @rule(name=names, size=sizes)
    def change_outside(self, name: str, size: int) -> None:
        self.memory.write(name, self.new(size))
        self.look(name)

    @rule(name=names)
    def lose_outside(self, name: str) -> None:
        if self.present(name) is not None:
            self.memory.delete(name)
            self.look(name)

    @rule(seconds=st.sampled_from([0.25, 4.75, 5, 10, 10.5, 30]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(
        name=names,
        size=sizes,
        cache=which,
        seconds=st.sampled_from([0, 4.75, 5, 10, 10.5, 11.5, 12, 14, 17, 17.5, 20]),
        how=st.sampled_from(["read", "open", "range"]),
        failing=failing,
    )
    def change_outside_and_look_later(
        self, name: str, size: int, cache: int, seconds: float, how: str, failing: bool
    ) -> None:
        self.read(how, name, cache, False)
        self.wait(0.25)
        self.change_outside(name, size)
        self.wait(seconds)
        self.read(how, name, 1 - cache, failing)

    @rule(name=names, cache=which, how=st.sampled_from(["invalidate", "clear", "reopen"]))
    def forget(self, name: str, cache: int, how: str) -> None:
        cached = self.caches[cache]
        if how == "reopen":
            cached.close()
            self.caches[cache] = self.open()
        elif how == "invalidate":
            cached.invalidate(name)
            self.seen_to(name)
        else:
            cached.clear_cache()
            assert blobs(self.directory / "cache") == []
            for every in NAMES:
                self.seen_to(every)

    @rule(pick=st.integers(0, 100), harm=st.sampled_from(["cut", "remove", "garbage"]))
    def damage_a_blob(self, pick: int, harm: str) -> None:
        found = blobs(self.directory / "cache")
        if not found:
            return
        path = found[pick % len(found)]
        if harm == "remove":
            path.unlink()
        elif harm == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.write_bytes(b"garbage")
        self.caches[0].check_cache()

    @rule()
    def lose_the_index(self) -> None:
        with suppress(FileNotFoundError):
            (self.directory / "cache/index.db").unlink()

    @invariant()
    def the_limit_is_kept(self) -> None:
        if hasattr(self, "limit") and self.limit is not None:
            assert content_bytes(self.directory / "cache") <= self.limit

    @invariant()
    def the_model_knows_the_backend(self) -> None:
        if hasattr(self, "history"):
            for name in NAMES:
                assert self.history[name][-1].content == self.present(name)


TestModel = pytest.mark.thorough(CacheMachine.TestCase)
TestModel.settings = settings(
    max_examples=300 if Tier.soak else 25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
