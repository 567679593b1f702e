"""RemoteStorage in several processes and threads: forks, pickles, Ctrl-C, and what is left when it is closed or collected."""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.tiers import few

pytest.importorskip("paramiko")

from storage_backend import ConfigurationError, RemoteStorage
from storage_backend.testing.subject import same
from tests.ssh_pairs import Pair, pair

if TYPE_CHECKING:
    from tests.ssh_servers import SSHPlace

MIB = 1 << 20
PATIENCE = 120  # seconds; only a hang takes so long


@pytest.fixture
def ways(openssh_place: SSHPlace) -> Iterator[Pair]:
    with pair(openssh_place) as both:
        yield both


def content_of(size: int, seed: str = "") -> bytes:
    return hashlib.shake_256(f"{seed}{size}".encode()).digest(size)


def in_child(work: Callable[[], object], ending: Literal["_exit", "exit"] = "_exit") -> int:
    """The exit code of a forked child that does *work*; 0 if that was well."""
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)  # what hangs is ended, and shows where
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - shown, and told by the code
            traceback.print_exc()
        finally:
            if ending == "_exit":
                os._exit(code)
        sys.exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class TestFork:
    def test_idle_connection_serves_the_parent_and_not_the_child(self, ways: Pair) -> None:
        with ways.storage() as storage:
            storage.write("a", b"1")

            def work() -> None:
                assert storage.read("a") == b"1"
                storage.write("b", b"child")
                storage.close()

            assert in_child(work) == 0
            assert storage.read("b") == b"child"
            assert ways.first.accepted == 2

    def test_read_that_is_half_done_goes_on_in_both(self, ways: Pair) -> None:
        content = content_of(24 * MIB)
        (ways.place.local / "a").write_bytes(content)
        with ways.storage() as storage, storage.open("a") as stream:
            head = stream.read(3 * MIB)

            def work() -> None:
                assert same(head + stream.read(), content)
                stream.close()
                assert storage.exists("a")

            assert in_child(work) == 0
            assert same(head + stream.read(), content)
            assert ways.first.accepted == 2

    @pytest.mark.soak
    def test_read_on_a_connection_that_was_left_goes_on_in_both(self, ways: Pair) -> None:
        """The link knows another connection by then, and the stream alone has this one."""
        content = content_of(24 * MIB)
        (ways.place.local / "a").write_bytes(content)
        ways.first.refuse()
        with ways.storage() as storage, storage.open("a") as stream:
            head = stream.read(3 * MIB)
            ways.first.heal()
            storage.check_connection()
            assert ways.port_in_use(storage) == "first"

            def work() -> None:
                assert same(head + stream.read(), content)
                stream.close()
                gc.collect()

            assert in_child(work) == 0
            assert same(head + stream.read(), content)

    @pytest.mark.soak
    def test_child_forked_while_others_send_is_not_held_up(self, ways: Pair) -> None:
        """The locks that other threads hold at that moment stay locked in the child."""
        content = content_of(4 * MIB)
        (ways.place.local / "a").write_bytes(content)
        stop = threading.Event()
        failures: list[BaseException] = []

        def keep_on(storage: RemoteStorage, number: int) -> None:
            try:
                while not stop.is_set():
                    storage.write(f"{number}", content[:100_000])
                    assert same(storage.read(f"{number}"), content[:100_000])
            except BaseException as error:  # noqa: BLE001 - shown by the test
                failures.append(error)

        with ways.storage() as storage:
            threads = [threading.Thread(target=keep_on, args=(storage, number)) for number in range(4)]
            for thread in threads:
                thread.start()
            try:
                with storage.open("a") as stream:
                    head = stream.read(70_000)

                    def work() -> None:
                        assert same(head + stream.read(), content)
                        stream.close()
                        assert storage.read("a") == content

                    for _ in range(8):
                        assert in_child(work) == 0
                    assert same(head + stream.read(), content)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            assert failures == []
            assert ways.first.accepted == 9

    @pytest.mark.soak
    def test_write_that_is_half_done_ends_in_the_parent(self, ways: Pair) -> None:
        content = content_of(12 * MIB)
        with ways.storage() as storage:
            stream = storage.open("a", "wb")
            stream.write(content[: 5 * MIB])

            def work() -> None:
                nonlocal stream
                del stream
                gc.collect()
                storage.write("b", b"child")

            assert in_child(work) == 0
            stream.write(content[5 * MIB :])
            stream.close()
            assert same(storage.read("a"), content)
            assert storage.read("b") == b"child"

    @pytest.mark.parametrize("ending", ["_exit", "exit"])
    @pytest.mark.parametrize("used", few([True, False], 1))
    def test_exit_of_a_child_says_nothing_on_the_parents_connection(
        self, ways: Pair, ending: str, used: bool
    ) -> None:
        program = """
            import os, sys, hashlib
            storage = RemoteStorage(config, base)
            stream = storage.open("a")
            found = hashlib.sha256(stream.read(3 << 20))
            unfinished = storage.open("b", "wb")
            unfinished.write(bytes(1 << 20))
            if os.fork() == 0:
                if used:
                    assert storage.exists("a")
                os._exit(0) if ending == "_exit" else sys.exit(0)
            pid, status = os.wait()
            assert status == 0, status
            found.update(stream.read())
            unfinished.close()
            assert storage.size("b") == 1 << 20
            print(found.hexdigest())
        """
        content = content_of(24 * MIB)
        (ways.place.local / "a").write_bytes(content)
        ended = run(ways, program, ending=ending, used=used)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.strip() == hashlib.sha256(content).hexdigest()
        assert ended.stderr == ""
        assert ways.first.accepted == 1 + used

    @pytest.mark.soak
    def test_many_children_at_once(self, ways: Pair) -> None:
        with ways.storage() as storage:
            storage.write("a", b"1")
            with multiprocessing.get_context("fork").Pool(4, _inherit, (storage,)) as pool:
                assert pool.map(_use_inherited, range(40)) == [True] * 40
                storage.write("a", b"2")
                pool.close()
                pool.join()
            assert storage.list() == sorted(["a", *map(str, range(40))])


_inherited: list[RemoteStorage] = []


def _inherit(storage: RemoteStorage) -> None:
    _inherited[:] = [storage]


def _use_inherited(number: int) -> bool:
    (storage,) = _inherited
    storage.write(str(number), b"x")
    return storage.exists(str(number))


def _prologue(ways: Pair, **names: Any) -> str:
    names |= {"config": ways.config(), "base": ways.place.base}
    lines = [f"{name} = {value!r}" for name, value in names.items()]
    return "\n".join(["from storage_backend.backends.remote.storage import RemoteStorage", *lines, ""])


def _dedented(program: str) -> str:
    import textwrap

    return textwrap.dedent(program)


def run(ways: Pair, program: str, **names: Any) -> subprocess.CompletedProcess[str]:
    """Run *program* as a process of its own, with `config`, `base` and *names* defined."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", _prologue(ways, **names) + _dedented(program)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def _read_pickled(pickled: bytes, identifier: str) -> bytes:
    with pickle.loads(pickled) as storage:
        found: bytes = storage.read(identifier)
        return found


class TestPickle:
    def test_spawned_child_reads_by_it(self, ways: Pair) -> None:
        with ways.storage() as storage:
            storage.write("a", b"1")
            pickled = pickle.dumps(storage)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                assert pool.apply(_read_pickled, (pickled, "a")) == b"1"
            assert storage.read("a") == b"1"

    @pytest.mark.parametrize("key", ["password", "passphrase"])
    def test_literal_secret_is_not_pickled(self, ways: Pair, key: str) -> None:
        with ways.storage(**{key: "hunter2"}) as storage, pytest.raises(ConfigurationError, match="env:"):
            pickle.dumps(storage)

    def test_secret_by_name_is_found_in_the_spawned_child(
        self, ways: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from tests.ssh_servers import OpenSSH, make_key

        key = make_key(tmp_path, passphrase="open sesame")
        server = OpenSSH(data=ways.place.local, authorized=[key])
        try:
            monkeypatch.setenv("SB_TEST_PASSPHRASE", "open sesame")
            config: Any = {
                **ways.place.config(),
                "endpoints": [[server.host, server.port]],
                "known_hosts": server.known_hosts,
                "key_filename": str(key),
                "passphrase": "env:SB_TEST_PASSPHRASE",
            }
            with RemoteStorage(config, server.base) as storage:
                storage.write("a", b"1")
                pickled = pickle.dumps(storage)
            assert b"sesame" not in pickled
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                assert pool.apply(_read_pickled, (pickled, "a")) == b"1"
        finally:
            server.stop()


class TestThreads:
    @pytest.mark.soak
    def test_hundred_threads_use_one_connection(self, ways: Pair) -> None:
        begun = threading.Barrier(100)

        def work(number: int) -> bool:
            begun.wait()
            for step in range(10):
                content = content_of(1 + 997 * step, f"{number}")
                storage.write(f"{number}/{step}", content)
                assert same(storage.read(f"{number}/{step}"), content)
            return True

        with ways.storage() as storage, ThreadPoolExecutor(100) as pool:
            assert all(pool.map(work, range(100)))
            assert len(storage.list()) == 1000
            assert ways.first.accepted == 1


class TestInterrupted:
    @pytest.mark.parametrize(
        "verb", few(["upload", "write_many", "read", "write_stream", "download", "scan"], 1)
    )
    def test_interrupted_transfer_ends_and_leaves_but_temporary_names(
        self, ways: Pair, verb: str, tmp_path: Path
    ) -> None:
        """Ctrl-C comes once the transfer is known to be under way, from within it or by what arrived."""
        program = """
            import io, os, signal, sys, threading, pathlib
            signal.signal(signal.SIGINT, signal.default_int_handler)
            storage = RemoteStorage(config, base)
            path = pathlib.Path(directory) / "file"
            def interrupt():
                os.kill(os.getpid(), signal.SIGINT)
            class Endless(io.RawIOBase):
                given = 0
                def readable(self): return True
                def readinto(self, buffer):
                    self.given += len(buffer)
                    if self.given > 20 << 20: interrupt()
                    buffer[:] = bytes(len(buffer))
                    return len(buffer)
            def items():
                for number in range(100000):
                    if number == 2000: interrupt()
                    yield str(number), b"x"
            def watch(place, name):
                while True:
                    for found in pathlib.Path(place).glob(".~sb-*"):
                        if found.stat().st_size > 16 << 20:
                            return interrupt()
            print("ready", flush=True)
            if verb in ("upload", "download"):
                place = base if verb == "upload" else directory
                threading.Thread(target=watch, args=(place, verb), daemon=True).start()
            if verb == "upload": storage.upload(path, "a")
            if verb == "write_stream": storage.write_stream("a", Endless())
            if verb == "download": storage.download("big", pathlib.Path(directory) / "new")
            if verb == "read":
                with storage.open("big") as stream:
                    while stream.read(1 << 20):
                        if stream.tell() == 8 << 20: interrupt()
            if verb == "write_many": storage.write_many(items())
            if verb == "scan":
                for info in storage.scan(): interrupt()
            print("not interrupted")
        """
        size = 1 << 30
        for place in (tmp_path / "file", ways.place.local / "big"):
            with place.open("wb") as file:
                file.truncate(size)
        (ways.place.local / "a").write_bytes(b"old")
        ended = run(ways, program, verb=verb, directory=str(tmp_path))
        assert ended.returncode == -signal.SIGINT, ended.stderr
        assert ended.stdout == "ready\n"
        assert ended.stderr.rstrip().endswith("KeyboardInterrupt"), ended.stderr
        assert (ways.place.local / "a").read_bytes() == b"old"
        assert not (tmp_path / "new").exists()
        with ways.direct() as storage:
            if verb == "write_many":
                assert {storage.size(name) for name in storage.list("[0-9]*")} == {1}
            else:
                assert storage.list() == ["a", "big"]
            storage.cleanup(0)
        assert ways.temporary() == []


class TestEnd:
    def test_closed_storage_connects_again(self, ways: Pair) -> None:
        storage = ways.storage()
        for number in range(3):
            storage.write("a", str(number).encode())
            storage.close()
            storage.close()
        assert storage.read("a") == b"2"
        storage.close()
        assert ways.first.accepted == 4

    @pytest.mark.soak
    @pytest.mark.parametrize("collected", few([True, False], 1))
    def test_threads_and_descriptors_end_with_it(self, ways: Pair, collected: bool) -> None:
        def use() -> None:
            storage = ways.storage()
            storage.write("a", b"1")
            assert list(storage.scan())
            stream = storage.open("a")
            stream.read(1)
            if not collected:
                stream.close()
                storage.close()

        others = set(threading.enumerate())  # servers of other tests live in this process, too
        use()
        gc.collect()
        before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0  # noqa: PTH208 - names are not needed
        for _ in range(20):
            use()
        gc.collect()
        for thread in set(threading.enumerate()) - others:
            thread.join(PATIENCE)
        assert set(threading.enumerate()) <= others
        if sys.platform == "linux":
            assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208 - as above

    def test_failed_write_leaves_nothing_before_the_next_operation(self, ways: Pair) -> None:
        class Failing:
            given = 0

            def read(self, size: int = -1) -> bytes:
                self.given += 1
                if self.given == 20:
                    raise ValueError("the source fails")
                return bytes(MIB)

        with ways.storage() as storage:
            source: Any = Failing()
            with pytest.raises(ValueError, match="the source fails"):
                storage.write_stream("a", source)
            # By the shell, which knows nothing of what waits to be sent by SFTP.
            assert storage.list() == []
            assert ways.temporary() == []
            stream = storage.open("b", "wb")
            stream.write(bytes(MIB))
            del stream
            gc.collect()
            assert not storage.exists("b")
            assert ways.temporary() == []


AT_THE_END = """
import atexit, json, sys, threading
from storage_backend import LocalStorage, MemoryStorage, RemoteStorage, migrate, sync

config, base, local = json.loads(sys.argv[1])

def work(name):
    items = {f"{name}/{number}": b"%d" % number for number in range(200)}
    with RemoteStorage(config, base) as backend:
        assert backend.write_many(items.items()) == 200
        assert dict(backend.read_many(items)) == items
        source = MemoryStorage()
        source.write_many(items.items())
        assert migrate(source, backend, journal=f"{local}/{name}.journal").verified == 200
        assert sync(backend, LocalStorage(f"{local}/{name}")).copied == len(backend.list())
    print(name, flush=True)

def outlive():
    threading.main_thread().join()
    work("thread")

atexit.register(work, "exit")
threading.Thread(target=outlive).start()
"""


def test_batches_and_transfers_work_while_the_interpreter_ends(
    openssh_place: SSHPlace, tmp_path: Path
) -> None:
    arguments = json.dumps([openssh_place.config(), openssh_place.base, str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END, arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.stdout, done.stderr) == ("thread\nexit\n", "")


def test_work_is_done_by_the_caller_where_no_thread_can_be_had(
    openssh_place: SSHPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = {f"{number}": b"%d" % number for number in range(1200)}
    config: Any = openssh_place.config()
    with RemoteStorage(config, openssh_place.base) as backend:
        backend.write_many([(f"first/{name}", content) for name, content in list(items.items())[:200]])
        start = threading.Thread.start

        def refused(thread: threading.Thread) -> None:
            if thread.name in {"storage-backend-tar-upload", "storage-backend-tar-download"}:
                raise RuntimeError("can't create new thread at interpreter shutdown")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refused)
        assert backend.write_many(items.items()) == len(items)
        assert dict(backend.read_many(items)) == items
