"""Threads, pickles, and child processes."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from storage_backend.base import StorageBackend
from storage_backend.testing.subject import Subject, Topic, content_of, everything, fill, named, same
from storage_backend.testing.topics.replacing import PATIENCE, THREADS, close_race, together

FORKS = 5  # amid busy threads


class Threads(Topic):
    """One instance, many threads."""

    def test_threads_work_side_by_side(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("threads")

        def work(thread: int) -> int:
            done = 0
            for number in range(12):
                mine, copy = f"{thread}/{number}", f"{thread}/copy/{number}"
                content = content_of(1000 + thread * 100 + number)
                backend.write(mine, content)
                assert same(backend.read(mine), content)
                backend.copy(mine, copy)
                with backend.open(copy) as reader:
                    assert same(reader.read(), content)
                assert backend.stat(copy).size == len(content)
                assert mine in backend.list(f"{thread}/*" if subject.has("globs") else None)
                backend.move(copy, f"{thread}/moved/{number}")
                assert backend.exists(copy) is False
                if number % 2:
                    backend.delete(mine)
                done += 1
            return done

        with close_race():
            answers = together([lambda thread=thread: work(thread) for thread in range(THREADS)])  # type: ignore[misc] # a default binds the loop's name
        assert answers == [12] * THREADS
        assert len(backend.list()) == THREADS * (6 + 12)

    def test_one_of_many_deletions_finds_the_object(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("threads")
        subject.require("missing delete")
        for _ in range(5):
            fill(backend, "a", "b")
            answers = together([lambda: backend.delete("a")] * THREADS)
            losers = [answer for answer in answers if isinstance(answer, FileNotFoundError)]
            winners = len(answers) - len(losers)
            assert answers.count(True) == winners >= 1, answers
            assert winners == 1 or not subject.has("one deleter"), answers
            assert backend.list() == ["b"]

    def test_listing_holds_while_others_write(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("threads")
        staying = [f"stay/{number:02}" for number in range(10)]
        fill(backend, *staying)
        stop = threading.Event()
        written = 0

        def come_and_go() -> int:
            nonlocal written
            while not stop.is_set():
                fill(backend, f"go/{written % 5}")
                backend.delete(f"go/{written % 5}")
                written += 1
            return written

        def listing() -> int:
            try:
                for number in range(1, 10_000):
                    found = [info.identifier for info in backend.scan()]
                    assert [name for name in found if name.startswith("stay/")] == staying
                    assert len(set(found)) == len(found)
                    if number >= 40 and written >= 40:
                        return number
                return 0
            finally:
                stop.set()

        with close_race():
            answers = together([come_and_go, listing])
        assert all(isinstance(answer, int) and answer >= 40 for answer in answers), answers


class Pickling(Topic):
    """A pickle holds the configuration; its copy works."""

    def test_pickled_instance_works(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("pickle")
        fill(backend, "a/b")
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            with pickle.loads(pickle.dumps(backend, protocol)) as copy:
                assert type(copy) is type(backend)
                assert copy.location == backend.location
                assert copy.read("a/b") == named("a/b")
                fill(copy, f"c{protocol}")
                assert copy.exists(f"c{protocol}") is True
                assert backend.exists(f"c{protocol}") is subject.has("shared")
        fill(backend, "still works")

    def test_closed_instance_pickles(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("pickle")
        fill(backend, "a")
        backend.close()
        with pickle.loads(pickle.dumps(backend)) as copy:
            assert copy.read("a") == named("a")

    def test_unused_instance_pickles(self, subject: Subject) -> None:
        subject.require("pickle")
        with pickle.loads(pickle.dumps(subject.make())) as copy:
            assert copy.list() == []


class Processes(Topic):
    """Forked and spawned children."""

    def test_forked_child_can_use_it(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("fork")
        shared = subject.has("shared") and subject.has("processes")
        backend.write("parent", content_of(3 << 20))
        with backend.open("parent") as reader:
            started = reader.read(10)

            def child() -> None:
                assert same(backend.read("parent"), content_of(3 << 20))
                fill(backend, "child", "parent")
                backend.delete("parent")
                assert everything(backend) == {"child": named("child")}
                backend.close()

            in_child(child)
            in_child(lambda: fill(backend, "second child"))
            # The parent's session still works, for open readers and for new requests.
            if not shared:
                assert same(started + reader.read(), content_of(3 << 20))
        fill(backend, "parent too")
        expected = {"parent": content_of(3 << 20)}
        if shared:
            expected = {name: named(name) for name in ("child", "second child")}
        assert everything(backend) == {**expected, "parent too": named("parent too")}

    def test_parent_stream_survives_a_child(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("fork")
        content = content_of(9 << 20)
        backend.write("a", content)
        with backend.open("a") as reader, backend.open("b", "wb") as writer:
            head = reader.read(100_000)
            writer.write(b"half ")

            def child() -> None:
                assert same(backend.read("a"), content)
                # A child that exits normally collects inherited objects; that must not damage the parent's.
                gc.collect()

            in_child(child)
            assert same(head + reader.read(), content)
            writer.write(b"whole")
        assert backend.read("b") == b"half whole"

    def test_fork_amid_busy_threads(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("fork")
        subject.require("threads")
        fill(backend, "a")
        stop = threading.Event()
        done = 0

        def busy() -> int:
            nonlocal done
            while not stop.is_set():
                fill(backend, "busy")
                backend.read("a")
                done += 1
            return done

        def child() -> None:
            assert backend.read("a") == named("a")
            fill(backend, "child")
            assert "child" in backend.list()

        def forks() -> int:
            try:
                for _ in range(FORKS):
                    in_child(child)
                return FORKS
            finally:
                stop.set()

        with close_race():
            answers = together([busy, forks])
        assert answers[1] == FORKS, answers
        assert answers[0] >= FORKS, answers
        assert backend.read("a") == named("a")

    def test_spawned_child_can_use_it(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("pickle")
        subject.require("processes")
        fill(backend, "parent")
        in_spawned(_use, backend)
        assert backend.exists("child") is subject.has("shared")
        fill(backend, "parent")

    def test_child_that_ends_in_the_ordinary_way_hurts_nothing(
        self, subject: Subject, backend: StorageBackend
    ) -> None:
        subject.require("pickle")
        subject.require("processes")
        subject.require("fork")
        in_spawned(_fork_and_go_on, backend)
        if subject.has("shared"):
            assert same(everything(backend), {"a": content_of(3 << 20), "b": b"half whole"})


def _use(backend: StorageBackend) -> None:
    """In a spawned child: use the unpickled backend."""
    assert backend.read("parent") == named("parent")
    fill(backend, "child")
    assert backend.read("child") == named("child")
    backend.close()


def _fork_and_go_on(backend: StorageBackend) -> None:
    """In a spawned child: fork a child that runs all finalisers, then finish the reads that were begun."""
    backend.write("a", content_of(3 << 20))
    with backend.open("a") as reader, backend.open("b", "wb") as writer:
        head = reader.read(100_000)
        writer.write(b"half ")
        pid = fork()
        if pid == 0:
            raise SystemExit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert same(head + reader.read(), content_of(3 << 20))
        writer.write(b"whole")
    assert backend.read("b") == b"half whole"


def in_spawned(work: Callable[[StorageBackend], object], backend: StorageBackend) -> None:
    """Run *work* with a pickled copy of *backend* in a process that inherits nothing, and fail if it does."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_spawned, args=(theirs, work, backend))
    with ours, plain_main():
        child.start()
        theirs.close()
        answer = ours.recv() if ours.poll(PATIENCE) else "it did not answer"
    child.join(PATIENCE)
    if child.is_alive():
        child.kill()
    assert answer == "done"
    assert child.exitcode == 0


def _spawned(answers: Connection, work: Callable[[StorageBackend], object], backend: StorageBackend) -> None:
    try:
        work(backend)
    except SystemExit:
        raise  # in a grandchild; its parent reports the result
    except BaseException:
        answers.send(traceback.format_exc())
        raise
    answers.send("done")


@contextlib.contextmanager
def plain_main() -> Iterator[None]:
    """Keep a spawned child from importing the test runner again."""
    main = sys.modules["__main__"]
    saved = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    try:
        for name in saved:
            setattr(main, name, None)
        yield
    finally:
        for name, value in saved.items():
            setattr(main, name, value)


def fork() -> int:
    """`os.fork` without Python's warning about threads: users' programs do this, so it is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(work: Callable[[], object]) -> None:
    """Run *work* in a forked child that ends by `os._exit`, and fail if it fails; if it hangs, print its stacks."""
    ours, theirs = os.pipe()
    # Before the fork: a child may hang in the fork handlers of other libraries.
    faulthandler.register(_TELL, file=theirs)
    pid = fork()
    if pid == 0:
        status = 1
        try:
            os.close(ours)
            work()
            os.write(theirs, b"done")
            status = 0
        except BaseException:  # noqa: BLE001 - reported to the parent; the child must not continue as a second test session
            os.write(theirs, traceback.format_exc().encode("utf-8", "backslashreplace")[-60_000:])
        finally:
            os._exit(status)
    faulthandler.unregister(_TELL)
    os.close(theirs)
    try:
        told, ended = _heard(ours, PATIENCE / 2)
        if not ended:
            os.kill(pid, _TELL)
            told += b"the child hangs:\n" + _heard(ours, PATIENCE / 12)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.close(ours)
        os.waitpid(pid, 0)
    if told != b"done":
        raise AssertionError(f"in a forked child: {told.decode('utf-8', 'replace') or 'it died'}")


_TELL = signal.SIGUSR1
"""The signal on which a child prints its stacks."""


def _heard(source: int, patience: float) -> tuple[bytes, bool]:
    """The bytes of a pipe until *patience* seconds pass without any, and whether its end was reached."""
    told = b""
    readable = select.poll()
    readable.register(source, select.POLLIN)
    while readable.poll(patience * 1000):
        chunk = os.read(source, 65_536)
        if not chunk:
            return told, True
        told += chunk
    return told, False
